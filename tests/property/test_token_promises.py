"""Whatever turns, clocks and crashes do: is no more promised than there is, and nothing counted twice or lost for ever?

A state machine drives a tenant's usage and a plain model of it side by side, and compares what both say is left.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors import ObjectReset, TokenUsage
from actors.runtime.namespace import Stub
from actors.testing import Lab
from actors.token_budget import INEXACT_SHARE, Budget, Ruling
from actors.token_reservations import SETTLED_KEPT_S, Promise
from actors.token_usage import DAYS_KEPT, TURNS_PER_CLIENT, TURNS_PER_TENANT, USAGE_NAME, Verdict
from actors.turn_leases import LAPSED_KEPT_S, LEASE_S, Concurrency

TTL_S = 100.0
YEAR_S = 365 * 86_400.0
BUDGETS = (
    Budget("daily", None, "day", 2_000, 100),
    Budget("monthly", "a", "month", None, 150),
)
CONCURRENCY = Concurrency(2, 3)
MODELS = ("a", "b")
CLIENTS = st.sampled_from(["ann", "bob"])
HOLDERS = st.sampled_from(["h1", "h2"])
AMOUNTS = st.sampled_from([0, 1, 10, 30, 60, 100, 120])
#: Whether the host is lost in the commit, and whether that reached the disk.
SPOILS = st.sampled_from([None, None, None, False, True])
INDEX = st.integers(0, 5)


@dataclass(kw_only=True, slots=True)
class Row:
    turn: str
    call: int
    model: str
    input: int
    output: int
    expires_at: float
    ttl_s: float
    is_settled: bool = False


@dataclass(kw_only=True, slots=True)
class Lease:
    client: str
    holder: str
    expires_at: float


@dataclass(slots=True)
class Model:
    """What the object ought to hold."""

    rows: dict[tuple[str, int], Row] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    #: Day, model, tokens read and written, by the turns that were counted.
    counted: dict[str, tuple[str, str, int, int]] = field(default_factory=dict)

    def left(self, budget: Budget, now: float, but: tuple[str, int] | None = None) -> tuple[int, int, int, int]:
        """Used and promised, of prompts and of answers."""
        today = datetime.datetime.fromtimestamp(now, datetime.UTC).date().isoformat()
        window = today if budget.per == "day" else today[:7]
        of_model = [
            one for one in self.counted.values() if one[0].startswith(window) and budget.model in (None, one[1])
        ]
        live = [
            row
            for key, row in self.rows.items()
            if row.expires_at > now and key != but and budget.model in (None, row.model)
        ]
        return (
            sum(one[2] for one in of_model) + sum(row.input for row in live if row.is_settled),
            sum(row.input for row in live if not row.is_settled),
            sum(one[3] for one in of_model) + sum(row.output for row in live if row.is_settled),
            sum(row.output for row in live if not row.is_settled),
        )

    def ruling(self, turn: str, promise: Promise, now: float) -> tuple[Ruling, set[str]]:
        worst, names = Ruling.GRANTED, {}
        for budget in BUDGETS:
            if budget.model not in (None, promise.model):
                continue
            read, to_read, written, to_write = self.left(budget, now, (turn, promise.call))
            of_input = _ruling(budget.input_tokens, read, to_read, promise.input_tokens, promise.is_exact)
            of_output = _ruling(budget.output_tokens, written, to_write, promise.output_tokens, True)
            names[budget.name] = max(of_input, of_output)
            worst = max(worst, of_input, of_output)
        denying = {Ruling.NEVER} if worst is Ruling.NEVER else {Ruling.PROMISED, Ruling.SPENT}
        return worst, {name for name, found in names.items() if found in denying}

    def set_right(self, now: float) -> None:
        """No row outlives its time because the clock was set back."""
        self.rows = {key: row for key, row in self.rows.items() if row.expires_at > now}
        for row in self.rows.values():
            row.expires_at = min(row.expires_at, now + row.ttl_s)

    def set_leases_right(self, now: float) -> None:
        self.leases = {turn: one for turn, one in self.leases.items() if one.expires_at > now - LAPSED_KEPT_S}
        for lease in self.leases.values():
            lease.expires_at = min(lease.expires_at, now + LEASE_S)

    def in_flight(self, now: float, but: str = "") -> Iterator[Lease]:
        return (one for turn, one in self.leases.items() if one.expires_at > now and turn != but)

    def promise(self, turn: str, promise: Promise, now: float) -> None:
        key = (turn, promise.call)
        if key in self.rows and self.rows[key].is_settled:
            return
        self.rows[key] = Row(
            turn=turn,
            call=promise.call,
            model=promise.model,
            input=promise.input_tokens,
            output=promise.output_tokens,
            expires_at=now + promise.ttl_s,
            ttl_s=promise.ttl_s,
        )


def _ruling(limit: int | None, used: int, promised: int, asked: int, is_exact: bool) -> Ruling:
    if limit is None:
        return Ruling.GRANTED
    if not is_exact and used + promised < limit:
        plenty = asked <= (limit - used - promised) / INEXACT_SHARE
        return Ruling.GRANTED if plenty else Ruling.INEXACT
    asked = asked if is_exact else min(asked, 1)
    if used + promised + asked <= limit:
        return Ruling.GRANTED
    if asked > limit:
        return Ruling.NEVER
    return Ruling.SPENT if used + asked > limit else Ruling.PROMISED


class Promises(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.model = Model()
        self.turns: list[str] = []
        self.was_counted: set[str] = set()

    @initialize(always_evict=st.booleans())
    def start(self, always_evict: bool) -> None:
        self.lab = Lab([TokenUsage], always_evict=always_evict)
        self.run(self.lab.__aenter__())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20.0))

    def call(self, spoil: bool | None, call: Callable[[], Awaitable[Any]]) -> Any:
        """Calls the object, whose host may be lost by it: the call is repeated then."""

        async def answer() -> Any:
            try:
                return await call()
            except ObjectReset:
                if spoil is None:
                    raise
                return await call()

        if spoil is not None:
            self.lab.crash_in_next_commit(self.usage, reached_disk=spoil)
        return self.run(answer())

    @property
    def usage(self) -> Stub[TokenUsage]:
        return self.lab.get(TokenUsage, "acme", USAGE_NAME)

    @property
    def now(self) -> float:
        return self.lab.clock.now()

    def turn(self, index: int) -> str:
        return self.turns[-1 - index % len(self.turns)]

    # -- turns

    @rule(
        again=st.sampled_from([None, None, None, 0, 1]),
        client=CLIENTS,
        holder=HOLDERS,
        model=st.sampled_from(MODELS),
        asked=AMOUNTS,
        answered=AMOUNTS,
        is_exact=st.booleans(),
        spoil=SPOILS,
    )
    def admit(
        self,
        again: int | None,
        client: str,
        holder: str,
        model: str,
        asked: int,
        answered: int,
        is_exact: bool,
        spoil: bool | None,
    ) -> None:
        if again is None or not self.turns:
            self.turns.append(f"t{len(self.turns)}")
        turn = self.turn(again or 0)
        promise = Promise(0, model, asked, answered, is_exact, TTL_S)
        self.model.set_leases_right(self.now)
        self.model.set_right(self.now)
        flying = list(self.model.in_flight(self.now, but=turn))
        ruling, violated = self.model.ruling(turn, promise, self.now)
        if ruling is not Ruling.NEVER:
            too_many = {TURNS_PER_CLIENT: sum(one.client == client for one in flying) >= 2}
            too_many[TURNS_PER_TENANT] = len(flying) >= 3
            if any(too_many.values()):
                ruling = max(ruling, Ruling.PROMISED)
                violated |= {name for name, is_violated in too_many.items() if is_violated}
        if ruling is Ruling.GRANTED:
            self.model.promise(turn, promise, self.now)
            self.model.leases[turn] = Lease(client=client, holder=holder, expires_at=self.now + LEASE_S)
        found = self.call(spoil, lambda: self.usage.admit(turn, client, holder, promise, BUDGETS, CONCURRENCY))
        self.check(found, ruling, violated, promise)

    @precondition(lambda self: self.turns)
    @rule(
        index=INDEX,
        call=st.integers(0, 2),
        model=st.sampled_from(MODELS),
        asked=AMOUNTS,
        answered=AMOUNTS,
        is_exact=st.booleans(),
        spoil=SPOILS,
    )
    def reserve(
        self, index: int, call: int, model: str, asked: int, answered: int, is_exact: bool, spoil: bool | None
    ) -> None:
        turn, promise = self.turn(index), Promise(call, model, asked, answered, is_exact, TTL_S)
        self.model.set_right(self.now)
        ruling, violated = self.model.ruling(turn, promise, self.now)
        if ruling is Ruling.GRANTED:
            self.model.promise(turn, promise, self.now)
        found = self.call(spoil, lambda: self.usage.reserve(turn, promise, BUDGETS))
        self.check(found, ruling, violated, promise)

    def check(self, found: Verdict, ruling: Ruling, violated: set[str], promise: Promise) -> None:
        assert (found.ruling, set(found.violated)) == (ruling, violated)
        assert (found.retry_after_s > 0) == (ruling in (Ruling.PROMISED, Ruling.SPENT))
        assert found.retry_after_s <= 31 * 86_400
        if ruling is Ruling.GRANTED and promise.output_tokens:
            for budget in BUDGETS:
                if budget.model in (None, promise.model) and budget.output_tokens is not None:
                    _, _, used, promised = self.model.left(budget, self.now)
                    assert used + promised <= budget.output_tokens

    @precondition(lambda self: self.model.rows)
    @rule(index=INDEX, share=st.sampled_from([0.0, 0.5, 1.0]), spoil=SPOILS)
    def settle(self, index: int, share: float, spoil: bool | None) -> None:
        key = list(self.model.rows)[-1 - index % len(self.model.rows)]
        row = self.model.rows[key]
        asked, answered = int(row.input * share), int(row.output * share)
        if not row.is_settled:
            if asked or answered:
                row.input, row.output, row.is_settled = asked, answered, True
                row.ttl_s, row.expires_at = SETTLED_KEPT_S, self.now + SETTLED_KEPT_S
            else:
                del self.model.rows[key]
        self.call(spoil, lambda: self.usage.settle(*key, asked, answered))

    @precondition(lambda self: self.turns)
    @rule(index=INDEX, model=st.sampled_from(MODELS), spoil=SPOILS)
    def count(self, index: int, model: str, spoil: bool | None) -> None:
        turn = self.turn(index)
        day = datetime.datetime.fromtimestamp(self.now, datetime.UTC).date().isoformat()
        if turn in self.was_counted:
            return
        self.was_counted.add(turn)
        rows = [row for row in self.model.rows.values() if row.turn == turn and row.is_settled]
        used = (sum(row.input for row in rows), sum(row.output for row in rows))
        at = self.now
        oldest = (datetime.date.fromisoformat(day) - datetime.timedelta(days=DAYS_KEPT)).isoformat()
        self.model.counted = {known: one for known, one in self.model.counted.items() if one[0] >= oldest}
        self.model.counted[turn] = (day, model, *used)
        self.model.rows = {key: row for key, row in self.model.rows.items() if row.turn != turn}
        for _ in range(2):
            self.call(spoil, lambda: self.usage.add.once(turn)(at, model, *used, turn))
            spoil = None

    @precondition(lambda self: self.turns)
    @rule(index=INDEX, holder=HOLDERS, spoil=SPOILS)
    def renew(self, index: int, holder: str, spoil: bool | None) -> None:
        turn = self.turn(index)
        known = self.model.leases.get(turn)
        client = known.client if known else ""
        self.model.leases[turn] = Lease(client=client, holder=holder, expires_at=self.now + LEASE_S)
        self.call(spoil, lambda: self.usage.renew(turn, holder))

    @precondition(lambda self: self.turns)
    @rule(index=INDEX, holder=HOLDERS, spoil=SPOILS)
    def release(self, index: int, holder: str, spoil: bool | None) -> None:
        turn = self.turn(index)
        known = self.model.leases.get(turn)
        if known and known.holder == holder:
            del self.model.leases[turn]
        self.call(spoil, lambda: self.usage.release(turn, holder))

    # -- time, hosts

    @rule(seconds=st.sampled_from([1.0, 31.0, 101.0, 4_000.0, 90_000.0, YEAR_S]))
    def time_passes(self, seconds: float) -> None:
        self.run(self.lab.advance(seconds))

    @rule(seconds=st.sampled_from([-YEAR_S, -4_000.0, -50.0, 50.0, YEAR_S]))
    def the_clock_is_set(self, seconds: float) -> None:
        self.lab.clock.set_wall(self.now + seconds)

    @rule(how=st.sampled_from(["evict", "restart", "crash"]))
    def host(self, how: str) -> None:
        if how == "evict":
            self.lab.evict(self.usage)
        else:
            getattr(self.lab, how)()

    # -- what must hold

    @invariant()
    def object_and_model_agree(self) -> None:
        if hasattr(self, "lab"):
            self.compare()

    def compare(self) -> None:
        found = self.run(self.usage.allowance(BUDGETS, CONCURRENCY, "ann"))
        for budget, state in zip(BUDGETS, found["budgets"], strict=True):
            told = tuple(
                state[kind][name] for kind in ("input_tokens", "output_tokens") for name in ("used", "promised")
            )
            assert told == self.model.left(budget, self.now)
        flying = list(self.model.in_flight(self.now))
        assert found["turns_in_flight"]["client"] == sum(one.client == "ann" for one in flying)
        assert found["turns_in_flight"]["tenant"] == len(flying)

    def teardown(self) -> None:
        try:
            if hasattr(self, "lab"):
                self.run_out()
        finally:
            if hasattr(self, "lab"):
                self.run(self.lab.__aexit__())
            self.loop.close()

    def run_out(self) -> None:
        """Nobody runs anything any more: all comes back, and what was counted is in its days."""
        self.admit(None, "ann", "h1", "a", 0, 0, True, None)
        self.time_passes(90_000.0)
        found = self.run(self.usage.allowance(BUDGETS, CONCURRENCY, "ann"))
        assert [state["output_tokens"]["promised"] for state in found["budgets"]] == [0, 0]
        assert found["turns_in_flight"]["tenant"] == 0
        self.model.rows.clear()
        self.compare()


TestPromises = Promises.TestCase
TestPromises.settings = settings(
    max_examples=settings().max_examples // 4, stateful_step_count=settings().stateful_step_count * 4 // 5
)
