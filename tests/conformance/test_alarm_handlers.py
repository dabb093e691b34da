"""What if an alarm's handler fails, or what it needs does?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from actors.runtime import AlarmInfo, ObjectOverloaded, ObjectReset
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.runtime.turn import CALL_TIMEOUT_S
from actors.testing import Lab
from tests.conformance.classes import Desk, desk_with
from tests.conformance.support import FAR_S, outcomes_of, ticks
from tests.objects import Refusal

#: Gives a block a lab, a desk whose handler is the test's own, and when its alarm is due: after 10 s.
Alarmed: TypeAlias = Callable[..., AbstractAsyncContextManager[tuple[Lab, Stub[Any], float]]]


@pytest.fixture
def alarmed(settings: dict[str, Any]) -> Alarmed:
    @asynccontextmanager
    async def alarmed(
        alarm: Callable[..., Any], *, chance: float = 0.0, **methods: Callable[..., Any]
    ) -> AsyncIterator[tuple[Lab, Stub[Any], float]]:
        desk_class = desk_with(alarm, **methods)
        async with Lab([desk_class], settings=HostSettings(**settings), chance=lambda: chance) as lab:
            desk = lab.get(Desk, "acme", "d")
            yield lab, desk, await desk.set_alarm_in(10)

    return alarmed


def writing_into(told: list[AlarmInfo]) -> Callable[[Desk, AlarmInfo], None]:
    """A handler that writes one line, and notes here that it ran."""

    def alarm(desk: Desk, info: AlarmInfo) -> None:
        told.append(info)
        desk.add("x")

    return alarm


class TestFailingHandler:
    """How often is a handler tried, and what does not count?"""

    @pytest.fixture
    def told(self) -> list[AlarmInfo]:
        return []

    async def test_one_that_takes_too_long_is_ended_and_counts_as_failed(
        self, alarmed: Alarmed, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        settings["alarm_timeout_s"] = 0.05
        tries: list[int] = []

        async def alarm(desk: Desk, info: AlarmInfo) -> None:
            tries.append(info.retry_count)
            desk.add("before")
            if len(tries) == 1:
                await asyncio.get_running_loop().create_future()

        async with alarmed(alarm) as (lab, desk, due_at):
            await lab.advance(10)
            assert lab.alarm_of(desk) == due_at + 2
            assert "no end within 0.05 s" in caplog.text
            await lab.advance(2)
            assert lab.alarm_of(desk) is None
            assert await desk.lines() == ["before", "before"]
        assert tries == [0, 1]

    async def test_so_is_one_that_would_go_on_after_its_cancellation(
        self, alarmed: Alarmed, settings: dict[str, Any]
    ) -> None:
        settings["alarm_timeout_s"] = 0.05

        async def alarm(desk: Desk, info: AlarmInfo) -> None:
            while not info.is_retry:
                with suppress(asyncio.CancelledError):
                    await asyncio.get_running_loop().create_future()
                desk.add("late")

        async with alarmed(alarm) as (lab, desk, due_at):
            await lab.advance(10)
            assert lab.alarm_of(desk) == due_at + 2
            assert await desk.lines() == []

    @pytest.mark.parametrize("chance", [0.0, 1.0])
    async def test_it_is_tried_again_after_2_4_8_16_32_and_64_seconds_and_given_up(
        self, told: list[AlarmInfo], alarmed: Alarmed, chance: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        at: list[float] = []

        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            at.append(self.clock.now())
            self.add("undone")
            raise Refusal("never", 1)

        async with alarmed(alarm, chance=chance) as (lab, desk, scheduled_at):
            await lab.advance(FAR_S)
            pauses = [later - earlier for earlier, later in pairwise(at)]
            spread = 1.25 if chance else 1.0
            assert pauses == pytest.approx([spread * pause for pause in (2, 4, 8, 16, 32, 64)])
            assert [info.retry_count for info in told] == list(range(7))
            assert {info.scheduled_at for info in told} == {scheduled_at}
            assert lab.alarm_of(desk) is None
            assert await desk.lines() == []
        assert "alarm given up after 6 retries" in caplog.text

    async def test_retries_go_on_where_they_were_after_a_crash(self, told: list[AlarmInfo], alarmed: Alarmed) -> None:
        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            raise Refusal("never", 1)

        async with alarmed(alarm) as (lab, *_):
            for _ in range(100):
                lab.crash()
                await lab.advance(1.5)
        assert [info.retry_count for info in told] == list(range(7))

    async def test_one_that_succeeds_in_the_end_is_not_tried_again(
        self, told: list[AlarmInfo], alarmed: Alarmed
    ) -> None:
        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            if info.retry_count < 6:
                raise Refusal("not yet", 1)
            self.add("at last")

        async with alarmed(alarm) as (lab, desk, _):
            await lab.advance(FAR_S)
            assert len(told) == 7
            assert await desk.lines() == ["at last"]

    async def test_an_alarm_that_it_set_in_the_step_that_failed_is_undone_and_the_old_one_tried_again(
        self, told: list[AlarmInfo], alarmed: Alarmed
    ) -> None:
        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            self.storage.set_alarm(self.clock.now() + 1000)
            if not info.is_retry:
                raise Refusal("no", 1)

        async with alarmed(alarm) as (lab, desk, at):
            await lab.advance(10)
            assert lab.alarm_of(desk) == at + 2
            await lab.advance(2)
            assert [info.retry_count for info in told] == [0, 1]
            assert lab.alarm_of(desk) == at + 1002

    async def test_an_alarm_that_it_set_before_it_failed_takes_the_place_of_the_retry(
        self, told: list[AlarmInfo], alarmed: Alarmed
    ) -> None:
        async def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            if len(told) == 1:
                self.storage.set_alarm(self.clock.now() + 100)
                await asyncio.sleep(0)
                raise Refusal("no", 1)

        async with alarmed(alarm) as (lab, desk, at):
            await lab.advance(50)
            assert len(told) == 1
            assert lab.alarm_of(desk) == at + 100
            await lab.advance(FAR_S)
            assert told[1:] == [AlarmInfo(scheduled_at=at + 100, retry_count=0)]

    async def test_so_does_one_that_it_set_for_the_very_time_it_had(
        self, told: list[AlarmInfo], alarmed: Alarmed
    ) -> None:
        async def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            if len(told) == 1:
                self.storage.set_alarm(info.scheduled_at)
                await asyncio.sleep(0)
                raise Refusal("no", 1)

        async with alarmed(alarm) as (lab, _, at):
            await lab.advance(10)
            # At once, and not as a retry after a pause.
            assert told == [AlarmInfo(scheduled_at=at, retry_count=0)] * 2

    async def test_one_that_it_set_and_undid_by_way_of_the_database_does_not(
        self, told: list[AlarmInfo], alarmed: Alarmed
    ) -> None:
        async def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            with suppress(Refusal), self.storage.database.atomic():
                self.storage.set_alarm(self.clock.now() + 100)
                raise Refusal("undo", 1)
            if not info.is_retry:
                raise Refusal("no", 1)

        async with alarmed(alarm) as (lab, desk, _):
            await lab.advance(FAR_S)
            assert [info.retry_count for info in told] == [0, 1]
            assert lab.alarm_of(desk) is None

    async def test_one_that_it_deleted_before_it_failed_is_not_tried_again(
        self, told: list[AlarmInfo], alarmed: Alarmed
    ) -> None:
        async def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            self.storage.delete_alarm()
            await asyncio.sleep(0)
            raise Refusal("no", 1)

        async with alarmed(alarm) as (lab, desk, _):
            await lab.advance(FAR_S)
            assert len(told) == 1
            assert lab.alarm_of(desk) is None

    async def test_a_failed_commit_of_its_writes_does_not_count(self, told: list[AlarmInfo], alarmed: Alarmed) -> None:
        async with alarmed(writing_into(told)) as (lab, desk, at):
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
        self, told: list[AlarmInfo], alarmed: Alarmed
    ) -> None:
        async with alarmed(writing_into(told)) as (lab, desk, _):
            lab.fail_next_commit(desk, reached_disk=True)
            await lab.advance(FAR_S)
            assert len(told) == 1
            assert await desk.lines() == ["x"]

    @pytest.mark.parametrize("reached_disk", [False, True])
    async def test_a_handlers_end_and_its_writes_are_one_commit(
        self, told: list[AlarmInfo], alarmed: Alarmed, reached_disk: bool
    ) -> None:
        async with alarmed(writing_into(told)) as (lab, desk, _):
            lab.crash_in_next_commit(desk, reached_disk=reached_disk)
            await lab.advance(10)
            assert len(told) == (1 if reached_disk else 2)
            assert await desk.lines() == ["x"]

    async def test_what_another_object_could_not_do_now_does_not_count(
        self, told: list[AlarmInfo], alarmed: Alarmed
    ) -> None:
        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            if len(told) < 12:
                raise ObjectOverloaded("Desk/acme:other", "1000 calls are waiting", 1.0)

        async with alarmed(alarm) as (lab, desk, at):
            await lab.advance(2000)
            assert 6 < len(told) < 12
            assert lab.alarm_of(desk) == at
            await lab.advance(3000)
            assert [info.retry_count for info in told] == [0] * 12
            assert lab.alarm_of(desk) is None

    async def test_a_lost_host_does_not_count(self, told: list[AlarmInfo], alarmed: Alarmed) -> None:
        async def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            if len(told) <= 8:
                lab.crash_in_next_commit(desk, reached_disk=True)
            self.add("first step")
            await asyncio.sleep(0)
            self.add("second step")

        async with alarmed(alarm) as (lab, desk, _):
            await lab.advance(10)
            assert [info.retry_count for info in told] == [0] * 9
            assert await desk.lines() == [*["first step"] * 9, "second step"]

    async def test_a_start_that_fails_puts_the_alarm_off_and_does_not_count(
        self, told: list[AlarmInfo], alarmed: Alarmed, is_async: bool
    ) -> None:
        fails = [False]

        def start(self: Desk) -> None:
            if fails[0]:
                raise Refusal("not in the mood", 1)

        async def start_later(self: Desk) -> None:
            await asyncio.sleep(0)
            start(self)

        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)

        async with alarmed(alarm, start=start_later if is_async else start) as (lab, desk, at):
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
        self, told: list[AlarmInfo], alarmed: Alarmed, tmp_path: Path, fails_by: str
    ) -> None:
        async def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            await self._gate(tmp_path / "gate")
            self.add("over")

        async with alarmed(alarm) as (lab, desk, _):
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

    async def test_a_handler_that_takes_its_time_may_call_others_all_the_same(self, alarmed: Alarmed) -> None:
        async def alarm(self: Desk, info: AlarmInfo) -> None:
            lab.clock.advance(CALL_TIMEOUT_S + 1)  # nobody waits for it
            await self.tell("other", "x")

        async with alarmed(alarm) as (lab, *_):
            await lab.advance(10)
            assert await lab.get(Desk, "acme", "other").lines() == ["x"]

    async def test_an_alarm_set_by_a_turn_while_the_handler_waits_is_kept(
        self, told: list[AlarmInfo], alarmed: Alarmed, tmp_path: Path
    ) -> None:
        async def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(info)
            await self._gate(tmp_path / "gate")

        async with alarmed(alarm) as (lab, desk, _):
            time = asyncio.ensure_future(lab.advance(10))
            await ticks()
            assert await desk.alarm_between(lab.clock.now() + 100) is None
            (tmp_path / "gate").touch()
            await time
            assert lab.alarm_of(desk) == lab.clock.now() + 100
            await lab.advance(100)
            assert len(told) == 2
