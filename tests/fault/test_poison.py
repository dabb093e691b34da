"""An object takes its host down whenever it runs: is it set aside, and do the others of its host go on?"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from actors.runtime.backend_ray import RayBackend, start
from actors.runtime.errors import ObjectQuarantined, ObjectReset
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.runtime.object_id import ObjectId
from actors.runtime.operations import Operator
from actors.runtime.placement import Cluster
from actors.runtime.quarantine import CRASHES_MAX
from tests.objects import Notebook, Poison

#: A host is back within two seconds, more where much else runs.
TIMEOUT_S = 60.0
#: The sweep that finds alarms which are overdue comes once a minute.
ALARM_TIMEOUT_S = 90.0
SLOTS = 4


@pytest.fixture
async def backend(ray_cluster: None, data_dir: Path) -> RayBackend:
    cluster = Cluster(
        data_dir=data_dir,
        classes=(Notebook, Poison),
        settings=HostSettings(slots=SLOTS, idle_after_s=1.0),
        hosts=1,  # so that all are neighbours
        dedicated=frozenset({("alone", "Poison")}),
    )
    backend = start(cluster)
    async with asyncio.timeout(TIMEOUT_S):
        await backend.ready()
    return backend


@pytest.fixture
def neighbour(backend: RayBackend) -> Stub[Notebook]:
    return backend.namespace(Notebook).get("acme", "neighbour")


@pytest.fixture
def operator(backend: RayBackend) -> Operator:
    return Operator(backend)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    path = tmp_path / "trap"
    path.touch()
    return path


def poison(backend: RayBackend, name: str, tenant: str = "acme") -> tuple[ObjectId, Stub[Poison]]:
    return ObjectId("Poison", tenant, name), backend.namespace(Poison).get(tenant, name)


async def until(true: Callable[[], Awaitable[bool]], timeout_s: float = TIMEOUT_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not await true():
            await asyncio.sleep(0.05)


async def is_quarantined(operator: Operator, object_id: ObjectId) -> bool:
    page = await operator.quarantined()
    return object_id in [info.id for info in page.objects]


async def crash_until_quarantined(neighbour: Stub[Notebook], stub: Stub[Poison]) -> int:
    """How many hosts it took. Between two crashes the neighbour is used, so that each finds a host that lives."""
    hosts = set()
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            hosts.add(await neighbour.pid())
            try:
                await stub.crash()
            except ObjectReset:
                await neighbour.append(f"after {len(hosts)}")
            except ObjectQuarantined:
                return len(hosts) - 1


async def test_an_object_that_crashes_its_host_is_set_aside_and_its_neighbours_go_on(
    backend: RayBackend, operator: Operator, neighbour: Stub[Notebook], data_dir: Path
) -> None:
    object_id, stub = poison(backend, "crashes")
    _, other = poison(backend, "harmless")
    await neighbour.append("before")
    assert await crash_until_quarantined(neighbour, stub) == CRASHES_MAX
    assert await neighbour.lines() == ["before", *[f"after {number + 1}" for number in range(CRASHES_MAX)]]

    pid = await neighbour.pid()
    for _ in range(5):
        with pytest.raises(ObjectQuarantined) as refused:
            await stub.touch()
        assert refused.value.object_key == str(object_id)
        assert "crash" in refused.value.reason
        assert await other.touch() == pid, "the refused call took the host down"
    assert await is_quarantined(operator, object_id)
    assert (await operator.describe(object_id)).quarantined

    # Whoever kills the host does not free it.
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(TIMEOUT_S):
        assert await neighbour.pid() != pid
        with pytest.raises(ObjectQuarantined):
            await stub.touch()

        assert await operator.release(object_id)
        assert not await operator.release(object_id)
        assert await stub.touch() == await neighbour.pid()
    assert not await is_quarantined(operator, object_id)
    assert list((data_dir / "objects").rglob("*.trouble")) == []


async def test_an_object_that_crashes_on_activation_is_set_aside_before_it_is_loaded(
    backend: RayBackend, operator: Operator, neighbour: Stub[Notebook], trap: Path
) -> None:
    object_id, stub = poison(backend, "starts")
    trap.unlink()
    await stub.set_trap("start", trap)
    await operator.evict(object_id)
    trap.touch()
    async with asyncio.timeout(TIMEOUT_S):
        # The stub repeats the call by itself, until it is told to let it be.
        with pytest.raises(ObjectQuarantined):
            await stub.touch()
        pid = await neighbour.pid()
        with pytest.raises(ObjectQuarantined):
            await stub.rang()
        assert await neighbour.pid() == pid
        trap.unlink()
        assert await operator.release(object_id)
        assert await stub.touch() == pid


async def test_an_alarm_that_crashes_its_host_is_set_aside_though_nobody_calls(
    backend: RayBackend, operator: Operator, neighbour: Stub[Notebook], trap: Path
) -> None:
    object_id, stub = poison(backend, "rings")
    await stub.set_trap("alarm", trap)
    with contextlib.suppress(ObjectQuarantined):  # where the reply was lost with the host, the stub asked again
        await stub.ring_now()
    await until(lambda: is_quarantined(operator, object_id), ALARM_TIMEOUT_S)
    pid = await neighbour.pid()
    with pytest.raises(ObjectQuarantined):
        await stub.rang()
    assert await neighbour.pid() == pid
    trap.unlink()
    assert await operator.release(object_id)

    async def has_rung() -> bool:
        return int(await stub.rang()) > 0

    # The alarm was not lost meanwhile.
    await until(has_rung, ALARM_TIMEOUT_S)


async def test_a_dedicated_object_that_crashes_is_set_aside_in_its_own_host(
    backend: RayBackend, operator: Operator, neighbour: Stub[Notebook], trap: Path
) -> None:
    object_id, stub = poison(backend, "dedicated", tenant="alone")
    pid = await neighbour.pid()
    await stub.set_trap("touch", trap)
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(ObjectQuarantined):
            await stub.touch()
        assert await neighbour.pid() == pid
        assert await operator.release(object_id)
        trap.unlink()
        assert await stub.touch() != pid


async def test_an_object_that_is_only_there_when_its_host_is_killed_is_never_set_aside(
    backend: RayBackend, operator: Operator, neighbour: Stub[Notebook]
) -> None:
    async def write(done: asyncio.Event) -> None:
        while not done.is_set():
            await neighbour.append("x" * 1000)

    done = asyncio.Event()
    writing = [asyncio.ensure_future(write(done)) for _ in range(4)]
    try:
        async with asyncio.timeout(3 * TIMEOUT_S):
            for _ in range(CRASHES_MAX * 2):
                pid = await neighbour.pid()
                os.kill(pid, signal.SIGKILL)
                while await neighbour.pid() == pid:
                    await asyncio.sleep(0.01)
    finally:
        done.set()
        await asyncio.gather(*writing)
    page = await operator.quarantined(tenant="acme")
    assert [info.id for info in page.objects if info.id.class_name == "Notebook"] == []
