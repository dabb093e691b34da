"""When is an object woken, and what if its handler, its disk or its host fails?"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import AlarmInfo, InvalidArgument, ObjectOverloaded, ObjectReset
from actors.runtime.alarms import entry_of
from actors.runtime.host import ALARMS_SWEPT_EVERY_S, HostSettings
from actors.runtime.namespace import Stub
from actors.runtime.turn import CALL_TIMEOUT_S
from actors.testing import Lab
from tests.conformance.classes import Desk, NoAlarms, desk_with
from tests.conformance.support import Backend, Eventually, outcomes_of, ticks
from tests.objects import Refusal

FAR_S = 5_000.0


class Alarms:
    """Everywhere."""

    @pytest.fixture
    def desk(self, backend: Backend) -> Stub[Desk]:
        return backend.namespace(Desk).get("acme", f"d-{secrets.token_hex(6)}")

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


@pytest.fixture
def desk(lab: Lab) -> Stub[Desk]:
    return lab.get(Desk, "acme", "d")


@pytest.fixture
def entries(tmp_path: Path) -> Callable[[], list[tuple[str, float]]]:
    """What the index of alarms in `tmp_path` says on disk."""

    def entries() -> list[tuple[str, float]]:
        found = [entry_of(path.name) for path in (tmp_path / "data" / "objects").rglob("*.a*")]
        return sorted(entry for entry in found if entry is not None)

    return entries


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
        await lab.advance(ALARMS_SWEPT_EVERY_S - 11)
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


class TestFailingHandler:
    """How often is a handler tried, and what does not count?"""

    @pytest.fixture
    def told(self) -> list[AlarmInfo]:
        return []

    def lab_of(self, alarm: Callable[..., Any], settings: dict[str, Any], **options: Any) -> tuple[Lab, type[Desk]]:
        desk_class = desk_with(alarm)
        return Lab([desk_class], settings=HostSettings(**settings), **options), desk_class

    @pytest.mark.parametrize("chance", [0.0, 1.0])
    async def test_it_is_tried_again_after_2_4_8_16_32_and_64_seconds_and_given_up(
        self, told: list[AlarmInfo], settings: dict[str, Any], chance: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        at: list[float] = []

        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            at.append(self.clock.now())
            self.add("undone")
            raise Refusal("never", 1)

        lab, desk_class = self.lab_of(alarm, settings, chance=lambda: chance)
        async with lab:
            desk = lab.get(desk_class, "acme", "d")
            scheduled_at = await desk.set_alarm_in(10)
            await lab.advance(FAR_S)
            pauses = [later - earlier for earlier, later in pairwise(at)]
            spread = 1.25 if chance else 1.0
            assert pauses == pytest.approx([spread * pause for pause in (2, 4, 8, 16, 32, 64)])
            assert [info.retry_count for info in told] == list(range(7))
            assert {info.scheduled_at for info in told} == {scheduled_at}
            assert lab.alarm_of(desk) is None
            assert await desk.lines() == []
        assert "alarm given up after 6 retries" in caplog.text

    async def test_retries_go_on_where_they_were_after_a_crash(
        self, told: list[AlarmInfo], settings: dict[str, Any]
    ) -> None:
        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            raise Refusal("never", 1)

        lab, desk_class = self.lab_of(alarm, settings)
        async with lab:
            await lab.get(desk_class, "acme", "d").set_alarm_in(10)
            for _ in range(100):
                lab.crash()
                await lab.advance(1.5)
        assert [info.retry_count for info in told] == list(range(7))

    async def test_one_that_succeeds_in_the_end_is_not_tried_again(
        self, told: list[AlarmInfo], settings: dict[str, Any]
    ) -> None:
        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            if info.retry_count < 6:
                raise Refusal("not yet", 1)
            self.add("at last")

        lab, desk_class = self.lab_of(alarm, settings)
        async with lab:
            desk = lab.get(desk_class, "acme", "d")
            await desk.set_alarm_in(10)
            await lab.advance(FAR_S)
            assert len(told) == 7
            assert await desk.lines() == ["at last"]

    async def test_an_alarm_that_it_set_in_the_step_that_failed_is_undone_and_the_old_one_tried_again(
        self, told: list[AlarmInfo], settings: dict[str, Any]
    ) -> None:
        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            self.storage.set_alarm(self.clock.now() + 1000)
            if not info.is_retry:
                raise Refusal("no", 1)

        lab, desk_class = self.lab_of(alarm, settings)
        async with lab:
            desk = lab.get(desk_class, "acme", "d")
            at = await desk.set_alarm_in(10)
            await lab.advance(10)
            assert lab.alarm_of(desk) == at + 2
            await lab.advance(2)
            assert [info.retry_count for info in told] == [0, 1]
            assert lab.alarm_of(desk) == at + 1002

    async def test_an_alarm_that_it_set_before_it_failed_takes_the_place_of_the_retry(
        self, told: list[AlarmInfo], settings: dict[str, Any]
    ) -> None:
        async def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            if len(told) == 1:
                self.storage.set_alarm(self.clock.now() + 100)
                await asyncio.sleep(0)
                raise Refusal("no", 1)

        lab, desk_class = self.lab_of(alarm, settings)
        async with lab:
            desk = lab.get(desk_class, "acme", "d")
            at = await desk.set_alarm_in(10)
            await lab.advance(50)
            assert len(told) == 1
            assert lab.alarm_of(desk) == at + 100
            await lab.advance(FAR_S)
            assert told[1:] == [AlarmInfo(scheduled_at=at + 100, retry_count=0)]

    async def test_one_that_it_deleted_before_it_failed_is_not_tried_again(
        self, told: list[AlarmInfo], settings: dict[str, Any]
    ) -> None:
        async def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            self.storage.delete_alarm()
            await asyncio.sleep(0)
            raise Refusal("no", 1)

        lab, desk_class = self.lab_of(alarm, settings)
        async with lab:
            desk = lab.get(desk_class, "acme", "d")
            await desk.set_alarm_in(10)
            await lab.advance(FAR_S)
            assert len(told) == 1
            assert lab.alarm_of(desk) is None

    async def test_a_failed_commit_of_its_writes_does_not_count(
        self, told: list[AlarmInfo], settings: dict[str, Any]
    ) -> None:
        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            self.add("x")

        lab, desk_class = self.lab_of(alarm, settings)
        async with lab:
            desk = lab.get(desk_class, "acme", "d")
            at = await desk.set_alarm_in(10)
            for failures in range(1, 12):
                lab.fail_next_commit(desk)
                await lab.advance(10 if failures == 1 else 2 ** min(failures - 1, 10))
                assert len(told) == failures
            assert lab.alarm_of(desk) == at
            await lab.advance(1024)
            assert {info.retry_count for info in told} == {0}
            assert await desk.lines() == ["x"]
            assert lab.alarm_of(desk) is None

    async def test_a_commit_that_failed_after_it_reached_the_disk_is_not_run_again(
        self, told: list[AlarmInfo], settings: dict[str, Any]
    ) -> None:
        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            self.add("x")

        lab, desk_class = self.lab_of(alarm, settings)
        async with lab:
            desk = lab.get(desk_class, "acme", "d")
            await desk.set_alarm_in(10)
            lab.fail_next_commit(desk, reached_disk=True)
            await lab.advance(FAR_S)
            assert len(told) == 1
            assert await desk.lines() == ["x"]

    async def test_what_another_object_could_not_do_now_does_not_count(
        self, told: list[AlarmInfo], settings: dict[str, Any]
    ) -> None:
        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            if len(told) < 12:
                raise ObjectOverloaded("Desk/acme:other", "1000 calls are waiting", 1.0)

        lab, desk_class = self.lab_of(alarm, settings)
        async with lab:
            desk = lab.get(desk_class, "acme", "d")
            at = await desk.set_alarm_in(10)
            await lab.advance(2000)
            assert 6 < len(told) < 12
            assert lab.alarm_of(desk) == at
            await lab.advance(3000)
            assert [info.retry_count for info in told] == [0] * 12
            assert lab.alarm_of(desk) is None

    async def test_a_lost_host_does_not_count(self, told: list[AlarmInfo], settings: dict[str, Any]) -> None:
        async def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            if len(told) <= 8:
                lab.crash_in_next_commit(desk, reached_disk=True)
            self.add("first step")
            await asyncio.sleep(0)
            self.add("second step")

        lab, desk_class = self.lab_of(alarm, settings)
        async with lab:
            desk = lab.get(desk_class, "acme", "d")
            await desk.set_alarm_in(10)
            await lab.advance(10)
            assert [info.retry_count for info in told] == [0] * 9
            assert await desk.lines() == [*["first step"] * 9, "second step"]

    async def test_a_start_that_fails_puts_the_alarm_off_and_does_not_count(
        self, told: list[AlarmInfo], settings: dict[str, Any], is_async: bool
    ) -> None:
        fails = [False]

        def start(self: Desk) -> None:
            if fails[0]:
                raise Refusal("not in the mood", 1)

        async def start_later(self: Desk) -> None:
            await asyncio.sleep(0)
            start(self)

        desk_class = desk_with(lambda self, info: told.append(info), start=start_later if is_async else start)
        async with Lab([desk_class], settings=HostSettings(**settings)) as lab:
            desk = lab.get(desk_class, "acme", "d")
            at = await desk.set_alarm_in(10)
            lab.evict(desk)
            fails[0] = True
            await lab.advance(10 + 2 + 4 + 7)  # the next try is after 8
            fails[0] = False
            assert told == []
            assert await desk.alarm_at() == at  # a call of somebody's works again
            await lab.advance(1)
            assert told == [AlarmInfo(scheduled_at=at, retry_count=0)]

    @pytest.fixture(params=[False, True], ids=["plain", "async"])
    def is_async(self, request: pytest.FixtureRequest) -> bool:
        return bool(request.param)

    @pytest.mark.parametrize("fails_by", ["raising", "failed commit"])
    async def test_a_turn_that_fails_while_the_handler_waits_has_it_run_no_second_time(
        self, told: list[AlarmInfo], settings: dict[str, Any], tmp_path: Path, fails_by: str
    ) -> None:
        async def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            await self._gate(tmp_path / "gate")
            self.add("over")

        lab, desk_class = self.lab_of(alarm, settings)
        async with lab:
            desk = lab.get(desk_class, "acme", "d")
            await desk.set_alarm_in(10)
            time = asyncio.ensure_future(lab.advance(FAR_S))
            await ticks()
            if fails_by == "raising":
                failed = await outcomes_of(desk.add_between_and_raise("x"))
            else:
                lab.fail_next_commit(desk)
                failed = await outcomes_of(desk.add_between("x"))
            assert isinstance(failed[0], Refusal if fails_by == "raising" else ObjectReset)
            (tmp_path / "gate").touch()
            await time
            # What had no commit of its own any more could not end, and is the runtime's to try again.
            assert [info.retry_count for info in told] == ([0] if fails_by == "raising" else [0, 0])
            assert await desk.lines() == ["over"]

    async def test_a_handler_that_takes_its_time_may_call_others_all_the_same(self, settings: dict[str, Any]) -> None:
        async def alarm(self: Desk, info: AlarmInfo) -> None:
            lab.clock.advance(CALL_TIMEOUT_S + 1)  # nobody waits for it
            await self.tell("other", "x")

        lab, desk_class = self.lab_of(alarm, settings)
        async with lab:
            await lab.get(desk_class, "acme", "d").set_alarm_in(10)
            await lab.advance(10)
            assert await lab.get(desk_class, "acme", "other").lines() == ["x"]

    async def test_an_alarm_set_by_a_turn_while_the_handler_waits_is_kept(
        self, told: list[AlarmInfo], settings: dict[str, Any], tmp_path: Path
    ) -> None:
        async def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            await self._gate(tmp_path / "gate")

        desk_class = desk_with(alarm)

        async with Lab([desk_class], settings=HostSettings(**settings)) as lab:
            desk = lab.get(desk_class, "acme", "d")
            await desk.set_alarm_in(10)
            time = asyncio.ensure_future(lab.advance(10))
            await ticks()
            assert await desk.alarm_between(lab.clock.now() + 100) is None
            (tmp_path / "gate").touch()
            await time
            assert lab.alarm_of(desk) == lab.clock.now() + 100
            await lab.advance(100)
            assert len(told) == 2


#: Seconds from now, of the alarm there is and the one that is to be.
CHANGES: dict[str, tuple[float | None, float | None]] = {
    "set": (None, 100.0),
    "set in the past": (None, -100.0),
    "move earlier": (200.0, 100.0),
    "move later": (100.0, 200.0),
    "set to the same": (100.0, 100.0),
    "take back": (100.0, None),
    "erase": (100.0, None),
}


class TestCrashes:
    """Is an alarm lost, or fired too soon, by a crash at any moment?"""

    @staticmethod
    async def change(desk: Stub[Desk], what: str, at: float | None) -> None:
        if what == "erase":
            await desk.erase()
        elif at is None:
            await desk.delete_alarm()
        else:
            await desk.set_alarm_in(at)

    @pytest.mark.parametrize("how", ["crash", "failed commit"])
    @pytest.mark.parametrize("reached_disk", [False, True])
    @pytest.mark.parametrize("what", list(CHANGES))
    async def test_the_alarm_is_what_was_committed_whenever_a_change_of_it_is_cut_off(
        self,
        tmp_path: Path,
        settings: dict[str, Any],
        entries: Callable[[], list[tuple[str, float]]],
        what: str,
        reached_disk: bool,
        how: str,
    ) -> None:
        before, after = CHANGES[what]
        async with Lab([Desk], data_dir=tmp_path / "data", settings=HostSettings(**settings)) as lab:
            desk = lab.get(Desk, "acme", "d")
            await desk.add("x")
            start = lab.clock.now()
            if before is not None:
                await desk.set_alarm_in(before)
            spoil = lab.crash_in_next_commit if how == "crash" else lab.fail_next_commit
            spoil(desk, reached_disk=reached_disk)
            with pytest.raises(ObjectReset):
                await self.change(desk, what, after)
            expected = after if reached_disk else before
            assert lab.alarm_of(desk) == (None if expected is None else start + expected)
            if expected is not None:
                # The index may say too soon, and never too late.
                assert min(at for _, at in entries()) <= start + expected
                await lab.advance(max(0.0, expected) - 0.001 if expected > 0 else 0.0)
                assert len(await desk.runs()) == (1 if expected < 0 else 0)
            await lab.advance(FAR_S)
            assert len(await desk.runs()) == (expected is not None)
            assert entries() == []

    @pytest.mark.parametrize("what", list(CHANGES))
    async def test_the_alarm_is_what_is_in_the_object_whatever_the_index_says(
        self,
        tmp_path: Path,
        settings: dict[str, Any],
        entries: Callable[[], list[tuple[str, float]]],
        what: str,
    ) -> None:
        before, after = CHANGES[what]
        async with Lab([Desk], data_dir=tmp_path / "data", settings=HostSettings(**settings)) as lab:
            desk = lab.get(Desk, "acme", "d")
            await desk.add("x")
            if before is not None:
                await desk.set_alarm_in(before)
            await self.change(desk, what, after)
            # A crash in the middle of the index's own work: two entries of one object, and one of nobody.
            for each in (desk, lab.get(Desk, "acme", "nobody")):
                path = each.id.path(tmp_path / "data" / "objects", settings["slots"])
                path.parent.mkdir(parents=True, exist_ok=True)
                (path.parent / f"{each.id.stem}.a{int((lab.clock.now() + 5) * 1000)}").touch()
            lab.crash()
            await lab.advance(6)
            assert len(await desk.runs()) == (what == "set in the past")
            await lab.advance(FAR_S)
            assert len(await desk.runs()) == (after is not None)
            assert entries() == []

    async def test_each_change_leaves_one_entry_and_the_end_none(
        self, tmp_path: Path, settings: dict[str, Any], entries: Callable[[], list[tuple[str, float]]]
    ) -> None:
        async with Lab([Desk], data_dir=tmp_path / "data", settings=HostSettings(**settings)) as lab:
            desk = lab.get(Desk, "acme", "d")
            for seconds in (100.0, 50.0, 200.0, 200.0):
                at = await desk.set_alarm_in(seconds)
                assert entries() == [(desk.id.stem, at)]
            await desk.delete_alarm()
            assert entries() == []
            await desk.set_alarm_in(10)
            await desk.erase()
            assert entries() == []
            await desk.set_alarm_in(10)
            await lab.advance(10)
            assert entries() == []

    async def test_the_entry_of_any_millisecond_is_found_and_removed_after_a_restart(
        self, tmp_path: Path, settings: dict[str, Any], entries: Callable[[], list[tuple[str, float]]]
    ) -> None:
        # Some whole numbers are not the same when divided by 1000 and multiplied again.
        now_ms = 8_796_080_000_000
        odd_ms = [ms for ms in range(now_ms, now_ms + 100) if math.floor(ms / 1000 * 1000) != ms]
        assert odd_ms
        lab = Lab([Desk], data_dir=tmp_path / "data", settings=HostSettings(**settings), now=now_ms / 1000 - 1)
        async with lab:
            desks = [lab.get(Desk, "acme", str(ms)) for ms in odd_ms]
            for desk, ms in zip(desks, odd_ms, strict=True):
                await desk.set_alarm_at((ms + 0.5) / 1000)
            lab.crash()
            taken_back, fired = desks[::2], desks[1::2]
            for desk in taken_back:
                await desk.delete_alarm()
            assert len(entries()) == len(fired)
            await lab.advance(FAR_S)
            assert [len(await desk.runs()) for desk in fired] == [1] * len(fired)
            assert entries() == []

    async def test_an_alarm_that_can_not_be_indexed_is_not_acknowledged(
        self, lab: Lab, desk: Stub[Desk], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await desk.add("kept")
        at = await desk.set_alarm_in(100)

        def refuse(*_: object) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(lab._running.host.alarms, "set", refuse)
            with pytest.raises(ObjectReset, match="set the alarm failed"):
                await desk.append_and_set_alarm("lost", at - 50)
            # Nothing is lost by an entry that comes too soon, though.
            assert await desk.append_and_set_alarm("kept, too", at + 50) == 2
        assert await desk.lines() == ["kept", "kept, too"]
        await lab.advance(149)
        assert await desk.runs() == []
        await lab.advance(1)
        assert len(await desk.runs()) == 1

    @pytest.mark.parametrize("reached_disk", [False, True])
    async def test_a_handlers_end_and_its_writes_are_one_commit(self, reached_disk: bool) -> None:
        told: list[AlarmInfo] = []

        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            self.add("x")

        desk_class = desk_with(alarm)
        async with Lab([desk_class]) as own:
            desk = own.get(desk_class, "acme", "d")
            await desk.set_alarm_in(10)
            own.crash_in_next_commit(desk, reached_disk=reached_disk)
            await own.advance(10)
            assert len(told) == (1 if reached_disk else 2)
            assert await desk.lines() == ["x"]

    async def test_an_alarm_of_an_object_whose_file_is_gone_is_dropped(
        self, tmp_path: Path, settings: dict[str, Any], entries: Callable[[], list[tuple[str, float]]]
    ) -> None:
        async with Lab([Desk], data_dir=tmp_path / "data", settings=HostSettings(**settings)) as lab:
            desk = lab.get(Desk, "acme", "d")
            await desk.set_alarm_in(10)
            lab.evict(desk)
            desk.id.path(tmp_path / "data" / "objects", settings["slots"]).unlink()
            await lab.advance(10)
            assert entries() == []
            assert not lab.exists(desk)
