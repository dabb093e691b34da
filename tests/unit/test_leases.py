"""Do leases of tokens save calls of the owner, and never let more through than it has debited?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import ObjectReset, TokenBucket
from actors.bucket import Policy
from actors.runtime.clock import ManualClock
from actors.runtime.namespace import Stub
from actors.token_bucket import LEASE_MAX_S, SAID_WITHIN_S, Ended, Wanted
from configs.limits import LeaseConfig, PolicyConfig, RouteName, TenantLimits
from deployments.client_name import Requester
from deployments.denials import Denials
from deployments.keyring import Principal
from deployments.leases import Leases
from deployments.limit_counts import LimitCounts
from deployments.limiter import Limiter, Verdict
from deployments.live_limits import LiveLimits
from deployments.quotas import TenantQuotas
from tests.unit.handles import SCOPES, FailingObjects, new_leases, tenant

LEASE = LeaseConfig(tokens=20, ttl_s=2)
BURST = PolicyConfig(name="burst", capacity=100, refill_per_second=0, lease=LEASE)
DAILY = PolicyConfig(name="daily", capacity=1000, refill_per_second=0, lease=LeaseConfig(tokens=8, ttl_s=10))
ANY = [Policy("burst", 0.0, 100.0)]
LOST = ObjectReset("TokenBucket/acme:all", "its host was lost")


@pytest.fixture
def objects(tmp_path: Path, clock: ManualClock) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, clock, classes=[TokenBucket])
    yield objects
    objects.close()


@pytest.fixture
def bucket(objects: FailingObjects) -> Stub[TokenBucket]:
    return objects.namespace(TokenBucket).get("acme", "all")


def changed(policy: PolicyConfig, **changes: Any) -> PolicyConfig:
    return policy.model_copy(update=changes)


class Replica:
    """One process that lets the client in, and hears of news all the time."""

    def __init__(self, objects: FailingObjects, name: str, *policies: PolicyConfig, **limits: Any) -> None:
        clock = objects.clock
        self.clock = clock
        self.limits = LiveLimits({"acme": tenant("acme", limits=TenantLimits(policies=policies or (BURST,), **limits))})
        self.denials, self.leases = Denials(clock.monotonic), new_leases(clock, name)
        self.limiter = Limiter(
            objects,
            self.limits,
            denials=self.denials,
            leases=self.leases,
            counts=LimitCounts(lambda *_: None),
            monotonic=clock.monotonic,
        )
        self.hears_news()

    def hears_news(self) -> None:
        for memory in (self.denials, self.leases):
            memory.certain_until(self.clock.monotonic() + 1_000)

    async def check(self, cost: float | None = None, client: str = "all", route: RouteName = "kv") -> Verdict:
        principal = Principal(tenant="acme", key_id=client, scopes=SCOPES)
        return await self.limiter.check(Requester(principal=principal, address=lambda: "", headers={}), route, cost)


def asked(objects: FailingObjects) -> int:
    """How often owners of buckets were called."""
    return sum(class_name == "TokenBucket" for class_name, _ in objects.calls)


async def held(bucket: Stub[TokenBucket]) -> float:
    ((tokens, *_),) = await bucket.usage(ANY)
    return float(tokens)


async def test_a_client_that_asks_often_is_let_through_by_few_calls_of_the_owner(
    objects: FailingObjects, bucket: Stub[TokenBucket]
) -> None:
    leased, plain = Replica(objects, "one"), Replica(objects, "two", changed(BURST, lease=None))
    verdicts = [await leased.check() for _ in range(43)]
    assert [verdict.remaining for verdict in verdicts] == [99 - number for number in range(43)]
    # One that finds out, and then one for each 21: a request, and those that its lease pays for.
    assert asked(objects) == 3
    for _ in range(43):
        await plain.check()
    assert asked(objects) == 3 + 43


async def test_a_client_that_is_not_back_soon_gets_no_lease(objects: FailingObjects) -> None:
    replica = Replica(objects, "one")
    for _ in range(3):
        await replica.check()
        objects.clock.advance(2.5)
    assert len(replica.leases) == 0


async def test_no_more_is_let_through_than_the_bucket_held_by_however_many_replicas(objects: FailingObjects) -> None:
    replicas = [Replica(objects, name) for name in ("one", "two", "three")]
    allowed = 0
    for _ in range(60):
        verdicts = await asyncio.gather(*[replica.check() for replica in replicas])
        allowed += sum(verdict.allowed for verdict in verdicts)
    # All of them came: the last ones are leased to nobody.
    assert allowed == 100


async def test_what_is_left_of_a_lease_is_given_back_once_it_is_over(
    objects: FailingObjects, bucket: Stub[TokenBucket]
) -> None:
    replica = Replica(objects, "one")
    for _ in range(5):
        await replica.check()
    assert await held(bucket) == 78
    await replica.limiter.give_back()
    assert await held(bucket) == 78
    objects.clock.advance(2)
    await replica.limiter.give_back()
    assert await held(bucket) == 95
    before = asked(objects)
    await replica.limiter.give_back()
    assert asked(objects) == before


async def test_a_lease_that_is_over_or_too_small_comes_back_with_the_next_request(
    objects: FailingObjects, bucket: Stub[TokenBucket]
) -> None:
    replica = Replica(objects, "one")
    for _ in range(3):
        await replica.check()
    assert (await replica.check(20)).remaining == 77
    # What was on lease came back, and so much again is on lease.
    assert await held(bucket) == 57
    objects.clock.advance(2.1)
    assert (await replica.check()).remaining == 76
    assert await held(bucket) == 76


async def test_what_is_given_back_twice_late_or_in_excess_counts_once_and_no_more_than_it_was(
    bucket: Stub[TokenBucket], clock: ManualClock
) -> None:
    policies = [Policy("burst", 1.0, 100.0)]
    await bucket.check(30, policies)
    (allowed, remaining, _), leased, out = await bucket.lease(20, policies, Wanted("a", 20, 2), None)
    assert (allowed, remaining, leased, out) == (True, (30,), 20, (20,))
    await bucket.give_back(Ended("a", 1e300))
    await bucket.give_back(Ended("a", 20))
    await bucket.give_back(Ended("unknown", 20))
    assert [state.tokens for state in await bucket.usage(policies)] == [50]
    await bucket.lease(0, policies, Wanted("b", 20, 2), None)
    await bucket.reset()
    await bucket.check(40, policies)
    await bucket.give_back(Ended("b", 20))
    assert [state.tokens for state in await bucket.usage(policies)] == [60]


async def test_while_tokens_are_out_the_bucket_and_they_are_never_more_than_its_capacity(
    bucket: Stub[TokenBucket], clock: ManualClock
) -> None:
    policies = [Policy("burst", 10.0, 100.0)]
    await bucket.lease(0, policies, Wanted("a", 20, 2), None)
    for elapsed_s in (1.0, 1.0, 1.5):
        clock.advance(elapsed_s)
        assert [state.tokens for state in await bucket.usage(policies)] == [80]
    # The holder is lost: what it had is refilled from when it must have stopped.
    clock.advance(SAID_WITHIN_S + 2 - 3.5 + 1)
    assert [state.tokens for state in await bucket.usage(policies)] == [90]
    assert await bucket.check(90, policies) == (True, (0,), (0,))


async def test_leases_outlive_the_instance_of_their_bucket_and_none_lasts_too_long(
    objects: FailingObjects, bucket: Stub[TokenBucket], clock: ManualClock
) -> None:
    policies = [Policy("burst", 10.0, 100.0)]
    await bucket.lease(0, policies, Wanted("a", 40, 1_000), None)
    objects.host.evict(bucket.id)
    clock.advance(LEASE_MAX_S)
    assert [state.tokens for state in await bucket.usage(policies)] == [60]
    await bucket.give_back(Ended("a", 15))
    objects.host.evict(bucket.id)
    assert [state.tokens for state in await bucket.usage(policies)] == [75]
    clock.advance(1)
    assert [state.tokens for state in await bucket.usage(policies)] == [85]


async def test_a_lease_takes_half_of_what_is_left_and_nothing_where_that_pays_for_nothing(
    bucket: Stub[TokenBucket],
) -> None:
    policies = [Policy("burst", 0.0, 10.0), Policy("daily", 0.0, 9.0)]
    (_, remaining, _), leased, _ = await bucket.lease(2, policies, Wanted("a", 20, 2), None)
    assert (remaining, leased) == ((4.5, 3.5), 3.5)
    (_, remaining, _), leased, _ = await bucket.lease(2, policies, Wanted("b", 20, 2), None)
    assert (remaining, leased) == ((2.5, 1.5), 0)


async def test_a_policy_in_shadow_that_could_not_pay_leases_nothing(bucket: Stub[TokenBucket]) -> None:
    policies = [Policy("burst", 0.0, 10.0), Policy("next", 0.0, 1.0, True)]
    (allowed, remaining, waits), leased, _ = await bucket.lease(2, policies, Wanted("a", 20, 2), None)
    assert (allowed, remaining, leased) == (True, (8, 1), 0)
    assert waits[1] > 0


async def test_a_host_that_was_lost_with_its_answer_gets_back_what_it_has_leased(
    objects: FailingObjects, bucket: Stub[TokenBucket]
) -> None:
    replica = Replica(objects, "one")
    await replica.check()
    objects.failing_after["TokenBucket", "lease"] = [LOST]
    assert (await replica.check()).allowed
    await replica.limiter.give_back()
    assert await held(bucket) == 100 - 2 - 20


async def test_a_request_that_asks_for_a_lease_pays_once_however_often_its_reply_is_lost(
    objects: FailingObjects, bucket: Stub[TokenBucket]
) -> None:
    replica = Replica(objects, "one")
    allowed = 0
    for number in range(150):
        objects.failing_after["TokenBucket", "lease"] = [LOST] * (number % 3)
        allowed += (await replica.check()).allowed
        objects.clock.advance(0.5)
        await replica.limiter.give_back()
    assert allowed == 100
    assert await held(bucket) == 0


async def test_a_request_that_has_paid_may_have_a_lease_beside_when_it_comes_again(bucket: Stub[TokenBucket]) -> None:
    await bucket.lease(60, ANY, None, None, b"request1")
    (allowed, remaining, _), leased, _ = await bucket.lease(60, ANY, Wanted("a", 20, 2), None, b"request1", again=True)
    # Less than pays for another such request is not lent.
    assert (allowed, remaining, leased) == (True, (40,), 0)
    await bucket.lease(10, ANY, None, None, b"request2")
    (allowed, remaining, _), leased, _ = await bucket.lease(10, ANY, Wanted("b", 20, 2), None, b"request2", again=True)
    assert (allowed, remaining, leased) == (True, (15,), 15)
    assert await bucket.check(10, ANY, b"request2", again=True) == (True, (15,), (0,))


async def test_what_cannot_be_given_back_is_lost_and_harms_nobody(
    objects: FailingObjects, bucket: Stub[TokenBucket]
) -> None:
    replica = Replica(objects, "one")
    for _ in range(2):
        await replica.check()
    objects.clock.advance(2)
    objects.failing["TokenBucket", "give_back"] = [LOST] * 100
    await replica.limiter.give_back()
    objects.failing.clear()
    assert await held(bucket) == 78


async def test_a_reset_and_silence_of_the_news_have_the_owner_asked(
    objects: FailingObjects, bucket: Stub[TokenBucket]
) -> None:
    replica = Replica(objects, "one")
    for _ in range(3):
        await replica.check()
    assert len(replica.leases) == 1
    await bucket.reset()
    replica.leases.forget("acme", "all")
    assert (len(replica.leases), replica.leases.due()) == (0, [])
    assert (await replica.check()).remaining == 99
    assert len(replica.leases) == 1
    objects.clock.advance(1_001)
    for _ in range(2):
        await replica.check()
    assert len(replica.leases) == 0
    replica.hears_news()
    await replica.check()
    assert len(replica.leases) == 1


async def test_changed_limits_end_leases_and_mint_nothing(objects: FailingObjects, bucket: Stub[TokenBucket]) -> None:
    replica = Replica(objects, "one")
    for _ in range(2):
        await replica.check()
    smaller = TenantLimits(policies=(changed(BURST, capacity=50.0),))
    assert replica.limits.replace({"acme": tenant(limits=smaller)}) == ["acme"]
    replica.leases.clear()
    # The first is counted by the new limits, while the lease is still out.
    assert (await replica.check()).remaining == 29
    await replica.limiter.give_back()
    assert (await replica.check()).remaining == 48


async def test_a_lease_that_was_asked_for_before_a_reset_is_not_spent_after_it(objects: FailingObjects) -> None:
    leases = new_leases(objects.clock)
    leases.certain_until(1_000)
    quota = TenantQuotas.of(TenantLimits(policies=(BURST,))).routes["kv"]
    leases.ask("acme", "all", quota)
    asking = leases.ask("acme", "all", quota)
    leases.forget("acme", "all")
    assert asking.wanted is not None
    leases.asked(asking, (await Replica(objects, "one").check()).decision, 20)
    assert leases.spend("acme", "all", quota, 1) is None
    assert leases.due() == [("acme", "all", Ended(asking.wanted.id, 20))]


async def test_of_requests_at_once_one_asks_for_a_lease(objects: FailingObjects, bucket: Stub[TokenBucket]) -> None:
    replica = Replica(objects, "one")
    await replica.check()
    assert all(verdict.allowed for verdict in await asyncio.gather(*[replica.check() for _ in range(10)]))
    assert await held(bucket) == 100 - 11 - 20


async def test_a_route_is_leased_by_the_least_that_its_policies_allow_or_not_at_all() -> None:
    assert TenantQuotas.of(TenantLimits(policies=(BURST, DAILY))).routes["kv"].lease == LeaseConfig(tokens=8, ttl_s=2)
    never = changed(DAILY, lease=None)
    assert TenantQuotas.of(TenantLimits(policies=(BURST, never))).routes["kv"].lease is None
    elsewhere = changed(never, routes=("chat",))
    quotas = TenantQuotas.of(TenantLimits(policies=(BURST, elsewhere)))
    assert quotas.routes["kv"].lease == LEASE
    assert quotas.routes["chat"].lease is None
    assert TenantQuotas.of(TenantLimits()).routes["kv"].lease is None


async def test_a_denial_is_remembered_only_as_far_as_nothing_can_be_given_back(
    objects: FailingObjects, bucket: Stub[TokenBucket]
) -> None:
    one, two = Replica(objects, "one"), Replica(objects, "two")
    for _ in range(2):
        await one.check()
    assert (await two.check(78)).allowed
    assert not (await two.check()).allowed
    objects.clock.advance(2)
    await one.limiter.give_back()
    assert (await two.check()).allowed
    assert (await two.check(19)).allowed
    assert not (await two.check()).allowed
    # Now nothing is out any more, and the owner needs not be asked.
    before = asked(objects)
    for _ in range(5):
        assert not (await two.check()).allowed
    assert asked(objects) == before


CHAT_ALONE = changed(DAILY, name="chat", lease=None, routes=("chat",))


@pytest.mark.parametrize("route", ["kv", "chat"])
async def test_a_route_that_has_no_lease_is_denied_nothing_that_another_may_give_back(
    objects: FailingObjects, route: RouteName
) -> None:
    one, two = Replica(objects, "one", BURST, CHAT_ALONE), Replica(objects, "two", BURST, CHAT_ALONE)
    for _ in range(2):
        await one.check()
    assert (await two.check(78, route="chat")).allowed
    assert not (await two.check(route="chat")).allowed
    objects.clock.advance(2)
    await one.limiter.give_back()
    assert (await two.check(20, route=route)).allowed
    assert not (await two.check(route="chat")).allowed
    before = asked(objects)
    for _ in range(5):
        assert not (await two.check(route="chat")).allowed
    assert asked(objects) == before


async def test_a_policy_that_is_leased_no_more_denies_nothing_that_may_still_come_back(objects: FailingObjects) -> None:
    replica = Replica(objects, "one")
    for _ in range(2):
        await replica.check()
    unleased = TenantLimits(policies=(changed(BURST, lease=None),))
    assert replica.limits.replace({"acme": tenant(limits=unleased)}) == ["acme"]
    for memory in (replica.denials, replica.leases):
        memory.clear()
    assert (await replica.check(78)).allowed
    assert not (await replica.check(20)).allowed
    await replica.limiter.give_back()
    assert (await replica.check(20)).allowed


async def test_as_many_clients_have_leases_as_there_is_room_for(objects: FailingObjects) -> None:
    replica = Replica(objects, "one")
    replica.leases = replica.limiter._leases = Leases(  # smaller than that of the product
        objects.clock.monotonic, new_id=map(str, range(100)).__next__, clients_max=3
    )
    replica.hears_news()
    for client in "abcd":
        for _ in range(2):
            await replica.check(client=client)
    assert len(replica.leases) == 3
    await replica.limiter.give_back()
    ((tokens, *_),) = await objects.namespace(TokenBucket).get("acme", "a").usage(ANY)
    assert tokens == 98
