"""Hosts are killed with `kill -9` while many clients talk to the service: is anything lost, done twice or given away?

What the clients see is all that counts here: over HTTP, with the repeats that a careful client makes. `FAULT_ROUNDS`
sets how many rounds of 2,000 requests there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest

from tests.integration.calls import new_session, ok, unique
from tests.integration.conftest import Service, free_port

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "2"))
#: For the start of the service, and for each round, on a machine that does much else.
START_TIMEOUT_S = 300
ROUND_TIMEOUT_S = 150

#: Keys whose sessions are pooled and dedicated, and how many sessions of each there are.
SESSIONS = {"sk-demo": 4, "sk-acme": 2}
CLIENTS_PER_SESSION = 12
APPENDS_EACH = 18
#: Each has a client of its own, and is asked for more tokens than it has.
BUCKETS = 20
CHECKS_EACH = 36
#: What a bucket of the tenant `small` has: so many tokens, and no refill.
CAPACITY = 30
#: A request is answered by then, and an append is acknowledged, however often it has to be repeated.
ANSWERED_WITHIN_S = 60.0
ACKNOWLEDGED_WITHIN_S = 90.0
#: Longer than a host takes to come back, at times, and shorter at others.
PAUSE_MAX_S = 2.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("load"), free_port())
    running.start()
    try:
        yield running
    finally:
        running.stop()


class Killer:
    """Kills one host after the other, until it is told to end."""

    def __init__(self, service: Service, chance: random.Random) -> None:
        self._service = service
        self._chance = chance
        self._enough = asyncio.Event()
        #: When each was killed: just before, and just after.
        self.killed_s: list[tuple[float, float]] = []

    async def run(self) -> None:
        while not self._enough.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._chance.uniform(0.0, PAUSE_MAX_S)):
                    await self._enough.wait()
                return
            hosts = await asyncio.to_thread(self._service.processes, "ray::ObjectHost")
            if hosts:  # they may all be on their way back
                self._kill(self._chance.choice(hosts))

    def _kill(self, host: psutil.Process) -> None:
        before_s = time.monotonic()
        with contextlib.suppress(psutil.NoSuchProcess):
            host.kill()
            self.killed_s.append((before_s, time.monotonic()))

    def end(self) -> None:
        self._enough.set()

    def kills_between(self, sent_s: float, heard_s: float) -> int:
        return sum(after_s >= sent_s and before_s <= heard_s for before_s, after_s in self.killed_s)


async def answer_to(request: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    async with asyncio.timeout(ANSWERED_WITHIN_S):
        return await request()


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
    acknowledged: list[Acknowledged] = field(default_factory=list)

    async def append_some(self, client: httpx.AsyncClient, client_number: int) -> None:
        """One of its clients, which waits for each acknowledgement before it goes on."""
        last = 0
        for message_number in range(APPENDS_EACH):
            content = f"client {client_number} message {message_number}"
            sent_s = time.monotonic()
            async with asyncio.timeout(ACKNOWLEDGED_WITHIN_S):
                number = await self._append(client, content)
            self.acknowledged.append(
                Acknowledged(number=number, content=content, sent_s=sent_s, heard_s=time.monotonic())
            )
            assert number > last, "a later message of one client came before an earlier one"
            last = number

    async def _append(self, client: httpx.AsyncClient, content: str) -> int:
        headers = {"Idempotency-Key": unique("append")}
        body = {"role": "user", "content": content}
        while True:
            answer = await answer_to(lambda: client.post(f"{self.path}/messages", json=body, headers=headers))
            if answer.status_code == 201:
                return int(answer.json()["id"])
            # A part is restarting, or an earlier try with this key still waits for it.
            assert answer.status_code in (503, 409), f"{answer.status_code}: {answer.text[:500]}"
            await asyncio.sleep(float(answer.headers["retry-after"]))

    def compare(self, service: Service) -> None:
        with service.client(self.key) as client:
            history = ok(client.get(f"{self.path}/messages", params={"limit": 1000}))["messages"]
        acknowledged = sorted(self.acknowledged)
        assert len(acknowledged) == CLIENTS_PER_SESSION * APPENDS_EACH
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
    """A bucket with a client of its own, which has one check under way at a time."""

    name: str
    allowed: int = 0
    #: A kill loses one try of a check at most: there is never more than one on its way. It may have taken a token.
    perhaps: int = 0

    async def check_some(self, client: httpx.AsyncClient, killer: Killer) -> None:
        for _ in range(CHECKS_EACH):
            sent_s = time.monotonic()
            answer = await answer_to(lambda: client.post("/ratelimit/check", headers={"x-client": self.name}))
            assert answer.status_code in (200, 429, 503), f"{answer.status_code}: {answer.text[:500]}"
            self.perhaps += killer.kills_between(sent_s, time.monotonic())
            if answer.status_code == 503:
                continue
            decision = answer.json()
            assert decision["allowed"] == (answer.status_code == 200)
            self.allowed += decision["allowed"]
            self.compare(decision["remaining"])

    def compare(self, remaining: float) -> None:
        taken = CAPACITY - remaining
        # None is given that was not paid for, and none is taken for nothing.
        assert self.allowed <= taken <= min(CAPACITY, self.allowed + self.perhaps)


async def all_at_once(service: Service, sessions: list[Session], buckets: list[Bucket], killer: Killer) -> None:
    async with contextlib.AsyncExitStack() as stack:

        async def client(key: str) -> httpx.AsyncClient:
            return await stack.enter_async_context(service.async_client(key))

        async with asyncio.TaskGroup() as tasks:
            for session in sessions:
                for number in range(CLIENTS_PER_SESSION):
                    tasks.create_task(session.append_some(await client(session.key), number))
            for bucket in buckets:
                tasks.create_task(bucket.check_some(await client("sk-small"), killer))


@pytest.mark.timeout(START_TIMEOUT_S + ROUND_TIMEOUT_S)
@pytest.mark.parametrize("number", range(ROUNDS))
async def test_what_clients_were_told_holds_when_hosts_are_killed_under_2000_requests(
    service: Service, number: int
) -> None:
    sessions = []
    for key, count in SESSIONS.items():
        with service.client(key) as client:
            sessions += [Session(key=key, path=new_session(client)) for _ in range(count)]
    buckets = [Bucket(name=unique("bucket")) for _ in range(BUCKETS)]
    killer = Killer(service, random.Random(number))  # whom and when; the machine decides where exactly it hurts
    killing = asyncio.ensure_future(killer.run())
    try:
        await all_at_once(service, sessions, buckets, killer)
    finally:
        killer.end()
        await killing
    assert killer.killed_s
    for session in sessions:
        await asyncio.to_thread(session.compare, service)
    async with service.async_client("sk-small") as client:
        for bucket in buckets:
            usage: dict[str, Any] = ok(await client.get("/ratelimit/usage", headers={"x-client": bucket.name}))
            bucket.compare(usage["remaining"])
