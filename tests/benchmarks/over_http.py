"""What does the service do over HTTP beside workerd, and beside a no-op on bare Serve?

Each pair is measured in turns, each of a second or more, against services that stand side by side on this machine.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.benchmarks import bare_serve, cores, workerd, wrk
from tests.benchmarks.report import Row, Skipped, at_least_ratio, at_most_ratio, figure
from tests.benchmarks.wrk import Load, Work
from tests.integration.conftest import Service

#: As many as one page of a history.
MESSAGES = 50
SPREAD_CLIENTS = 1000
TOUCHED_BY_PEER = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A service, and how it is called in the table."""

    name: str
    url: str
    ids_file: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How long each run takes, how often each pair is run, how many sessions there are, and how many of them have a
    history to be read."""

    run_s: int
    pairs: int
    sessions: int
    histories: int


QUICK = Effort(run_s=1, pairs=2, sessions=100, histories=20)
WHOLE = Effort(run_s=4, pairs=7, sessions=500, histories=500)


def measure(service: Service, key: str, effort: Effort, peers_dir: Path) -> Iterator[Row | Skipped]:
    work = "checks, appends and histories over HTTP"
    if (reason := wrk.why_not()) is not None:
        yield Skipped(work=work, reason=reason)
        return
    with tempfile.TemporaryDirectory(prefix="mobula-bench-") as folder:
        ids_file = Path(folder) / "sessions"
        ids_file.write_text("\n".join(_made(service.url, key, effort.sessions)))
        ours = Peer(name="here", url=service.url, ids_file=ids_file)
        try:
            with workerd.running(peers_dir) as peer:
                theirs = Peer(name="workerd", url=peer.url, ids_file=ids_file)
                yield from _beside(ours, theirs, key, effort)
                yield _memory_of(peer, key, Path(folder))
        except workerd.Unavailable as unavailable:
            yield Skipped(work=f"{work}, beside workerd", reason=str(unavailable))
        bare = _bare(service)
        name = f"checks, {SPREAD_CLIENTS} clients"
        here, there = _in_turns(ours, bare, key, Work(job="check", clients=SPREAD_CLIENTS), effort)
        yield at_least_ratio(name, _rates(here), bare.name, _rates(there), ratio=0.8, unit="/s")
        yield _tail("checks", here)
        yield from cores.checks(service, key, Work(job="check", clients=SPREAD_CLIENTS), effort.run_s, effort.pairs)


def _beside(ours: Peer, theirs: Peer, key: str, effort: Effort) -> Iterator[Row]:
    def compared(name: str, work: Work, ratio: float) -> tuple[Row, list[Load]]:
        here, there = _in_turns(ours, theirs, key, work, effort)
        return at_least_ratio(name, _rates(here), theirs.name, _rates(there), ratio=ratio, unit="/s"), here

    ids_file = ours.ids_file
    assert ids_file is not None
    yield compared(f"checks, {SPREAD_CLIENTS} clients", Work(job="check", clients=SPREAD_CLIENTS), 1.2)[0]
    yield compared("checks, one client", Work(job="check"), 0.8)[0]
    row, loads = compared(f"appends to {effort.sessions} sessions, limited", Work(job="append", ids_file=ids_file), 1.2)
    yield row
    yield _tail("appends", loads)
    filled = ids_file.with_name("filled")
    filled.write_text("\n".join(ids_file.read_text().split()[: effort.histories]))
    for peer in (ours, theirs):
        _fill(peer, key, filled)
    row, loads = compared(f"last {MESSAGES} messages, limited", Work(job="history", ids_file=filled), 1.0)
    yield row
    yield _tail("last messages", loads)
    alone = Work(job="append", ids_file=ids_file, connections=1)
    here, there = _in_turns(ours, theirs, key, alone, effort, have_met=True)
    medians = [[load.median_s for load in loads] for loads in (here, there)]
    yield at_most_ratio("an append, alone", medians[0], theirs.name, medians[1], ratio=2.0)
    check = [wrk.run(ours.url, key, Work(job="check", connections=1), effort.run_s) for _ in range(effort.pairs)]
    yield figure("layer: a check over HTTP, alone", [load.median_s for load in check], unit="ms")


def _in_turns(
    ours: Peer, theirs: Peer, key: str, work: Work, effort: Effort, *, have_met: bool = False
) -> tuple[list[Load], list[Load]]:
    loads: tuple[list[Load], list[Load]] = ([], [])
    for peer in () if have_met else (ours, theirs):
        _meet(peer, key, work)
    for number in range(2 * effort.pairs):
        which = 0 if number % 4 in (0, 3) else 1
        loads[which].append(wrk.run((ours, theirs)[which].url, key, work, effort.run_s))
    return loads


def _meet(peer: Peer, key: str, work: Work) -> None:
    """Sends requests until nearly all buckets and sessions were met: what is done first is not what is measured."""
    objects = work.clients if work.ids_file is None else len(work.ids_file.read_text().split())
    sent = 0
    while sent < 4 * objects:
        sent += wrk.run(peer.url, key, work, 1).requests


def _rates(loads: list[Load]) -> list[float]:
    return [load.rate for load in loads]


def _tail(name: str, loads: list[Load]) -> Row:
    slow, median = [load.p99_s for load in loads], [load.median_s for load in loads]
    return at_most_ratio(f"{name}, the slowest in 100", slow, "their median", median, ratio=4.0)


def _fill(peer: Peer, key: str, ids_file: Path) -> None:
    ids = ids_file.read_text().split()
    sent = 0
    while sent < len(ids) * (MESSAGES + 1):
        sent += wrk.run(peer.url, key, Work(job="append", ids_file=ids_file, in_turn=True), 1).requests


def _made(url: str, key: str, sessions: int) -> Iterator[str]:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, verify=False) as client:
        for _ in range(sessions):
            yield str(client.post("/chat/sessions", json={}).raise_for_status().json()["id"])


def _memory_of(peer: workerd.Workerd, key: str, folder: Path) -> Row:
    """What each object that is used takes there."""
    ids_file = folder / "touched"
    samples = []
    for _ in range(3):
        ids_file.write_text("\n".join(secrets.token_hex(8) for _ in range(TOUCHED_BY_PEER)))
        before = peer.memory_bytes
        work = Work(job="append", ids_file=ids_file, in_turn=True)
        requests = wrk.run(peer.url, key, work, 1).requests
        samples.append((peer.memory_bytes - before) / min(requests, TOUCHED_BY_PEER) / 1000)
    return figure("workerd: memory of an object in use", samples, unit="kB")


def _bare(service: Service) -> Peer:
    replicas = str(len(service.processes("ServeReplica:default:Ingress")))
    program = [sys.executable, "-m", bare_serve.__name__, replicas]
    subprocess.run(program, env={**os.environ, **service.ray_environ}, check=True, timeout=120, stdout=subprocess.PIPE)
    return Peer(name="FastAPI on bare Serve", url=service.url + bare_serve.PREFIX)
