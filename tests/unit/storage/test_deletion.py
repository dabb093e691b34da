"""What may a transaction do that deletes its object?"""

from __future__ import annotations

import pytest

from actors.runtime import StatementRefused
from actors.runtime.storage import Storage


def is_deleting(storage: Storage) -> bool:
    """Whether the transaction deletes the object, and an ordinary statement is refused as it has to be."""
    try:
        storage.sql("INSERT INTO thing (name) VALUES ('x')")
    except StatementRefused:
        return storage.delete_requested
    if storage.delete_requested:
        raise AssertionError("what would be lost was not refused")
    return False


def undo_around_a_block_that_deletes(storage: Storage) -> None:
    with storage.transaction():
        with storage.transaction():
            storage.delete_all()
        assert is_deleting(storage)
        raise ValueError("undo")


class TestDeletion:
    """Nothing that would be lost, unless the deletion is undone."""

    def test_all_else_is_refused_until_the_turn_is_undone(self, storage: Storage) -> None:
        storage.delete_all()
        storage.delete_all()
        assert is_deleting(storage)
        storage.rollback()
        storage.begin()
        assert not is_deleting(storage)

    def test_a_turn_of_a_group_that_is_undone_leaves_the_group_as_it_was(self, storage: Storage) -> None:
        storage.savepoint()
        storage.delete_all()
        storage.rollback_to_savepoint()
        assert not is_deleting(storage)

    def test_an_inner_block_that_is_left_well_undoes_nothing_and_an_outer_one_does(self, storage: Storage) -> None:
        with pytest.raises(ValueError, match="undo"):
            undo_around_a_block_that_deletes(storage)
        assert not is_deleting(storage)

    def test_a_block_that_had_ended_before_undoes_nothing(self, storage: Storage) -> None:
        with pytest.raises(ValueError, match="undo"), storage.transaction():
            raise ValueError("undo")
        storage.delete_all()
        assert is_deleting(storage)
        with pytest.raises(StatementRefused), storage.transaction():
            pass
        assert is_deleting(storage)

    @pytest.mark.parametrize("text", ["ROLLBACK TO SAVEPOINT mine", "ROLLBACK", "RELEASE SAVEPOINT x; SELECT 1"])
    def test_other_statements_do_not_undo_it(self, storage: Storage, text: str) -> None:
        storage.delete_all()
        with pytest.raises(StatementRefused, match="the object is deleted with this turn"):
            storage.sql(text)
        assert is_deleting(storage)

    def test_the_runtimes_own_statements_go_on(self, storage: Storage) -> None:
        storage.delete_all()
        storage.own_sql("INSERT INTO _mobula_requests VALUES ('r', x'00', x'00', 0)")
        storage.commit()
        assert storage.deleted
