"""What of calls between objects?"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import CallCycle, ObjectOverloaded, ObjectReset
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.runtime.turn import current_turn
from actors.testing import Lab
from tests.conformance.classes import Desk, desk_with
from tests.conformance.support import Backend, outcomes_of, ticks, until


class Calls:
    """Everywhere."""

    @pytest.fixture
    def names(self) -> list[str]:
        prefix = secrets.token_hex(6)
        return [f"{prefix}-{number}" for number in range(4)]

    @pytest.fixture
    def desks(self, backend: Backend, names: list[str]) -> list[Stub[Desk]]:
        return [backend.namespace(Desk).get("acme", name) for name in names]

    async def test_an_object_calls_another_and_gets_its_reply(self, desks: list[Stub[Desk]], names: list[str]) -> None:
        assert await desks[0].tell(names[1], "x") == 1
        assert await desks[0].lines() == ["telling x"]
        assert await desks[1].lines() == ["x"]

    async def test_an_object_calls_many_at_once(self, desks: list[Stub[Desk]], names: list[str]) -> None:
        assert await desks[0].tell_all(names[1:], "x") == [1, 1, 1]
        assert await asyncio.gather(*[desk.lines() for desk in desks]) == [[], ["x"], ["x"], ["x"]]

    async def test_an_error_of_the_one_that_is_called_arrives_at_the_caller(
        self, desks: list[Stub[Desk]], names: list[str]
    ) -> None:
        assert await desks[0].have_raise(names[1]) == "told to 4"
        assert await desks[1].lines() == []

    @pytest.mark.parametrize("objects", [1, 2, 3])
    async def test_a_call_that_comes_back_to_one_that_waits_for_it_is_refused(
        self, desks: list[Stub[Desk]], names: list[str], objects: int
    ) -> None:
        circle = [*names[1:objects], names[0]]
        async with asyncio.timeout(10):
            with pytest.raises(CallCycle) as refused:
                await desks[0].go_round(circle, "lines")
        assert refused.value.object_key == str(desks[0].id)
        assert refused.value.chain == tuple(str(desk.id) for desk in desks[:objects])
        assert not refused.value.retryable
        assert await desks[0].add("goes on") == 1

    async def test_a_call_that_comes_back_to_an_interleaved_method_is_answered(
        self, desks: list[Stub[Desk]], names: list[str]
    ) -> None:
        await desks[0].add("x")
        assert await desks[0].go_round([names[1], names[0]], "peek") == ["x"]

    async def test_a_call_that_comes_back_to_one_whose_turn_others_interleave_with_is_answered(
        self, desks: list[Stub[Desk]], names: list[str]
    ) -> None:
        await desks[0].add("x")
        assert await desks[0].go_round_between([names[1], names[0]]) == ["x"]

    async def test_two_that_call_each_other_at_once_do_not_wait_for_ever(
        self, backend: Backend, names: list[str], tmp_path: Path
    ) -> None:
        first, second = [backend.namespace(Desk).get("acme", name, timeout_s=1.0) for name in names[:2]]
        begun = [tmp_path / "first", tmp_path / "second"]
        async with asyncio.timeout(10):  # they would have a minute without a deadline of their own
            outcomes = await outcomes_of(
                first.tell_once_begun(names[1], "x", *begun), second.tell_once_begun(names[0], "y", *reversed(begun))
            )
        # One waits for the other, and it for the one, each in a call of its own: a deadline ends it. What is let go by
        # that may be done in time yet.
        refused = [outcome for outcome in outcomes if isinstance(outcome, (ObjectReset, ObjectOverloaded))]
        assert refused
        assert [outcome for outcome in outcomes if outcome not in refused] in ([], [1])
        assert await backend.namespace(Desk).get("acme", names[0]).add("goes on") <= 2

    async def test_a_plain_method_calls_nobody(self, desks: list[Stub[Desk]], names: list[str]) -> None:
        with pytest.raises(TypeError, match="only async methods call other objects"):
            await desks[0].call_from_plain(names[1])
        assert await desks[1].lines() == []

    async def test_a_turn_calls_by_awaiting_and_not_by_reference(
        self, desks: list[Stub[Desk]], names: list[str]
    ) -> None:
        with pytest.raises(TypeError, match="await the method"):
            await desks[0].call_by_reference(names[1])
        assert await desks[1].lines() == []

    async def test_a_deadline_travels_with_the_call(
        self, backend: Backend, desks: list[Stub[Desk]], names: list[str], tmp_path: Path
    ) -> None:
        hurried = backend.namespace(Desk).get("acme", names[0], timeout_s=0.3)
        # The one in the middle would wait for a minute by itself.
        await outcomes_of(hurried.note_how_it_ended(names[1], tmp_path / "gate"))

        async def given_up() -> bool:
            return bool(await desks[0].lines() == ["ObjectReset"])

        await until(given_up)
        (tmp_path / "gate").touch()

        async def over() -> bool:
            return bool(await desks[1].lines() == ["waited before", "waited after"])

        await until(over)

    async def test_tenants_are_not_crossed_by_a_call(self, backend: Backend, names: list[str]) -> None:
        theirs = backend.namespace(Desk).get("demo", names[1])
        await theirs.add("theirs")
        assert await backend.namespace(Desk).get("acme", names[0]).tell(names[1], "x") == 1
        assert await theirs.lines() == ["theirs"]


class TestCalls(Calls):
    """In process."""


class TestDeadlines:
    """How long does a call have that an object makes?"""

    async def test_each_call_on_the_way_has_less_time_than_the_one_before(self, settings: dict[str, Any]) -> None:
        left_s: list[float] = []

        async def pass_on(self: Desk, names: list[str]) -> None:
            turn = current_turn.get()
            assert turn is not None
            left_s.append(turn.left_s)
            lab.clock.advance(1.0)
            if names:
                await self.other(names[0]).pass_on(names[1:])

        desk_class = desk_with(Desk.alarm, pass_on=pass_on)
        async with Lab([desk_class], settings=HostSettings(**settings)) as lab:
            await lab.get(desk_class, "acme", "a", timeout_s=10.0).pass_on(["b", "c", "d"])
            with pytest.raises(ObjectReset, match="the deadline of the call that led here has passed"):
                await lab.get(desk_class, "acme", "a", timeout_s=2.5).pass_on(["b", "c", "d"])
        assert left_s[:4] == pytest.approx([10, 9, 8, 7], abs=0.5)
        assert left_s[4:] == pytest.approx([2.5, 1.5, 0.5], abs=0.4)

    async def test_a_call_that_waited_until_its_deadline_is_not_run(self, lab: Lab, tmp_path: Path) -> None:
        desk, other = lab.get(Desk, "acme", "d", timeout_s=20.0), lab.get(Desk, "acme", "other")
        busy = asyncio.ensure_future(other.add_around_gate("busy", tmp_path / "gate"))
        await ticks()
        late = asyncio.ensure_future(desk.tell("other", "too late"))
        await ticks()
        lab.clock.advance(20.0)
        (tmp_path / "gate").touch()
        with pytest.raises(ObjectOverloaded, match="until its deadline had passed"):
            await late
        await busy
        assert await other.lines() == ["busy before", "busy after"]
