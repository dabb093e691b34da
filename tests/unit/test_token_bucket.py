"""Does a bucket remember what was spent, hold to the limit of the moment, and leave nothing behind?"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils.migrations import Migrations

from actors import AlarmInfo, DurableObject, InvalidArgument, LimitNews, LocalBackend, TokenBucket
from actors.bucket import RETRY_AFTER_MAX_S, Decision, Policy
from actors.limit_news import NEWS_NAME, NEWS_TENANT
from actors.runtime.clock import ManualClock
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.token_bucket import (
    KEPT_FULL_S,
    NEVER_FULL_AGAIN_S,
    PAID_MAX,
    POLICIES_MAX,
    REQUEST_ID_BYTES,
    add_full_at,
    create_tables,
)
from tests.unit.objects_fixtures import Hibernating, ring

SLOTS = 4
LIMIT = Policy("default", refill_per_second=2, capacity=10)


BURST = Policy("burst", refill_per_second=2, capacity=10)
DAILY = Policy("daily", refill_per_second=0.01, capacity=25)


def about(value: Any) -> Any:
    """Up to what is rounded away."""
    return pytest.approx(value)


def limit(refill_per_second: float, capacity: float, name: str = "default", *, shadow: bool = False) -> Policy:
    return Policy(name, refill_per_second, capacity, shadow)


async def held(bucket: Stub[TokenBucket], *policies: Policy) -> tuple[float, ...]:
    """Tokens in each bucket now."""
    return tuple(state.tokens for state in await bucket.usage(policies))


@pytest.fixture(params=[LocalBackend, Hibernating], ids=["resident", "hibernating"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[LocalBackend]:
    backend = request.param(tmp_path, [TokenBucket, LimitNews], settings=HostSettings(slots=SLOTS), clock=clock)
    yield backend
    backend.close()


@pytest.fixture
def bucket(objects: LocalBackend) -> Stub[TokenBucket]:
    return objects.namespace(TokenBucket).get("acme", "client")


async def test_a_new_bucket_is_full(bucket: Stub[TokenBucket], clock: ManualClock) -> None:
    assert await held(bucket, LIMIT) == (10,)
    assert await bucket.check(10, [LIMIT]) == Decision(True, (0,), (0,))


async def test_looking_at_a_bucket_that_nobody_used_leaves_no_file(
    objects: LocalBackend, bucket: Stub[TokenBucket], tmp_path: Path
) -> None:
    await held(bucket, LIMIT)
    objects.host.evict(bucket.id)
    assert not bucket.id.path(tmp_path / "objects", SLOTS).exists()


async def test_what_was_spent_stays_spent(bucket: Stub[TokenBucket]) -> None:
    assert await bucket.check(4, [LIMIT]) == Decision(True, (6,), (0,))
    assert await bucket.check(4.5, [LIMIT]) == Decision(True, (1.5,), (0,))
    assert await bucket.check(2, [LIMIT]) == Decision(False, (1.5,), (0.25,))
    assert await bucket.check(1.5, [LIMIT]) == Decision(True, (0,), (0,))


async def test_a_bucket_fills_with_time_up_to_its_capacity(bucket: Stub[TokenBucket], clock: ManualClock) -> None:
    await bucket.check(10, [LIMIT])
    clock.advance(1.5)
    assert await held(bucket, LIMIT) == (3,)
    clock.advance(86_400)
    assert await held(bucket, LIMIT) == (10,)


async def test_usage_spends_nothing(bucket: Stub[TokenBucket]) -> None:
    await bucket.check(3, [LIMIT])
    for _ in range(3):
        assert await held(bucket, LIMIT) == (7,)


async def test_a_denied_client_is_allowed_when_it_was_told(bucket: Stub[TokenBucket], clock: ManualClock) -> None:
    await bucket.check(10, [LIMIT])
    denied = await bucket.check(5, [LIMIT])
    assert denied == Decision(False, (0,), (2.5,))
    clock.advance(2.25)
    assert await bucket.check(5, [LIMIT]) == Decision(False, (4.5,), (0.25,))
    clock.advance(0.25)
    assert await bucket.check(5, [LIMIT]) == Decision(True, (0,), (0,))


async def test_a_clock_that_went_back_has_to_catch_up_first(bucket: Stub[TokenBucket], clock: ManualClock) -> None:
    await bucket.check(10, [LIMIT])
    clock.set_wall(clock.now() - 60)
    assert await bucket.check(1, [LIMIT]) == Decision(False, (0,), (60.5,))
    clock.advance(60.5)
    assert await bucket.check(1, [LIMIT]) == Decision(True, (0,), (0,))


async def test_a_changed_limit_holds_at_once_and_mints_nothing(bucket: Stub[TokenBucket]) -> None:
    await bucket.check(4, [LIMIT])
    assert await held(bucket, limit(2, 100)) == (6,)
    assert await bucket.check(7, [limit(2, 100)]) == Decision(False, (6,), (0.5,))
    assert await bucket.check(0, [limit(2, 5)]) == Decision(True, (5,), (0,))
    # What did not fit into the smaller bucket is gone.
    assert await held(bucket, LIMIT) == (5,)


async def test_what_begins_full_is_a_policy_of_another_name_another_client_and_a_bucket_that_has_removed_itself(
    objects: LocalBackend, bucket: Stub[TokenBucket], clock: ManualClock
) -> None:
    larger, renamed = limit(2, 100), limit(2, 10, "renamed")
    await bucket.check(10, [LIMIT])
    assert await held(bucket, larger, renamed) == (0, 10)
    assert await held(objects.namespace(TokenBucket).get("acme", "client, called otherwise"), LIMIT) == (10,)
    clock.advance(5 + KEPT_FULL_S - 0.5)
    assert await held(bucket, larger) == (10,)
    clock.advance(1)
    assert await ring(objects, clock) == 1
    assert await held(bucket, larger) == (100,)


async def test_reset_fills_the_bucket_and_leaves_no_file(bucket: Stub[TokenBucket], tmp_path: Path) -> None:
    await bucket.check(10, [LIMIT])
    path = bucket.id.path(tmp_path / "objects", SLOTS)
    assert path.exists()
    await bucket.reset()
    assert list(path.parent.iterdir()) == []
    assert await bucket.check(10, [LIMIT]) == Decision(True, (0,), (0,))
    await bucket.reset()
    await bucket.reset()
    assert await held(bucket, LIMIT) == (10,)


@pytest.mark.parametrize("cost", [-1, -1e-9, math.nan, math.inf, -math.inf])
async def test_a_cost_that_is_no_cost_is_refused_and_takes_nothing(bucket: Stub[TokenBucket], cost: float) -> None:
    await bucket.check(4, [LIMIT])
    with pytest.raises(InvalidArgument) as raised:
        await bucket.check(cost, [LIMIT])
    assert raised.value.field == "cost"
    assert await held(bucket, LIMIT) == (6,)


@pytest.mark.parametrize("cost", [11, 1e308, 10**400])
async def test_a_cost_above_the_capacity_is_never_allowed(bucket: Stub[TokenBucket], cost: float) -> None:
    assert await bucket.check(cost, [LIMIT]) == Decision(False, (10,), (RETRY_AFTER_MAX_S,))


async def test_checks_at_once_never_spend_a_token_twice(bucket: Stub[TokenBucket]) -> None:
    only_once = limit(0, 20)
    decisions = await asyncio.gather(*(bucket.check(1, [only_once]) for _ in range(200)))
    assert sum(allowed for allowed, *_ in decisions) == 20
    assert await held(bucket, only_once) == (0,)


async def test_buckets_of_two_tenants_share_a_name_and_nothing_else(objects: LocalBackend) -> None:
    buckets = objects.namespace(TokenBucket)
    await buckets.get("acme", "client").check(10, [LIMIT])
    assert await held(buckets.get("globex", "client"), LIMIT) == (10,)
    assert await held(buckets.get("acme", "other"), LIMIT) == (10,)


async def test_a_bucket_that_is_full_again_removes_itself(
    objects: LocalBackend, bucket: Stub[TokenBucket], clock: ManualClock, tmp_path: Path
) -> None:
    await bucket.check(4, [LIMIT])
    clock.advance(2 + KEPT_FULL_S - 0.1)
    assert await ring(objects, clock) == 0
    clock.advance(0.2)
    assert await ring(objects, clock) == 1
    assert list((tmp_path / "objects" / "TokenBucket").rglob("*client*")) == []
    assert await held(bucket, LIMIT) == (10,)


async def test_a_bucket_in_use_stays_and_is_looked_at_again(
    objects: LocalBackend, bucket: Stub[TokenBucket], clock: ManualClock
) -> None:
    await bucket.check(4, [LIMIT])
    clock.advance(2 + KEPT_FULL_S)
    await bucket.check(10, [LIMIT])
    assert await ring(objects, clock) == 1
    assert await held(bucket, LIMIT) == (0,)
    clock.advance(5 + KEPT_FULL_S)
    assert await ring(objects, clock) == 1
    assert await ring(objects, clock) == 0


@pytest.mark.parametrize("never", [limit(0, 10), limit(1e-12, 10)])
async def test_a_bucket_that_takes_ages_to_fill_forgets_nothing(
    objects: LocalBackend, bucket: Stub[TokenBucket], clock: ManualClock, never: Policy
) -> None:
    await bucket.check(4, [never])
    for _ in range(3):
        clock.advance(RETRY_AFTER_MAX_S + KEPT_FULL_S)
        await ring(objects, clock)
    assert await held(bucket, never) == about((6,))


async def test_of_several_policies_all_that_count_are_charged_or_none_is(
    bucket: Stub[TokenBucket], clock: ManualClock
) -> None:
    both = [BURST, DAILY]
    assert await bucket.check(10, both) == Decision(True, (0, 15), (0, 0))
    assert await bucket.check(4, both) == Decision(False, (0, 15), (2, 0))
    clock.advance(5)
    assert await bucket.check(10, both) == Decision(True, (0, about(5.05)), (0, 0))
    clock.advance(5)
    denied = await bucket.check(10, both)
    assert denied == Decision(False, (10, about(5.1)), (0, about(490)))
    assert await held(bucket, *both) == (10, about(5.1))


async def test_policies_are_charged_where_they_are_named_and_nowhere_else(bucket: Stub[TokenBucket]) -> None:
    await bucket.check(3, [BURST])
    await bucket.check(4, [DAILY])
    await bucket.check(1, [DAILY, BURST])
    assert await held(bucket, BURST, DAILY, LIMIT) == (6, 20, 10)


async def test_a_policy_in_shadow_denies_nothing_and_says_what_it_would_have_done(
    bucket: Stub[TokenBucket], clock: ManualClock
) -> None:
    shadow = BURST._replace(shadow=True)
    assert await bucket.check(8, [DAILY, shadow]) == Decision(True, (17, 2), (0, 0))
    assert await bucket.check(8, [DAILY, shadow]) == Decision(True, (9, 2), (0, 3))
    # What is denied by another is not charged to it.
    assert await bucket.check(10, [DAILY, shadow]) == Decision(False, (9, 2), (100, 4))
    clock.advance(3)
    assert await bucket.check(8, [DAILY, shadow]) == Decision(True, (about(1.03), 0), (0, 0))


@pytest.mark.parametrize("number", [0, POLICIES_MAX + 1])
async def test_a_check_of_no_policy_or_of_too_many_is_refused(bucket: Stub[TokenBucket], number: int) -> None:
    with pytest.raises(InvalidArgument, match="policies"):
        await bucket.check(1, [limit(1, 1, str(one)) for one in range(number)])


async def test_a_client_keeps_as_many_policies_as_there_may_be(bucket: Stub[TokenBucket]) -> None:
    policies = [limit(0, 100 + number, str(number)) for number in range(POLICIES_MAX)]
    await bucket.check(1, policies)
    await bucket.check(1, policies[:3])
    assert await held(bucket, *policies) == (98, 99, 100, *range(102, 99 + POLICIES_MAX))


async def test_a_check_that_is_denied_writes_nothing(tmp_path: Path, clock: ManualClock) -> None:
    with contextlib.closing(LocalBackend(tmp_path, [TokenBucket], settings=HostSettings(slots=4), clock=clock)) as kept:
        bucket = kept.namespace(TokenBucket).get("acme", "client")
        await bucket.check(10, [LIMIT])
        files = list(tmp_path.rglob("*client*"))
        before = [(path.stat().st_mtime_ns, path.stat().st_size) for path in files]
        for _ in range(5):
            assert not (await bucket.check(5, [LIMIT]))[0]
        assert before == [(path.stat().st_mtime_ns, path.stat().st_size) for path in files]
        await bucket.check(0, [limit(3, 10)])
        assert before != [(path.stat().st_mtime_ns, path.stat().st_size) for path in files]


REQUEST = b"request1"


async def test_a_request_that_comes_again_pays_once(bucket: Stub[TokenBucket], clock: ManualClock) -> None:
    assert await bucket.check(4, [BURST, DAILY], REQUEST) == Decision(True, (6, 21), (0, 0))
    clock.advance(1)
    assert await bucket.check(4, [BURST, DAILY], REQUEST, again=True) == Decision(True, (8, about(21.01)), (0, 0))
    assert await bucket.check(4, [BURST, DAILY], b"request2", again=True) == Decision(True, (4, about(17.01)), (0, 0))
    # A route with other policies has its requests remembered as well.
    assert await bucket.check(1, [BURST], b"request3") == Decision(True, (3,), (0,))
    for request in (REQUEST, b"request2", b"request3"):
        assert await bucket.check(4, [BURST], request, again=True) == Decision(True, (3,), (0,))


async def test_a_request_that_was_denied_pays_when_it_comes_again_and_the_bucket_can(
    bucket: Stub[TokenBucket], clock: ManualClock
) -> None:
    await bucket.check(10, [LIMIT])
    assert not (await bucket.check(4, [LIMIT], REQUEST))[0]
    clock.advance(2)
    assert await bucket.check(4, [LIMIT], REQUEST, again=True) == Decision(True, (0,), (0,))


async def test_of_requests_that_paid_the_last_ones_are_remembered(bucket: Stub[TokenBucket]) -> None:
    large = limit(0, 1000)
    ids = [number.to_bytes(REQUEST_ID_BYTES) for number in range(PAID_MAX + 1)]
    for request_id in ids:
        await bucket.check(1, [large], request_id)
    left = 1000 - len(ids)
    for request_id in ids[1:]:
        assert (await bucket.check(1, [large], request_id, again=True))[1] == (left,)
    assert (await bucket.check(1, [large], ids[0], again=True))[1] == (left - 1,)


async def test_an_id_of_another_length_takes_nothing(bucket: Stub[TokenBucket]) -> None:
    with pytest.raises(InvalidArgument, match="request_id"):
        await bucket.check(1, [LIMIT], b"short")
    assert await held(bucket, LIMIT) == (10,)


async def test_what_came_while_the_limit_was_raised_is_counted_by_the_smaller_rate(
    bucket: Stub[TokenBucket], clock: ManualClock
) -> None:
    await bucket.check(10, [LIMIT])
    clock.advance(3)
    faster = limit(100, 1000)
    assert await held(bucket, faster) == (6,)
    assert await bucket.check(0, [faster]) == Decision(True, (6,), (0,))
    clock.advance(1)
    assert await held(bucket, faster) == (106,)
    # And when it is lowered.
    assert await bucket.check(7, [limit(1, 500)]) == Decision(True, (0,), (0,))
    clock.advance(1)
    assert await held(bucket, limit(1, 500)) == (1,)


async def test_a_bucket_is_kept_until_all_of_its_policies_are_full(
    objects: LocalBackend, bucket: Stub[TokenBucket], clock: ManualClock, tmp_path: Path
) -> None:
    await bucket.check(4, [BURST, DAILY])
    clock.advance(2 + KEPT_FULL_S)
    assert await ring(objects, clock) == 0
    clock.advance(400)
    assert await ring(objects, clock) == 1
    assert list((tmp_path / "objects" / "TokenBucket").rglob("*client*")) == []


async def test_a_bucket_of_which_one_policy_never_fills_forgets_nothing(
    objects: LocalBackend, bucket: Stub[TokenBucket], clock: ManualClock
) -> None:
    once = limit(0, 10, "once")
    await bucket.check(4, [BURST])
    await bucket.check(4, [once])
    clock.advance(10_000)
    await ring(objects, clock)
    assert await held(bucket, BURST, once) == (10, 6)


async def test_a_bucket_that_never_fills_is_kept_as_long_as_its_policy_is(
    objects: LocalBackend, bucket: Stub[TokenBucket], clock: ManualClock, tmp_path: Path
) -> None:
    news = objects.namespace(LimitNews).get(NEWS_TENANT, NEWS_NAME)
    once = limit(0, 10, "once")
    await bucket.check(4, [BURST, once])

    async def a_week_later() -> bool:
        clock.advance(NEVER_FULL_AGAIN_S + 1)
        await ring(objects, clock)
        return bool(list((tmp_path / "objects" / "TokenBucket").rglob("*client*")))

    assert await a_week_later()  # nobody has said which policies there are
    await news.know({"acme": ["once"], "globex": ["burst"]})
    assert await a_week_later()
    assert await held(bucket, BURST, once) == (10, 6)
    await news.know({"acme": ["burst"]})
    assert not await a_week_later()
    assert await news.policies("globex") == ["burst"]
    await news.know({"acme": ["burst", "once"]})
    assert await held(bucket, once) == (10,)


async def test_of_a_bucket_whose_policy_has_gone_the_others_stay(
    objects: LocalBackend, bucket: Stub[TokenBucket], clock: ManualClock, tmp_path: Path
) -> None:
    await objects.namespace(LimitNews).get(NEWS_TENANT, NEWS_NAME).know({"acme": ["slow"]})
    slow, once = limit(1e-5, 1000, "slow"), limit(0, 10, "once")
    await bucket.check(10, [slow, once])
    clock.advance(NEVER_FULL_AGAIN_S + 1)
    await ring(objects, clock)
    assert await held(bucket, once, slow) == (10, about(996.048))


_earlier = Migrations("token_bucket")
_earlier()(create_tables)
_earlier()(add_full_at)


class _Earlier(DurableObject):
    """The bucket as it was before it had policies."""

    migrations = _earlier

    def take(self, tokens: float, updated_at: float, full_at: float | None) -> None:
        self.storage.sql("INSERT INTO bucket VALUES (1, ?, ?, ?)", tokens, updated_at, full_at)
        if full_at is not None:
            self.storage.set_alarm(full_at + KEPT_FULL_S)

    def alarm(self, info: AlarmInfo) -> None:
        """As it is."""


_Earlier.__name__ = "TokenBucket"


async def test_a_bucket_from_before_there_were_policies_is_that_of_the_policy_default(
    tmp_path: Path, clock: ManualClock
) -> None:
    settings = HostSettings(slots=SLOTS)
    earlier = LocalBackend(tmp_path, [_Earlier], settings=settings, clock=clock)
    await earlier.namespace(_Earlier).get("acme", "client").take(4, clock.now(), clock.now() + 3)
    await earlier.namespace(_Earlier).get("acme", "never").take(4, clock.now(), None)
    earlier.close()
    objects = LocalBackend(tmp_path, [TokenBucket, LimitNews], settings=settings, clock=clock)
    clock.advance(2)
    assert await held(objects.namespace(TokenBucket).get("acme", "client"), LIMIT, DAILY) == (8, 25)
    clock.advance(1.5 + KEPT_FULL_S)
    assert await ring(objects, clock) == 1
    assert list((tmp_path / "objects" / "TokenBucket").rglob("*client*")) == []
    assert await held(objects.namespace(TokenBucket).get("acme", "never"), limit(0, 10)) == (4,)
    objects.close()
