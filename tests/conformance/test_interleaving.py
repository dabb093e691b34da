"""Which turns of an object run while others of it wait, and which want to be alone?"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import DurableError, ObjectReset, interleaved
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.testing import Lab
from tests.conformance.classes import Desk, Moody, Starting, desk_with
from tests.conformance.support import Backend, outcomes_of, ticks, until
from tests.objects import Refusal


class Interleaving:
    """Everywhere."""

    @pytest.fixture
    def gate(self, tmp_path: Path) -> Path:
        return tmp_path / "gate"

    @staticmethod
    async def waiting(desk: Stub[Desk], method: str, gate: Path) -> asyncio.Future[Any]:
        """A turn that has written `long before` and waits at the gate."""
        turn: asyncio.Future[Any] = asyncio.ensure_future(getattr(desk, method)("long", gate))

        async def waits() -> bool:
            return "long before" in await desk.peek()

        await until(waits)
        return turn

    async def test_an_interleaved_turn_runs_while_a_long_one_waits(self, desk: Stub[Desk], gate: Path) -> None:
        turn = await self.waiting(desk, "add_around_gate", gate)
        assert await desk.add_between("between") == 2
        assert await desk.peek() == ["long before", "between"]
        assert not turn.done()
        gate.touch()
        await turn
        assert await desk.lines() == ["long before", "between", "long after"]

    async def test_others_queue_behind_the_long_one_all_the_same(self, desk: Stub[Desk], gate: Path) -> None:
        turn = await self.waiting(desk, "add_around_gate", gate)
        queued = asyncio.ensure_future(desk.add("queued"))
        await desk.add_between("between")
        assert not queued.done()
        gate.touch()
        await asyncio.gather(turn, queued)
        assert await desk.lines() == ["long before", "between", "long after", "queued"]

    async def test_others_run_while_an_interleaved_one_waits(self, desk: Stub[Desk], gate: Path) -> None:
        turn = await self.waiting(desk, "wait_between", gate)
        assert await desk.add("meanwhile") == 2
        assert await desk.add_in_steps("in", "steps") == [3, 4]
        assert not turn.done()
        gate.touch()
        assert await turn == "long"
        assert await desk.lines() == ["long before", "meanwhile", "in", "steps", "long after"]

    async def test_an_interleaved_turn_that_raises_undoes_its_own_writes_only(
        self, desk: Stub[Desk], gate: Path
    ) -> None:
        turn = await self.waiting(desk, "add_around_gate", gate)
        outcomes = await outcomes_of(desk.add_between("a"), desk.add_between_and_raise("never"), desk.add_between("b"))
        assert [type(outcome) for outcome in outcomes] == [int, Refusal, int]
        gate.touch()
        await turn
        assert await desk.lines() == ["long before", "a", "b", "long after"]

    @staticmethod
    async def alone(desk: Stub[Desk], gate: Path) -> asyncio.Future[Any]:
        """A turn that has written `alone before` and waits at the gate, with no company."""
        turn = asyncio.ensure_future(desk.add_alone("alone", gate))

        async def begun() -> bool:
            return (gate.parent / "begun").exists()

        await until(begun)
        return turn

    @staticmethod
    async def time_for_others(backend: Backend, folder: Path) -> None:
        """Returns when other objects have done more than those could that ought to wait."""
        (folder / "open").touch()
        for number in range(8):
            stub = backend.namespace(Desk).get("acme", f"w-{secrets.token_hex(4)}-{number}")
            await stub.add_around_gate("x", folder / "open")

    async def test_who_wants_to_be_alone_is_alone(
        self, backend: Backend, desk: Stub[Desk], tmp_path: Path, gate: Path
    ) -> None:
        turn = await self.alone(desk, gate)
        others = [asyncio.ensure_future(call) for call in (desk.peek(), desk.add("after"), desk.add_in_steps("later"))]
        await self.time_for_others(backend, tmp_path)
        assert not any(other.done() for other in others)
        gate.touch()
        assert await turn == "alone"
        assert (await others[0])[:2] == ["alone before", "alone after"]
        await asyncio.gather(*others)
        assert await desk.lines() == ["alone before", "alone after", "after", "later"]

    async def test_a_turn_that_waits_does_not_go_on_while_another_is_alone(
        self, backend: Backend, desk: Stub[Desk], tmp_path: Path, gate: Path
    ) -> None:
        first, second = tmp_path / "first", gate
        waiting = await self.waiting(desk, "wait_between", first)
        alone = await self.alone(desk, second)
        witness = asyncio.ensure_future(backend.namespace(Desk).get("acme", "w").add_around_gate("x", first))
        first.touch()
        await witness
        await self.time_for_others(backend, tmp_path)
        assert not waiting.done()
        second.touch()
        await asyncio.gather(waiting, alone)
        assert await desk.lines() == ["long before", "alone before", "alone after", "long after"]

    async def test_a_failure_of_who_is_alone_resets_the_object(self, desk: Stub[Desk]) -> None:
        with pytest.raises(DurableError, match=r"block_concurrency_while failed: Refusal|was reset"):
            await desk.add_alone_and_raise("first step")
        assert await desk.lines() == ["first step"]
        assert await desk.add("goes on") == 2

    async def test_who_is_alone_for_too_long_is_ended_and_the_object_reset(self, desk: Stub[Desk], gate: Path) -> None:
        behind: list[asyncio.Future[Any]] = []
        turn = asyncio.ensure_future(desk.add_alone("alone", gate))
        behind.append(asyncio.ensure_future(desk.add("behind")))
        async with asyncio.timeout(4.0):
            with pytest.raises(DurableError, match=r"no end within 0\.5 s|was reset"):
                await turn
        assert await behind[0] == 2
        assert await desk.lines() == ["alone before", "behind"]

    async def test_who_would_go_on_alone_after_its_time_is_ended_all_the_same(self, desk: Stub[Desk]) -> None:
        async with asyncio.timeout(4.0):
            with pytest.raises(DurableError, match=r"no end within 0\.5 s|was reset"):
                await desk.add_alone_whatever_comes("late")
        assert await desk.lines() == []

    async def test_a_start_is_over_before_the_first_turn_begins(self, backend: Backend) -> None:
        stub = backend.namespace(Starting).get("acme", f"s-{secrets.token_hex(6)}")
        outcomes = await outcomes_of(stub.lines(), stub.add("first"), stub.add_in_steps("second"))
        assert outcomes[0] == ["starting", "started"]
        lines = [line for line in await stub.lines() if not line.startswith("start")]
        assert lines == ["first", "second"]

    async def test_a_start_that_fails_tells_all_who_wait_keeps_nothing_and_is_tried_again(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        failures = tmp_path / "f"
        failures.write_text("3")
        stub = backend.namespace(Moody).get("acme", str(failures))
        for left in (2, 1, 0):
            outcomes = await outcomes_of(stub.add("never"), stub.add_in_steps("never"))
            assert [type(outcome) for outcome in outcomes] == [ObjectReset, ObjectReset]
            assert "not in the mood" in str(outcomes[0])
            assert failures.read_text() == str(left)
        assert await stub.add("at last") == 2
        assert [line for line in await stub.lines() if line != "starting"] == ["at last"]


class TestInterleaving(Interleaving):
    """In process."""

    async def test_an_object_does_not_hibernate_while_an_interleaved_turn_waits(
        self, lab: Lab, gate: Path, tmp_path: Path
    ) -> None:
        desk = lab.get(Desk, "acme", "d")
        turn = await self.waiting(desk, "wait_between", gate)
        lab.clock.advance(1000)
        assert lab._running.host.sweep() == 0
        with pytest.raises(RuntimeError, match="is busy"):
            lab.evict(desk)
        gate.touch()
        assert await turn == "long"

    async def test_what_interleaved_turns_commit_is_durable_before_the_long_one_ends(
        self, lab: Lab, gate: Path
    ) -> None:
        desk = lab.get(Desk, "acme", "d")
        turn = await self.waiting(desk, "add_around_gate", gate)
        await desk.add_between("between")
        lab.crash()
        gate.touch()
        assert isinstance((await outcomes_of(turn))[0], ObjectReset)
        assert await desk.lines() == ["long before", "between"]

    @pytest.mark.parametrize("is_alarm", [False, True])
    async def test_a_failed_commit_of_an_interleaved_turn_ends_the_long_one_too(
        self, settings: dict[str, Any], is_alarm: bool
    ) -> None:
        never: list[asyncio.Future[None]] = []

        async def wait(self: Desk, *_: Any) -> None:
            self.add("before")
            never.append(asyncio.get_running_loop().create_future())
            try:
                await never[-1]
            finally:
                self.add("after")

        desk_class = desk_with(wait, wait=wait)
        async with Lab([desk_class], settings=HostSettings(**settings)) as lab:
            desk = lab.get(desk_class, "acme", "d")
            await desk.set_alarm_in(0)
            turn: asyncio.Future[Any] = asyncio.ensure_future(lab.fire_alarm(desk) if is_alarm else desk.wait())
            while not never:
                await asyncio.sleep(0)
            queued = asyncio.ensure_future(desk.add("goes on"))
            lab.fail_next_commit(desk)
            with pytest.raises(ObjectReset):
                await desk.add_between("lost")
            # Its instance is gone. It must neither write to storage that is in doubt, nor hold up others.
            with pytest.raises(ObjectReset):
                await turn
            assert await queued == 2
            assert await desk.lines() == ["before", "goes on"]
            assert lab.alarm_of(desk) is not None

    async def test_a_turn_after_an_interleaved_one_erased_the_object_starts_anew(
        self, settings: dict[str, Any], gate: Path
    ) -> None:
        @interleaved
        def erase_between(self: Desk) -> None:
            self.storage.delete_all()

        desk_class = desk_with(Desk.alarm, erase_between=erase_between)
        async with Lab([desk_class], settings=HostSettings(**settings)) as lab:
            desk = lab.get(desk_class, "acme", "d")
            turn = await self.waiting(desk, "add_around_gate", gate)
            await desk.erase_between()
            assert await desk.add_between("new") == 1
            gate.touch()
            outcome = (await outcomes_of(turn))[0]
            await ticks()
            # Its storage is gone with the object; it was not told that it had written.
            assert isinstance(outcome, Exception)
            assert await desk.lines() == ["new"]

    async def test_a_turn_that_erased_its_object_erases_none_that_came_after(
        self, settings: dict[str, Any], gate: Path
    ) -> None:
        @interleaved
        async def erase_around_gate(self: Desk, gate: Path) -> None:
            self.storage.delete_all()
            await self._gate(gate)
            self.storage.delete_all()

        desk_class = desk_with(Desk.alarm, erase_around_gate=erase_around_gate)
        async with Lab([desk_class], settings=HostSettings(**settings)) as lab:
            desk = lab.get(desk_class, "acme", "d")
            turn = asyncio.ensure_future(desk.erase_around_gate(gate))
            await ticks()
            assert await desk.add_between("new") == 1
            gate.touch()
            await turn
            lab.evict(desk)
            assert await desk.lines() == ["new"]

    @pytest.mark.parametrize("tries", [1, 3])
    async def test_a_start_that_takes_too_long_is_ended_and_tells_all_who_wait(
        self, settings: dict[str, Any], tries: int
    ) -> None:
        starts: list[str] = []

        async def start(self: Desk) -> None:
            starts.append(self.id.name)
            self.add("never")
            if len(starts) <= tries:
                await asyncio.get_running_loop().create_future()

        desk_class = desk_with(Desk.alarm, start=start)
        async with Lab([desk_class], settings=HostSettings(**{**settings, "block_timeout_s": 0.05})) as lab:
            desk = lab.get(desk_class, "acme", "d")
            for _ in range(tries):
                outcomes = await outcomes_of(desk.add("x"), desk.add_between("x"), desk.add_in_steps("y"))
                assert [type(outcome) for outcome in outcomes] == [ObjectReset] * 3
                assert "no end within 0.05 s" in str(outcomes[0])
            assert "x" not in await desk.lines()
            assert len(starts) == tries + 1

    async def test_the_outer_block_goes_on_in_the_inner_one(self, settings: dict[str, Any]) -> None:
        async def nest(self: Desk) -> int:
            async def inner() -> int:
                await asyncio.sleep(0)
                return self.add("inner")

            async def outer() -> int:
                self.add("outer")
                return await self.block_concurrency_while(inner)

            return await self.block_concurrency_while(outer)

        desk_class = desk_with(Desk.alarm, nest=nest)
        async with Lab([desk_class], settings=HostSettings(**settings)) as lab:
            desk = lab.get(desk_class, "acme", "d")
            assert await desk.nest() == 2
            assert await desk.lines() == ["outer", "inner"]

    async def test_a_turn_may_go_on_after_it_was_alone(self, settings: dict[str, Any]) -> None:
        async def twice(self: Desk) -> list[int]:
            async def alone() -> int:
                await asyncio.sleep(0)
                return self.add("alone")

            self.add("before")
            numbers = [await self.block_concurrency_while(alone) for _ in range(2)]
            await asyncio.sleep(0)
            return [*numbers, self.add("after")]

        desk_class = desk_with(Desk.alarm, twice=twice)
        async with Lab([desk_class], settings=HostSettings(**settings)) as lab:
            assert await lab.get(desk_class, "acme", "d").twice() == [2, 3, 4]
