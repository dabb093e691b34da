"""Does a bucket remember what was spent, hold to the limit of the moment, and leave nothing behind?"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import InvalidArgument, LocalBackend, TokenBucket
from actors.runtime.clock import ManualClock
from actors.runtime.host import HostSettings
from actors.runtime.namespace import Stub
from actors.token_bucket import KEPT_FULL_S, RETRY_AFTER_MAX_S, Decision, Limit, State
from tests.unit.objects_fixtures import Hibernating, ring

SLOTS = 4
LIMIT = Limit(refill_per_second=2, capacity=10)


@pytest.fixture(params=[LocalBackend, Hibernating], ids=["resident", "hibernating"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[LocalBackend]:
    backend = request.param(tmp_path, [TokenBucket], settings=HostSettings(slots=SLOTS), clock=clock)
    yield backend
    backend.close()


@pytest.fixture
def bucket(objects: LocalBackend) -> Stub[TokenBucket]:
    return objects.namespace(TokenBucket).get("acme", "client")


async def test_a_new_bucket_is_full(bucket: Stub[TokenBucket], clock: ManualClock) -> None:
    assert await bucket.usage(LIMIT) == State(10, clock.now())
    assert await bucket.check(10, LIMIT) == Decision(True, 0, 0)


async def test_looking_at_a_bucket_that_nobody_used_leaves_no_file(
    objects: LocalBackend, bucket: Stub[TokenBucket], tmp_path: Path
) -> None:
    await bucket.usage(LIMIT)
    objects.host.evict(bucket.id)
    assert not bucket.id.path(tmp_path / "objects", SLOTS).exists()


async def test_what_was_spent_stays_spent(bucket: Stub[TokenBucket]) -> None:
    assert await bucket.check(4, LIMIT) == Decision(True, 6, 0)
    assert await bucket.check(4.5, LIMIT) == Decision(True, 1.5, 0)
    assert await bucket.check(2, LIMIT) == Decision(False, 1.5, 0.25)
    assert await bucket.check(1.5, LIMIT) == Decision(True, 0, 0)


async def test_a_bucket_fills_with_time_up_to_its_capacity(bucket: Stub[TokenBucket], clock: ManualClock) -> None:
    await bucket.check(10, LIMIT)
    clock.advance(1.5)
    assert await bucket.usage(LIMIT) == State(3, clock.now())
    clock.advance(86_400)
    assert await bucket.usage(LIMIT) == State(10, clock.now())


async def test_usage_spends_nothing(bucket: Stub[TokenBucket]) -> None:
    await bucket.check(3, LIMIT)
    for _ in range(3):
        assert (await bucket.usage(LIMIT)).tokens == 7


async def test_a_denied_client_is_allowed_when_it_was_told(bucket: Stub[TokenBucket], clock: ManualClock) -> None:
    await bucket.check(10, LIMIT)
    denied = await bucket.check(5, LIMIT)
    assert denied == Decision(False, 0, 2.5)
    clock.advance(2.25)
    assert await bucket.check(5, LIMIT) == Decision(False, 4.5, 0.25)
    clock.advance(0.25)
    assert await bucket.check(5, LIMIT) == Decision(True, 0, 0)


async def test_a_clock_that_went_back_has_to_catch_up_first(bucket: Stub[TokenBucket], clock: ManualClock) -> None:
    await bucket.check(10, LIMIT)
    clock.set_wall(clock.now() - 60)
    assert await bucket.check(1, LIMIT) == Decision(False, 0, 60.5)
    clock.advance(60.5)
    assert await bucket.check(1, LIMIT) == Decision(True, 0, 0)


async def test_a_changed_limit_holds_at_once_and_mints_nothing(bucket: Stub[TokenBucket]) -> None:
    await bucket.check(4, LIMIT)
    assert await bucket.usage(Limit(2, 100)) == State(6, 1_000_000_000.0)
    assert await bucket.check(7, Limit(2, 100)) == Decision(False, 6, 0.5)
    assert await bucket.check(0, Limit(2, 5)) == Decision(True, 5, 0)
    # What did not fit into the smaller bucket is gone.
    assert (await bucket.usage(LIMIT)).tokens == 5


async def test_reset_fills_the_bucket_and_leaves_no_file(bucket: Stub[TokenBucket], tmp_path: Path) -> None:
    await bucket.check(10, LIMIT)
    path = bucket.id.path(tmp_path / "objects", SLOTS)
    assert path.exists()
    await bucket.reset()
    assert list(path.parent.iterdir()) == []
    assert await bucket.check(10, LIMIT) == Decision(True, 0, 0)
    await bucket.reset()
    await bucket.reset()
    assert (await bucket.usage(LIMIT)).tokens == 10


@pytest.mark.parametrize("cost", [-1, -1e-9, math.nan, math.inf, -math.inf])
async def test_a_cost_that_is_no_cost_is_refused_and_takes_nothing(bucket: Stub[TokenBucket], cost: float) -> None:
    await bucket.check(4, LIMIT)
    with pytest.raises(InvalidArgument) as raised:
        await bucket.check(cost, LIMIT)
    assert raised.value.field == "cost"
    assert (await bucket.usage(LIMIT)).tokens == 6


@pytest.mark.parametrize("cost", [11, 1e308, 10**400])
async def test_a_cost_above_the_capacity_is_never_allowed(bucket: Stub[TokenBucket], cost: float) -> None:
    assert await bucket.check(cost, LIMIT) == Decision(False, 10, RETRY_AFTER_MAX_S)


async def test_checks_at_once_never_spend_a_token_twice(bucket: Stub[TokenBucket]) -> None:
    limit = Limit(refill_per_second=0, capacity=20)
    decisions = await asyncio.gather(*(bucket.check(1, limit) for _ in range(200)))
    assert sum(decision.allowed for decision in decisions) == 20
    assert (await bucket.usage(limit)).tokens == 0


async def test_buckets_of_two_tenants_share_a_name_and_nothing_else(objects: LocalBackend) -> None:
    buckets = objects.namespace(TokenBucket)
    await buckets.get("acme", "client").check(10, LIMIT)
    assert (await buckets.get("globex", "client").usage(LIMIT)).tokens == 10
    assert (await buckets.get("acme", "other").usage(LIMIT)).tokens == 10


async def test_a_bucket_that_is_full_again_removes_itself(
    objects: LocalBackend, bucket: Stub[TokenBucket], clock: ManualClock, tmp_path: Path
) -> None:
    await bucket.check(4, LIMIT)
    clock.advance(2 + KEPT_FULL_S - 0.1)
    assert await ring(objects, clock) == 0
    clock.advance(0.2)
    assert await ring(objects, clock) == 1
    assert list((tmp_path / "objects" / "TokenBucket").rglob("*client*")) == []
    assert await bucket.usage(LIMIT) == State(10, clock.now())


async def test_a_bucket_in_use_stays_and_is_looked_at_again(
    objects: LocalBackend, bucket: Stub[TokenBucket], clock: ManualClock
) -> None:
    await bucket.check(4, LIMIT)
    clock.advance(2 + KEPT_FULL_S)
    await bucket.check(10, LIMIT)
    assert await ring(objects, clock) == 1
    assert await bucket.usage(LIMIT) == State(0, clock.now())
    clock.advance(5 + KEPT_FULL_S)
    assert await ring(objects, clock) == 1
    assert await ring(objects, clock) == 0


@pytest.mark.parametrize("limit", [Limit(0, 10), Limit(1e-12, 10)])
async def test_a_bucket_that_takes_ages_to_fill_forgets_nothing(
    objects: LocalBackend, bucket: Stub[TokenBucket], clock: ManualClock, limit: Limit
) -> None:
    await bucket.check(4, limit)
    for _ in range(3):
        clock.advance(RETRY_AFTER_MAX_S + KEPT_FULL_S)
        await ring(objects, clock)
    assert (await bucket.usage(limit)).tokens == pytest.approx(6)
