"""What does a flood of clients that nobody knows cost the one that is there for good?

Thousands of client keys come at once, while one client goes on at its own pace. Compared are that client's times with
the same in quiet, in turns. What else a flood could use up is looked at too: memory, files, processes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable
from typing import Final

import aiohttp
import psutil

from tests.benchmarks.report import Row, figure
from tests.integration.conftest import Service

KEY: Final = "sk-flooded"
HONEST: Final = "honest"
CLIENTS: Final = 20_000
CLIENTS_QUICK: Final = 500
#: New clients a second, each of which gets a database of its own.
FLOOD_RATE: Final = 100
HONEST_RATE: Final = 50
QUIET_S: Final = 10.0
QUIET_QUICK_S: Final = 5.0
SLOWDOWN_MAX: Final = 2.0
#: Whose memory is looked at, by names of processes, and by how many MiB it may grow.
MEMORY_OF: Final = {
    "": ("all processes", 500),
    "ray::ServeReplica:default:Ingress": ("the ingress", 100),
    "ray::ObjectHost": ("the hosts", 400),
}
ROUNDS: Final = 4
ROUNDS_QUICK: Final = 1
#: Between a flood and the quiet after it.
SETTLES_S: Final = 2.0


def honest_client(service: Service, *, quick: bool) -> list[Row]:
    """The honest client's times in quiet and in the flood, and what the flood leaves behind."""
    clients, rounds, quiet_s = (CLIENTS_QUICK, ROUNDS_QUICK, QUIET_QUICK_S) if quick else (CLIENTS, ROUNDS, QUIET_S)
    memory_mib = {name: _resident_mib(service, name) for name in MEMORY_OF}
    processes, files = len(service.processes()), _files(service)
    quiet: list[float] = []
    flooded: list[float] = []
    put_off: list[str] = []
    for number in range(rounds):
        share = range(number * clients // rounds, (number + 1) * clients // rounds)
        quiet.append(asyncio.run(_beside(service.url, [], put_off, quiet_s)))
        flooded.append(asyncio.run(_beside(service.url, share, put_off, quiet_s)))
        time.sleep(SETTLES_S)
    ratio = sorted(flooded)[rounds // 2] / sorted(quiet)[rounds // 2]
    more_processes, more_files = len(service.processes()) - processes, _files(service) - files
    return [
        Row(
            work=f"p99 of a check beside a flood of {clients:,} clients",
            ours=flooded,
            against="in quiet",
            theirs=quiet,
            unit="ms",
            bar=f"≤ {SLOWDOWN_MAX:g} times",
            value=f"{ratio:.2f}",
            is_reached=ratio <= SLOWDOWN_MAX,
        ),
        figure("strangers of that flood who were asked to come later", [len(put_off) / clients * 100], unit="%"),
        *[
            _left_behind(
                f"memory of {of}",
                memory_mib[name],
                _resident_mib(service, name) - memory_mib[name],
                "MiB",
                more_max,
            )
            for name, (of, more_max) in MEMORY_OF.items()
        ],
        _left_behind("processes", processes, more_processes, "processes", 0),
        # Each client's database, and the log beside those that are open.
        _left_behind("files of buckets", files, more_files, "files", clients + 1),
    ]


def _left_behind(what: str, before: float, more: float, unit: str, most: float) -> Row:
    return Row(
        work=f"{what}, after the flood",
        ours=[before + more],
        against="before it",
        theirs=[before],
        unit=unit,
        bar=f"≤ {most:,.0f} more",
        value=f"{more:+,.0f}",
        is_reached=more <= most,
    )


async def _beside(url: str, strangers: Iterable[int], put_off: list[str], at_least_s: float) -> float:
    """The 99th percentile of the honest client's times, while each of the strangers sends one request.

    Those of them that are asked to come later are added to `put_off`.
    """
    times_s: list[float] = []
    flood_is_over = asyncio.Event()
    unlimited = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(url, connector=unlimited, headers=headers) as http:

        async def request(client: str) -> float:
            sent_s = time.perf_counter()
            async with http.post("/ratelimit/check", headers={"x-client": client}) as answer:
                await answer.read()
                # Where too many strangers wait, more are asked to come later.
                if answer.status == 503 and client != HONEST:
                    put_off.append(client)
                elif answer.status != 200:
                    raise RuntimeError(f"a check was answered {answer.status}")
            return time.perf_counter() - sent_s

        async def paced(clients: Iterable[str], rate: float, times_s: list[float]) -> None:
            async with asyncio.TaskGroup() as requests:
                began_s = time.perf_counter()
                for number, client in enumerate(clients):
                    await asyncio.sleep(max(0.0, began_s + number / rate - time.perf_counter()))
                    requests.create_task(_noted(request(client), times_s))

        async def honest() -> None:
            least = int(at_least_s * HONEST_RATE)

            def until_the_flood_is_over() -> Iterable[str]:
                number = 0
                while number < least or not flood_is_over.is_set():
                    yield HONEST
                    number += 1

            await paced(until_the_flood_is_over(), HONEST_RATE, times_s)

        async def flood() -> None:
            await paced((f"stranger-{number}" for number in strangers), FLOOD_RATE, [])
            flood_is_over.set()

        await request(HONEST)
        async with asyncio.TaskGroup() as both:
            both.create_task(honest())
            both.create_task(flood())
    return sorted(times_s)[int(len(times_s) * 0.99)]


async def _noted(request: Awaitable[float], times_s: list[float]) -> None:
    times_s.append(await request)


def _resident_mib(service: Service, name: str) -> float:
    total = 0
    for process in service.processes(name):
        try:
            # What they share is counted once.
            total += process.memory_full_info().uss
        except psutil.Error:
            continue  # it has ended
    return total / 1024**2


def _files(service: Service) -> int:
    return sum(1 for _ in (service.data_dir / "objects" / "TokenBucket").rglob("*.sqlite"))
