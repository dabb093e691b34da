"""Whatever runners, readers, clients, time and crashes do: does each turn end once, with all that was told of it?

A state machine drives a session's turns and a plain model of them side by side, and compares turns, events and history
after each step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors import ChatSession, InvalidArgument, ObjectConflict, ObjectReset, TokenUsage, TurnQueue, turn_recovery
from actors.runtime import RequestReused
from actors.runtime.namespace import Stub
from actors.testing import Lab
from actors.token_usage import USAGE_NAME
from actors.turn import FINAL, FINAL_EVENT, LEASE_S, FinalStatus, NewEvent, OnConflict, Usage
from actors.turn_queue import QUEUE_NAME, QUEUE_TENANT
from tests.turns import CLASSES, LIMITS, USAGE, asked, events_of, history_of, said

MESSAGES_MAX = 6
QUEUE_MAX = LIMITS["queue_max"]
ATTEMPTS_MAX = 2
#: Fewer than there are, so that time passes faster.
OFFERS_MAX = 2
RUNNERS = st.sampled_from(["r1", "r2", "r3"])
TEXTS = st.text("xyz", min_size=1, max_size=3)
QUESTIONS = st.sampled_from(["why?", "how?"])
KEYS = st.sampled_from([None, None, "k1", "k2"])
CONFLICTS: st.SearchStrategy[OnConflict] = st.sampled_from(["enqueue", "enqueue", "reject", "interrupt", "rollback"])
STATUSES: st.SearchStrategy[FinalStatus] = st.sampled_from(["completed", "failed", "cancelled", "incomplete"])
#: Whether the host is lost in the commit, and whether that reached the disk.
SPOILS = st.sampled_from([None, None, None, False, True])
INDEX = st.integers(0, 9)


@dataclass(kw_only=True, slots=True)
class Said:
    """A message."""

    number: int
    role: str
    text: str
    turn: str | None = None
    hidden_by: str | None = None


@dataclass(kw_only=True, slots=True)
class Turn:
    id: str
    message: str | None
    replaces: int | None
    request: tuple[str | None, int | None]
    key: str | None
    due_at: float | None
    #: Its model can go on with what was told.
    continues: bool = False
    follows: str | None = None
    status: str = "queued"
    runner: str | None = None
    attempt: int = 0
    offers: int = 0
    message_id: int | None = None
    answer_id: int | None = None
    cancel_requested: bool = False
    rolled_back: bool = False
    #: Types and texts.
    events: list[tuple[str, str]] = field(default_factory=list)
    last_event: int = 0
    #: Tokens that the attempt that runs has told of, and those of the attempts before it.
    used: int = 0
    used_before: int = 0

    @property
    def is_open(self) -> bool:
        return self.status not in FINAL

    @property
    def text(self) -> str:
        return "".join(text for event_type, text in self.events if event_type == "text.delta")

    def tell(self, event_type: str, text: str = "") -> None:
        self.events.append((event_type, text))
        self.last_event += 1


@dataclass(slots=True)
class Model:
    """What the session ought to hold."""

    now: float
    turns: list[Turn] = field(default_factory=list)
    messages: list[Said] = field(default_factory=list)
    last_message: int = 0
    tokens: int = 0
    offered: list[str] = field(default_factory=list)

    @property
    def open(self) -> list[Turn]:
        return [turn for turn in self.turns if turn.is_open]

    @property
    def visible(self) -> list[Said]:
        return [message for message in self.messages if message.hidden_by is None]

    # -- messages

    def say(self, role: str, text: str, turn: str | None = None) -> int:
        self.last_message += 1
        self.messages.append(Said(number=self.last_message, role=role, text=text, turn=turn))
        return self.last_message

    def trim(self) -> None:
        surplus = len(self.visible) - MESSAGES_MAX
        for message in self.visible[: max(0, surplus)]:
            self.messages.remove(message)

    def clear(self) -> None:
        self.messages.clear()
        for turn in self.turns:
            if not turn.is_open and not turn.rolled_back:
                turn.events.clear()
        for turn in self.open:
            turn.rolled_back = True
            self.cancel(turn)

    # -- turns

    def begin(self, turn: Turn, on_conflict: OnConflict) -> Turn | type[Exception]:
        """The turn, the one that it joins, or why it is refused."""
        for known in self.turns:
            if turn.key is not None and known.key == turn.key:
                return known if known.request == turn.request else RequestReused
        if turn.follows is not None and (not self.turns or self.turns[-1].id != turn.follows):
            return ObjectConflict
        if turn.replaces is not None:
            if not any(m.role == "user" and m.number == turn.replaces for m in self.messages):
                return InvalidArgument
        elif turn.message is None and not any(m.role == "user" for m in self.visible):
            return InvalidArgument
        before = self.open
        if before and on_conflict == "reject":
            return ObjectConflict
        if before and on_conflict == "enqueue" and sum(t.status == "queued" for t in before) >= QUEUE_MAX:
            return ObjectConflict
        if on_conflict in ("interrupt", "rollback"):
            for each in before:
                each.rolled_back |= on_conflict == "rollback"
                self.cancel(each)
        if self.open:
            turn.tell("turn.queued")
        self.turns.append(turn)
        return turn

    def claim(self, turn: Turn, runner: str) -> bool:
        if turn.status == "in_progress" and turn.runner == runner:
            return True
        if turn.status != "queued":
            return False
        turn.due_at = self.now + LEASE_S
        if self.open[0] is not turn:
            return False
        if turn.attempt == 0 and not self.take_in(turn):
            return False
        turn.status, turn.runner, turn.attempt, turn.offers = "in_progress", runner, turn.attempt + 1, 0
        return True

    def take_in(self, turn: Turn) -> bool:
        if turn.message is None or turn.replaces is not None:
            questions = [m for m in self.visible if m.role == "user"]
            found = [m for m in questions if turn.replaces in (None, m.number)]
            if not found:
                self.end(turn, "failed")
                return False
            turn.replaces = found[-1].number
            turn.message = found[-1].text if turn.message is None else turn.message
            for message in self.visible:
                if message.number >= turn.replaces:
                    message.hidden_by = turn.id
        turn.message_id = self.say("user", turn.message, turn.id)
        self.trim()
        return True

    def record(self, turn: Turn, attempt: int, texts: list[str], used: Usage | None = None) -> bool:
        if turn.status != "in_progress" or turn.attempt != attempt:
            return False
        turn.used = turn.used if used is None else used["total_tokens"]
        for text in texts:
            turn.tell("text.delta", text)
        self.renew(turn, attempt)
        return not turn.cancel_requested

    def renew(self, turn: Turn, attempt: int) -> None:
        if turn.status == "in_progress" and turn.attempt == attempt and not turn.cancel_requested:
            turn.due_at = self.now + LEASE_S

    def cancel(self, turn: Turn) -> None:
        if turn.status == "queued":
            self.end(turn, "cancelled")
        elif turn.status == "in_progress":
            turn.cancel_requested = True

    def end(self, turn: Turn, status: FinalStatus, *, used: bool = False) -> None:
        status = "cancelled" if turn.rolled_back else status
        has_text = any(event_type == "text.delta" for event_type, _ in turn.events)
        if not turn.rolled_back and (status == "completed" or (status != "failed" and has_text)):
            turn.answer_id = self.say("assistant", turn.text, turn.id)
        if turn.answer_id is not None:
            self.messages = [m for m in self.messages if m.hidden_by != turn.id]
        elif turn.rolled_back or turn.replaces is not None:
            self.messages = [m for m in self.messages if m.turn != turn.id]
        for message in self.messages:
            message.hidden_by = None if message.hidden_by == turn.id else message.hidden_by
        self.tokens += turn.used_before + (USAGE["total_tokens"] if used else turn.used)
        if turn.message_id is not None:
            self.trim()
        turn.tell(FINAL_EVENT[status])
        turn.status, turn.runner = status, None
        is_whole = status in ("completed", "cancelled")
        turn.due_at = self.now + (LIMITS["events_kept_s"] if is_whole else LIMITS["broken_events_kept_s"])
        for each in self.open:
            if each.status == "queued":
                each.due_at = self.now + LEASE_S
                break

    def start_over(self, turn: Turn) -> bool:
        if turn.cancel_requested:
            self.end(turn, "cancelled")
        elif (turn.text and not turn.continues) or turn.attempt >= ATTEMPTS_MAX:
            self.give_up(turn)
        else:
            if any(kind != "turn.queued" for kind, _ in turn.events):
                turn.tell("turn.retrying")
            turn.used_before, turn.used = turn.used_before + turn.used, 0
            turn.status, turn.runner, turn.due_at = "queued", None, self.now + LEASE_S
            return True
        return False

    def give_up(self, turn: Turn) -> None:
        self.end(turn, "incomplete" if turn.text else "failed")

    def let_time_pass(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            due = [turn for turn in self.turns if turn.due_at is not None and turn.due_at <= until]
            if not due:
                break
            turn = min(due, key=lambda each: each.due_at or 0.0)
            self.now = max(self.now, turn.due_at or 0.0)
            self.look_after(turn)
        self.now = until

    def look_after(self, turn: Turn) -> None:
        wants_runner = False
        if turn.status == "in_progress":
            wants_runner = self.start_over(turn)
        elif turn.is_open and self.open[0] is not turn:
            turn.due_at = None
        elif turn.is_open and turn.offers >= OFFERS_MAX:
            self.give_up(turn)
        elif turn.is_open:
            turn.offers, turn.due_at, wants_runner = turn.offers + 1, self.now + LEASE_S, True
        else:
            turn.events.clear()
            turn.due_at = None
        if wants_runner and turn.id not in self.offered:
            self.offered.append(turn.id)


class Turns(RuleBasedStateMachine):
    """One session, and those who ask it, run its turns and read them."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.begun = 0
        #: Turns and attempts that some runner holds, or has held.
        self.claims: list[tuple[str, int]] = []
        self.offers_max = turn_recovery.OFFERS_MAX

    @initialize(always_evict=st.booleans())
    def start(self, always_evict: bool) -> None:
        turn_recovery.OFFERS_MAX = OFFERS_MAX
        self.lab = Lab(CLASSES, always_evict=always_evict)
        self.run(self.lab.__aenter__())
        self.model = Model(self.lab.clock.now())
        self.run(self.session.create(messages_max=MESSAGES_MAX))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20.0))

    def call(self, spoil: bool | None, call: Callable[[], Awaitable[Any]]) -> Any:
        """Calls the session, whose host may be lost by it: the call is repeated then."""

        async def answer() -> Any:
            try:
                return await call()
            except ObjectReset:
                if spoil is None:
                    raise
                return await call()  # it was told before its host was gone

        if spoil is not None:
            self.lab.crash_in_next_commit(self.session, reached_disk=spoil)
        return self.run(answer())

    @property
    def session(self) -> Stub[ChatSession]:
        return self.lab.get(ChatSession, "acme", "s1")

    def turn(self, index: int) -> Turn:
        return self.model.turns[-1 - index % len(self.model.turns)]

    def claimed(self, index: int) -> tuple[Turn, int]:
        turn_id, attempt = self.claims[-1 - index % len(self.claims)]
        return next(turn for turn in self.model.turns if turn.id == turn_id), attempt

    def note(self, turn: Turn) -> None:
        if (turn.id, turn.attempt) not in self.claims:
            self.claims.append((turn.id, turn.attempt))

    # -- clients

    @rule(
        message=st.one_of(QUESTIONS, st.none()),
        replace=st.one_of(st.none(), st.none(), INDEX),
        key=KEYS,
        on_conflict=CONFLICTS,
        runner=RUNNERS,
        continues=st.booleans(),
        # The newest, mostly: refused where its beginning was, or another has been begun.
        follows=st.sampled_from([None, None, None, 1, 2]),
        spoil=SPOILS,
    )
    def begin(
        self,
        message: str | None,
        replace: int | None,
        key: str | None,
        on_conflict: OnConflict,
        runner: str,
        continues: bool,
        follows: int | None,
        spoil: bool | None,
    ) -> None:
        self.begun += 1
        follows_id = None if follows is None else f"t{self.begun - follows}"
        if replace is not None:
            # Any message, by a number that it may have had.
            replace = max(1, self.model.last_message - replace)
        new = asked(
            f"t{self.begun}",
            message,
            replace=replace,
            follows=follows_id,
            key=key,
            on_conflict=on_conflict,
            attempts_max=ATTEMPTS_MAX,
            continues=continues,
        )
        turn = Turn(
            id=new["turn_id"],
            message=message,
            replaces=replace,
            request=(message, replace),
            key=key,
            due_at=self.model.now + LEASE_S,
            continues=continues,
            follows=follows_id,
        )
        expected = self.model.begin(turn, on_conflict)
        if isinstance(expected, type):
            with pytest.raises(expected):
                self.call(None, lambda: self.session.begin(new, runner))
            return
        found = self.call(spoil, lambda: self.session.begin(new, runner))
        assert found["turn"]["id"] == expected.id
        claims = expected is turn and self.model.claim(turn, runner)
        assert (found["claim"] is not None) == claims
        if claims:
            self.check_claim(turn, found["claim"])

    def check_claim(self, turn: Turn, claim: Any) -> None:
        self.note(turn)
        assert (claim["attempt"], claim["last_event"]) == (turn.attempt, turn.last_event)
        assert claim["message"] == turn.message
        told = None if claim["told"] is None else claim["told"]["text"]
        assert told == (turn.text if turn.attempt > 1 and turn.text else None)
        said_before = [message["content"] for message in claim["history"]]
        assert said_before == [m.text for m in self.model.visible if m.number < (turn.message_id or 0)]

    @precondition(lambda self: self.model.turns)
    @rule(index=INDEX, spoil=SPOILS)
    def cancel(self, index: int, spoil: bool | None) -> None:
        turn = self.turn(index)
        self.model.cancel(turn)
        assert self.call(spoil, lambda: self.session.cancel(turn.id))["status"] == turn.status

    @rule(role=st.sampled_from(["user", "system"]), text=TEXTS, spoil=SPOILS)
    def append(self, role: str, text: str, spoil: bool | None) -> None:
        number = self.model.say(role, text)
        self.model.trim()
        assert self.call(spoil, lambda: self.session.append(role, text))["id"] == number

    @rule(spoil=SPOILS)
    def clear(self, spoil: bool | None) -> None:
        self.model.clear()
        self.call(spoil, lambda: self.session.clear())

    # -- runners

    @precondition(lambda self: self.model.turns)
    @rule(index=INDEX, runner=RUNNERS, spoil=SPOILS)
    def claim(self, index: int, runner: str, spoil: bool | None) -> None:
        turn = self.turn(index)
        claims = self.model.claim(turn, runner)
        claiming = self.call(spoil, lambda: self.session.claim(turn.id, runner))
        assert (claiming["claim"] is not None) == claims
        assert claiming["turn"]["status"] == turn.status
        if claims:
            self.check_claim(turn, claiming["claim"])

    def events(self, turn: Turn, again: int, texts: list[str]) -> tuple[int, list[NewEvent]]:
        """New events, behind some that were told before. What was told before is left, whatever it says now."""
        after = max(0, turn.last_event - again)
        return after, said(*("told" for _ in range(turn.last_event - after)), *texts)

    @precondition(lambda self: self.claims)
    @rule(
        index=INDEX,
        texts=st.lists(TEXTS, max_size=3),
        again=st.integers(0, 3),
        used=st.sampled_from([None, USAGE]),
        spoil=SPOILS,
    )
    def record(self, index: int, texts: list[str], again: int, used: Usage | None, spoil: bool | None) -> None:
        turn, attempt = self.claimed(index)
        after, events = self.events(turn, again, texts)
        goes_on = self.model.record(turn, attempt, texts, used)
        assert self.call(spoil, lambda: self.session.record(turn.id, attempt, after, events, used)) == goes_on

    @precondition(lambda self: self.claims)
    @rule(index=INDEX)
    def attend(self, index: int) -> None:
        turn, attempt = self.claimed(index)
        self.model.renew(turn, attempt)
        goes_on = turn.status == "in_progress" and turn.attempt == attempt and not turn.cancel_requested
        assert self.run(self.session.attend(turn.id, attempt)) == goes_on

    @precondition(lambda self: self.claims)
    @rule(index=INDEX, texts=st.lists(TEXTS, max_size=2), again=st.integers(0, 2), status=STATUSES, spoil=SPOILS)
    def finish(self, index: int, texts: list[str], again: int, status: FinalStatus, spoil: bool | None) -> None:
        turn, attempt = self.claimed(index)
        after, events = self.events(turn, again, texts)
        if turn.status == "in_progress" and turn.attempt == attempt:
            self.model.record(turn, attempt, texts)
            self.model.end(turn, status, used=True)
        ended = self.call(spoil, lambda: self.session.finish(turn.id, attempt, after, events, status, usage=USAGE))
        assert ended["turn"]["status"] == turn.status
        assert ended["message_count"] == len(self.model.visible)

    @precondition(lambda self: self.claims)
    @rule(index=INDEX, spoil=SPOILS)
    def release(self, index: int, spoil: bool | None) -> None:
        turn, attempt = self.claimed(index)
        if turn.status == "in_progress" and turn.attempt == attempt:
            self.model.start_over(turn)
        self.call(spoil, lambda: self.session.release(turn.id, attempt, "tired"))

    @rule(runner=RUNNERS)
    def take_what_is_offered(self, runner: str) -> None:
        async def take() -> list[str]:
            queue, taken = self.lab.get(TurnQueue, QUEUE_TENANT, QUEUE_NAME), []
            while (orphan := await queue.take(0.0)) is not None:
                taken.append(orphan["turn_id"])
            return taken

        taken, self.model.offered = self.model.offered, []
        assert self.run(take()) == taken

    # -- time, hosts

    @rule(seconds=st.sampled_from([1.0, 4.0, 9.0, 11.0, 11.0, 35.0, 700.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(self.lab.advance(seconds))
        self.model.let_time_pass(seconds)

    @rule(how=st.sampled_from(["evict", "restart", "crash"]))
    def host(self, how: str) -> None:
        if how == "evict":
            self.lab.evict(self.session)
        else:
            getattr(self.lab, how)()

    # -- what must hold

    @invariant()
    def session_and_model_agree(self) -> None:
        if hasattr(self, "model"):
            self.run(self.compare())

    async def compare(self) -> None:
        page = await self.session.turns(100)
        found = list(reversed(page["turns"]))
        assert sum(turn["status"] == "in_progress" for turn in found) <= 1
        fields = ("id", "status", "attempt", "message_id", "answer_id", "cancel_requested", "last_event")
        assert [tuple(turn[name] for name in fields) for turn in found] == [
            tuple(getattr(turn, name) for name in fields) for turn in self.model.turns
        ]
        for turn in self.model.turns[-4:]:
            events = await events_of(self.session, turn.id)
            assert [(event["type"], event["data"].get("text", "")) for event in events] == turn.events
        assert await history_of(self.session) == [(m.role, m.text) for m in self.model.visible]
        assert (await self.session.usage())["total_tokens"] == self.model.tokens

    def teardown(self) -> None:
        try:
            if hasattr(self, "model"):
                self.run_out()
        finally:
            if hasattr(self, "lab"):
                self.run(self.lab.__aexit__())
            turn_recovery.OFFERS_MAX = self.offers_max
            self.loop.close()

    def run_out(self) -> None:
        """Nobody runs anything any more."""
        self.time_passes((QUEUE_MAX + 2) * (OFFERS_MAX + 3) * LEASE_S)
        assert self.model.open == []
        self.run(self.compare())
        days = self.run(self.lab.get(TokenUsage, "acme", USAGE_NAME).days("2000-01-01", "2100-01-01"))
        assert sum(day["input_tokens"] + day["output_tokens"] for day in days) == self.model.tokens


TestTurns = Turns.TestCase
TestTurns.settings = settings(
    max_examples=settings().max_examples // 4, stateful_step_count=settings().stateful_step_count * 4 // 5
)
