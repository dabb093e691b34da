"""Does each client have one bucket of its own, and can nobody use another's or fill one by failing?"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import InvalidArgument, ObjectOverloaded, ObjectReset, TokenBucket
from actors.bucket import Decision, Policy
from actors.runtime.call import Call, Reply
from actors.runtime.clock import ManualClock
from actors.runtime.object_id import ObjectId
from configs.limits import LeaseConfig, PolicyConfig, RouteName, TenantLimits
from deployments.client_name import CLIENT_CHARS_MAX, Requester
from deployments.denials import Denials
from deployments.errors import QuotaExceeded, TooManyNewClients
from deployments.keyring import Principal
from deployments.limit_counts import LimitCounts, Outcome
from deployments.limiter import Limiter, Verdict, require_allowed
from deployments.live_limits import LiveLimits
from deployments.quotas import RouteQuota
from deployments.strangers import AT_ONCE_MAX, RETRY_AFTER_S, Strangers
from tests.unit.handles import SCOPES, FailingObjects, new_leases, tenant

RESET = ObjectReset("TokenBucket/acme:all", "its host was lost")
CHECK = ("TokenBucket", "check")


@pytest.fixture
def objects(tmp_path: Path, clock: ManualClock) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, clock, classes=[TokenBucket])
    yield objects
    objects.close()


class Told:
    """What a limiter has counted."""

    def __init__(self) -> None:
        self.counts = LimitCounts(self._tell)
        self._told: list[tuple[str, str, str, int]] = []

    def _tell(self, outcome: Outcome, tenant: str, policy: str, number: int) -> None:
        self._told.append((outcome, tenant, policy, number))

    def all(self) -> list[tuple[str, str, str, int]]:
        self.counts.flush()
        told, self._told = self._told, []
        return told


class Clients:
    """A limiter that remembers denials, and the clock that it goes by."""

    def __init__(
        self,
        objects: FailingObjects,
        clock: ManualClock,
        limits: TenantLimits,
        *,
        holder: str = "",
        strangers: Strangers | None = None,
    ) -> None:
        names = ("acme", "demo", "t" * 63)
        self.clock = clock
        self.told = Told()
        self.limits = LiveLimits({name: tenant(name, limits=limits) for name in names})
        self.denials = Denials(clock.monotonic)
        self.leases = new_leases(clock, holder)
        self.limiter = Limiter(
            objects,
            self.limits,
            denials=self.denials,
            leases=self.leases,
            counts=self.told.counts,
            monotonic=clock.monotonic,
            sleep=self._sleep,
            strangers=strangers,
        )

    async def _sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)


def _clients(objects: FailingObjects, **limits: Any) -> Clients:
    if "policies" not in limits:
        limits = {"capacity": 5, "refill_per_second": 0, **limits}
    return Clients(objects, objects.clock, TenantLimits(**limits))


def _limiter(objects: FailingObjects, *client_key: str, capacity: float = 5, refill_per_second: float = 0) -> Limiter:
    limits = {"capacity": capacity, "refill_per_second": refill_per_second}
    return _clients(objects, client_key=client_key or ("api_key",), **limits).limiter


def _requester(
    key_id: str = "all", *, tenant_name: str = "acme", address: str = "10.0.0.1", **headers: str
) -> Requester:
    principal = Principal(tenant=tenant_name, key_id=key_id, scopes=SCOPES)
    return Requester(
        principal=principal,
        address=lambda: address,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


async def _check(limiter: Limiter, requester: Requester, cost: float | None = None) -> Verdict:
    return await limiter.check(requester, "kv", cost)


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
    assert (await _check(limiter, requester, 1)).remaining == 4
    assert (await limiter.usage(requester)).verdict.remaining == 4


async def test_clients_do_not_use_up_each_others_tokens(objects: FailingObjects) -> None:
    limiter = _limiter(objects)
    assert (await _check(limiter, _requester("one"), 5)).allowed
    assert not (await _check(limiter, _requester("one"), 1)).allowed
    assert (await _check(limiter, _requester("two"), 1)).allowed
    assert (await _check(limiter, _requester("one", tenant_name="demo"), 1)).allowed


async def test_a_client_that_cannot_pay_is_told_when_it_can(objects: FailingObjects, clock: ManualClock) -> None:
    limiter = _limiter(objects, refill_per_second=0.5)
    require_allowed(await _check(limiter, _requester(), 5))
    with pytest.raises(QuotaExceeded) as refused:
        require_allowed(await _check(limiter, _requester()))
    assert (refused.value.retry_after_s, refused.value.policies) == (2, ("default",))
    clock.advance(2)
    require_allowed(await _check(limiter, _requester()))


async def test_usage_says_the_limit_and_takes_nothing(objects: FailingObjects) -> None:
    limiter = _limiter(objects, refill_per_second=2)
    await _check(limiter, _requester(), 2)
    for _ in range(3):
        usage = await limiter.usage(_requester())
    ((policy, state),) = usage.policies
    assert (usage.client, policy.capacity, policy.refill_per_second, state.tokens) == ("all", 5, 2, 3)


async def test_the_client_that_usage_names_can_be_reset(objects: FailingObjects) -> None:
    limiter = _limiter(objects, "user")
    requester = _requester(x_user_id="very long " * 100)
    await _check(limiter, requester, 5)
    await limiter.reset("acme", (await limiter.usage(requester)).client)
    assert (await limiter.usage(requester)).verdict.remaining == 5


async def test_a_check_whose_bucket_was_lost_is_tried_again(objects: FailingObjects) -> None:
    objects.failing[CHECK] = [RESET] * 5
    assert (await _check(_limiter(objects), _requester(), 1)).remaining == 4
    assert objects.calls.count(CHECK) == 6


async def test_a_bucket_that_stays_lost_is_told_of_after_the_time_that_the_tenant_gives(
    objects: FailingObjects,
) -> None:
    objects.failing[CHECK] = [RESET] * 100
    clients = _clients(objects, fail_after_s=2)
    began_s = objects.clock.monotonic()
    with pytest.raises(ObjectReset):
        await _check(clients.limiter, _requester(), 1)
    assert 1 < objects.clock.monotonic() - began_s <= 2
    assert clients.told.all() == [("refused", "acme", "", 1)]


async def test_a_tenant_that_fails_open_is_let_through_without_its_bucket_and_that_is_counted(
    objects: FailingObjects, caplog: pytest.LogCaptureFixture
) -> None:
    clients = _clients(objects, fail="open", fail_after_s=1)
    for _ in range(3):
        objects.failing[CHECK] = [RESET] * 100
        verdict = await _check(clients.limiter, _requester(), 1)
        assert (verdict.allowed, verdict.decision) == (True, None)
    assert clients.told.all() == [("let_through", "acme", "", 3)]
    assert caplog.messages == ["limits=let_through tenant=acme policy=- requests=3"]
    objects.failing[CHECK] = []
    assert (await _check(clients.limiter, _requester(), 1)).remaining == 4


@pytest.mark.parametrize("lease", [None, LeaseConfig(tokens=2)])
@pytest.mark.parametrize("fail", ["open", "closed"])
async def test_a_bucket_that_never_answers_keeps_nobody_waiting_for_longer_than_the_tenant_says(
    objects: FailingObjects, monkeypatch: pytest.MonkeyPatch, fail: str, lease: LeaseConfig | None
) -> None:
    async def hang(object_id: ObjectId, call: Call) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    policies = (PolicyConfig(name="burst", capacity=5, refill_per_second=0, lease=lease),)
    clients = _clients(objects, fail=fail, fail_after_s=0.1, policies=policies)
    monkeypatch.setattr(objects, "send", hang)
    # A call has a minute by itself.
    async with asyncio.timeout(5):
        if fail == "open":
            verdict = await _check(clients.limiter, _requester(), 1)
            assert (verdict.allowed, verdict.decision) == (True, None)
        else:
            with pytest.raises(ObjectReset):
                await _check(clients.limiter, _requester(), 1)
    assert clients.told.all() == [("let_through" if fail == "open" else "refused", "acme", "", 1)]


async def test_while_a_new_client_waits_for_its_next_try_others_have_their_turn(objects: FailingObjects) -> None:
    clients = _clients(objects)
    objects.failing[CHECK] = [RESET] * 3
    await asyncio.gather(*[_check(clients.limiter, _requester(str(number)), 1) for number in range(20)])
    assert objects.calls.count(CHECK) == 23


@pytest.mark.parametrize("fail", ["open", "closed"])
async def test_who_overloads_its_bucket_is_refused_at_once_whatever_its_tenant_says(
    objects: FailingObjects, fail: str
) -> None:
    clients = _clients(objects, fail=fail)
    objects.failing[CHECK] = [ObjectOverloaded("TokenBucket/acme:all", "1000 calls wait", 1.0)]
    with pytest.raises(ObjectOverloaded):
        await _check(clients.limiter, _requester(), 1)
    assert objects.calls.count(CHECK) == 1
    assert clients.told.all() == [("refused", "acme", "", 1)]


async def test_a_cost_that_is_none_is_refused_also_where_limits_fail_open(objects: FailingObjects) -> None:
    clients = _clients(objects, fail="open")
    with pytest.raises(InvalidArgument):
        await _check(clients.limiter, _requester(), -1)
    assert clients.told.all() == []


async def test_a_request_whose_reply_was_lost_pays_once(objects: FailingObjects) -> None:
    limiter = _limiter(objects, capacity=20)
    # Every third reply is lost after its tokens were taken, and so is what it was asked again sometimes.
    allowed = 0
    for number in range(40):
        objects.failing_after[CHECK] = [RESET] * (number % 3)
        allowed += (await _check(limiter, _requester(), 1)).allowed
    assert allowed == 20
    assert (await limiter.usage(_requester())).verdict.remaining == 0


async def test_a_cost_that_is_no_number_takes_nothing(objects: FailingObjects) -> None:
    limiter = _limiter(objects)
    for cost in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="cost"):
            await _check(limiter, _requester(), cost)
    assert (await limiter.usage(_requester())).verdict.remaining == 5


async def test_a_bucket_is_an_object_named_by_tenant_and_client(objects: FailingObjects) -> None:
    await _check(_limiter(objects), _requester("k1"), 2)
    bucket = objects.namespace(TokenBucket).get("acme", "k1")
    (state,) = await bucket.usage([Policy("default", 0, 5)])
    assert state.tokens == 3


POLICIES = (
    PolicyConfig(name="burst", capacity=10, refill_per_second=2),
    PolicyConfig(name="answers", capacity=3, refill_per_second=0.1, routes=("chat",)),
    PolicyConfig(name="next", capacity=4, refill_per_second=0, shadow=True),
)


async def test_a_request_pays_from_the_policies_of_its_route_what_the_route_costs(objects: FailingObjects) -> None:
    limiter = _clients(objects, policies=POLICIES, costs={"ingest": 2.5, "usage": 0}).limiter
    assert (await limiter.check(_requester(), "chat")).remaining == 2
    assert (await limiter.check(_requester(), "ingest")).remaining == 6.5
    assert (await limiter.check(_requester(), "usage")).remaining == 6.5
    assert [state.tokens for state in (await limiter.usage(_requester())).states] == [6.5, 2, 0.5]


async def test_a_route_that_no_policy_counts_for_asks_nobody(objects: FailingObjects) -> None:
    limiter = _clients(objects, policies=POLICIES[1:2]).limiter
    verdict = await limiter.check(_requester(), "kv")
    assert (verdict.allowed, verdict.remaining, verdict.quota.policy_field) == (True, None, "")
    assert objects.calls == []


async def test_what_a_policy_in_shadow_would_have_denied_is_counted_and_let_through(objects: FailingObjects) -> None:
    clients = _clients(objects, policies=POLICIES)
    for _ in range(3):
        assert (await clients.limiter.check(_requester(), "chat")).allowed
    assert clients.told.all() == []
    assert not (await clients.limiter.check(_requester(), "chat")).allowed
    assert (await clients.limiter.check(_requester(), "kv")).allowed
    assert (await clients.limiter.check(_requester(), "kv")).allowed
    assert sorted(clients.told.all()) == [("denied", "acme", "answers", 1), ("shadow", "acme", "next", 1)]


# What is remembered


async def test_a_denied_clients_repeats_ask_nobody_until_it_can_pay(
    objects: FailingObjects, clock: ManualClock
) -> None:
    clients = _clients(objects, refill_per_second=0.5)
    clients.denials.certain_until(1_000)
    assert (await _check(clients.limiter, _requester(), 5)).allowed
    first = await _check(clients.limiter, _requester(), 1)
    asked = objects.calls.count(CHECK)
    for _ in range(19):
        clock.advance(0.1)
        verdict = await _check(clients.limiter, _requester(), 1)
        assert not verdict.allowed
        assert 0 < verdict.retry_after_s <= first.retry_after_s
        assert verdict.decision is not None
        assert verdict.quota.violated(verdict.decision) == ("default",)
    assert objects.calls.count(CHECK) == asked
    clock.advance(0.1)
    assert (await _check(clients.limiter, _requester(), 1)).allowed
    assert objects.calls.count(CHECK) == asked + 1
    assert clients.told.all() == [("denied", "acme", "default", 20)]


async def test_a_cheaper_request_and_another_client_are_not_denied_by_what_is_remembered(
    objects: FailingObjects,
) -> None:
    clients = _clients(objects)
    clients.denials.certain_until(1_000)
    await _check(clients.limiter, _requester(), 3)
    assert not (await _check(clients.limiter, _requester(), 4)).allowed
    assert (await _check(clients.limiter, _requester(), 2)).allowed
    assert (await _check(clients.limiter, _requester("other"), 4)).allowed
    assert (await _check(clients.limiter, _requester(tenant_name="demo"), 4)).allowed


async def test_a_client_that_is_denied_on_one_route_stays_denied_on_another_without_a_call(
    objects: FailingObjects, clock: ManualClock
) -> None:
    policies = (
        PolicyConfig(name="answers", capacity=3, refill_per_second=0.1, routes=("chat",)),
        PolicyConfig(name="writes", capacity=2, refill_per_second=0.2, routes=("kv",)),
    )
    clients = _clients(objects, policies=policies)
    clients.denials.certain_until(1_000)
    routes: tuple[RouteName, ...] = ("chat", "kv")
    for route, cost in zip(routes, (3, 2), strict=True):
        assert (await clients.limiter.check(_requester(), route, cost)).allowed
    for route in routes:
        assert not (await clients.limiter.check(_requester(), route)).allowed
        clock.advance(1)
    asked = objects.calls.count(CHECK)
    for _ in range(5):
        for route in routes:
            assert not (await clients.limiter.check(_requester(), route)).allowed
    assert objects.calls.count(CHECK) == asked
    clock.advance(3)
    assert [(await clients.limiter.check(_requester(), route)).allowed for route in routes] == [False, True]
    clock.advance(5)
    assert (await clients.limiter.check(_requester(), "chat")).allowed


async def test_without_word_of_resets_nothing_is_answered_from_memory(
    objects: FailingObjects, clock: ManualClock
) -> None:
    clients = _clients(objects)
    clients.denials.certain_until(1)
    await _check(clients.limiter, _requester(), 5)
    for _ in range(3):
        assert not (await _check(clients.limiter, _requester(), 1)).allowed
    assert objects.calls.count(CHECK) == 2
    clock.advance(1.5)
    await clients.limiter.reset("acme", "all")
    assert (await _check(clients.limiter, _requester(), 1)).allowed


async def test_changed_limits_are_asked_of_the_bucket_at_once(objects: FailingObjects) -> None:
    clients = _clients(objects)
    clients.denials.certain_until(1_000)
    await _check(clients.limiter, _requester(), 5)
    assert not (await _check(clients.limiter, _requester(), 1)).allowed
    assert clients.limits.replace({"acme": tenant(limits=TenantLimits(capacity=50, refill_per_second=1))}) == ["acme"]
    assert not (await _check(clients.limiter, _requester(), 1)).allowed
    assert objects.calls.count(CHECK) == 3
    objects.clock.advance(1)
    assert (await _check(clients.limiter, _requester(), 1)).allowed


async def test_what_was_asked_before_a_reset_is_not_remembered_after_it(objects: FailingObjects) -> None:
    clients = _clients(objects)
    clients.denials.certain_until(1_000)
    await _check(clients.limiter, _requester(), 5)
    asked = clients.denials.before_asking()
    denied = await _check(clients.limiter, _requester(), 1)
    clients.denials.forget("acme", "all")
    assert denied.decision is not None
    clients.denials.remember("acme", "all", denied.quota, denied.decision, asked)
    assert len(clients.denials) == 0


async def test_as_many_clients_are_remembered_as_there_is_room_for(clock: ManualClock) -> None:
    denials = Denials(clock.monotonic, clients_max=3)
    denials.certain_until(10)
    quota = RouteQuota.of((Policy("default", 0, 5),), 1)
    denied = Decision(False, (0.0,), (86_400.0,))
    for client in ("a", "b", "c"):
        denials.remember("acme", client, quota, denied, denials.before_asking())
    assert denials.answer("acme", "a", quota, 1) == denied
    denials.remember("acme", "d", quota, denied, denials.before_asking())
    assert [denials.answer("acme", client, quota, 1) for client in "abcd"] == [denied, None, denied, denied]


async def test_few_new_clients_are_asked_for_at_once_and_as_many_known_ones_as_come(
    objects: FailingObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, under_way, peaks = objects.send, 0, [0]

    async def counted(object_id: ObjectId, call: Call) -> Reply:
        nonlocal under_way
        under_way += 1
        peaks.append(max(under_way, peaks[-1]))
        try:
            await asyncio.sleep(0)
            return await send(object_id, call)
        finally:
            under_way -= 1

    monkeypatch.setattr(objects, "send", counted)
    limits = TenantLimits(capacity=5, refill_per_second=0)
    limiter = Clients(objects, objects.clock, limits, strangers=Strangers(turn_max_s=600.0)).limiter
    crowd = [_requester(str(number)) for number in range(20)]
    await asyncio.gather(*[_check(limiter, requester) for requester in crowd])
    assert peaks[-1] == AT_ONCE_MAX
    await asyncio.gather(*[_check(limiter, requester) for requester in crowd])
    assert peaks[-1] == len(crowd)


@pytest.mark.parametrize("fail", ["open", "closed"])
async def test_of_many_new_clients_at_once_none_is_let_through_unchecked(objects: FailingObjects, fail: Any) -> None:
    limits = TenantLimits(capacity=1, refill_per_second=0, fail=fail)
    clients = Clients(objects, objects.clock, limits, strangers=Strangers(waiting_max=4, turn_max_s=600.0))
    crowd = [_requester(str(number)) for number in range(10)]
    verdicts = await asyncio.gather(
        *[_check(clients.limiter, requester) for requester in crowd], return_exceptions=True
    )
    refused = [verdict for verdict in verdicts if isinstance(verdict, BaseException)]
    assert {(type(error), getattr(error, "retry_after_s", None)) for error in refused} == {
        (TooManyNewClients, RETRY_AFTER_S)
    }
    assert all(verdict.decision is not None for verdict in verdicts if isinstance(verdict, Verdict))
    assert clients.told.all() == [("refused", "acme", "", len(refused))]
