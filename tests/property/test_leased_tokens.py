"""Whatever replicas, losses and clocks do: is more let through than a bucket gives, or much less?

Two processes that let a client in share its bucket, with leases of its tokens. Beside them goes a plain bucket that is
charged with what they have let through, and with nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from actors import ObjectReset, TokenBucket
from actors.bucket import RETRY_AFTER_MAX_S
from actors.runtime.clock import ManualClock
from actors.token_bucket import SAID_WITHIN_S
from configs.limits import LeaseConfig, PolicyConfig, TenantLimits
from deployments.client_name import Requester
from deployments.denials import Denials
from deployments.keyring import Principal
from deployments.limit_counts import LimitCounts
from deployments.limiter import Limiter
from deployments.live_limits import LiveLimits
from tests.unit.handles import SCOPES, FailingObjects, new_leases, tenant

CAPACITY, RATE, LEASED, TTL_S = 16.0, 4.0, 3.0, 2.0
SLOWER = (60.0, 2.0)
REPLICAS = 2
ROUNDING = 1e-6
YEAR_S = 365 * 86_400.0
LOST = ObjectReset("TokenBucket/acme:c", "its host was lost")
LEASE = LeaseConfig(tokens=LEASED, ttl_s=TTL_S)
CLIENT = "c"
#: What is held elsewhere, and what did not come in while it was.
DENIED_WITHIN = 2 * REPLICAS * LEASED
LIMITS = TenantLimits(
    policies=(
        PolicyConfig(name="burst", capacity=CAPACITY, refill_per_second=RATE, lease=LEASE),
        PolicyConfig(name="slower", capacity=SLOWER[0], refill_per_second=SLOWER[1], lease=LEASE),
    )
)

#: What happens, in which replica, and what for: costs of requests, or seconds.
Step: TypeAlias = tuple[str, int, float | list[float]]
_replicas = st.integers(0, REPLICAS - 1)
#: Few, so that a lease is left, or as many as there may be.
_requests = st.integers(1, 4).map(lambda number: [1.0] * number) | st.sampled_from([[1.0] * 20, [0.3, 2.5, 0.0, 30.0]])
_checks = st.tuples(st.just("check"), _replicas, _requests)
_passing = st.tuples(st.just("pass"), st.just(0), st.sampled_from([0.1, 0.5, 1.0, TTL_S, SAID_WITHIN_S + 0.5, 10.0]))
_giving_back = st.tuples(st.just("give back"), _replicas, st.just(0.0))
_losses = st.tuples(
    st.sampled_from(
        ["crash", "lose lease", "lose lease, answer", "lose give back", "lose give back, answer", "hibernate"]
    ),
    _replicas,
    st.just(0.0),
)
_jumps = st.tuples(
    st.just("jump"), st.just(0), st.sampled_from([-YEAR_S, -3.0, -0.5, 0.5, 3.0, RETRY_AFTER_MAX_S, YEAR_S])
)


@dataclass(kw_only=True, slots=True)
class Ideal:
    """What a client may have had if it was let through as it was, by a bucket that lends nothing."""

    capacity: float
    rate: float
    tokens: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.capacity

    def fill(self, elapsed_s: float) -> None:
        self.tokens = min(self.capacity, self.tokens + elapsed_s * self.rate)


class World:
    """The client's bucket, and the replicas that it comes to."""

    def __init__(self, objects: FailingObjects) -> None:
        self.objects = objects
        self.bucket = objects.namespace(TokenBucket).get("acme", CLIENT)
        self.names = map(str, itertools.count())
        self.replicas = [self._replica() for _ in range(REPLICAS)]

    def _replica(self) -> Limiter:
        clock = self.objects.clock
        denials, leases = Denials(clock.monotonic), new_leases(clock, next(self.names))
        for memory in (denials, leases):
            memory.certain_until(float("inf"))
        return Limiter(
            self.objects,
            LiveLimits({"acme": tenant("acme", limits=LIMITS)}),
            denials=denials,
            leases=leases,
            counts=LimitCounts(lambda *_: None),
            monotonic=clock.monotonic,
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        """No time: what is looked at is when things come, not how long they take."""

    async def check(self, replica: int, cost: float) -> bool:
        principal = Principal(tenant="acme", key_id=CLIENT, scopes=SCOPES)
        requester = Requester(principal=principal, address=lambda: "", headers={})
        return (await self.replicas[replica].check(requester, "kv", cost)).allowed

    async def do(self, what: str, replica: int, amount: float) -> None:
        if what == "pass":
            self.objects.clock.advance(amount)
        elif what == "jump":
            self.objects.clock.set_wall(self.objects.clock.now() + amount)
        elif what == "give back":
            await self.replicas[replica].give_back()
        elif what == "crash":
            self.replicas[replica] = self._replica()
        elif what == "hibernate":
            self.objects.host.evict(self.bucket.id)
        else:
            failing = self.objects.failing_after if what.endswith("answer") else self.objects.failing
            failing["TokenBucket", "give_back" if "give back" in what else "lease"] = [LOST]


async def _played(steps: list[Step], *, is_lossless: bool) -> None:
    with TemporaryDirectory() as folder:
        objects = FailingObjects(Path(folder), ManualClock(), classes=[TokenBucket])
        with contextlib.closing(objects):
            clock, world = objects.clock, World(objects)
            jumps = any(what == "jump" for what, *_ in steps)
            began, latest, admitted = clock.now(), clock.now(), 0.0
            ideals = [Ideal(capacity=policy.capacity, rate=policy.refill_per_second) for policy in LIMITS.policies]
            for what, replica, amount in steps:
                if not isinstance(amount, list):
                    await world.do(what, replica, amount)
                    for ideal in ideals:
                        ideal.fill(max(0.0, clock.now() - latest))
                    latest = max(latest, clock.now())
                    continue
                for cost in amount:
                    if await world.check(replica, cost):
                        admitted += cost
                        for ideal in ideals:
                            ideal.tokens -= cost
                            assert admitted <= ideal.capacity + ideal.rate * (latest - began) + ROUNDING
                            # So in no span of time is more admitted than the capacity and what came meanwhile.
                            assert ideal.tokens >= -ROUNDING or jumps
                    elif is_lossless:
                        assert any(ideal.tokens < cost + DENIED_WITHIN + ROUNDING for ideal in ideals)


def _schedules(*between: st.SearchStrategy[Step]) -> st.SearchStrategy[list[Step]]:
    """Rounds of requests, time, something between, and requests again."""
    rounds = st.tuples(_checks, _passing, st.one_of(_checks, _passing, _giving_back, *between), _checks)
    return st.lists(rounds, min_size=1, max_size=10).map(lambda steps: list(itertools.chain.from_iterable(steps)))


@given(steps=_schedules())
def test_no_more_is_let_through_than_by_a_bucket_that_leases_nothing_and_little_less(steps: list[Step]) -> None:
    asyncio.run(_played(steps, is_lossless=True))


@given(steps=_schedules(_losses))
def test_what_is_lost_is_spent_by_nobody(steps: list[Step]) -> None:
    asyncio.run(_played(steps, is_lossless=False))


@given(steps=_schedules(_losses, _jumps))
def test_leases_mint_nothing_when_clocks_jump(steps: list[Step]) -> None:
    asyncio.run(_played(steps, is_lossless=False))
