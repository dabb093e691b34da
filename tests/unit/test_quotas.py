"""Are a tenant's limits told to its clients as they are, in the syntax that clients read?"""

from __future__ import annotations

import http_sf
import pytest
from pydantic import ValidationError

from actors.bucket import RETRY_AFTER_MAX_S, Decision, Policy
from configs.limits import ROUTES, PolicyConfig, TenantLimits
from deployments.quotas import RouteQuota, TenantQuotas

BURST = Policy("burst", 20, 100)
DAILY = Policy("daily", 1000 / 86_400, 1000)
ONCE = Policy("once", 0, 7.5)
NEXT = Policy("next", 1, 10, shadow=True)


def quota(*policies: Policy) -> RouteQuota:
    return RouteQuota.of(policies, 1)


def test_policies_are_told_with_their_quota_and_the_time_it_takes_to_fill() -> None:
    told = quota(BURST, DAILY, ONCE).policy_field
    assert told == '"burst";q=100;w=5, "daily";q=1000;w=86400, "once";q=7'
    assert http_sf.parse(told.encode(), tltype="list") == [
        ("burst", {"q": 100, "w": 5}),
        ("daily", {"q": 1000, "w": 86400}),
        ("once", {"q": 7}),
    ]


def test_what_is_left_is_told_with_when_the_bucket_is_full() -> None:
    both = quota(BURST, DAILY)
    assert both.left_field(Decision(True, (50.9, 999), (0, 0))) == '"burst";r=50;t=3, "daily";r=999;t=87'
    assert both.left_field(Decision(True, (100, 1000), (0, 0))) == '"burst";r=100;t=0, "daily";r=1000;t=0'


def test_a_policy_that_denied_tells_when_it_can_pay_and_none_tells_a_time_after_that_of_the_retry() -> None:
    both = quota(BURST, DAILY)
    denied = Decision(False, (0.25, 990), (0.0375, 0))
    assert both.left_field(denied) == '"burst";r=0;t=1, "daily";r=990'
    assert both.left_field(Decision(False, (0.25, 0.5), (0.0375, 43.2))) == '"burst";r=0;t=1, "daily";r=0;t=44'
    assert (both.violated(denied), both.retry_after_s(denied)) == (("burst",), 0.0375)
    assert both.remaining(denied) == 0.25


def test_a_bucket_that_never_fills_tells_no_time() -> None:
    assert quota(ONCE).left_field(Decision(True, (3,), (0,))) == '"once";r=3'
    assert quota(ONCE).left_field(Decision(True, (7.5,), (0,))) == '"once";r=7;t=0'
    assert quota(ONCE).left_field(Decision(False, (0,), (RETRY_AFTER_MAX_S,))) == '"once";r=0;t=86400'


@pytest.mark.parametrize("policy", [Policy("slow", 1e-15, 1e9), Policy("large", 1e6, 1e9), Policy("little", 1e6, 0.5)])
def test_numbers_of_any_size_are_told_in_the_fields_syntax(policy: Policy) -> None:
    one = quota(policy)
    for told in (one.policy_field, one.left_field(Decision(True, (0.0,), (0.0,)))):
        assert http_sf.parse(told.encode(), tltype="list")


def test_a_policy_in_shadow_is_told_to_nobody() -> None:
    both = quota(NEXT, BURST)
    decision = Decision(True, (0, 99), (5, 0))
    assert both.policy_field == '"burst";q=100;w=5'
    assert both.left_field(decision) == '"burst";r=99;t=1'
    assert (both.violated(decision), both.would_violate(decision)) == ((), ("next",))
    assert (both.retry_after_s(decision), both.remaining(decision)) == (0, 99)
    assert quota(NEXT).policy_field == ""
    assert quota(NEXT).remaining(Decision(True, (0,), (5,))) is None


def test_the_short_form_is_one_policy_for_all_routes() -> None:
    quotas = TenantQuotas.of(TenantLimits(capacity=5, refill_per_second=2))
    assert quotas.routes.keys() == set(ROUTES)
    assert {route.rows for route in quotas.routes.values()} == {(("default", 2, 5, False),)}
    assert {route.cost for route in quotas.routes.values()} == {1}


def test_each_route_has_its_own_policies_and_cost() -> None:
    everywhere = PolicyConfig(name="all", capacity=5, refill_per_second=1)
    some = PolicyConfig(name="some", capacity=6, refill_per_second=1, routes=("chat", "ingest"))
    quotas = TenantQuotas.of(TenantLimits(policies=(everywhere, some), costs={"ingest": 3, "usage": 0}))
    assert [policy.name for policy in quotas.routes["chat"].policies] == ["all", "some"]
    assert [policy.name for policy in quotas.routes["kv"].policies] == ["all"]
    assert [quotas.routes[route].cost for route in ("chat", "ingest", "usage")] == [1, 3, 0]
    assert [policy.name for policy in quotas.everything.policies] == ["all", "some"]


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"policies": [{"name": "a", "capacity": 1, "refill_per_second": 1}], "capacity": 5}, "must have either"),
        ({"policies": [{"name": "a", "capacity": 1, "refill_per_second": 1}] * 2}, "two policies named 'a'"),
        ({"policies": [{"name": "A b", "capacity": 1, "refill_per_second": 1}]}, "should match"),
        ({"policies": [{"name": "a", "capacity": 0, "refill_per_second": 1}]}, "greater than 0"),
        ({"policies": [{"name": "a", "capacity": 1, "refill_per_second": 1, "routes": []}]}, "at least 1"),
        ({"policies": [{"name": "a", "capacity": 1, "refill_per_second": 1, "routes": ["lobby"]}]}, "should be"),
        (
            {"policies": [{"name": name, "capacity": 1, "refill_per_second": 1} for name in "abcdefghi"]},
            "at most 8",
        ),
        ({"costs": {"lobby": 1}}, "should be"),
        ({"costs": {"chat": -1}}, "greater than or equal to 0"),
        ({"costs": {"check": 2}}, "can't hold check"),
        ({"fail": "ajar"}, "should be"),
        ({"fail_after_s": 0}, "greater than 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TenantLimits.model_validate(limits)
