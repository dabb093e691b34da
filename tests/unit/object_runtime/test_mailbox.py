"""What is refused when too much waits for one object?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.runtime import InvalidArgument, ObjectOverloaded
from actors.runtime.backend_local import LocalBackend
from actors.runtime.clock import ManualClock
from actors.runtime.namespace import Stub
from tests.conformance.support import call_of, ticks
from tests.objects import Notebook, gate_in
from tests.unit.object_runtime.backend import opened


class TestMailbox:
    """How much may wait for one object, and for how long?"""

    async def test_a_full_mailbox_refuses_at_once(self, data_dir: Path, tmp_path: Path) -> None:
        gate, open_gate = gate_in(tmp_path)
        with opened(data_dir, mailbox_calls_max=5) as backend:
            stub = backend.namespace(Notebook).get("acme", "n")
            slow = asyncio.ensure_future(stub.add_around_gate("slow", gate))
            await ticks()
            waiting = [asyncio.ensure_future(stub.add(str(number))) for number in range(5)]
            await ticks()
            with pytest.raises(ObjectOverloaded, match="5 calls are waiting"):
                await stub.add("one too many")
            open_gate()
            await asyncio.gather(slow, *waiting)
            assert await stub.lines() == ["slow before", "slow after", "0", "1", "2", "3", "4"]

    async def test_a_mailbox_is_bounded_in_bytes(self, data_dir: Path, tmp_path: Path) -> None:
        gate, open_gate = gate_in(tmp_path)
        with opened(data_dir, mailbox_bytes_max=10_000) as backend:
            stub = backend.namespace(Notebook).get("acme", "n")
            slow = asyncio.ensure_future(stub.add_around_gate("slow", gate))
            await ticks()
            waiting = asyncio.ensure_future(stub.add("x" * 6_000))
            await ticks()
            with pytest.raises(ObjectOverloaded, match="bytes are waiting"):
                await stub.add("x" * 6_000)
            open_gate()
            await asyncio.gather(slow, waiting)
            await stub.add("x" * 6_000)

    async def test_arguments_that_never_fit_are_refused_for_good(self, data_dir: Path) -> None:
        with opened(data_dir, mailbox_bytes_max=10_000) as backend:
            stub = backend.namespace(Notebook).get("acme", "n")
            with pytest.raises(InvalidArgument, match="must take at most 10000") as refused:
                await stub.add("x" * 11_000)
            assert not refused.value.retryable

    async def test_a_call_that_waited_for_too_long_is_not_run(self, data_dir: Path, tmp_path: Path) -> None:
        gate, open_gate = gate_in(tmp_path)
        clock = ManualClock()
        with opened(data_dir, clock, mailbox_age_max_s=30.0) as backend:
            stub = backend.namespace(Notebook).get("acme", "n")
            slow = asyncio.ensure_future(stub.add_around_gate("slow", gate))
            old = asyncio.ensure_future(stub.add("too late"))
            await ticks()
            clock.advance(20)
            young = asyncio.ensure_future(stub.add("in time"))
            await ticks()
            clock.advance(11)
            open_gate()
            with pytest.raises(ObjectOverloaded, match="waited longer than 30 s"):
                await old
            await asyncio.gather(slow, young)
            assert await stub.lines() == ["slow before", "slow after", "in time"]

    async def test_a_result_that_nobody_collects_is_dropped(
        self, backend: LocalBackend, notebook: Stub[Notebook], clock: ManualClock, tmp_path: Path
    ) -> None:
        gate, open_gate = gate_in(tmp_path)
        ((_, ticket),) = await backend.host.batch([call_of(notebook, "add_around_gate", "x", gate)])
        open_gate()
        while not backend.host.evict(notebook.id):
            await asyncio.sleep(0)
        clock.advance(121)
        backend.host.sweep()
        with pytest.raises(KeyError):
            await backend.host.wait(ticket)
