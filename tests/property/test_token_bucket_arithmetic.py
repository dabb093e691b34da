"""Does a bucket ever give more than it was given, whatever the costs, the limits and the clock do?"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import InvalidArgument
from actors.bucket import RETRY_AFTER_MAX_S, Decision, Policy, Row, State, charge, refill, when_full

START = 1_000_000_000.0
YEAR_S = 365 * 86_400.0
#: What adding and taking a few hundred times may round away, as a part of the whole.
ROUNDING = 1e-9
#: Times near `START` are about 1e-7 s apart.
TIME_STEP_S = 1e-6

_rates = st.just(0.0) | st.floats(1e-3, 1000)
_limits = st.builds(Policy, st.just("default"), _rates, st.floats(0, 1000), st.just(False))
_costs = st.just(0) | st.integers(0, 2000) | st.floats(0, 2000) | st.floats(0, 1e-3) | st.just(10**400)
_forward_s = st.just(0.0) | st.floats(0, 10) | st.floats(0, YEAR_S)
_any_way_s = _forward_s | st.floats(-YEAR_S, 0) | st.just(YEAR_S) | st.just(-YEAR_S)
_states = st.builds(State, st.floats(0, 1000), st.floats(START - YEAR_S, START + YEAR_S), st.none(), st.none())
_policies = st.lists(st.builds(Policy, st.just("p"), _rates, st.floats(0, 1000), st.booleans()), min_size=1, max_size=5)


def take(state: State | None, policy: Row, cost: float, now: float) -> tuple[State, Decision]:
    """Of one bucket alone."""
    (after,), decision = charge([state], [policy], cost, now)
    assert decision.remaining == (after.tokens,)
    return after, decision


@given(limit=_limits, steps=st.lists(st.tuples(_forward_s, _costs), max_size=60))
def test_no_more_is_admitted_than_the_capacity_and_what_came_since(
    limit: Policy, steps: list[tuple[float, float]]
) -> None:
    state: State | None = None
    now, admitted = START, 0.0
    for elapsed_s, cost in steps:
        if state is not None:
            now += elapsed_s
        state, decision = take(state, limit, cost, now)
        admitted += cost if decision.allowed else 0.0
        most = limit.capacity + limit.refill_per_second * (now - START)
        assert admitted <= most * (1 + ROUNDING)
        assert 0 <= state.tokens <= limit.capacity


@given(limit=_limits, steps=st.lists(st.tuples(_any_way_s, _costs), max_size=60))
def test_a_clock_that_jumps_mints_nothing(limit: Policy, steps: list[tuple[float, float]]) -> None:
    state: State | None = None
    now = latest = START
    admitted = 0.0
    for jump_s, cost in steps:
        if state is not None:
            now += jump_s
            latest = max(latest, now)
        state, decision = take(state, limit, cost, now)
        admitted += cost if decision.allowed else 0.0
        # Going over the same hour twice fills the bucket once.
        assert admitted <= (limit.capacity + limit.refill_per_second * (latest - START)) * (1 + ROUNDING)
        assert 0 <= state.tokens <= limit.capacity


@given(limit=_limits, state=_states, back_s=st.floats(0, YEAR_S))
def test_a_clock_that_went_back_takes_nothing(limit: Policy, state: State, back_s: float) -> None:
    assert refill(state, limit, state.updated_at - back_s).tokens == min(state.tokens, limit.capacity)


@given(limit=_limits, state=_states, elapsed_s=st.floats(YEAR_S, 10 * YEAR_S))
def test_a_year_fills_the_bucket_and_no_more(limit: Policy, state: State, elapsed_s: float) -> None:
    held = refill(state, limit, state.updated_at + elapsed_s).tokens
    assert held == (limit.capacity if limit.refill_per_second else min(state.tokens, limit.capacity))


@given(steps=st.lists(st.tuples(_limits, _any_way_s, _costs), min_size=1, max_size=60))
def test_changing_the_limit_mints_nothing(steps: list[tuple[Policy, float, float]]) -> None:
    state: State | None = None
    now = latest = START
    admitted, given_out = 0.0, steps[0][0].capacity
    before = steps[0][0]
    for limit, elapsed_s, cost in steps:
        if state is not None:
            now += elapsed_s
            # By the smaller of the two rates, since nobody knows when the limit changed.
            rate = min(limit.refill_per_second, before.refill_per_second)
            given_out += max(0.0, now - latest) * rate
            latest = max(latest, now)
        held_before = limit.capacity if state is None else min(state.tokens, limit.capacity)
        state, decision = take(state, limit, cost, now)
        admitted += cost if decision.allowed else 0.0
        assert admitted <= given_out * (1 + ROUNDING) + 1000 * len(steps) * TIME_STEP_S
        assert 0 <= state.tokens <= limit.capacity
        if elapsed_s <= 0:
            assert state.tokens <= held_before
        before = limit


@given(state=_states, before=_limits, more=_limits, away_s=_forward_s)
def test_a_larger_bucket_does_not_fill_by_itself(state: State, before: Policy, more: Policy, away_s: float) -> None:
    held = refill(state, before, state.updated_at)
    changed = refill(held, more, held.updated_at + away_s)
    assert changed.tokens <= min(before.capacity, more.capacity)
    # From then on it is filled as what it is.
    later = refill(changed, more, changed.updated_at + 1)
    assert later.tokens == min(more.capacity, changed.tokens + (later.updated_at - changed.updated_at) * more[1])


@given(limits=st.lists(_limits, min_size=2, max_size=20))
def test_at_one_moment_a_bucket_gives_the_smallest_capacity_it_had(limits: list[Policy]) -> None:
    state: State | None = None
    for limit in limits:
        state, _ = take(state, limit, 0, START)
    assert state is not None
    assert state.tokens == min(limit.capacity for limit in limits)


@given(limit=_limits, state=_states, cost=_costs, elapsed_s=_any_way_s)
def test_a_request_takes_its_cost_or_nothing(limit: Policy, state: State, cost: float, elapsed_s: float) -> None:
    now = state.updated_at + elapsed_s
    held = refill(state, limit, now)
    after, decision = take(state, limit, cost, now)
    assert decision.allowed == (cost <= held.tokens)
    assert after.tokens == (held.tokens - cost if decision.allowed else held.tokens)
    assert after.updated_at == held.updated_at == max(now, state.updated_at)
    assert (decision.retry_after_s[0] == 0) == decision.allowed
    assert 0 <= decision.retry_after_s[0] <= RETRY_AFTER_MAX_S


@given(limit=_limits, state=st.none() | _states, now=st.floats(START - YEAR_S, START + YEAR_S))
def test_a_request_that_costs_nothing_is_always_allowed(limit: Policy, state: State | None, now: float) -> None:
    _, decision = take(state, limit, 0, now)
    assert decision.allowed


@given(
    limit=st.builds(Policy, st.just("default"), st.floats(1e-3, 1000), st.floats(1e-3, 1000), st.just(False)),
    fullness=st.floats(0, 1),
    part=st.floats(0, 1),
    behind_s=st.just(0.0) | st.floats(0, 3600),
)
def test_retry_after_is_when_the_request_is_first_allowed(
    limit: Policy, fullness: float, part: float, behind_s: float
) -> None:
    state = State(limit.capacity * fullness, START)
    cost = limit.capacity * part
    now = START - behind_s
    state, decision = take(state, limit, cost, now)
    if decision.allowed or decision.retry_after_s[0] >= RETRY_AFTER_MAX_S:
        return
    at = now + decision.retry_after_s[0]
    assert take(state, limit, cost, at + TIME_STEP_S)[1].allowed
    if decision.retry_after_s[0] > TIME_STEP_S:
        assert not take(state, limit, cost, at - TIME_STEP_S)[1].allowed


@given(limit=_limits, state=st.none() | _states, cost=st.floats(max_value=-1e-300) | st.integers(max_value=-1))
def test_a_negative_cost_is_refused(limit: Policy, state: State | None, cost: float) -> None:
    with pytest.raises(InvalidArgument) as raised:
        take(state, limit, cost, START)
    assert raised.value.field == "cost"


@pytest.mark.parametrize("cost", [math.nan, math.inf, -math.inf])
def test_a_cost_that_is_no_number_is_refused(cost: float) -> None:
    with pytest.raises(InvalidArgument):
        take(None, Policy("default", 1, 10), cost, START)


@pytest.mark.parametrize("cost", [10.000001, 1e308, 10**400])
def test_what_can_never_be_paid_is_refused_for_a_day_and_takes_nothing(cost: float) -> None:
    state, decision = take(None, Policy("default", 1, 10), cost, START)
    assert decision == Decision(False, (10,), (RETRY_AFTER_MAX_S,))
    assert state == State(10, START, 1, 10)


def test_a_bucket_that_gains_nothing_never_says_soon() -> None:
    _, decision = take(State(1, START), Policy("default", 0, 10), 2, START + YEAR_S)
    assert decision == Decision(False, (1,), (RETRY_AFTER_MAX_S,))


def test_the_example_of_the_module_holds() -> None:
    limit = Policy("default", refill_per_second=1, capacity=2)
    state: State | None = None
    verdicts: list[tuple[float, ...]] = []
    for at in (0.0, 0.2, 0.5, 1.0):
        state, decision = take(state, limit, 1, at)
        verdicts.append((decision.allowed, *decision.retry_after_s, *decision.remaining))
    expected = [(True, 0.0, 1.0), (True, 0.0, 0.2), (False, 0.5, 0.5), (True, 0.0, 0.0)]
    assert [pytest.approx(row) for row in expected] == verdicts


@given(
    policies=_policies,
    steps=st.lists(st.tuples(_any_way_s, _costs), max_size=40),
)
def test_of_several_buckets_all_that_count_pay_or_none_does(
    policies: list[Policy], steps: list[tuple[float, float]]
) -> None:
    states: list[State | None] = [None] * len(policies)
    now = START
    for elapsed_s, cost in steps:
        now += elapsed_s
        held = [refill(state, policy, now) for state, policy in zip(states, policies, strict=True)]
        after, decision = charge(states, policies, cost, now)
        pays = [cost <= state.tokens for state in held]
        assert decision.allowed == all(ok or policy.shadow for ok, policy in zip(pays, policies, strict=True))
        assert [wait_s == 0 for wait_s in decision.retry_after_s] == pays
        assert decision.remaining == tuple(state.tokens for state in after)
        for before, then, ok in zip(held, after, pays, strict=True):
            # One in shadow that could not have paid is left as it would be if it counted.
            assert then.tokens == (before.tokens - cost if decision.allowed and ok else before.tokens)
        states = list(after)


@given(policies=_policies, states=st.data(), cost=_costs)
def test_a_bucket_in_shadow_changes_no_verdict(policies: list[Policy], states: st.DataObject, cost: float) -> None:
    held = states.draw(st.lists(st.none() | _states, min_size=len(policies), max_size=len(policies)))
    counting = [(state, policy) for state, policy in zip(held, policies, strict=True) if not policy.shadow]
    _, with_shadow = charge(held, policies, cost, START)
    _, without = charge([state for state, _ in counting], [policy for _, policy in counting], cost, START)
    assert with_shadow.allowed == without.allowed


@given(limit=_limits, state=_states, forward_s=_forward_s)
def test_a_bucket_is_full_when_it_was_said_to_be(limit: Policy, state: State, forward_s: float) -> None:
    held = refill(state, limit, state.updated_at + forward_s)
    full_at = when_full(held)
    if full_at is None:
        assert limit.refill_per_second == 0
    else:
        assert refill(held, limit, full_at + TIME_STEP_S).tokens == pytest.approx(limit.capacity)
