"""How does a request that is sent again get the answer that it got before?

A request with a key is done once, and its answer recorded; for `KEPT_S` whoever comes with the key gets that answer.
No answer leaves before it is recorded. A key belongs to one tenant and one route: elsewhere it is another key.

While a request is under way, others with its key are refused. If its process dies, they are refused until its lease
runs out, and then the next one does the work again, by the plan of the first: so work must bear to be done again, and
what must be the same then, such as the id of what it makes, stands in the plan. Answers that may be better next time
are not recorded, nor are errors.

It does not keep more than `RECORDS_MAX` answers of a tenant, of which the oldest leave.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypedDict

from actors import DurableError, KeyValue, ObjectOverloaded, Objects
from actors.runtime.namespace import Stub
from actors.runtime.once import REQUESTS_KEPT_S
from deployments.errors import IdempotencyKeyBusy, IdempotencyKeyReused

logger = logging.getLogger("mobula.idempotency")

#: The tenant's object that holds the records; no route leads to it.
STORE_NAME = "requests"
#: As long as objects recognise a request, so that one rule holds for all routes.
KEPT_S = REQUESTS_KEPT_S
RECORDS_MAX = 10_000
#: Longer than a host takes to restart, since the lease is renewed through one; a client waits no longer for a crash.
LEASE_S = 20.0
#: Most requests take less than that.
BUSY_RETRY_AFTER_S = 1.0
#: Requests under way in one process, those included whose clients went away.
UNDER_WAY_MAX = 500
#: How often another may be quicker, each time, before the key counts as busy.
_ATTEMPTS_MAX = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyedRequest:
    """`fingerprint` is equal for equal requests alone."""

    tenant: str
    route: str
    key: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What work led to, as JSON holds it. One that is not final may be another next time.

    `replayed`: an attempt that was lost before it could record its answer had done the work already.
    """

    content: dict[str, Any]
    is_final: bool = True
    replayed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """`replayed`: it was given, and its work done, before."""

    content: dict[str, Any]
    replayed: bool


class Record(TypedDict):
    """What is kept under a key. `claim` is of who is at work, until `until`; `answer` holds the content alone."""

    fingerprint: str
    plan: str
    claim: str
    until: float
    answer: dict[str, Any] | None


def key_id(route: str, key: str) -> str:
    """A key as it is kept: of one route, of bounded length, and of no use to who reads it."""
    return "http-" + hashlib.sha256(f"{route}\0{key}".encode()).hexdigest()


class Idempotency:
    """Answers requests with a key. `now` is to agree between processes, within a fraction of the lease."""

    def __init__(
        self,
        objects: Objects,
        now: Callable[[], float],
        *,
        lease_s: float = LEASE_S,
        renew_every_s: float = LEASE_S / 4,
    ) -> None:
        self._stores = objects.namespace(KeyValue)
        self._now = now
        self._lease_s = lease_s
        self._renew_every_s = renew_every_s
        self._under_way: set[asyncio.Task[Answer]] = set()

    async def answer(self, request: KeyedRequest, plan: str, work: Callable[[str], Awaitable[Outcome]]) -> Answer:
        """The recorded answer, or that of `work`, which is given the plan of whoever began it first.

        Raises:
            IdempotencyKeyReused: the key came with another request before.
            IdempotencyKeyBusy: the request is under way.
            ObjectOverloaded: too many are, here.
        """
        if len(self._under_way) >= UNDER_WAY_MAX:
            reason = "too many requests with a key are under way here"
            raise ObjectOverloaded(f"KeyValue/{request.tenant}:{STORE_NAME}", reason, BUSY_RETRY_AFTER_S)
        # In a context of its own: Serve ends every call made in a request's context when its client goes away, and a
        # client that comes again with its key had better find the work done than half done.
        doing = self._answer(request, plan, work)
        task = asyncio.get_running_loop().create_task(doing, context=contextvars.Context())
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Answer]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # Its client is told, if it is still there; asking marks the error as seen.
            logger.info("a request with a key failed: %s", type(task.exception()).__name__)

    async def _answer(self, request: KeyedRequest, plan: str, work: Callable[[str], Awaitable[Outcome]]) -> Answer:
        record: Record = {
            "fingerprint": request.fingerprint,
            "plan": plan,
            "claim": secrets.token_hex(8),
            "until": self._now() + self._lease_s,
            "answer": None,
        }
        store = self._stores.get(request.tenant, STORE_NAME)
        claim = _Claim(store, key_id(request.route, request.key), request, record)
        recorded = await claim.take(self._now())
        if recorded is not None:
            return Answer(content=recorded, replayed=True)
        try:
            outcome = await self._work(claim, work)
        except Exception:  # whatever it was, the next attempt need not wait for the lease to run out
            await self._release(claim)
            raise
        if not outcome.is_final:
            await self._release(claim)
            return Answer(content=outcome.content, replayed=outcome.replayed)
        recorded = await claim.end(outcome.content)
        if recorded is not None:
            return Answer(content=recorded, replayed=True)
        return Answer(content=outcome.content, replayed=outcome.replayed)

    async def _work(self, claim: _Claim, work: Callable[[str], Awaitable[Outcome]]) -> Outcome:
        done = asyncio.Event()
        renewing = asyncio.get_running_loop().create_task(self._renew(claim, done))
        try:
            return await work(claim.plan)
        finally:
            done.set()
            # Not cancelled: a renewal that is on its way would then change the record behind the end's back.
            await renewing

    async def _renew(self, claim: _Claim, done: asyncio.Event) -> None:
        while True:
            try:
                async with asyncio.timeout(self._renew_every_s):
                    await done.wait()
                return
            except TimeoutError:
                pass
            try:
                if not await claim.extend(self._now() + self._lease_s):
                    return
            except DurableError as error:
                logger.warning("the lease of a request was not renewed: %s", error)

    async def _release(self, claim: _Claim) -> None:
        try:
            await claim.extend(0.0)
        except DurableError as error:
            logger.warning("the lease of a request is left to run out: %s", error)


class _Claim:
    """One request's hold on its record. `record` is what was last known to be there, once it was taken."""

    def __init__(self, store: Stub[KeyValue], key: str, request: KeyedRequest, record: Record) -> None:
        self._store = store
        self._key = key
        self._request = request
        self._record = record

    @property
    def plan(self) -> str:
        return self._record["plan"]

    async def take(self, now: float) -> dict[str, Any] | None:
        """Returns the answer if there is one; else the claim is this one's from here on."""
        there: Record | None = None
        for _ in range(_ATTEMPTS_MAX):
            new = self._record
            if there is not None:
                if there["fingerprint"] != self._request.fingerprint:
                    raise IdempotencyKeyReused(self._request.key)
                if there["answer"] is not None:
                    return there["answer"]
                if there["until"] > now:
                    break
                new = {**self._record, "plan": there["plan"]}
            there = await self._swap(there, new)
            if there == new:
                self._record = new
                return None
        raise IdempotencyKeyBusy(BUSY_RETRY_AFTER_S)

    async def extend(self, until: float) -> bool:
        """False if the record is another's by now."""
        return await self._replace({**self._record, "until": until}) is None

    async def end(self, content: dict[str, Any]) -> dict[str, Any] | None:
        """Records the answer. Returns what another has recorded, where this claim's lease had run out."""
        another = await self._replace({**self._record, "until": 0.0, "answer": content})
        if another is None:
            return None
        if another["answer"] is None:
            raise IdempotencyKeyBusy(BUSY_RETRY_AFTER_S)
        return another["answer"]

    async def _replace(self, new: Record) -> Record | None:
        """Returns what is there instead, if that is another's."""
        for _ in range(_ATTEMPTS_MAX):
            there = await self._swap(self._record, new)
            if there == new:
                self._record = new
                return None
            if there is None:
                # It left to make room for others, and nobody came with the key since.
                there = await self._swap(None, new)
                if there == new:
                    self._record = new
                    return None
            if there is not None and there["claim"] != new["claim"]:
                return there
            if there is not None:
                self._record = there  # a renewal came to pass though it seemed to fail
        raise IdempotencyKeyBusy(BUSY_RETRY_AFTER_S)

    async def _swap(self, expected: Record | None, new: Record) -> Record | None:
        item = await self._store.swap(self._key, expected, new, ttl_s=KEPT_S, keep_newest=RECORDS_MAX)
        there: Record | None = None if item is None else item["value"]
        return there
