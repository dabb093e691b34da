"""Does the document on limits say what happens? Its examples are worked out again, and its numbers are the code's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from actors import limit_news, token_bucket
from actors.bucket import RETRY_AFTER_MAX_S, Decision, Policy, State, charge, refill
from configs.limits import POLICIES_MAX, LeaseConfig, PolicyConfig, TenantLimits
from configs.service import HttpConfig
from deployments import denials, limit_changes, limiter, strangers
from deployments.errors import QuotaExceeded
from deployments.ingress import deployment
from deployments.ingress.problem import RETRY_AFTER_DEFAULT_S, problem_of
from deployments.ingress.replies import RateLimitDecision
from deployments.limiter import Verdict
from deployments.quotas import RouteQuota, TenantQuotas

DOCUMENT = Path(__file__).parents[2] / "docs" / "limits.md"
TEXT = DOCUMENT.read_text()
DAY_S = 86_400.0
#: Of the worked timeline: two tokens, one a second.
ROW = ("default", 1.0, 2.0, False)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def examples() -> tuple[TenantLimits, HttpConfig, PolicyConfig]:
    """What the document's YAML says, taken as the service takes it."""
    limits, http, leased = map(yaml.safe_load, blocks("yaml"))
    (policy,) = leased
    return (
        TenantLimits.model_validate(limits["limits"]),
        HttpConfig.model_validate(http["http"]),
        PolicyConfig.model_validate(policy),
    )


def retry_after(wait_s: float) -> str:
    return problem_of(QuotaExceeded(wait_s, ())).headers["Retry-After"]


def test_the_worked_timeline_is_what_a_bucket_does() -> None:
    rows = re.findall(r"^\| ([\d.]+) s \| cost (\d+) \| ([\d.]+) \| (.*?) \| ([\d.]+) \|$", TEXT, re.MULTILINE)
    assert len(rows) == TEXT.count("| cost ")
    state: State | None = None
    for at_s, cost, before, answer, after in rows:
        assert refill(state, ROW, float(at_s)).tokens == pytest.approx(float(before))
        (state,), decision = charge([state], [ROW], float(cost), float(at_s))
        assert state.tokens == pytest.approx(float(after))
        (wait_s,) = decision.retry_after_s
        if decision.allowed:
            assert answer == "allowed"
        else:
            assert answer.startswith(f"429, `Retry-After: {retry_after(wait_s)}`")
            why = "it never holds as much" if wait_s == RETRY_AFTER_MAX_S else f"in {wait_s:g} s"
            assert why in answer


def test_its_policies_make_the_fields_that_it_shows() -> None:
    limits, http, _ = examples()
    assert http.client_ip_header == "x-forwarded-for"
    assert http.trusted_proxies
    chat = TenantQuotas.of(limits).routes["chat"]
    (told,) = blocks("text")
    left = Decision(True, (50.0, 999.0, 10.0), (0.0, 0.0, 0.0))
    assert told.splitlines() == [f"RateLimit-Policy: {chat.policy_field}", f"RateLimit: {chat.left_field(left)}"]


def test_its_problem_and_its_answer_to_a_check_are_those_that_a_client_gets() -> None:
    problem, checked, _ = (json.loads(block) for block in blocks("json"))
    assert problem == problem_of(QuotaExceeded(0.5, ("burst",))).problem
    # That of the timeline's third row.
    _, decision = charge([State(0.5, 0.5, 1.0, 2.0)], [ROW], 1.0, 0.5)
    verdict = Verdict(allowed=decision.allowed, quota=RouteQuota.of((Policy(*ROW),), 1.0), decision=decision)
    answer = RateLimitDecision(
        allowed=verdict.allowed, remaining=verdict.remaining, retry_after_s=verdict.retry_after_s
    )
    assert checked == answer.model_dump()


def test_its_example_of_a_lease_is_worked_out_right() -> None:
    _, _, policy = examples()
    assert policy.lease == LeaseConfig(tokens=10, ttl_s=2)
    text = " ".join(TEXT.split())
    denied_too_soon = 2 * 2 * policy.lease.tokens
    assert f"that is {denied_too_soon:g} of the {policy.capacity:g} tokens" in text
    assert denied_too_soon / policy.refill_per_second == 2.0
    assert "until the bucket has refilled them, which takes two seconds" in text
    assert policy.lease.tokens / policy.refill_per_second == 0.5
    assert f"here {policy.lease.tokens:g} tokens or half a second's" in text


def test_the_numbers_that_it_names_are_those_of_the_code() -> None:
    text = " ".join(TEXT.split())
    words = {0.25: "a quarter of a second", 1: "one", 2: "two", 4: "four", 5: "five", 8: "eight"}
    parts = TenantLimits.model_json_schema()["properties"]["client_key"]["maxItems"]
    assert limiter.GIVE_BACK_EVERY_S < 1
    assert strangers.WAITING_MAX * 2 == deployment.REQUESTS_AT_ONCE_MAX
    assert (token_bucket.KEPT_FULL_S, token_bucket.NEVER_FULL_AGAIN_S) == (60, 7 * DAY_S)
    assert RETRY_AFTER_MAX_S == DAY_S
    for named in (
        f"may name up to {words[POLICIES_MAX]} policies",
        f"up to {words[parts]} of `api_key`",
        f"which also stands for never. On 503: when to try again, mostly in {RETRY_AFTER_DEFAULT_S:g} second",
        f"0 where they have, {RETRY_AFTER_MAX_S:g} for never",
        f"remembers its last {denials.CLIENTS_MAX:,} denied clients",
        f"heard of for {words[limit_news.LEASE_S]} seconds",
        f"Without word of resets for {words[limit_news.LEASE_S]} seconds",
        f"has {words[strangers.AT_ONCE_MAX]} under way at a time",
        f"takes longer than {words[strangers.TURN_MAX_S]}",
        f"A process has {strangers.WAITING_MAX} places for clients that wait, half of all requests",
        f"is answered 503 with `Retry-After: {strangers.RETRY_AFTER_S:g}`",
        "were not used for a minute remove themselves",
        "buckets are rid of it within a week",
        f"never more than {token_bucket.LEASE_MAX_S:g} seconds long",
        "with the next request or by itself within a second",
        f"taken for spent {words[token_bucket.SAID_WITHIN_S]} seconds after its time",
        f"looks at the files every {words[limit_changes.LOOK_EVERY_S]} seconds",
        f"`fail_after_s` ({TenantLimits().fail_after_s:g})",
    ):
        assert named in text, named
