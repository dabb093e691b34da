"""`python -m tests.benchmarks.over_stubs SESSIONS PAIRS`: what does a program get that uses objects without HTTP?

Runs in a process of its own that joins the service's Ray cluster, and prints what it measured as JSON. `measure` has
that done, and tells what it comes to.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ray

import actors
from actors import ChatSession, LocalBackend, TokenBucket
from tests.benchmarks.report import Row, Skipped, at_least_ratio, figure
from tests.integration.conftest import Service

TENANT = "bench"
IN_FLIGHT = 64
RUN_S = 1.0
POLICIES = (("default", 1e6, 1e6, False),)


def make_sessions(data_dir: Path, sessions: int) -> None:
    """Makes them where a service is to be started later, so that all of them sleep then."""

    async def make(objects: LocalBackend) -> None:
        namespace = objects.namespace(ChatSession)
        for first in range(0, sessions, 100):
            await asyncio.gather(
                *(namespace.get(TENANT, f"touch-{number}").create() for number in range(first, first + 100))
            )

    objects = LocalBackend(data_dir, [ChatSession])
    try:
        asyncio.run(make(objects))
    finally:
        objects.close()


def measure(service: Service, sessions: int, pairs: int) -> list[Row | Skipped]:
    """Args: `sessions` that `make_sessions` has made, and nobody has called since."""
    program = [sys.executable, "-m", __name__, str(sessions), str(pairs)]
    environ = {**os.environ, **service.ray_environ}
    printed = subprocess.run(program, env=environ, check=True, timeout=300, stdout=subprocess.PIPE, text=True).stdout
    told: dict[str, list[float]] = json.loads(printed.splitlines()[-1])
    starts, touches = told["starts_s"], told["touches_s"]
    name = f"first touches of {sessions} sessions, one after another"
    return [
        at_least_ratio(
            f"calls of a stub, {IN_FLIGHT} at once",
            told["stub"],
            "a plain Ray actor",
            told["actor"],
            ratio=4.0,
            unit="/s",
        ),
        at_least_ratio(
            name,
            [1 / touch_s for touch_s in touches],
            "starts of a Ray actor",
            [1 / start_s for start_s in starts],
            ratio=300.0,
            unit="/s",
        ),
        figure("layer: a call of a stub, alone", told["stub_alone_s"], unit="ms"),
        figure("layer: a call of a plain Ray actor, alone", told["actor_alone_s"], unit="ms"),
    ]


class Plain:
    """What a call of an object is compared to."""

    async def check(self, cost: float, policies: Any) -> tuple[bool, tuple[float], tuple[float]]:
        return True, (policies[0][2] - cost,), (0.0,)


async def _measure(sessions: int, pairs: int) -> dict[str, list[float]]:
    objects = actors.connect()
    make: Any = ray.remote(num_cpus=0)(Plain)
    plain = make.options(max_concurrency=1000).remote()
    buckets = [objects.namespace(TokenBucket).get(TENANT, f"stub-{number}") for number in range(IN_FLIGHT)]

    async def stub_call(number: int) -> None:
        await buckets[number].check(1.0, POLICIES)

    async def actor_call(number: int) -> None:
        await plain.check.remote(1.0, POLICIES)

    told: dict[str, list[float]] = {"stub": [], "actor": [], "stub_alone_s": [], "actor_alone_s": []}
    for number in range(2 * pairs + 2):
        which, call = ("stub", stub_call) if number % 4 in (0, 3) else ("actor", actor_call)
        rate, alone_s = await _rate(call), await _alone(call)
        if number >= 2:
            told[which].append(rate)
            told[f"{which}_alone_s"].append(alone_s)
    told["starts_s"] = [await _start(make) for _ in range(max(3, pairs))]
    told["touches_s"] = []
    namespace = objects.namespace(ChatSession)
    for number in range(sessions):
        begun = time.perf_counter()
        await namespace.get(TENANT, f"touch-{number}").history(1)
        told["touches_s"].append(time.perf_counter() - begun)
    return told


async def _rate(call: Callable[[int], Awaitable[None]]) -> float:
    """Calls a second, with as many under way at once."""
    begun = time.perf_counter()
    done = 0

    async def one_after_another(number: int) -> None:
        nonlocal done
        while time.perf_counter() - begun < RUN_S:
            await call(number)
            done += 1

    await asyncio.gather(*(one_after_another(number) for number in range(IN_FLIGHT)))
    return done / (time.perf_counter() - begun)


async def _alone(call: Callable[[int], Awaitable[None]]) -> float:
    """Seconds that one call takes, half of them less."""
    took = []
    for _ in range(300):
        begun = time.perf_counter()
        await call(0)
        took.append(time.perf_counter() - begun)
    return sorted(took)[len(took) // 2]


async def _start(make: Any) -> float:
    begun = time.perf_counter()
    actor = make.remote()
    await actor.check.remote(1.0, POLICIES)
    took_s = time.perf_counter() - begun
    ray.kill(actor)
    return took_s


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_measure(int(sys.argv[1]), int(sys.argv[2])))))
