"""How much is in a bucket, and may a request take from it?

A bucket holds up to `capacity` tokens and gains `refill_per_second`. A request of some cost is allowed if the bucket
holds as much, which is then taken; one that is not allowed takes nothing. With capacity 2 and one token a second:

    time  request   before   verdict                    after
    0.0   cost 1    2.0      allowed                    1.0
    0.2   cost 1    1.2      allowed                    0.2
    0.5   cost 1    0.5      no, retry after 0.5 s      0.5
    1.0   cost 1    1.0      allowed                    0.0

A client may have several, one for each policy. They are asked together: all that count pay, or none does. A policy in
shadow takes what it would, and denies nothing.

Tokens may be out on lease: taken, and not known to be spent. Until the lease has ended, the bucket fills only to what
is left of its capacity, so that what it holds and what is out are never more than that.

This is the arithmetic alone, with the time as a parameter. It never gives more than it was given, whatever the clock,
the costs and the policies do: a clock that goes back adds nothing, and what came while a policy was changed is counted
by the smaller of its two rates.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeAlias

from actors.runtime import InvalidArgument

#: What "never" is in seconds: a cost above the capacity, or a bucket that gains nothing.
RETRY_AFTER_MAX_S = 86_400.0
#: What "not yet" is at least, where the rest of the sum is rounded away.
RETRY_AFTER_MIN_S = 1e-6


class Policy(NamedTuple):
    """What a bucket may hold, and how fast it fills. In `shadow` it only shows what it would do."""

    name: str
    refill_per_second: float
    capacity: float
    shadow: bool = False


#: A policy as it travels. A tuple with names takes four times as long to pickle.
Row: TypeAlias = tuple[str, float, float, bool]


class State(NamedTuple):
    """What a bucket held at `updated_at` (seconds since 1970), and by which limits; None where nobody noted them."""

    tokens: float
    updated_at: float
    refill_per_second: float | None = None
    capacity: float | None = None


class Lease(NamedTuple):
    """Tokens of one bucket that somebody may spend until then (seconds since 1970)."""

    tokens: float
    until: float


class Decision(NamedTuple):
    """The verdict on one request, and what it is made of, policy by policy, in the order in which they were given.

    `retry_after_s` says of each policy when it could pay; 0 where it has, or could.
    """

    allowed: bool
    remaining: tuple[float, ...]
    retry_after_s: tuple[float, ...]


def refill(state: State | None, policy: Row, now: float, leases: Collection[Lease] = ()) -> State:
    """What the bucket holds now. A new one is full; a clock that went back adds nothing and takes nothing."""
    tokens, updated_at = _held(state, policy, now, leases)
    return State(tokens, updated_at, policy[1], policy[2])


def take_back(state: State, policy: Row, lease: Lease, unspent: float, now: float, others: Collection[Lease]) -> State:
    """What the bucket holds when a lease ends of which so much was not spent. `others` go on."""
    held = refill(state, policy, now, [lease, *others])
    back = min(unspent, lease.tokens)
    return held._replace(tokens=min(held.tokens + back, _room(policy[2], held.updated_at, others)))


def _held(state: State | None, policy: Row, now: float, leases: Collection[Lease]) -> tuple[float, float]:
    """Tokens, and when they are counted."""
    if state is None:
        return policy[2], now
    tokens, updated_at, rate, capacity = state
    # Where the policy has changed, nobody knows since when.
    if rate is None or rate > policy[1]:
        rate = policy[1]
    if capacity is None or capacity > policy[2]:
        capacity = policy[2]
    if leases:
        for until in sorted([lease.until for lease in leases]):
            if updated_at < until < now:
                room = _room(capacity, updated_at, leases)
                tokens, updated_at = min(room, tokens + (until - updated_at) * rate), until
        capacity = _room(capacity, updated_at, leases)
    if now > updated_at:
        tokens += (now - updated_at) * rate
        updated_at = now
    return (tokens if tokens < capacity else capacity), updated_at


def _room(capacity: float, now: float, leases: Collection[Lease]) -> float:
    """What the bucket may hold beside what is out."""
    return max(0.0, capacity - sum([lease.tokens for lease in leases if lease.until > now]))


def is_changed(state: State | None, policy: Row) -> bool:
    """The state was counted by other limits."""
    return state is not None and (state[2] != policy[1] or state[3] != policy[2])


def when_full(state: State) -> float | None:
    """When the bucket, once refilled, is full if nothing is taken; None if it never is."""
    tokens, updated_at, rate, capacity = state
    if capacity is None or tokens >= capacity:
        return updated_at
    return updated_at + (capacity - tokens) / rate if rate else None


def charge(
    states: Sequence[State | None],
    policies: Sequence[Row],
    cost: float,
    now: float,
    leases: Sequence[Collection[Lease]] | None = None,
) -> tuple[list[State], Decision]:
    """Takes `cost` tokens from all buckets if all that count hold as much.

    Args:
        states: what each bucket held; None for one that is new.
        policies: one for each bucket.
        cost: what the request costs.
        now: seconds since 1970.
        leases: those of each bucket that may not have ended; None where there are none.

    Raises:
        InvalidArgument: the cost is negative, infinite or no number.
    """
    require_amount("cost", cost)
    # Plain loops: this runs with each request of each client.
    held: list[tuple[float, float]] = []
    waits: list[float] = []
    allowed = True
    for state, policy, out in zip(states, policies, leases or [()] * len(policies), strict=True):
        tokens, updated_at = now_held = _held(state, policy, now, out)
        held.append(now_held)
        if cost <= tokens:
            waits.append(0.0)
        else:
            waits.append(_wait_s(tokens, updated_at, policy, cost, now))
            allowed = allowed and policy[3]
    after: list[State] = []
    remaining: list[float] = []
    for (tokens, updated_at), policy, wait_s in zip(held, policies, waits, strict=True):
        if allowed and not wait_s:
            tokens -= cost
        after.append(State(tokens, updated_at, policy[1], policy[2]))
        remaining.append(tokens)
    return after, Decision(allowed, tuple(remaining), tuple(waits))


def require_amount(field: str, tokens: float) -> None:
    """
    Raises:
        InvalidArgument
    """
    # Not math.isfinite: it raises for a whole number too large for a float.
    if not 0 <= tokens < math.inf:
        raise InvalidArgument(field, tokens, "must be a number from 0")


def _wait_s(tokens: float, updated_at: float, policy: Row, cost: float, now: float) -> float:
    """How long until the bucket holds as much as it does not yet."""
    _, rate, capacity, _ = policy
    if cost > capacity or rate <= 0:
        return RETRY_AFTER_MAX_S
    # A clock that went back has to catch up first.
    wait_s = updated_at - now + (cost - tokens) / rate
    return min(RETRY_AFTER_MAX_S, max(RETRY_AFTER_MIN_S, wait_s))
