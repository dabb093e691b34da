"""2,000 clients talk to the service at once, and hosts are killed with `kill -9`: is anything lost, or done twice?

What the clients see is all that counts here: over HTTP, with the repeats that a careful client makes. Each round begins
with a request of every client while no host goes on, so that the service holds all of them at once; then all hosts are
killed. As they come back and answer, they are killed again. `FAULT_ROUNDS` sets how many rounds there are,
`PACED_LOAD_S` for how many seconds more is asked of a bucket than it gives.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import math
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil
import pytest

from deployments.free_port import free_port
from deployments.leftovers import RunRecord
from tests.integration.calls import new_session, ok, unique
from tests.integration.conftest import Service
from tests.paced_load import Load

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "3"))
#: For the start of the service, and for each round, on a machine that does much else.
START_TIMEOUT_S = 300
ROUND_TIMEOUT_S = 150

CLIENTS = 2000
#: Keys whose sessions are pooled and dedicated, how many sessions of each there are, and how many clients each has.
SESSIONS = {"sk-demo": (30, 45), "sk-acme": (2, 25)}
APPENDS_EACH = 2
#: Buckets that have one client each, which knows after each answer how many tokens there must be left.
OWN_BUCKETS = 200
OWN_CHECKS_EACH = 2
#: Buckets that are asked by all of their clients at once for more tokens than they have.
SHARED_BUCKETS = 10
CLIENTS_PER_BUCKET = 40
#: What a bucket of the tenant `small` has: so many tokens, and no refill.
CAPACITY = 30
#: A request is answered by then, and an append is acknowledged, however often it has to be repeated.
ANSWERED_WITHIN_S = 60.0
ACKNOWLEDGED_WITHIN_S = 90.0
HELD_WITHIN_S = 20.0
#: With one always away, a round would not get done.
KILLS_MAX = 2
#: From one kill to the next, at most: so the last one comes while many still wait, however fast the machine is.
ANSWERS_MAX = 400
#: Of the requests under way, as many at least are met by a kill.
MET_MIN = 500
#: Of all checks, those that miss their host for `fail_after_s`, and so say nothing.
REFUSED_SHARE_MAX = 0.01


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("load"), free_port())
    running.start()
    try:
        yield running
    finally:
        running.stop()


class Killer:
    """Kills all hosts, again and again, while others work."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._killed: set[psutil.Process] = set()
        #: When they were killed: just before, and just after.
        self.killed_s: list[tuple[float, float]] = []

    @contextlib.asynccontextmanager
    async def at_rest_and_then_killed(self) -> AsyncIterator[None]:
        """Within the block no host goes on; then all are killed, with what they were asked and have not looked at."""
        hosts = await self._hosts()
        assert hosts
        try:
            for host in hosts:
                host.suspend()
            yield
        finally:
            for host in hosts:
                assert self._kill(host)

    @contextlib.asynccontextmanager
    async def at_work(self, pause: Callable[[], Awaitable[None]], kills_max: float = math.inf) -> AsyncIterator[None]:
        """Within the block hosts are killed, each time after a pause."""
        killing = asyncio.create_task(self._kill_some(pause, kills_max))
        try:
            yield
        finally:
            killing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await killing

    async def _kill_some(self, pause: Callable[[], Awaitable[None]], kills_max: float) -> None:
        while len(self.killed_s) < kills_max:
            await pause()
            hosts = await self._hosts()
            before_s = time.monotonic()
            if sum(map(self._kill, hosts)):  # they may all be on their way back
                self.killed_s.append((before_s, time.monotonic()))

    async def _hosts(self) -> list[psutil.Process]:
        hosts = await asyncio.to_thread(self._service.processes, "ray::ObjectHost")
        return [host for host in hosts if host not in self._killed]  # one with much memory takes a moment to go

    def _kill(self, host: psutil.Process) -> bool:
        """Whether there was one to kill."""
        self._killed.add(host)
        try:
            host.kill()
        except psutil.NoSuchProcess:
            return False
        return True

    def met(self, spans_s: list[tuple[float, float]]) -> list[int]:
        """How many requests each kill came upon: they had been sent before it, and were answered after it."""
        return [
            sum(sent_s < before_s and heard_s > after_s for sent_s, heard_s in spans_s)
            for before_s, after_s in self.killed_s
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came back, and how long after the retry it asks for another may follow."""

    status: int
    text: str
    json: Any
    retry_after_s: float


class Crowd:
    """All clients: each has a connection of its own, and one request under way at a time."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = url
        self._http = http
        self._under_way = 0
        #: The most requests that were under way at once.
        self.peak = 0
        #: When each was sent and answered.
        self.spans_s: list[tuple[float, float]] = []
        #: Set when all clients are there, and may begin.
        self.begins = asyncio.Event()

    async def post(self, path: str, key: str, json: Any = None, **headers: str) -> Answer:
        headers = {"Authorization": f"Bearer {key}"} | {name.replace("_", "-"): text for name, text in headers.items()}
        sent_s = time.monotonic()
        self._under_way += 1
        self.peak = max(self.peak, self._under_way)
        try:
            async with (
                asyncio.timeout(ANSWERED_WITHIN_S),
                self._http.post(self._url + path, json=json, headers=headers) as answer,
            ):
                return Answer(
                    status=answer.status,
                    text=await answer.text(),
                    json=await answer.json(content_type=None),
                    retry_after_s=float(answer.headers.get("retry-after", 0.0)),
                )
        finally:
            self._under_way -= 1
            self.spans_s.append((sent_s, time.monotonic()))


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Acknowledged:
    """One message: the number it got, and when its client first sent it and heard of it."""

    number: int
    content: str
    sent_s: float
    heard_s: float


@dataclass(kw_only=True, slots=True)
class Session:
    """A session, and what its clients know of it."""

    key: str
    path: str
    clients: int
    acknowledged: list[Acknowledged] = field(default_factory=list)

    async def append_some(self, crowd: Crowd, client_number: int) -> None:
        """One of its clients, which waits for each acknowledgement before it goes on."""
        await crowd.begins.wait()
        last = 0
        for message_number in range(APPENDS_EACH):
            content = f"client {client_number} message {message_number}"
            sent_s = time.monotonic()
            async with asyncio.timeout(ACKNOWLEDGED_WITHIN_S):
                number = await self._append(crowd, content)
            self.acknowledged.append(
                Acknowledged(number=number, content=content, sent_s=sent_s, heard_s=time.monotonic())
            )
            assert number > last, "a later message of one client came before an earlier one"
            last = number

    async def _append(self, crowd: Crowd, content: str) -> int:
        request_id = unique("append")
        body = {"role": "user", "content": content}
        while True:
            answer = await crowd.post(f"{self.path}/messages", self.key, body, idempotency_key=request_id)
            if answer.status == 201:
                return int(answer.json["id"])
            # A part is restarting or full, or an earlier try with this key still waits for it.
            assert answer.status in (503, 409), f"{answer.status}: {answer.text[:500]}"
            assert answer.retry_after_s > 0.0
            await asyncio.sleep(answer.retry_after_s)

    def compare(self, service: Service) -> None:
        with service.client(self.key) as client:
            history = ok(client.get(f"{self.path}/messages", params={"limit": 1000}))["messages"]
        acknowledged = sorted(self.acknowledged)
        assert len(acknowledged) == self.clients * APPENDS_EACH
        # Nothing is lost, nothing is there twice, and nothing is there that nobody was told of.
        assert [(kept["id"], kept["content"]) for kept in history] == [
            (one.number, one.content) for one in acknowledged
        ]
        assert [one.number for one in acknowledged] == list(range(1, len(acknowledged) + 1))
        # What was sent after another was acknowledged has the higher number.
        latest_sent_s = 0.0
        for one in acknowledged:
            assert one.heard_s > latest_sent_s
            latest_sent_s = max(latest_sent_s, one.sent_s)


@dataclass(kw_only=True, slots=True)
class Bucket:
    """A bucket, and what its clients know of it."""

    name: str
    clients: int
    checks_each: int
    allowed: int = 0
    denied: int = 0
    #: Answered 503: one of its tries may have taken a token, and nobody was told.
    perhaps: int = 0

    async def check_some(self, crowd: Crowd) -> None:
        await crowd.begins.wait()
        for _ in range(self.checks_each):
            answer = await crowd.post("/ratelimit/check", "sk-small", x_client=self.name)
            assert answer.status in (200, 429, 503), f"{answer.status}: {answer.text[:500]}"
            if answer.status == 503:
                self.perhaps += 1
                continue
            assert answer.json["allowed"] == (answer.status == 200)
            self.allowed += answer.status == 200
            self.denied += answer.status == 429
            if self.clients == 1:  # else others may have heard of more, or less
                self.compare(answer.json["remaining"])

    def compare(self, remaining: float) -> None:
        taken = CAPACITY - remaining
        # None is given that was not paid for, none is taken twice or for nothing, and none is kept from who asks.
        assert self.allowed <= taken <= min(CAPACITY, self.allowed + self.perhaps)
        assert taken == CAPACITY or not self.denied


def told_by_haproxy(service: Service, command: str) -> str:
    record = RunRecord.read(service.data_dir / "run")
    assert record is not None
    (path,) = record.runtime_dir.glob("*/s")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10.0)
        connection.connect(str(path))
        connection.sendall(f"{command}\n".encode())
        with connection.makefile() as answer:
            return answer.read()


def held(service: Service) -> int:
    """How many requests HAProxy has at Serve now."""
    lines = told_by_haproxy(service, "show stat").removeprefix("# ").splitlines()
    return max(int(line["scur"]) for line in csv.DictReader(lines) if line["svname"] == "BACKEND")


async def all_at_once(
    service: Service, sessions: list[Session], buckets: list[Bucket], killer: Killer, chance: random.Random
) -> Crowd:
    """Has each client make its requests, while hosts are killed."""
    unlimited = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=unlimited, timeout=aiohttp.ClientTimeout(None)) as http:
        crowd = Crowd(service.url, http)
        clients = [session.append_some(crowd, number) for session in sessions for number in range(session.clients)]
        clients += [bucket.check_some(crowd) for bucket in buckets for _ in range(bucket.clients)]
        assert len(clients) == CLIENTS

        async def some_answers() -> None:
            await crowd.begins.wait()
            enough = len(crowd.spans_s) + chance.randint(1, ANSWERS_MAX)
            while len(crowd.spans_s) < enough:
                await asyncio.sleep(0.01)

        async with killer.at_work(some_answers, KILLS_MAX), asyncio.TaskGroup() as tasks:
            for client in clients:
                tasks.create_task(client)
            await asyncio.sleep(0)  # until each waits to begin
            async with killer.at_rest_and_then_killed(), asyncio.timeout(HELD_WITHIN_S):
                crowd.begins.set()
                while await asyncio.to_thread(held, service) < CLIENTS * 0.95:
                    await asyncio.sleep(0.05)
        return crowd


@pytest.mark.timeout(START_TIMEOUT_S + ROUND_TIMEOUT_S)
@pytest.mark.parametrize("number", range(ROUNDS))
async def test_what_clients_were_told_holds_when_hosts_are_killed_under_2000_requests_at_once(
    service: Service, number: int
) -> None:
    sessions = []
    for key, (count, clients) in SESSIONS.items():
        with service.client(key) as client:
            sessions += [Session(key=key, path=new_session(client), clients=clients) for _ in range(count)]
    buckets = [Bucket(name=unique("own"), clients=1, checks_each=OWN_CHECKS_EACH) for _ in range(OWN_BUCKETS)]
    buckets += [Bucket(name=unique("shared"), clients=CLIENTS_PER_BUCKET, checks_each=1) for _ in range(SHARED_BUCKETS)]
    chance = random.Random(number)  # when; the machine decides where exactly it hurts
    killer = Killer(service)
    crowd = await all_at_once(service, sessions, buckets, killer, chance)
    assert crowd.peak == CLIENTS
    assert max(killer.met(crowd.spans_s), default=0) >= MET_MIN
    checks = sum(bucket.clients * bucket.checks_each for bucket in buckets)
    assert sum(bucket.perhaps for bucket in buckets) <= REFUSED_SHARE_MAX * checks
    await asyncio.gather(*[asyncio.to_thread(session.compare, service) for session in sessions])
    async with service.async_client("sk-small") as small:

        async def compare(bucket: Bucket) -> None:
            usage: dict[str, Any] = ok(await small.get("/ratelimit/usage", headers={"x-client": bucket.name}))
            bucket.compare(usage["remaining"])

        await asyncio.gather(*map(compare, buckets))


#: What the tenant `lasting` has: so much that nothing overflows while its host is away for `fail_after_s`, which is 10.
PACED_CAPACITY = 200
PACED_REFILL_PER_SECOND = 20
#: How long more is asked of it than it gives, and how long of that no host is killed any more.
PACED_S = float(os.environ.get("PACED_LOAD_S", "20"))
PACED_QUIET_S = 6.0
#: From when it answers again to the next kill, at most.
PACED_PAUSE_MAX_S = 1.0
#: A request that waits for a host takes longer.
PACED_QUICK_MAX_S = 0.1


@pytest.mark.timeout(START_TIMEOUT_S + ROUND_TIMEOUT_S)
async def test_as_many_are_admitted_as_a_bucket_gives_and_never_more_while_its_host_is_killed(service: Service) -> None:
    chance = random.Random(0)
    killer = Killer(service)
    asked = Load(capacity=PACED_CAPACITY, refill_per_second=PACED_REFILL_PER_SECOND)

    async def used_up_and_there() -> None:
        admitted = asked.admitted
        while not asked.statuses[429] or asked.admitted == admitted:
            await asyncio.sleep(0.01)
        await asyncio.sleep(chance.uniform(0.0, PACED_PAUSE_MAX_S))

    async with asyncio.TaskGroup() as tasks:
        rate = 5 * PACED_REFILL_PER_SECOND
        tasks.create_task(asked.run(service, "sk-lasting", unique("paced"), rate=rate, clients=50, for_s=PACED_S))
        async with killer.at_work(used_up_and_there):
            await asyncio.sleep(PACED_S - PACED_QUIET_S)
    assert len(killer.killed_s) >= 2
    assert asked.statuses.keys() <= {200, 429, 503}
    # All the rest were told what their tokens, paid once, have bought them.
    refused = asked.statuses[503]
    assert refused <= REFUSED_SHARE_MAX * asked.statuses.total()
    assert asked.least - refused <= asked.admitted <= asked.most
    assert max(heard_s - sent_s for sent_s, heard_s in asked.spans_s) > PACED_QUICK_MAX_S
