"""How many tokens has a tenant used, by day and model, and may it use more?

What a turn has used is counted once, at its end. Until then what its calls of the model are promised, or have used,
stands in rows of their own. They go when the turn is counted, in the same transaction: a budget has spent what was
counted, and the rows, and nothing is in both. Beside them are the leases of the turns in flight: a turn gets its lease
and the tokens of its first call together or not at all.

Budgets and limits come with each call, so that a changed configuration holds at once. A row counts in whichever window
is looked at until it is counted; then it counts on the day on which its turn has ended.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import NamedTuple

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations
from typing_extensions import TypedDict

from actors.runtime import DurableObject, exactly_once, idempotent, read
from actors.token_budget import PROMISED_RETRY_AFTER_S, Budget, Ruling, Tokens, Window, judge, window_of
from actors.token_reservations import Promise, TokenReservations
from actors.turn_leases import RETRY_AFTER_S, Concurrency, TurnLeases

#: Of a tenant's usage, among its objects of the class.
USAGE_NAME = "tokens"
DAYS_KEPT = 400
#: What denies a turn where it is not a budget.
TURNS_PER_CLIENT = "turns-per-client"
TURNS_PER_TENANT = "turns-per-tenant"

migrations = Migrations("usage")


@migrations()
def create_tables(database: Database) -> None:
    database.execute(
        "CREATE TABLE usage (day TEXT NOT NULL, model TEXT NOT NULL, turns INTEGER NOT NULL,"
        " input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, PRIMARY KEY (day, model)) WITHOUT ROWID"
    )


@migrations()
def add_reservations_and_leases(database: Database) -> None:
    database.execute(
        "CREATE TABLE reservation (turn TEXT NOT NULL, call INTEGER NOT NULL, model TEXT NOT NULL,"
        " input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, is_settled INTEGER NOT NULL,"
        " ttl_s REAL NOT NULL, expires_at REAL NOT NULL, PRIMARY KEY (turn, call)) WITHOUT ROWID"
    )
    database.execute(
        "CREATE TABLE lease (turn TEXT PRIMARY KEY, client TEXT NOT NULL, holder TEXT NOT NULL,"
        " expires_at REAL NOT NULL) WITHOUT ROWID"
    )


class DayUsage(TypedDict):
    """One day (UTC, ISO 8601) of one model."""

    day: str
    model: str
    turns: int
    input_tokens: int
    output_tokens: int


class Verdict(NamedTuple):
    """Whether a turn may begin, or a call be made. `violated` are the names of what denies it, `retry_after_s` after
    what time none of them may any more; 0 where that is never, or where it is granted or to be counted first.
    """

    ruling: Ruling
    violated: tuple[str, ...] = ()
    retry_after_s: float = 0.0


class Spending(TypedDict):
    """Of a budget's tokens of one kind: `used` whether or not it was counted yet, `promised` to calls under way."""

    limit: int | None
    used: int
    promised: int
    remaining: int | None


class BudgetState(TypedDict):
    """A budget in its window as it is now."""

    name: str
    model: str | None
    per: str
    input_tokens: Spending
    output_tokens: Spending
    resets_in_s: float


class TurnsInFlight(TypedDict):
    """Of one client and of all, with what they may be."""

    client: int
    tenant: int
    per_client: int | None
    per_tenant: int | None


class Allowance(TypedDict):
    """`turns_in_flight` is None where they are not limited, and so not known."""

    budgets: list[BudgetState]
    turns_in_flight: TurnsInFlight | None


class TokenUsage(DurableObject):
    migrations = migrations

    def start(self) -> None:
        self._reservations = TokenReservations(self.storage, self.clock)
        self._leases = TurnLeases(self.storage, self.clock)

    # -- what was used

    @exactly_once
    def add(self, at: float, model: str, input_tokens: int, output_tokens: int, turn_id: str = "") -> None:
        """Counts one turn, in place of the rows of its calls.

        The request id is to be the turn's, so that none counts twice.
        """
        day = datetime.datetime.fromtimestamp(at, datetime.UTC).date()
        self.storage.sql(
            "INSERT INTO usage VALUES (?, ?, 1, ?, ?) ON CONFLICT DO UPDATE SET turns = turns + 1,"
            " input_tokens = input_tokens + excluded.input_tokens,"
            " output_tokens = output_tokens + excluded.output_tokens",
            day.isoformat(),
            model,
            input_tokens,
            output_tokens,
        )
        oldest = day - datetime.timedelta(days=DAYS_KEPT)
        self.storage.sql("DELETE FROM usage WHERE day < ?", oldest.isoformat())
        self._reservations.forget(turn_id)

    @read
    def days(self, first: str, last: str) -> list[DayUsage]:
        """Of the days `first` to `last`, both included, oldest first; models in the order of their names."""
        rows = self.storage.sql("SELECT * FROM usage WHERE day >= ? AND day <= ? ORDER BY day, model", first, last)
        return [
            {"day": day, "model": model, "turns": turns, "input_tokens": asked, "output_tokens": answered}
            for day, model, turns, asked, answered in rows
        ]

    # -- what may be used

    @idempotent
    def admit(
        self,
        turn_id: str,
        client: str,
        holder: str,
        promise: Promise,
        budgets: Sequence[Budget],
        concurrency: Concurrency,
    ) -> Verdict:
        """Leases a turn to its holder and promises it the tokens of its first call; both or neither.

        A turn that has them already gets them anew, in place of what it had.
        """
        self._leases.tidy()
        of_client, of_tenant = self._leases.in_flight(client, but=turn_id)
        violated = []
        if concurrency.per_client is not None and of_client >= concurrency.per_client:
            violated.append(TURNS_PER_CLIENT)
        if concurrency.per_tenant is not None and of_tenant >= concurrency.per_tenant:
            violated.append(TURNS_PER_TENANT)
        verdict = self._judged(turn_id, promise, budgets)
        if violated and verdict.ruling is not Ruling.NEVER:
            ruling = max(verdict.ruling, Ruling.PROMISED)
            return Verdict(ruling, (*violated, *verdict.violated), max(RETRY_AFTER_S, verdict.retry_after_s))
        if verdict.ruling is Ruling.GRANTED:
            self._promise(turn_id, promise, budgets)
            if any(concurrency):
                self._leases.take(turn_id, client, holder)
        return verdict

    @idempotent
    def reserve(self, turn_id: str, promise: Promise, budgets: Sequence[Budget]) -> Verdict:
        """Promises a turn the tokens of one more call, or other ones to a call that was promised some before."""
        verdict = self._judged(turn_id, promise, budgets)
        if verdict.ruling is Ruling.GRANTED:
            self._promise(turn_id, promise, budgets)
        return verdict

    @idempotent
    def settle(self, turn_id: str, call: int, input_tokens: int, output_tokens: int) -> None:
        """What one call has used takes the place of what it was promised; if that is nothing, nothing does."""
        self._reservations.settle(turn_id, call, Tokens(input_tokens, output_tokens))

    @idempotent
    def renew(self, turn_id: str, holder: str) -> None:
        """Whoever runs a turn lives, and holds its lease for another `LEASE_S`."""
        self._leases.renew(turn_id, holder)

    @idempotent
    def release(self, turn_id: str, holder: str) -> None:
        """A turn has ended."""
        self._leases.release(turn_id, holder)

    @read
    def allowance(self, budgets: Sequence[Budget], concurrency: Concurrency, client: str) -> Allowance:
        """What is left of each budget, and the turns in flight."""
        return {
            "budgets": [self._state(budget) for budget in budgets],
            "turns_in_flight": self._turns_in_flight(concurrency, client) if any(concurrency) else None,
        }

    def _turns_in_flight(self, concurrency: Concurrency, client: str) -> TurnsInFlight:
        found = self._leases.in_flight(client)
        return {
            "client": found.client,
            "tenant": found.tenant,
            "per_client": concurrency.per_client,
            "per_tenant": concurrency.per_tenant,
        }

    def _judged(self, turn_id: str, promise: Promise, budgets: Sequence[Budget]) -> Verdict:
        if budgets:
            self._reservations.tidy()
        now = self.clock.now()
        ruling, violated, retry_after_s = Ruling.GRANTED, [], 0.0
        for budget in budgets:
            if not budget.is_for(promise.model):
                continue
            window = window_of(budget.per, now)
            used, promised = self._spent(budget, window, but=(turn_id, promise.call))
            found = judge(budget, used=used, promised=promised, asked=promise.tokens, is_exact=promise.is_exact)
            ruling = max(ruling, found)
            if found >= Ruling.PROMISED:
                violated.append((found, budget.name))
            if found is Ruling.PROMISED:
                retry_after_s = max(retry_after_s, min(PROMISED_RETRY_AFTER_S, window.ends_at - now))
            elif found is Ruling.SPENT:
                retry_after_s = max(retry_after_s, window.ends_at - now)
        if ruling is Ruling.NEVER:
            return Verdict(ruling, tuple(name for found, name in violated if found is Ruling.NEVER))
        return Verdict(ruling, tuple(name for _, name in violated), retry_after_s)

    def _promise(self, turn_id: str, promise: Promise, budgets: Sequence[Budget]) -> None:
        if budgets:
            self._reservations.put(turn_id, promise)

    def _spent(self, budget: Budget, window: Window, *, but: tuple[str, int] | None = None) -> tuple[Tokens, Tokens]:
        """What of a budget was used, and what is promised; without one call."""
        ((asked, answered),) = self.storage.sql(
            "SELECT ifnull(sum(input_tokens), 0), ifnull(sum(output_tokens), 0) FROM usage"
            " WHERE day >= ? AND day < ? AND (? IS NULL OR model = ?)",
            window.first,
            window.next_first,
            budget.model,
            budget.model,
        )
        used, promised = self._reservations.outstanding(budget.model, but=but)
        return Tokens(asked + used.input, answered + used.output), promised

    def _state(self, budget: Budget) -> BudgetState:
        now = self.clock.now()
        window = window_of(budget.per, now)
        used, promised = self._spent(budget, window)
        return {
            "name": budget.name,
            "model": budget.model,
            "per": budget.per,
            "input_tokens": _spending(budget.input_tokens, used.input, promised.input),
            "output_tokens": _spending(budget.output_tokens, used.output, promised.output),
            "resets_in_s": window.ends_at - now,
        }


def _spending(limit: int | None, used: int, promised: int) -> Spending:
    remaining = None if limit is None else max(0, limit - used - promised)
    return {"limit": limit, "used": used, "promised": promised, "remaining": remaining}
