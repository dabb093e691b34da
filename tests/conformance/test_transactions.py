"""What of a turn is kept together, and what is undone together?"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import ObjectReset, StatementRefused
from actors.runtime.namespace import Stub
from actors.testing import Lab
from tests.conformance.classes import Desk
from tests.conformance.support import outcomes_of
from tests.objects import Refusal


class Transactions:
    """Everywhere."""

    @pytest.mark.parametrize(
        ("undo", "left"),
        [
            ("nothing", ["a", "b", "c", "c end", "b end", "a end", "a", "b", "c"]),
            ("c", ["a", "b", "c undone", "b end", "a end", "a", "b"]),
            ("b", ["a", "b undone", "a end", "a"]),
            ("a", ["a undone"]),
        ],
    )
    async def test_a_nested_transaction_takes_those_within_it_along(
        self, desk: Stub[Desk], undo: str, left: list[str]
    ) -> None:
        assert await desk.nest("a", "b", "c", undo=undo) == left
        assert [*await desk.lines(), *await desk.kv("list")] == left

    async def test_transactions_nest_deeply(self, desk: Stub[Desk]) -> None:
        names = [str(number) for number in range(50)]
        await desk.nest(*names, undo="25")
        assert sorted(await desk.kv("list"), key=int) == names[:25]

    async def test_an_async_turn_that_raises_undoes_its_last_step_only(self, desk: Stub[Desk]) -> None:
        with pytest.raises(Refusal):
            await desk.steps_and_raise("first", "second", "third", "with the third")
        assert await desk.lines() == ["first", "second"]

    async def test_statements_and_values_are_undone_together(self, desk: Stub[Desk]) -> None:
        await desk.kv("put", "k", "kept")
        with pytest.raises(Refusal):
            await desk.kv_and_raise({"k": "lost", "l": "lost"})
        assert await desk.kv("list") == {"k": "kept"}

    async def test_a_turn_sees_what_it_wrote(self, desk: Stub[Desk]) -> None:
        assert await desk.nest("a", undo="nothing") == ["a", "a end", "a"]

    async def test_a_failed_turn_is_not_seen_by_those_that_share_its_transaction(self, desk: Stub[Desk]) -> None:
        outcomes = await outcomes_of(
            desk.add("a"), desk.lines(), desk.kv_and_raise({"k": 1}), desk.kv("list"), desk.add("b"), desk.lines()
        )
        assert outcomes[1] == ["a"]
        assert outcomes[3] == {}
        assert outcomes[5] == ["a", "b"]

    @pytest.mark.parametrize(
        "statement", ["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT mine", "RELEASE mine", "END", "ROLLBACK TO mine"]
    )
    async def test_transactions_are_the_runtimes(self, desk: Stub[Desk], statement: str) -> None:
        with pytest.raises(StatementRefused):
            await desk.run(statement)
        assert await desk.add("goes on") == 1

    async def test_what_ends_the_transaction_behind_the_runtimes_back_is_not_acknowledged(
        self, desk: Stub[Desk]
    ) -> None:
        await desk.add("kept")
        before, ended = await outcomes_of(desk.add("lost"), desk.roll_back_by_conflict_and_go_on("lost"))
        assert isinstance(ended, ObjectReset)
        assert await desk.lines() == (["kept"] if isinstance(before, ObjectReset) else ["kept", "lost"])


class TestTransactions(Transactions):
    """In process."""

    async def test_what_is_written_between_two_awaits_is_one_commit(self, lab: Lab, tmp_path: Path) -> None:
        desk = lab.get(Desk, "acme", "d")
        await desk.add("x")
        lab.crash_in_next_commit(desk)
        with pytest.raises(ObjectReset):
            await desk.steps_and_raise("never", "kept", "at all")
        assert await desk.lines() == ["x"]
        turn = asyncio.ensure_future(desk.add_around_gate("y", tmp_path / "gate"))
        query = "SELECT text FROM line"
        while lab.sql(desk, query) != [("x",), ("y before",)]:
            await asyncio.sleep(0)
        lab.crash()
        (tmp_path / "gate").touch()
        with pytest.raises(ObjectReset):
            await turn
        assert await desk.lines() == ["x", "y before"]

    async def test_turns_that_wait_together_are_one_commit(self, lab: Lab, request: pytest.FixtureRequest) -> None:
        desk = lab.get(Desk, "acme", "d")
        lab.fail_next_commit(desk)
        outcomes = await outcomes_of(*[desk.add(str(number)) for number in range(10)])
        failed = [isinstance(outcome, ObjectReset) for outcome in outcomes]
        # Those that hibernate after each turn share nothing.
        assert failed == ([True] + [False] * 9 if "hibernating" in request.node.name else [True] * 10)

    async def test_a_committed_turn_is_there_whatever_the_next_one_does(self, lab: Lab) -> None:
        desk = lab.get(Desk, "acme", "d")
        await desk.add("a")
        spoil: list[Any] = [lab.fail_next_commit, lab.crash_in_next_commit]
        for each in spoil:
            each(desk)
            with pytest.raises(ObjectReset):
                await desk.add("lost")
            assert await desk.lines() == ["a"]
