"""What does an author's mistake do to others?"""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.runtime import DurableObject, ObjectReset, exactly_once
from actors.runtime.backend_local import LocalBackend
from actors.runtime.namespace import Stub
from tests.conformance.support import outcomes_of
from tests.objects import Notebook
from tests.unit.object_runtime.backend import SETTINGS


class TestMisbehaviour:
    """What an author does wrong harms no other turn, and is never acknowledged."""

    async def test_an_async_turn_that_ends_its_transaction_harms_no_later_one(self, notebook: Stub[Notebook]) -> None:
        ended, after = await outcomes_of(notebook.roll_back_by_conflict_later("early"), notebook.add("after"))
        assert isinstance(ended, ObjectReset)
        assert after == 1

    @pytest.mark.parametrize("method", ["roll_back_by_conflict", "roll_back_by_conflict_and_go_on"])
    async def test_a_turn_that_ends_the_groups_transaction_is_not_acknowledged(
        self, notebook: Stub[Notebook], method: str
    ) -> None:
        before, early, after = await outcomes_of(
            notebook.add("before"), getattr(notebook, method)("early"), notebook.add("after")
        )
        assert isinstance(before, ObjectReset)
        assert isinstance(early, ObjectReset)
        assert after == 1
        assert await notebook.lines() == ["after"]

    async def test_a_turn_that_closes_the_database_resets_the_object(self, notebook: Stub[Notebook]) -> None:
        before, closed, after = await outcomes_of(
            notebook.add("before"), notebook.close_storage(), notebook.add("after")
        )
        assert isinstance(before, ObjectReset)
        assert isinstance(closed, ObjectReset)
        assert after == 1

    async def test_what_was_acknowledged_stays_when_a_turn_closes_the_database(self, notebook: Stub[Notebook]) -> None:
        await notebook.add("kept")
        with pytest.raises(ObjectReset):
            await notebook.close_storage()
        assert await notebook.lines() == ["kept"]

    async def test_two_classes_of_one_name_are_refused(self, data_dir: Path) -> None:
        impostor = type("Notebook", (DurableObject,), {})
        with pytest.raises(ValueError, match="two durable classes are named Notebook"):
            LocalBackend(data_dir, [Notebook, impostor], settings=SETTINGS)

    def test_an_async_method_cannot_be_exactly_once(self) -> None:
        async def method(self: DurableObject) -> None: ...

        with pytest.raises(TypeError, match="needs a plain def method"):
            exactly_once(method)
