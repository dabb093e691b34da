"""Does each client have one bucket of its own, and can nobody use another's or fill one by failing?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import ObjectReset, TokenBucket
from actors.runtime.clock import ManualClock
from actors.token_bucket import Limit
from configs.tenant import TenantLimits
from deployments.errors import QuotaExceeded
from deployments.keyring import Principal
from deployments.limiter import CHECK_TRIES_MAX, CLIENT_CHARS_MAX, Limiter, Requester
from tests.unit.handles import SCOPES, FailingObjects, tenant

RESET = ObjectReset("TokenBucket/acme:all", "its host was lost")
CHECK = ("TokenBucket", "check")


@pytest.fixture
def objects(tmp_path: Path, clock: ManualClock) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, clock, classes=[TokenBucket])
    yield objects
    objects.close()


async def _no_pause(_: float) -> None:
    """The host is back at once."""


def _limiter(objects: FailingObjects, *client_key: str, capacity: float = 5, refill_per_second: float = 0) -> Limiter:
    limits = TenantLimits(capacity=capacity, refill_per_second=refill_per_second, client_key=client_key or ("api_key",))
    names = ("acme", "demo", "t" * 63)
    return Limiter(objects, {name: tenant(name, limits=limits) for name in names}, sleep=_no_pause)


def _requester(
    key_id: str = "all", *, tenant_name: str = "acme", address: str = "10.0.0.1", **headers: str
) -> Requester:
    principal = Principal(tenant=tenant_name, key_id=key_id, scopes=SCOPES)
    return Requester(
        principal=principal, address=address, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


@pytest.mark.parametrize(
    ("client_key", "client"),
    [
        (("api_key",), "all"),
        (("ip",), "10.0.0.1"),
        (("user",), "ann"),
        (("header:x-team",), "blue"),
        (("api_key", "ip", "user", "header:x-team"), "all&10.0.0.1&ann&blue"),
        (("header:x-team", "api_key"), "blue&all"),
        (("header:x-other",), "&"),
        (("user", "header:x-other"), "ann&"),
    ],
)
def test_a_client_is_what_the_tenant_chose(objects: FailingObjects, client_key: tuple[str, ...], client: str) -> None:
    limiter = _limiter(objects, *client_key)
    assert limiter.client_of(_requester(x_user_id="ann", x_team="blue")) == client


def test_no_two_clients_share_a_name_whatever_their_headers_hold(objects: FailingObjects) -> None:
    limiter = _limiter(objects, "user", "header:x-team")
    values = ["", "-", "&", "a", "a&b", "&&", "%26", "sha256/", "A", "é", "\ud83d", "x" * 64, "x" * 65, "x" * 1000]
    values += ["é" * 64, "%C3%A9" * 64, "sha256=" + "0" * 64]
    requesters = [_requester(x_user_id=user, x_team=team) for user, team in itertools.product(values, repeat=2)]
    requesters += [_requester(x_user_id="a")]  # a missing header is an empty one
    names = {limiter.client_of(requester) for requester in requesters}
    assert len(names) == len(values) ** 2


def test_a_value_that_looks_like_no_value_or_like_a_hash_is_itself(objects: FailingObjects) -> None:
    limiter = _limiter(objects, "header:x-team")
    hashed = limiter.client_of(_requester(x_team="long" * 100))
    names = {limiter.client_of(_requester(x_team=value)) for value in ("", "-", "&", hashed, hashed.replace("/", "="))}
    assert len(names) == 5
    assert hashed not in names


@pytest.mark.parametrize(
    "value", ["A" * 64, "A" * 8000, "é" * 64, "\0" * 64, "🐟" * 500, "%" * 56, "A" * CLIENT_CHARS_MAX]
)
async def test_a_client_with_any_headers_has_a_bucket(objects: FailingObjects, value: str) -> None:
    limiter = _limiter(objects, "api_key", "ip", "user", "header:x-team")
    requester = _requester("K" * 63, tenant_name="t" * 63, address=value, x_user_id=value, x_team=value)
    assert (await limiter.check(requester, 1)).remaining == 4
    assert (await limiter.usage(requester)).remaining == 4


async def test_clients_do_not_use_up_each_others_tokens(objects: FailingObjects) -> None:
    limiter = _limiter(objects)
    assert (await limiter.check(_requester("one"), 5)).allowed
    assert not (await limiter.check(_requester("one"), 1)).allowed
    assert (await limiter.check(_requester("two"), 1)).allowed
    assert (await limiter.check(_requester("one", tenant_name="demo"), 1)).allowed


async def test_a_client_that_cannot_pay_is_told_when_it_can(objects: FailingObjects, clock: ManualClock) -> None:
    limiter = _limiter(objects, refill_per_second=0.5)
    await limiter.charge(_requester(), 5)
    with pytest.raises(QuotaExceeded) as refused:
        await limiter.charge(_requester(), 1)
    assert refused.value.retry_after_s == 2
    clock.advance(2)
    await limiter.charge(_requester(), 1)


async def test_usage_says_the_limit_and_takes_nothing(objects: FailingObjects) -> None:
    limiter = _limiter(objects, refill_per_second=2)
    await limiter.check(_requester(), 2)
    for _ in range(3):
        usage = await limiter.usage(_requester())
    assert (usage.client, usage.capacity, usage.refill_per_second, usage.remaining) == ("all", 5, 2, 3)


async def test_the_client_that_usage_names_can_be_reset(objects: FailingObjects) -> None:
    limiter = _limiter(objects, "user")
    requester = _requester(x_user_id="very long " * 100)
    await limiter.check(requester, 5)
    await limiter.reset("acme", (await limiter.usage(requester)).client)
    assert (await limiter.usage(requester)).remaining == 5


async def test_a_check_whose_bucket_was_lost_is_tried_again(objects: FailingObjects) -> None:
    objects.failing[CHECK] = [RESET] * (CHECK_TRIES_MAX - 1)
    assert (await _limiter(objects).check(_requester(), 1)).remaining == 4
    assert objects.calls.count(CHECK) == CHECK_TRIES_MAX


async def test_a_bucket_that_stays_lost_is_told_of_after_a_few_tries(objects: FailingObjects) -> None:
    objects.failing[CHECK] = [RESET] * 100
    with pytest.raises(ObjectReset):
        await _limiter(objects).check(_requester(), 1)
    assert objects.calls.count(CHECK) == CHECK_TRIES_MAX


async def test_replies_that_are_lost_never_let_more_through_than_the_bucket_holds(objects: FailingObjects) -> None:
    limiter = _limiter(objects, capacity=20)
    # Every third reply is lost after its tokens were taken.
    allowed = 0
    for number in range(40):
        objects.failing_after[CHECK] = [RESET] if number % 3 == 0 else []
        allowed += (await limiter.check(_requester(), 1)).allowed
    assert 0 < allowed <= 20
    assert (await limiter.usage(_requester())).remaining == 0


async def test_a_cost_that_is_no_number_takes_nothing(objects: FailingObjects) -> None:
    limiter = _limiter(objects)
    for cost in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="cost"):
            await limiter.check(_requester(), cost)
    assert (await limiter.usage(_requester())).remaining == 5


async def test_a_bucket_is_an_object_named_by_tenant_and_client(objects: FailingObjects) -> None:
    await _limiter(objects).check(_requester("k1"), 2)
    bucket = objects.namespace(TokenBucket).get("acme", "k1")
    assert (await bucket.usage(Limit(0, 5))).tokens == 3
