"""What happens to calls when there are too many, or one takes too long?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import ObjectOverloaded, interleaved
from actors.runtime.backend_local import LocalBackend
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.testing import Lab
from tests.conformance.classes import CLASSES, SETTINGS, Desk, desk_with
from tests.conformance.support import WAIT_S, outcomes_of, ticks, until


class Mailboxes:
    """How much may wait for one object."""

    @pytest.fixture
    async def gate(self, desk: Stub[Desk], tmp_path: Path) -> AsyncIterator[Path]:
        """What ends a turn that the object is in."""
        turn = asyncio.ensure_future(desk.add_around_gate("long", tmp_path / "gate"))

        async def begun() -> bool:
            return bool(await desk.peek())

        await until(begun)
        yield tmp_path / "gate"
        assert await turn == "long"

    async def test_so_many_calls_wait_and_the_next_are_refused_at_once(self, desk: Stub[Desk], gate: Path) -> None:
        room = SETTINGS["mailbox_calls_max"]
        waiting = [asyncio.ensure_future(desk.add(str(number))) for number in range(room + 5)]
        await self.refused(desk, waiting[room:])
        assert not any(call.done() for call in waiting[:room])
        gate.touch()
        assert await asyncio.gather(*waiting[:room]) == list(range(3, room + 3))
        assert await desk.add("again") == room + 3

    async def test_so_many_bytes_wait_and_the_next_are_refused_at_once(self, desk: Stub[Desk], gate: Path) -> None:
        half = "x" * (SETTINGS["mailbox_bytes_max"] // 2)
        first, second = [asyncio.ensure_future(desk.add(half)) for _ in range(2)]
        await self.refused(desk, [second])
        assert not first.done()
        small = asyncio.ensure_future(desk.add("small"))
        gate.touch()
        assert await outcomes_of(first, small) == [3, 4]

    @staticmethod
    async def refused(desk: Stub[Desk], calls: Sequence[asyncio.Future[Any]]) -> None:
        for outcome in await asyncio.wait_for(outcomes_of(*calls), WAIT_S):
            assert isinstance(outcome, ObjectOverloaded)
            assert (outcome.retryable, outcome.retry_after_s, outcome.object_key) == (True, 1.0, str(desk.id))


class TestMailboxes(Mailboxes):
    @pytest.fixture
    async def lab(self) -> AsyncIterator[Lab]:
        """Of objects that stay: to wake one for each of many calls takes a while."""
        async with Lab(CLASSES, settings=HostSettings(**SETTINGS)) as lab:
            yield lab


class TestMailbox:
    """The same, and how long it waits, by a clock that only the test moves."""

    @pytest.fixture
    def gate(self, tmp_path: Path) -> Path:
        return tmp_path / "gate"

    @pytest.fixture
    async def busy(self, settings: dict[str, Any], gate: Path) -> AsyncIterator[tuple[Lab, Stub[Desk]]]:
        """An object in a long turn, and little room behind it."""
        small = {"mailbox_calls_max": 3, "mailbox_bytes_max": 5_000, "mailbox_age_max_s": 30.0}
        limits = HostSettings(**{**settings, **small})
        async with Lab(CLASSES, settings=limits) as lab:
            desk = lab.get(Desk, "acme", "d")
            turn = asyncio.ensure_future(desk.add_around_gate("long", gate))
            await ticks()
            yield lab, desk
            gate.touch()
            await turn

    async def test_what_is_too_many_is_refused_at_once_and_may_be_tried_again(
        self, busy: tuple[Lab, Stub[Desk]], gate: Path
    ) -> None:
        _, desk = busy
        waiting = [asyncio.ensure_future(desk.add(str(number))) for number in range(5)]
        await ticks()
        assert [call.done() for call in waiting] == [False, False, False, True, True]
        gate.touch()
        outcomes = await outcomes_of(*waiting)
        assert outcomes[:3] == [3, 4, 5]
        for refused in outcomes[3:]:
            assert isinstance(refused, ObjectOverloaded)
            assert (refused.retryable, refused.retry_after_s, refused.object_key) == (True, 1.0, str(desk.id))
        assert await desk.add("again") == 6

    async def test_what_is_too_large_is_refused_at_once(self, busy: tuple[Lab, Stub[Desk]], gate: Path) -> None:
        _, desk = busy
        outcomes = [asyncio.ensure_future(desk.add("x" * 3_000)) for _ in range(2)]
        await ticks()
        assert [call.done() for call in outcomes] == [False, True]
        gate.touch()
        assert [type(outcome) for outcome in await outcomes_of(*outcomes)] == [int, ObjectOverloaded]

    async def test_what_has_waited_for_too_long_is_not_run(self, busy: tuple[Lab, Stub[Desk]], gate: Path) -> None:
        lab, desk = busy
        old = asyncio.ensure_future(desk.add("old"))
        await ticks()
        lab.clock.advance(20)
        young = asyncio.ensure_future(desk.add("young"))
        await ticks()
        lab.clock.advance(11)
        gate.touch()
        outcomes = await outcomes_of(old, young)
        assert isinstance(outcomes[0], ObjectOverloaded)
        assert await desk.lines() == ["long before", "long after", "young"]

    async def test_an_alarm_is_not_too_old(self, busy: tuple[Lab, Stub[Desk]], gate: Path) -> None:
        lab, desk = busy
        await desk.alarm_between(lab.clock.now() + 10)
        time = asyncio.ensure_future(lab.advance(10))
        await ticks()
        lab.clock.advance(31)  # too long for a call, and no time for the sweep
        gate.touch()
        await time
        assert len(await desk.runs()) == 1

    async def test_a_busy_object_refuses_and_its_neighbours_do_not(self, busy: tuple[Lab, Stub[Desk]]) -> None:
        lab, desk = busy
        waiting = [asyncio.ensure_future(desk.add(str(number))) for number in range(10)]
        assert await lab.get(Desk, "acme", "other").add("x") == 1
        assert isinstance((await outcomes_of(waiting[-1]))[0], ObjectOverloaded)
        for call in waiting:
            call.cancel()


#: A power of two: sums of it are exact, however many there are.
STEP_S = 2.0**-8


class Ticking:
    """A clock that goes on by some milliseconds whenever it is looked at."""

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s
        self._now = 0.0

    def now(self) -> float:
        return 1e9

    def monotonic(self) -> float:
        self._now += self.step_s
        return self._now


class TestNeighbours:
    """How long may one object keep the others of its host waiting?"""

    @pytest.fixture
    def order(self) -> list[str]:
        """Whose turns ran, by name."""
        return []

    @pytest.fixture
    def two(self, data_dir: Path, settings: dict[str, Any], order: list[str]) -> Iterator[list[Stub[Desk]]]:
        """A hot object and its neighbour. Each of their turns is taken for a quarter of a slice."""

        def add(self: Desk, text: str) -> None:
            order.append(self.id.name)

        def erase(self: Desk) -> None:
            order.append(self.id.name)
            self.storage.delete_all()

        async def add_in_steps(self: Desk, *texts: str) -> None:
            for text in texts:
                order.append(self.id.name)
                self.storage.sql("INSERT INTO line (text) VALUES (?)", text)
                await asyncio.sleep(0)

        desk_class = desk_with(Desk.alarm, add=add, erase=erase, add_in_steps=add_in_steps)
        limits = HostSettings(**settings, slice_ms=4 * STEP_S * 1000)
        backend = LocalBackend(data_dir, [desk_class], settings=limits, clock=Ticking(STEP_S))
        yield [backend.namespace(desk_class).get("acme", name) for name in ("hot", "neighbour")]
        backend.close()

    async def test_a_hot_object_delays_its_neighbours_by_a_slice_and_no_more(
        self, two: list[Stub[Desk]], order: list[str]
    ) -> None:
        hot, neighbour = two
        await asyncio.gather(*[hot.add(str(number)) for number in range(100)], neighbour.add("x"))
        assert len(order) == 101
        assert order.index("neighbour") <= 4

    async def test_a_call_that_came_later_waits_for_slices_and_not_for_the_whole_queue(
        self, two: list[Stub[Desk]], order: list[str]
    ) -> None:
        hot, neighbour = two
        queue = [asyncio.ensure_future(hot.add(str(number))) for number in range(200)]
        while not order:
            await asyncio.sleep(0)
        await neighbour.add("x")
        await asyncio.gather(*queue)
        assert order.index("neighbour") < 40

    async def test_an_object_whose_turns_each_end_in_a_commit_gets_no_slice_for_each(
        self, two: list[Stub[Desk]], order: list[str]
    ) -> None:
        hot, neighbour = two
        queue = [asyncio.ensure_future(hot.erase()) for _ in range(200)]
        while not order:
            await asyncio.sleep(0)
        await neighbour.add("x")
        await asyncio.gather(*queue)
        assert order.index("neighbour") < 40

    @pytest.mark.parametrize("method", ["add", "add_in_steps"])
    async def test_a_hot_object_whose_turns_are_async_delays_each_call_of_its_neighbours_by_a_few_steps(
        self, two: list[Stub[Desk]], order: list[str], method: str
    ) -> None:
        hot, neighbour = two
        queue = [asyncio.ensure_future(hot.add_in_steps("a", "b", "c")) for _ in range(200)]
        while not order:
            await asyncio.sleep(0)
        for _ in range(20):
            before = len(order)
            await getattr(neighbour, method)("x")
            assert order.index("neighbour", before) - before <= 4
        assert sum(not call.done() for call in queue) > 150
        await asyncio.gather(*queue)

    async def test_a_turn_that_holds_the_loop_is_logged_with_its_object_and_method(
        self, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        def spin(self: Desk) -> int:
            return sum(range(200_000))

        async def spin_later(self: Desk) -> int:
            await asyncio.sleep(0)
            return sum(range(200_000))

        desk_class = desk_with(lambda self, info: self.spin(), spin=interleaved(spin), spin_later=spin_later)
        async with Lab([desk_class], settings=HostSettings(**settings, slow_turn_ms=0.5)) as lab:
            desk = lab.get(desk_class, "acme", "d")
            await desk.spin()
            await desk.spin_later()
            await desk.set_alarm_in(1)
            await lab.advance(1)
        for method in ("spin", "spin_later", "alarm"):
            assert f"object=Desk/acme:d method={method} held the loop for" in caplog.text

    @pytest.mark.parametrize("wait", ["add_around_gate", "wait_between"])
    async def test_a_turn_that_waits_delays_no_other_object(self, lab: Lab, tmp_path: Path, wait: str) -> None:
        waiting = asyncio.ensure_future(getattr(lab.get(Desk, "acme", "d"), wait)("x", tmp_path / "gate"))
        await ticks()
        assert await lab.get(Desk, "acme", "other").add("y") == 1
        assert not waiting.done()
        (tmp_path / "gate").touch()
        assert await waiting == "x"
