"""When may a turn start, and when may a reply, or a call to another object, leave?"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import ObjectReset
from actors.runtime.call import unpack
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.testing import Lab
from tests.conformance.classes import STORAGE_WRITES, Desk, desk_with
from tests.conformance.support import FAR_S, WAIT_S, call_of, outcomes_of, ticks
from tests.objects import Refusal

LINES = "SELECT text FROM line ORDER BY number"


@pytest.fixture
def other(lab: Lab) -> Stub[Desk]:
    return lab.get(Desk, "acme", "other")


def durable(lab: Lab, stub: Stub[Any]) -> list[str]:
    return [text for (text,) in lab.sql(stub, LINES)] if lab.exists(stub) else []


class TestOutputGate:
    """Nothing that a turn has to say leaves before what it wrote is durable."""

    async def test_a_reply_waits_while_the_gate_is_held_and_later_turns_run(self, lab: Lab, desk: Stub[Desk]) -> None:
        with lab.hold_replies(desk):
            first = asyncio.ensure_future(desk.add("a"))
            await ticks()
            second = asyncio.ensure_future(desk.add_in_steps("b", "c"))
            await ticks()
            assert durable(lab, desk) == ["a", "b", "c"]
            assert not first.done()
            assert not second.done()
        assert await first == 1
        assert await second == [2, 3]

    async def test_replies_that_were_held_leave_in_the_order_of_their_turns(self, lab: Lab, desk: Stub[Desk]) -> None:
        order: list[int] = []
        with lab.hold_replies(desk):
            calls = []
            for number in range(20):
                call = asyncio.ensure_future(desk.add(str(number)))
                call.add_done_callback(partial(lambda number, _: order.append(number), number))
                calls.append(call)
                await asyncio.sleep(0)
            await ticks()
            assert order == []
        assert await asyncio.gather(*calls) == list(range(1, 21))
        assert order == list(range(20))

    async def test_an_error_waits_as_a_reply_does(self, lab: Lab, desk: Stub[Desk]) -> None:
        with lab.hold_replies(desk):
            plain = asyncio.ensure_future(desk.add_and_raise("x", Refusal("no", 1)))
            later = asyncio.ensure_future(desk.steps_and_raise("a", "b", "c"))
            await ticks()
            assert not plain.done()
            assert not later.done()
        assert [type(outcome) for outcome in await outcomes_of(plain, later)] == [Refusal, Refusal]

    async def test_a_gate_held_twice_opens_when_both_let_go(self, lab: Lab, desk: Stub[Desk]) -> None:
        with lab.hold_replies(desk):
            with lab.hold_replies(desk):
                call = asyncio.ensure_future(desk.add("x"))
                await ticks()
            await ticks()
            assert not call.done()
        assert await call == 1

    async def test_the_gate_of_one_object_holds_no_other(self, lab: Lab, desk: Stub[Desk], other: Stub[Desk]) -> None:
        with lab.hold_replies(desk):
            held = asyncio.ensure_future(desk.add("x"))
            assert await other.add("y") == 1
            assert not held.done()
        await held

    async def test_a_call_to_another_object_waits_while_the_gate_is_held(
        self, lab: Lab, desk: Stub[Desk], other: Stub[Desk]
    ) -> None:
        with lab.hold_replies(desk):
            call = asyncio.ensure_future(desk.tell("other", "x"))
            await ticks()
            assert durable(lab, desk) == ["telling x"]
            assert durable(lab, other) == []
        assert await call == 1
        assert durable(lab, other) == ["x"]

    async def test_a_call_leaves_when_what_its_caller_wrote_is_durable(self, settings: dict[str, Any]) -> None:
        seen: list[list[str]] = []

        def add(self: Desk, text: str) -> int:
            if self.id.name == "other":
                seen.append(durable(lab, lab.get(Desk, "acme", "d")))
            return Desk.add(self, text)

        desk_class = desk_with(Desk.alarm, add=add)
        async with Lab([desk_class], settings=HostSettings(**settings)) as lab:
            await lab.get(desk_class, "acme", "d").tell("other", "x")
            await lab.get(desk_class, "acme", "d").tell_all(["other"] * 2, "y")
        assert seen == [["telling x"]] * 3

    async def test_a_failed_commit_tells_its_callers_and_not_those_before(self, lab: Lab, desk: Stub[Desk]) -> None:
        with lab.hold_replies(desk):
            before = asyncio.ensure_future(desk.add("durable"))
            await ticks()
            lab.fail_next_commit(desk)
            lost = [asyncio.ensure_future(desk.add("lost")), asyncio.ensure_future(desk.lines())]
            await ticks()
            after = asyncio.ensure_future(desk.add("after"))
            await ticks()
        outcomes = await outcomes_of(before, *lost, after)
        assert outcomes[0] == 1
        assert isinstance(outcomes[1], ObjectReset)
        assert outcomes[1].retryable
        assert outcomes[3] == 2
        assert await desk.lines() == ["durable", "after"]

    async def test_a_call_of_a_step_whose_commit_failed_never_leaves(
        self, lab: Lab, desk: Stub[Desk], other: Stub[Desk]
    ) -> None:
        lab.fail_next_commit(desk)
        with pytest.raises(ObjectReset):
            await desk.tell("other", "never")
        await ticks()
        assert durable(lab, other) == []
        assert durable(lab, desk) == []

    async def test_calls_of_several_at_once_in_a_step_whose_commit_failed_never_leave(
        self, lab: Lab, desk: Stub[Desk], other: Stub[Desk]
    ) -> None:
        lab.fail_next_commit(desk)
        with pytest.raises(ObjectReset):
            await desk.tell_all(["other", "third"], "never")
        await ticks()
        assert durable(lab, other) == []

    @pytest.mark.parametrize("awaits", [0, 5])
    async def test_what_a_turn_had_started_calls_nobody_when_it_is_not_kept(
        self, settings: dict[str, Any], awaits: int
    ) -> None:
        started: list[asyncio.Task[Any]] = []

        async def start_something(self: Desk) -> None:
            async def something() -> None:
                for _ in range(awaits):
                    await asyncio.sleep(0)
                await self.other("other").add("never")

            started.append(asyncio.create_task(something()))
            self.add("never")

        desk_class = desk_with(Desk.alarm, start_something=start_something)
        async with Lab([desk_class], settings=HostSettings(**settings)) as lab:
            desk, other = lab.get(desk_class, "acme", "d"), lab.get(desk_class, "acme", "other")
            lab.fail_next_commit(desk)
            with pytest.raises(ObjectReset):
                await desk.start_something()
            with pytest.raises(ObjectReset, match="what its caller had written was not kept"):
                await started[0]
            assert await other.lines() == []
            await desk.start_something()
            await started[1]
            assert await other.lines() == ["never"]  # and if it is kept, it does

    async def test_what_waits_at_the_gate_when_the_commit_of_a_later_step_fails_calls_nobody(
        self, settings: dict[str, Any]
    ) -> None:
        calls: list[asyncio.Task[Any]] = []

        async def begin(self: Desk) -> None:
            async def tell() -> None:
                await self.other("other").add("never")

            calls.append(asyncio.create_task(tell()))
            for _ in range(5):
                await asyncio.sleep(0)
            lab.fail_next_commit(desk)
            self.add("lost")

        desk_class = desk_with(Desk.alarm, begin=begin)
        async with Lab([desk_class], settings=HostSettings(**settings)) as lab:
            desk, other = lab.get(desk_class, "acme", "d"), lab.get(desk_class, "acme", "other")
            with lab.hold_replies(desk), pytest.raises(ObjectReset):
                await desk.begin()
            assert isinstance((await outcomes_of(calls[0]))[0], ObjectReset)
            assert await other.lines() == []

    @pytest.mark.parametrize("way", list(STORAGE_WRITES))
    @pytest.mark.parametrize("method", ["write", "write_and_wait"])
    async def test_no_way_of_writing_is_told_of_before_it_is_durable(
        self, lab: Lab, desk: Stub[Desk], way: str, method: str
    ) -> None:
        await desk.add("kept")
        await desk.kv("put", "k", "kept")
        at = await desk.set_alarm_in(FAR_S)
        lab.fail_next_commit(desk)
        with pytest.raises(ObjectReset):
            await getattr(desk, method)(way)
        assert [await desk.lines(), await desk.kv("list"), await desk.alarm_at()] == [["kept"], {"k": "kept"}, at]

    async def test_a_failed_step_leaves_those_before_it(self, lab: Lab, desk: Stub[Desk], tmp_path: Path) -> None:
        turn = asyncio.ensure_future(desk.add_around_gate("x", tmp_path / "gate"))
        while durable(lab, desk) != ["x before"]:
            await asyncio.sleep(0)
        lab.fail_next_commit(desk)
        (tmp_path / "gate").touch()
        with pytest.raises(ObjectReset):
            await turn
        assert await desk.lines() == ["x before"]
        assert await desk.add("goes on") == 2

    async def test_a_turn_that_a_failed_commit_ends_before_its_first_step_holds_up_nobody(
        self, lab: Lab, desk: Stub[Desk], tmp_path: Path
    ) -> None:
        lab.fail_next_commit(desk)
        ended = await outcomes_of(desk.wait_between("lost", tmp_path / "gate"), desk.add_in_steps("never"))
        assert [type(outcome) for outcome in ended] == [ObjectReset, ObjectReset]
        assert await asyncio.wait_for(desk.add("after"), WAIT_S) == 1
        lab.evict(desk)

    @pytest.mark.parametrize("reached_disk", [False, True])
    async def test_after_a_failed_commit_the_object_is_what_the_disk_says(
        self, lab: Lab, desk: Stub[Desk], reached_disk: bool
    ) -> None:
        await desk.put("k", "old")
        for number in range(3):
            lab.fail_next_commit(desk, reached_disk=reached_disk)
            with pytest.raises(ObjectReset):  # sent once: a stub would repeat it
                unpack(await lab.send(desk.id, call_of(desk, "put", "k", f"new {number}")))
            assert await desk.get("k") == (f"new {number}" if reached_disk else "old")

    async def test_a_commit_that_fails_fails_for_those_who_only_read_too(self, lab: Lab, desk: Stub[Desk]) -> None:
        await desk.add("a")
        lab.fail_next_commit(desk)
        sent = [lab.send(desk.id, call_of(desk, method)) for method in ("lines", "notes")]
        first, _ = await asyncio.gather(*sent)
        with pytest.raises(ObjectReset):
            unpack(first)

    async def test_an_object_with_replies_that_are_held_is_not_evicted(self, lab: Lab, desk: Stub[Desk]) -> None:
        with lab.hold_replies(desk):
            call = asyncio.ensure_future(desk.add("x"))
            await ticks()
            lab.clock.advance(1000)
            assert lab._running.host.sweep() == 0
            assert lab._running.host.idle_for_s == 0.0
        assert await call == 1

    async def test_a_crash_while_replies_are_held_leaves_what_was_durable_and_tells_no_lie(
        self, lab: Lab, desk: Stub[Desk]
    ) -> None:
        with lab.hold_replies(desk):
            plain, once = asyncio.ensure_future(desk.add("a")), asyncio.ensure_future(desk.append("b"))
            await ticks()
            lab.crash()
        assert isinstance((await outcomes_of(plain))[0], ObjectReset)
        assert await once == 2
        assert await desk.lines() == ["a", "b"]


class TestInputGate:
    """No turn starts or goes on while the storage of its object is in doubt, or the object wants to be alone."""

    async def test_no_turn_starts_while_the_gate_is_held(self, lab: Lab, desk: Stub[Desk]) -> None:
        with lab.hold_turns(desk):
            calls = [
                asyncio.ensure_future(call)
                for call in (desk.add("a"), desk.add_in_steps("b"), desk.peek(), desk.add("c"))
            ]
            await ticks()
            assert durable(lab, desk) == []
            assert not any(call.done() for call in calls)
        added, in_steps, peeked, last = await asyncio.gather(*calls)
        assert (added, in_steps, last) == (1, [2], 3)
        assert peeked in (["a"], ["a", "b"])

    async def test_a_turn_under_way_does_not_go_on_while_the_gate_is_held(
        self, lab: Lab, desk: Stub[Desk], tmp_path: Path
    ) -> None:
        (tmp_path / "gate").touch()
        turn = asyncio.ensure_future(desk.add_in_steps("a", "b"))
        while durable(lab, desk) != ["a"]:
            await asyncio.sleep(0)
        with lab.hold_turns(desk):
            await ticks()
            assert durable(lab, desk) == ["a"]
            assert not turn.done()
        assert await turn == [1, 2]

    async def test_an_alarm_waits_while_the_gate_is_held(self, lab: Lab, desk: Stub[Desk]) -> None:
        await desk.set_alarm_in(1)
        with lab.hold_turns(desk):
            time = asyncio.ensure_future(lab.advance(1))
            await ticks()
            assert not time.done()
        await time
        assert len(await desk.runs()) == 1

    async def test_the_gate_of_one_object_stops_no_other(self, lab: Lab, desk: Stub[Desk], other: Stub[Desk]) -> None:
        with lab.hold_turns(desk):
            stopped = asyncio.ensure_future(desk.add("x"))
            assert await other.add("y") == 1
            assert not stopped.done()
        assert await stopped == 1
