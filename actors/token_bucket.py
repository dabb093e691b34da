"""May this client spend?

A bucket holds up to `capacity` tokens and gains `refill_per_second`. A request of some cost is allowed if the bucket
holds as much, which is then taken; one that is not allowed takes nothing. With capacity 2 and one token a second:

    time  request   before   verdict                    after
    0.0   cost 1    2.0      allowed                    1.0
    0.2   cost 1    1.2      allowed                    0.2
    0.5   cost 1    0.5      no, retry after 0.5 s      0.5
    1.0   cost 1    1.0      allowed                    0.0

`take` is the arithmetic, with the time as a parameter; `TokenBucket` keeps its state. The limit comes with each call,
so that a changed configuration holds at once and mints nothing. A bucket that is full again and not used says no more
than one that never was: it removes itself.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors.runtime import AlarmInfo, DurableObject, InvalidArgument, idempotent, read

#: What "never" is in seconds: a cost above the capacity, or a bucket that gains nothing.
RETRY_AFTER_MAX_S = 86_400.0
#: A bucket is removed so long after it was full. Clients that come and go within it cost no new file each time.
KEPT_FULL_S = 60.0

migrations = Migrations("token_bucket")


@migrations()
def create_tables(database: Database) -> None:
    database.execute(
        "CREATE TABLE bucket"
        " (only INTEGER PRIMARY KEY CHECK (only = 1), tokens REAL NOT NULL, updated_at REAL NOT NULL)"
    )


@migrations()
def add_full_at(database: Database) -> None:
    # Seconds since 1970; null where it never fills.
    database.execute("ALTER TABLE bucket ADD COLUMN full_at REAL")


class Limit(NamedTuple):
    """What a bucket may hold, and how fast it fills."""

    refill_per_second: float
    capacity: float


class State(NamedTuple):
    """What a bucket held at `updated_at` (seconds since 1970)."""

    tokens: float
    updated_at: float


class Decision(NamedTuple):
    """The verdict on one request. `retry_after_s` is 0 if it is allowed."""

    allowed: bool
    remaining: float
    retry_after_s: float


def refill(state: State | None, limit: Limit, now: float) -> State:
    """What the bucket holds now. A new one is full; a clock that went back adds nothing and takes nothing."""
    if state is None:
        return State(limit.capacity, now)
    gained = max(0.0, now - state.updated_at) * limit.refill_per_second
    return State(min(limit.capacity, state.tokens + gained), max(now, state.updated_at))


def when_full(state: State, limit: Limit) -> float | None:
    """When the bucket will be full if nothing is taken; None if never."""
    missing = limit.capacity - state.tokens
    if missing <= 0:
        return state.updated_at
    return state.updated_at + missing / limit.refill_per_second if limit.refill_per_second > 0 else None


def take(state: State | None, limit: Limit, cost: float, now: float) -> tuple[State, Decision]:
    """Takes `cost` tokens if they are there.

    Raises:
        InvalidArgument: the cost is negative, infinite or no number.
    """
    # Not math.isfinite: it raises for a whole number too large for a float.
    if not 0 <= cost < math.inf:
        raise InvalidArgument("cost", cost, "must be a number from 0")
    state = refill(state, limit, now)
    if cost <= state.tokens:
        left = state.tokens - cost
        return State(left, state.updated_at), Decision(True, left, 0.0)
    retry_after_s = RETRY_AFTER_MAX_S
    if cost <= limit.capacity and limit.refill_per_second > 0:
        # A clock that went back has to catch up first.
        behind_s = state.updated_at - now
        retry_after_s = min(RETRY_AFTER_MAX_S, behind_s + (cost - state.tokens) / limit.refill_per_second)
    return state, Decision(False, state.tokens, retry_after_s)


class TokenBucket(DurableObject):
    """The bucket of one client."""

    migrations = migrations

    def check(self, cost: float, limit: Limit) -> Decision:
        """Takes `cost` tokens if they are there. Not repeated by the stub: a caller that repeats may pay twice."""
        state, decision = take(self._state(), limit, cost, self.clock.now())
        full_at = when_full(state, limit)
        self.storage.sql(
            "INSERT INTO bucket (only, tokens, updated_at, full_at) VALUES (1, ?, ?, ?) ON CONFLICT DO UPDATE"
            " SET tokens = excluded.tokens, updated_at = excluded.updated_at, full_at = excluded.full_at",
            *state,
            full_at,
        )
        if full_at is not None and self.storage.get_alarm() is None:
            self._look_again(full_at)
        return decision

    def alarm(self, info: AlarmInfo) -> None:
        """Removes a bucket that is full and was not used since."""
        ((full_at,),) = self.storage.sql("SELECT full_at FROM bucket") or [(None,)]
        if full_at is None:
            return  # the next check sets another
        if full_at + KEPT_FULL_S <= self.clock.now():
            self.storage.delete_all()
        else:
            self._look_again(full_at)

    def _look_again(self, full_at: float) -> None:
        # Not with each check: one that is set comes early enough. A bucket that takes years to fill is looked at daily.
        self.storage.set_alarm(min(full_at, self.clock.now() + RETRY_AFTER_MAX_S) + KEPT_FULL_S)

    @read
    def usage(self, limit: Limit) -> State:
        """What the bucket holds now."""
        return refill(self._state(), limit, self.clock.now())

    @idempotent
    def reset(self) -> None:
        """Fills the bucket, by forgetting it."""
        self.storage.delete_all()

    def _state(self) -> State | None:
        rows = self.storage.sql("SELECT tokens, updated_at FROM bucket")
        return State(*rows[0]) if rows else None
