"""Does a host keep time and stay responsive with many objects, and when its disk fails as it starts?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import AlarmInfo, DurableObject, ObjectOverloaded, read
from actors.runtime.activation import Activation
from actors.runtime.alarms import AlarmIndex
from actors.runtime.backend_local import LocalBackend
from actors.runtime.clock import ManualClock
from actors.runtime.host_settings import HostSettings
from actors.runtime.object_id import ObjectId
from actors.testing import Lab
from tests.conformance.support import outcomes_of, ticks

ALARMS = 40


class Waiting(DurableObject):
    """Its handler waits for the test."""

    doors: dict[str, asyncio.Event]

    def ring_at(self, at: float) -> None:
        self.storage.set_alarm(at)

    @read
    def rang(self) -> bool:
        return bool(self.storage.kv.get("rang"))

    async def alarm(self, info: AlarmInfo) -> None:
        await type(self).doors["alarm"].wait()
        self.storage.kv.put("rang", True)


@pytest.fixture
def waiting() -> type[Waiting]:
    return type("Waiting", (Waiting,), {"doors": {"alarm": asyncio.Event()}})


@pytest.fixture
async def backend(data_dir: Path, waiting: type[Waiting]) -> AsyncIterator[LocalBackend]:
    backend = LocalBackend(data_dir, [waiting], settings=HostSettings(slots=4, resident_objects_max=8))
    yield backend
    backend.close()


async def test_many_alarms_that_are_due_at_once_leave_room_for_calls(
    backend: LocalBackend, waiting: type[Waiting]
) -> None:
    stubs = [backend.namespace(waiting).get("acme", str(number)) for number in range(ALARMS)]
    for stub in stubs:
        await stub.ring_at(backend.host._clock.now() + 3600)
    for stub in stubs:
        backend.host.alarms.defer(stub.id, 0.0)
        await stub.ring_at(1.0)
    # More than may be open wait for the test, and still there is room.
    await ticks()
    assert not await backend.namespace(waiting).get("acme", "another").rang()
    waiting.doors["alarm"].set()
    async with asyncio.timeout(20):
        for stub in stubs:
            while not await stub.rang():
                await asyncio.sleep(0.01)


async def test_an_alarm_that_can_not_be_fired_stops_no_other(
    backend: LocalBackend, waiting: type[Waiting], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting.doors["alarm"].set()
    stub = backend.namespace(waiting).get("acme", "a")
    await stub.ring_at(backend.host._clock.now() + 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(backend.host.alarms, "take_due", lambda *_: 1 / 0)
        ringing = backend.host._ringing
        assert ringing._timer is not None
        ringing._timer[1].cancel()
        with pytest.raises(ZeroDivisionError):
            ringing._ring()
    async with asyncio.timeout(20):
        while len(backend.host.alarms):
            await asyncio.sleep(0.01)


async def test_a_sweep_of_many_idle_objects_lets_calls_through_in_between(
    data_dir: Path, waiting: type[Waiting]
) -> None:
    clock = ManualClock()
    backend = LocalBackend(
        data_dir, [waiting], settings=HostSettings(slots=4, slice_ms=0.0, idle_after_s=10.0), clock=clock
    )
    try:
        for number in range(20):
            await backend.namespace(waiting).get("acme", str(number)).ring_at(clock.now() + 3600)
        clock.advance(60)
        backend.host._sweep_again()
        assert backend.host.resident_objects == 19
        while backend.host.resident_objects:
            await asyncio.sleep(0)
    finally:
        backend.close()


async def test_a_host_whose_disk_fails_as_it_loads_has_all_alarms_when_it_is_asked_again(
    data_dir: Path, waiting: type[Waiting], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Lab([waiting], settings=HostSettings(slots=4), data_dir=data_dir) as lab:
        for number in range(3):
            await lab.get(waiting, "acme", str(number)).ring_at(lab.clock.now() + 100)
        host = lab._running.host
        host._loaded, host._watch.mark = False, None
        host.alarms = AlarmIndex(data_dir / "objects", 4, lambda: None)
        with monkeypatch.context() as patch:
            patch.setattr(host.alarms, "load", _refuse)
            with pytest.raises(OSError, match="disk"):
                host.load()
        host.load()
        assert len(host.alarms) == 3


def _refuse(*_: Any) -> None:
    raise OSError("the disk fails")


def test_an_alarm_that_is_put_off_again_and_again_takes_no_more_memory(tmp_path: Path) -> None:
    index = AlarmIndex(tmp_path, 4, lambda: None, sync=lambda _: None)
    for number in range(1000):
        index.set(ObjectId("Waiting", "acme", str(number % 3)), 1e9 + number)
    assert len(index._heap) < 100
    assert [object_id.name for object_id in index.take_due(2e9, 10)] == ["1", "2", "0"]


async def test_refusing_a_newcomer_looks_at_all_objects_only_once(
    backend: LocalBackend, waiting: type[Waiting], monkeypatch: pytest.MonkeyPatch
) -> None:
    stubs = [backend.namespace(waiting).get("acme", str(number)) for number in range(8)]
    firing = [backend.host.fire_alarm(stub.id, forced=True) for stub in stubs if not await stub.ring_at(1e9 * 5)]
    await ticks()
    looked: list[Activation] = []

    def look(activation: Activation) -> bool:
        looked.append(activation)
        return False

    monkeypatch.setattr(Activation, "idle", property(look))
    newcomers = [backend.namespace(waiting).get("acme", f"new-{number}").rang() for number in range(100)]
    assert {type(error) for error in await outcomes_of(*newcomers)} == {ObjectOverloaded}
    assert len(looked) == 8
    monkeypatch.undo()
    waiting.doors["alarm"].set()
    for turn in firing:
        await turn.wait()
    await ticks()
    assert not await backend.namespace(waiting).get("acme", "new-1").rang()


async def test_a_call_behind_a_turn_that_does_not_end_is_refused_when_it_has_waited_too_long(
    data_dir: Path, waiting: type[Waiting]
) -> None:
    async with Lab([waiting], settings=HostSettings(slots=4, mailbox_age_max_s=30.0), data_dir=data_dir) as lab:
        stub = lab.get(waiting, "acme", "a")
        await stub.ring_at(5e9)
        firing = asyncio.ensure_future(lab.fire_alarm(stub))
        await ticks()
        call = asyncio.ensure_future(stub.rang())
        await ticks()
        lab.clock.advance(31)
        lab._running.host.sweep()
        async with asyncio.timeout(5):
            with pytest.raises(ObjectOverloaded, match="waited longer than 30 s"):
                await call
        waiting.doors["alarm"].set()
        assert await firing
        assert await stub.rang()
