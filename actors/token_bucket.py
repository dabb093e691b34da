"""May this client spend?

`TokenBucket` keeps the buckets of one client, one for each policy; `actors.bucket` says how they fill and what they
pay. The policies come with each call, so that a changed configuration holds at once, and mints nothing. Buckets that
are all full again and not used say no more than ones that never were: they remove themselves. One that never fills is
kept for as long as its policy is.

A caller that lost its host while it asked asks again, and pays once: the bucket knows the requests that paid last.

Who checks often may have some tokens on lease, to spend them without asking. They are debited first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors import bucket_leases
from actors.bucket import (
    RETRY_AFTER_MAX_S,
    Lease,
    Row,
    State,
    charge,
    is_changed,
    refill,
    require_amount,
    take_back,
    when_full,
)
from actors.bucket_leases import BucketLeases
from actors.limit_news import NEWS_NAME, NEWS_TENANT, LimitNews
from actors.runtime import AlarmInfo, DurableObject, InvalidArgument, idempotent, read

#: Of one call. As many as a tenant may have, and room for more.
POLICIES_MAX: Final = 16
#: Buckets are removed so long after they were full. Clients that come and go within it cost no new file each time.
KEPT_FULL_S: Final = 60.0
#: How often it is looked whether a policy that never fills is still there.
NEVER_FULL_AGAIN_S: Final = 7 * 86_400.0
#: Shorter than a full bucket is kept: with the bucket, what is known of its leases goes.
LEASE_MAX_S: Final = 30.0
#: By then the holder of a lease that is over has said what was left.
SAID_WITHIN_S: Final = 2.0
#: What a request is known by when it comes again.
REQUEST_ID_BYTES: Final = 8
#: Requests that paid last. As many as a host may have answered without its answers having arrived.
PAID_MAX: Final = 128
#: The row of no policy that says which they were; in the same table, so that they cost no page more.
_PAID: Final = ""
#: By the number of rows, made once: the driver finds a prepared statement by its text.
_SAVE: Final = tuple(
    "REPLACE INTO bucket (policy, tokens, updated_at, refill_per_second, capacity, full_at, paid) VALUES "  # noqa: S608  constants
    + ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * number)
    for number in range(POLICIES_MAX + 2)
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


@migrations()
def keep_leases(database: Database) -> None:
    bucket_leases.create_table(database)


@migrations()
def keep_who_paid(database: Database) -> None:
    # The ids of requests, one behind the other.
    database.execute("ALTER TABLE bucket ADD COLUMN paid BLOB")


class Wanted(NamedTuple):
    """A lease that is asked for, under an id that its holder makes up. `tokens`: at most, from each bucket."""

    id: str
    tokens: float
    ttl_s: float


class Ended(NamedTuple):
    """A lease that its holder does not spend from any more, and what was left of it."""

    id: str
    unspent: float


class TokenBucket(DurableObject):
    """The buckets of one client."""

    migrations = migrations

    def start(self) -> None:
        #: What is stored, by policy. None, or nothing: to be looked up.
        self._stored: dict[str, State] | None = None
        #: Read with it.
        self._leases: BucketLeases
        self._paid = b""

    def check(
        self, cost: float, policies: Sequence[Row], request_id: bytes = b"", *, again: bool = False
    ) -> tuple[bool, tuple[float, ...], tuple[float, ...]]:
        """Takes `cost` tokens from the bucket of each policy if all that count hold as much, and else none.

        Returns a `Decision` as a plain tuple, which travels faster.
        Not repeated by the stub: a caller that repeats it, with no id, may pay twice.

        Args:
            cost: what the request costs.
            policies: what its buckets are to hold now.
            request_id: random bytes, if the request may come again; `REQUEST_ID_BYTES` of them.
            again: it may have come before. If it has paid, it is allowed and pays nothing.
        """
        stored = self._known(policies)
        if again and self._has_paid(request_id):
            request_id, cost = b"", 0.0
        before = [stored.get(policy[0]) for policy in policies]
        after, decision = charge(before, policies, cost, self.clock.now(), self._out(policies))
        # What was only looked at needs no note: what it gained since is counted as well from what was noted before.
        if (decision.allowed and cost) or any(map(is_changed, before, policies)):
            self._save(stored, policies, after, request_id if decision.allowed else b"")
        allowed, remaining, retry_after_s = decision
        return allowed, remaining, retry_after_s

    def lease(
        self,
        cost: float,
        policies: Sequence[Row],
        wanted: Sequence[Any] | None,
        ended: Sequence[Any] | None,
        request_id: bytes = b"",
        *,
        again: bool = False,
    ) -> tuple[tuple[bool, tuple[float, ...], tuple[float, ...]], float, tuple[float, ...]]:
        """As `check`, and takes tokens for requests to come: up to as many as are wanted, from each bucket.

        At most half of what is left, so that others find some; none if that would not pay for another such request.

        Args:
            wanted: a `Wanted`; None: no lease.
            ended: an `Ended`, of which the bucket gets back what was left before the request pays.
            request_id, again: as of `check`. One that comes again names another lease: the first may be out.

        Returns the decision, the tokens that are on lease by it, and how many of each bucket are out with anybody.
        """
        require_amount("cost", cost)
        lease_id, tokens_max, ttl_s = ("", 0.0, 0.0) if wanted is None else Wanted(*wanted)
        require_amount("tokens", tokens_max)
        stored = self._known(policies)
        if ended is not None:
            self._end(stored, Ended(*ended))
        due = cost
        if again and self._has_paid(request_id):
            request_id, due = b"", 0.0
        now = self.clock.now()
        before = [stored.get(policy[0]) for policy in policies]
        after, (allowed, remaining, retry_after_s) = charge(before, policies, due, now, self._out(policies))
        leased = 0.0 if any(retry_after_s) or not self._leases.have_room else min(tokens_max, min(remaining) / 2)
        if leased < cost:
            leased = 0.0
        if leased:
            after = [state._replace(tokens=state.tokens - leased) for state in after]
            # By the buckets' own time, which is ahead of a clock that went back.
            began_at = max([state.updated_at for state in after])
            lease = Lease(leased, began_at + min(ttl_s, LEASE_MAX_S) + SAID_WITHIN_S)
            self._stored = None  # until all is written
            self._leases.grant(lease_id, [policy[0] for policy in policies], lease)
        if leased or (allowed and due) or any(map(is_changed, before, policies)):
            self._save(stored, policies, after, request_id if allowed else b"")
        out = tuple([sum([one.tokens for one in self._leases.of(name) if one.until > now]) for name, *_ in policies])
        return (allowed, tuple([state.tokens for state in after]), retry_after_s), leased, out

    @idempotent
    def give_back(self, ended: Sequence[Any]) -> None:
        """Has the buckets get back what was left of a lease, an `Ended`, if they know of it still."""
        self._end(self._stored or self._look_up(), Ended(*ended))

    def _end(self, stored: dict[str, State], ended: Ended) -> None:
        require_amount("unspent", ended.unspent)
        self._stored = None  # until all is written
        now = self.clock.now()
        for policy, lease in self._leases.end(ended.id).items():
            state = stored[policy]
            assert state.refill_per_second is not None  # both were noted when it was leased
            assert state.capacity is not None
            row = (policy, state.refill_per_second, state.capacity, False)
            self._save(stored, [row], [take_back(state, row, lease, ended.unspent, now, self._leases.of(policy))])
        self._stored = stored

    def _known(self, policies: Sequence[Row]) -> dict[str, State]:
        if not 0 < len(policies) <= POLICIES_MAX:
            raise InvalidArgument("policies", len(policies), f"must be 1 to {POLICIES_MAX}")
        return self._stored or self._look_up()

    def _out(self, policies: Sequence[Row]) -> list[Collection[Lease]] | None:
        return [self._leases.of(policy[0]) for policy in policies] if self._leases else None

    def _has_paid(self, request_id: bytes) -> bool:
        paid, size = self._paid, REQUEST_ID_BYTES
        return any(paid[begin : begin + size] == request_id for begin in range(0, len(paid), size))

    def _save(
        self, stored: dict[str, State], policies: Sequence[Row], states: Sequence[State], request_id: bytes = b""
    ) -> None:
        """Stores what buckets hold, and which request has paid from them."""
        binds: list[str | float | bytes | None] = []
        latest: float | None = 0.0
        for policy, state in zip(policies, states, strict=True):
            full_at = when_full(state)
            binds += (policy[0], *state, full_at, None)
            latest = None if latest is None or full_at is None else max(latest, full_at)
        # What is known here is what is stored. It is looked up again if the turn is undone in the middle.
        self._stored = None
        rows = len(states)
        if request_id:
            if len(request_id) != REQUEST_ID_BYTES:
                raise InvalidArgument("request_id", request_id, f"must be {REQUEST_ID_BYTES} bytes")
            rows += 1
            self._paid = (self._paid + request_id)[-PAID_MAX * REQUEST_ID_BYTES :]
            binds += (_PAID, 0.0, 0.0, None, None, 0.0, self._paid)
        self.storage.sql(_SAVE[rows], *binds)
        if self.storage.get_alarm() is None:
            self._look_again(latest)
        for policy, state in zip(policies, states, strict=True):
            stored[policy[0]] = state
            self._leases.counted(policy[0], state.updated_at)
        self._stored = stored

    async def alarm(self, info: AlarmInfo) -> None:
        """Removes buckets that are full and were not used since.

        One that never fills stays, since without it the client would get its tokens again: until the tenant has no such
        policy any more.
        """
        if self._never_full():
            news = self.objects.namespace(LimitNews).get(NEWS_TENANT, NEWS_NAME)
            policies: list[str] = await news.policies(self.id.tenant)
            if policies:
                self._keep_only(policies)
        if self._never_full():
            self._look_again(None)
            return
        ((all_full_at,),) = self.storage.sql("SELECT max(full_at) FROM bucket")
        if all_full_at is None or all_full_at + KEPT_FULL_S <= self.clock.now():
            self._forget()
        else:
            self._look_again(all_full_at)

    def _never_full(self) -> bool:
        return bool(self.storage.sql("SELECT 1 FROM bucket WHERE full_at IS NULL"))

    def _keep_only(self, policies: Sequence[str]) -> None:
        self._stored = None
        marks = ", ".join("?" * len(policies))
        self.storage.sql(f"DELETE FROM bucket WHERE policy NOT IN ({marks})", *policies)  # noqa: S608  marks alone
        self.storage.sql(f"DELETE FROM lease WHERE policy NOT IN ({marks})", *policies)  # noqa: S608

    def _look_again(self, full_at: float | None) -> None:
        # Not with each check: one that is set comes early enough. A bucket that takes years to fill is looked at daily.
        now = self.clock.now()
        at = now + NEVER_FULL_AGAIN_S if full_at is None else min(full_at, now + RETRY_AFTER_MAX_S) + KEPT_FULL_S
        self.storage.set_alarm(at)

    @read
    def usage(self, policies: Sequence[Row]) -> tuple[State, ...]:
        """What the bucket of each policy holds now."""
        stored, now = self._stored or self._look_up(), self.clock.now()
        return tuple([refill(stored.get(policy[0]), policy, now, self._leases.of(policy[0])) for policy in policies])

    @idempotent
    def reset(self) -> None:
        """Fills all buckets, by forgetting them."""
        self._forget()

    def _forget(self) -> None:
        self.storage.delete_all()
        self._stored = None

    def _look_up(self) -> dict[str, State]:
        rows = self.storage.sql("SELECT policy, tokens, updated_at, refill_per_second, capacity, paid FROM bucket")
        self._stored = {policy: State(*state) for policy, *state, _ in rows if policy != _PAID}
        self._paid = next((paid for policy, *_, paid in rows if policy == _PAID), b"")
        self._leases = BucketLeases(self.storage)
        return self._stored
