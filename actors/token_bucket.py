"""May this client spend?

`TokenBucket` keeps the buckets of one client, one for each policy; `actors.bucket` says how they fill and what they
pay. The policies come with each call, so that a changed configuration holds at once, and mints nothing. Buckets that
are all full again and not used say no more than ones that never were: they remove themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors.bucket import RETRY_AFTER_MAX_S, Row, State, charge, is_changed, refill, when_full
from actors.runtime import AlarmInfo, DurableObject, InvalidArgument, idempotent, read

#: Of one call. As many as a tenant may have, and room for more.
POLICIES_MAX: Final = 16
#: Buckets are removed so long after they were full. Clients that come and go within it cost no new file each time.
KEPT_FULL_S: Final = 60.0
#: By the number of policies, made once: the driver finds a prepared statement by its text.
_SAVE: Final = tuple(
    "REPLACE INTO bucket (policy, tokens, updated_at, refill_per_second, capacity, full_at) VALUES "  # noqa: S608  constants
    + ", ".join(["(?, ?, ?, ?, ?, ?)"] * number)
    for number in range(POLICIES_MAX + 1)
)

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


@migrations()
def keep_one_for_each_policy(database: Database) -> None:
    # Limits are null where the tokens were counted before anybody noted them.
    database.execute("ALTER TABLE bucket RENAME TO only_bucket")
    database.execute(
        "CREATE TABLE bucket (policy TEXT PRIMARY KEY, tokens REAL NOT NULL, updated_at REAL NOT NULL,"
        " refill_per_second REAL, capacity REAL, full_at REAL) WITHOUT ROWID"
    )
    database.execute(
        "INSERT INTO bucket (policy, tokens, updated_at, full_at)"
        " SELECT 'default', tokens, updated_at, full_at FROM only_bucket"
    )
    database.execute("DROP TABLE only_bucket")


class TokenBucket(DurableObject):
    """The buckets of one client."""

    migrations = migrations

    def start(self) -> None:
        #: What is stored, by policy. None, or nothing: to be looked up.
        self._stored: dict[str, State] | None = None

    def check(self, cost: float, policies: Sequence[Row]) -> tuple[bool, tuple[float, ...], tuple[float, ...]]:
        """Takes `cost` tokens from the bucket of each policy if all that count hold as much, and else none.

        Returns a `Decision` as a plain tuple, which travels faster.
        Not repeated by the stub: a caller that repeats may pay twice.
        """
        if not 0 < len(policies) <= POLICIES_MAX:
            raise InvalidArgument("policies", len(policies), f"must be 1 to {POLICIES_MAX}")
        stored = self._stored or self._look_up()
        before = [stored.get(policy[0]) for policy in policies]
        after, decision = charge(before, policies, cost, self.clock.now())
        # What was only looked at needs no note: what it gained since is counted as well from what was noted before.
        if (decision.allowed and cost) or any(map(is_changed, before, policies)):
            self._save(stored, policies, after)
        allowed, remaining, retry_after_s = decision
        return allowed, remaining, retry_after_s

    def _save(self, stored: dict[str, State], policies: Sequence[Row], states: Sequence[State]) -> None:
        binds: list[str | float | None] = []
        latest: float | None = 0.0
        for policy, state in zip(policies, states, strict=True):
            full_at = when_full(state)
            binds += (policy[0], *state, full_at)
            latest = None if latest is None or full_at is None else max(latest, full_at)
        self.storage.sql(_SAVE[len(states)], *binds)
        if latest is not None and self.storage.get_alarm() is None:
            self._look_again(latest)
        # Last: what is known here is what is stored, or less where the turn was undone.
        for policy, state in zip(policies, states, strict=True):
            stored[policy[0]] = state

    def alarm(self, info: AlarmInfo) -> None:
        """Removes buckets that are full and were not used since."""
        ((all_full_at, all_fill),) = self.storage.sql("SELECT max(full_at), count(*) = count(full_at) FROM bucket")
        if all_full_at is None or not all_fill:
            return  # the next check sets another
        if all_full_at + KEPT_FULL_S <= self.clock.now():
            self._forget()
        else:
            self._look_again(all_full_at)

    def _look_again(self, full_at: float) -> None:
        # Not with each check: one that is set comes early enough. A bucket that takes years to fill is looked at daily.
        self.storage.set_alarm(min(full_at, self.clock.now() + RETRY_AFTER_MAX_S) + KEPT_FULL_S)

    @read
    def usage(self, policies: Sequence[Row]) -> tuple[State, ...]:
        """What the bucket of each policy holds now."""
        stored, now = self._stored or self._look_up(), self.clock.now()
        return tuple([refill(stored.get(policy[0]), policy, now) for policy in policies])

    @idempotent
    def reset(self) -> None:
        """Fills all buckets, by forgetting them."""
        self._forget()

    def _forget(self) -> None:
        self.storage.delete_all()
        self._stored = None

    def _look_up(self) -> dict[str, State]:
        rows = self.storage.sql("SELECT policy, tokens, updated_at, refill_per_second, capacity FROM bucket")
        self._stored = {policy: State(*state) for policy, *state in rows}
        return self._stored
