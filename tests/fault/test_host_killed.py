"""Hosts are killed with `kill -9` under load: is anything lost that was acknowledged, or done twice?

`FAULT_ROUNDS` sets how many are killed.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import psutil
import pytest

from actors.runtime.backend_ray import RayBackend, start
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.runtime.object_id import ObjectId
from actors.runtime.placement import Cluster, Placement
from tests.objects import Notebook

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "3"))
HOSTS = 2
OBJECTS = 6
CALLERS_PER_OBJECT = 3
#: So that a fast machine does not fill the disk while it waits for the next kill.
CALLS_PER_CALLER_MAX = 2_000
ROUND_TIMEOUT_S = 30.0


@pytest.fixture
async def backend(ray_cluster: None, data_dir: Path) -> RayBackend:
    cluster = Cluster(data_dir=data_dir, classes=(Notebook,), settings=HostSettings(slots=16), hosts=HOSTS)
    backend = start(cluster)
    await backend.ready()
    return backend


class Killer:
    """Ends hosts one after the other, each at some moment after the one before is back."""

    def __init__(self, stubs: list[Stub[Notebook]], chance: random.Random) -> None:
        self._stubs = stubs
        self._chance = chance
        self.killed = 0
        self.done = asyncio.Event()

    async def run(self) -> None:
        try:
            for _ in range(ROUNDS):
                victim = self._chance.choice(self._stubs)
                pid = await victim.pid()
                assert psutil.Process(pid).name().startswith("ray::ObjectHost")
                await asyncio.sleep(self._chance.uniform(0.0, 0.3))
                os.kill(pid, signal.SIGKILL)
                self.killed += 1
                async with asyncio.timeout(ROUND_TIMEOUT_S):
                    while await victim.pid() == pid:
                        await asyncio.sleep(0.01)
        finally:
            self.done.set()


async def test_appends_are_neither_lost_nor_doubled_when_hosts_are_killed(backend: RayBackend) -> None:
    notebooks = backend.namespace(Notebook)
    stubs = [notebooks.get("acme", f"n{number}") for number in range(OBJECTS)]
    killer = Killer(stubs, random.Random(20))  # the seed decides whom and when, the machine where exactly it hurts
    acknowledged: dict[int, dict[int, str]] = {number: {} for number in range(OBJECTS)}

    async def caller(object_number: int, caller_number: int) -> None:
        last = 0
        for call_number in range(CALLS_PER_CALLER_MAX):
            text = f"{caller_number}.{call_number}"
            line = await stubs[object_number].append(text)
            assert line > last, "a later call of one caller came before an earlier one"
            assert line not in acknowledged[object_number], "two calls were told the same line"
            acknowledged[object_number][line] = text
            last = line
            if killer.done.is_set():
                return
            await asyncio.sleep(0.002)

    killing = asyncio.ensure_future(killer.run())
    await asyncio.gather(*[caller(o, c) for o in range(OBJECTS) for c in range(CALLERS_PER_OBJECT)])
    await killing
    assert killer.killed == ROUNDS
    for number, stub in enumerate(stubs):
        lines = await stub.lines()
        # Every call was acknowledged in the end, so that the lines are those and no others, in that order.
        assert lines == [text for _, text in sorted(acknowledged[number].items())]
        assert list(range(1, len(lines) + 1)) == sorted(acknowledged[number])


def test_the_objects_of_the_test_live_on_every_host() -> None:
    cluster = Cluster(data_dir=Path("/nowhere"), classes=(Notebook,), settings=HostSettings(slots=16), hosts=HOSTS)
    placement = Placement(cluster)
    ids = [ObjectId("Notebook", "acme", f"n{number}") for number in range(OBJECTS)]
    assert {placement.pool_host(object_id) for object_id in ids} == set(range(HOSTS))
