"""When is an object woken?"""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import InvalidArgument
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.testing import Lab
from tests.conformance.classes import Desk, NoAlarms, desk_with
from tests.conformance.support import FAR_S, Backend, Eventually, outcomes_of, ticks
from tests.objects import Refusal


class Alarms:
    """Everywhere."""

    async def test_an_alarm_is_fired_without_a_call_and_told_what_it_was_set_for(
        self, desk: Stub[Desk], eventually: Eventually
    ) -> None:
        at = await desk.set_alarm_in(0.05)

        async def ran() -> bool:
            return bool(await desk.runs())

        await eventually(ran)
        assert await desk.runs() == [{"scheduled_at": at, "retry_count": 0, "saw": None}]
        assert await desk.alarm_at() is None

    async def test_an_alarm_in_the_past_is_fired_at_once(self, desk: Stub[Desk], eventually: Eventually) -> None:
        await desk.set_alarm_at(1.5)
        await desk.add("x")

        async def ran() -> bool:
            return [run["scheduled_at"] for run in await desk.runs()] == [1.5]

        await eventually(ran)

    async def test_an_object_has_one_alarm_and_the_last_one_set_is_it(
        self, desk: Stub[Desk], eventually: Eventually
    ) -> None:
        await desk.set_alarm_in(FAR_S)
        at = await desk.set_alarm_in(FAR_S + 1)
        assert await desk.alarm_at() == at
        at = await desk.set_alarm_in(0)

        async def ran() -> bool:
            return [run["scheduled_at"] for run in await desk.runs()] == [at]

        await eventually(ran)
        assert await desk.alarm_at() is None

    async def test_an_alarm_that_was_taken_back_is_not_fired(
        self, backend: Backend, desk: Stub[Desk], eventually: Eventually
    ) -> None:
        await desk.set_alarm_in(0.3)
        await desk.delete_alarm()
        assert await desk.alarm_at() is None
        witness = backend.namespace(Desk).get("acme", f"{desk.id.name}-w")
        await witness.set_alarm_in(0.4)

        async def witnessed() -> bool:
            return bool(await witness.runs())

        await eventually(witnessed)
        assert await desk.runs() == []

    async def test_a_turn_that_raises_changes_no_alarm(self, desk: Stub[Desk]) -> None:
        with pytest.raises(Refusal):
            await desk.set_alarm_and_raise(1.0)
        assert await desk.alarm_at() is None
        at = await desk.set_alarm_in(FAR_S)
        outcomes = await outcomes_of(desk.set_alarm_and_raise(1.0), desk.alarm_at(), desk.delete_alarm_and_raise())
        assert outcomes[1] == at
        assert await desk.alarm_at() == at
        assert await desk.runs() == []

    @pytest.mark.parametrize("within", ["storage", "sqlite_utils"])
    async def test_a_nested_transaction_that_is_undone_changes_no_alarm(
        self, desk: Stub[Desk], eventually: Eventually, within: str
    ) -> None:
        assert await desk.set_alarm_and_undo(1.0, within) is None
        at = await desk.set_alarm_in(FAR_S)
        assert await desk.set_alarm_and_undo(1.0, within) == at
        assert await desk.alarm_at() == at
        assert await desk.runs() == []

    async def test_a_handler_may_set_the_next_alarm(self, desk: Stub[Desk], eventually: Eventually) -> None:
        await desk.plan(again_in_s=0.0)
        await desk.set_alarm_in(0)

        async def ran_twice() -> bool:
            return len(await desk.runs()) >= 2

        await eventually(ran_twice)
        first, second = await desk.runs()
        assert second == {"scheduled_at": first["set"], "retry_count": 0, "saw": None}
        assert await desk.alarm_at() is None

    async def test_a_handler_that_raises_is_tried_again_after_two_seconds(
        self, desk: Stub[Desk], eventually: Eventually
    ) -> None:
        await desk.plan(failures=1)
        at = await desk.set_alarm_in(0)

        async def ran_twice() -> bool:
            return len(await desk.runs()) >= 2

        await eventually(ran_twice)
        assert [(run["scheduled_at"], run["retry_count"]) for run in await desk.runs()] == [(at, 0), (at, 1)]

    async def test_a_class_without_a_handler_can_set_no_alarm(self, backend: Backend) -> None:
        with pytest.raises(TypeError, match="has no method `alarm`"):
            await backend.namespace(NoAlarms).get("acme", "n").set_alarm()

    @pytest.mark.parametrize("at", [math.nan, math.inf, 1e10, True, "soon", None], ids=str)
    async def test_what_is_no_time_is_refused(self, desk: Stub[Desk], at: Any) -> None:
        with pytest.raises(InvalidArgument) as refused:
            await desk.set_alarm_at(at)
        assert refused.value.field == "at"
        assert await desk.alarm_at() is None

    async def test_delete_all_takes_the_alarm_with_it(self, desk: Stub[Desk]) -> None:
        await desk.set_alarm_in(FAR_S)
        await desk.erase()
        assert await desk.alarm_at() is None
        await desk.erase_and_set_alarm(1.0)
        assert await desk.alarm_at() is None
        assert await desk.runs() == []

    async def test_the_handler_is_not_for_stubs(self, desk: Stub[Desk]) -> None:
        with pytest.raises(AttributeError, match="alarm"):
            desk.alarm  # noqa: B018


class TestAlarms(Alarms):
    """In process."""


class TestTime:
    """When is a handler called?"""

    async def test_an_alarm_is_fired_at_its_time_and_not_before(self, lab: Lab, desk: Stub[Desk]) -> None:
        await desk.set_alarm_in(60)
        await lab.advance(59.999)
        assert await desk.runs() == []
        await lab.advance(0.001)
        assert len(await desk.runs()) == 1
        await lab.advance(FAR_S)
        assert len(await desk.runs()) == 1

    @pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.0005, 0.0009999])
    async def test_an_alarm_within_a_millisecond_is_not_fired_before_it(
        self, lab: Lab, desk: Stub[Desk], fraction: float
    ) -> None:
        at = await desk.set_alarm_in(60 + fraction)
        assert await desk.alarm_at() == at
        await lab.advance(60)
        assert len(await desk.runs()) == (0 if fraction else 1)
        await lab.advance(0.002)
        assert len(await desk.runs()) == 1

    async def test_a_hibernating_object_is_woken(self, lab: Lab, desk: Stub[Desk]) -> None:
        at = await desk.set_alarm_in(60)
        lab.evict(desk)
        await lab.advance(60)
        assert [run["scheduled_at"] for run in await desk.runs()] == [at]

    async def test_alarms_of_many_objects_are_fired_in_order_of_their_times(self, settings: dict[str, Any]) -> None:
        order: list[str] = []
        desk_class = desk_with(lambda self, info: order.append(self.id.name))
        async with Lab([desk_class], settings=HostSettings(**settings)) as lab:
            for number in (7, 3, 9, 1, 8, 0, 2, 6, 5, 4):
                await lab.get(desk_class, "acme", str(number)).set_alarm_in(10.0 + number)
            await lab.advance(15)
            assert order == ["0", "1", "2", "3", "4", "5"]
            lab.clock.advance(100)  # all at once
            await lab.advance(0)
            assert order == [str(number) for number in range(10)]

    async def test_one_that_was_moved_earlier_or_later_is_fired_then(self, lab: Lab, desk: Stub[Desk]) -> None:
        await desk.set_alarm_in(100)
        await desk.set_alarm_in(10)
        await lab.advance(10)
        assert len(await desk.runs()) == 1
        await desk.set_alarm_in(10)
        await desk.set_alarm_in(100)
        await lab.advance(99)
        assert len(await desk.runs()) == 1
        await lab.advance(1)
        assert len(await desk.runs()) == 2

    async def test_one_that_is_overdue_at_start_is_fired_then(self, lab: Lab, desk: Stub[Desk]) -> None:
        await desk.set_alarm_in(60)
        lab.clock.advance(FAR_S)  # with no host to notice
        lab.crash()
        await lab.advance(0)
        assert len(await desk.runs()) == 1

    async def test_one_that_nobody_remembers_is_found_by_the_sweep(self, lab: Lab, desk: Stub[Desk]) -> None:
        await desk.set_alarm_in(10)
        lab.clock.advance(10)
        assert lab._running.host.alarms.take_due(lab.clock.now(), 10)  # and drops it
        await lab.advance(49)  # a minute after its host had started, less one second
        assert await desk.runs() == []
        await lab.advance(1)
        assert len(await desk.runs()) == 1

    async def test_a_wall_clock_that_is_set_fires_what_is_due_then(self, lab: Lab, desk: Stub[Desk]) -> None:
        at = await desk.set_alarm_in(FAR_S)
        lab.clock.set_wall(at - 10)
        await lab.advance(9)
        assert await desk.runs() == []
        lab.clock.set_wall(at - FAR_S)  # back again
        await lab.advance(9)
        assert await desk.runs() == []
        lab.clock.set_wall(at + 1)
        await lab.advance(0)
        assert len(await desk.runs()) == 1

    async def test_a_turn_under_way_delays_the_alarm_of_its_object_only(
        self, lab: Lab, desk: Stub[Desk], tmp_path: Path
    ) -> None:
        gate = tmp_path / "gate"
        other = lab.get(Desk, "acme", "other")
        await desk.set_alarm_in(10)
        await other.set_alarm_in(11)
        turn = asyncio.ensure_future(desk.add_around_gate("x", gate))
        await ticks()
        time = asyncio.ensure_future(lab.advance(11))
        await ticks()
        assert not time.done()
        gate.touch()
        await time
        assert await turn == "x"
        assert [len(await each.runs()) for each in (desk, other)] == [1, 1]
