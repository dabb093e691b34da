"""Whose is a turn to run?

The oldest turn that has not ended is handed to one runner at a time, who holds it by a claim that lapses unless it is
renewed. Each claim is an attempt, and its number fences: what comes of an earlier one is refused.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from actors.message import FOR_CLIENT, Message, NewMessage
from actors.session_parts import SessionParts
from actors.turn import LEASE_S, Claim, Older, Told, TurnStatus, turn_error
from actors.turn_ending import TurnEnding

#: Messages that a runner gets with its claim, and more only if the user has said nothing for longer: more than fit into
#: most models.
HISTORY_MESSAGES_MAX = 200

_QUESTION_GONE = turn_error(
    "InvalidArgument", "the message that was to be answered again, or replaced, has gone", retryable=False
)


class _Turn(NamedTuple):
    """What a claim goes by."""

    status: TurnStatus
    runner: str | None
    attempt: int
    last_event: int
    message_id: Any  # these two are there once it was taken in
    message: Any
    leading: str | None
    replaces: int | None
    request: str


class TurnClaims:
    """Who runs the turns of one session."""

    def __init__(self, parts: SessionParts, *, ending: TurnEnding) -> None:
        self._sql = parts.storage.sql
        self._clock = parts.clock
        self._row = parts.row
        self._messages = parts.messages
        self._turns = parts.turns
        self._events = parts.events
        self._plan = parts.plan
        self._ending = ending

    def claim(self, turn_id: str, runner: str) -> Claim | None:
        """Hands the turn to a runner if it is its turn; one that holds it gets it again.

        Raises:
            ObjectNotFound: there is no such turn.
        """
        turn = self._get(turn_id)
        if turn.status == "in_progress" and turn.runner == runner:
            return self._claim(turn_id)
        if turn.status != "queued":
            return None
        now = self._clock.now()
        if not self._turns.is_first(turn_id):
            # Somebody is there to run it when its time comes.
            self._turns.set_due(turn_id, now + LEASE_S)
            return None
        # The message itself may leave while the turn runs, when there are too many.
        asked = (turn.message_id, turn.message, turn.replaces)
        if turn.attempt == 0:
            taken = self._take_in(turn_id, turn, now)
            if taken is None:
                return None
            asked = taken
        self._sql(
            "UPDATE turn SET status = 'in_progress', runner = ?, attempt = attempt + 1, offers = 0, due_at = ?,"
            " started_at = ifnull(started_at, ?), message_id = ?, message = ?, replaces = ? WHERE id = ?",
            runner,
            now + LEASE_S,
            now,
            *asked,
            turn_id,
        )
        self._plan()
        return self._claim(turn_id)

    def _get(self, turn_id: str) -> _Turn:
        # One statement for all that is done with it: in a session that was just opened each has to be prepared.
        return _Turn(*self._turns.get(turn_id, ", ".join(_Turn._fields)))

    def _take_in(self, turn_id: str, turn: _Turn, now: float) -> tuple[int, str, int | None] | None:
        """Puts the question into the history. None: it was to replace one that has gone meanwhile, and has failed.

        Returns the number that it has there, what it says, and which message gives way to it.
        """
        message, replaces = turn.message, turn.replaces
        if message is None or replaces is not None:
            replaced = self._messages.question(replaces)
            if replaced is None:
                self._ending.end(turn_id, "failed", error=_QUESTION_GONE)
                return None
            replaces = replaced[0]
            self._messages.give_way(replaces, turn_id)
            message = replaced[1] if message is None else message
        led_by: list[NewMessage] = [] if turn.leading is None else json.loads(turn.leading)
        role = "user"
        data: dict[str, Any] = {"turn_id": turn_id}
        if (call := json.loads(turn.request).get("result_of")) is not None:
            role = "tool"
            data |= {"tool_call_id": call["id"], "name": call["name"], FOR_CLIENT: True}
        # Of a call whose result came before, in a turn that failed, this is the result.
        given = [data, *(one.get("data", {}) for one in led_by)]
        results_of = [one["tool_call_id"] for one in given if "tool_call_id" in one]
        if results_of:
            self._messages.drop_results(results_of)
        self._messages.extend(led_by, now, turn_id=turn_id)
        message_id = self._messages.add(role, message, now, data=data, turn_id=turn_id)
        self._row.recount()
        self._row.touch()
        return message_id, message, replaces

    def _claim(self, turn_id: str) -> Claim:
        turn = self._get(turn_id)
        history, older = self._said_before(turn.message_id)
        return {
            "turn_id": turn_id,
            "attempt": turn.attempt,
            "last_event": turn.last_event,
            "is_created": turn.last_event > 0 and self._events.has(turn_id, "turn.created"),
            "message_id": turn.message_id,
            "message": turn.message,
            "request": json.loads(turn.request),
            "told": self._told(turn_id) if turn.attempt > 1 else None,
            "history": history,
            "older": older,
        }

    def _said_before(self, message_id: int) -> tuple[list[Message], Older | None]:
        page = self._messages.before(message_id, HISTORY_MESSAGES_MAX)
        if page["has_more"]:
            # What a client's tools gave is answered with all since the user's last message, however much that is.
            since = self._messages.count_since_question(message_id)
            page = self._messages.before(message_id, since) if since > HISTORY_MESSAGES_MAX else page
        history = page["messages"]
        if not page["has_more"]:
            return history, None
        # Of a turn that is cut the rest is older as well: nobody could be told half of it.
        first = next((number for number, message in enumerate(history) if message["role"] == "user"), len(history))
        history = history[first:]
        return history, self._messages.older(history[0]["id"] if history else message_id)

    def _told(self, turn_id: str) -> Told | None:
        text = self._events.text(turn_id)
        if not text:
            return None
        used = self._turns.used_before(turn_id)
        return {
            "text": text,
            "sources": self._events.sources(turn_id) or [],
            "output_tokens": used["output_tokens"] if used else 0,
        }

    def is_claimable(self, turn_id: str) -> bool:
        """Nobody is before the turn, or it needs nobody any more."""
        (status,) = self._turns.get(turn_id, "status")
        return status != "queued" or self._turns.is_first(turn_id)

    def holds(self, turn_id: str, attempt: int) -> bool:
        """The turn is the claim's to run."""
        return self._turns.get(turn_id, "status, attempt") == ("in_progress", attempt)

    def goes_on(self, turn_id: str, attempt: int) -> bool:
        """The turn is the claim's to run, and not to be stopped."""
        return self._turns.get(turn_id, "status, attempt, cancel_requested") == ("in_progress", attempt, 0)

    def renew(self, turn_id: str, attempt: int) -> bool:
        """Keeps a claim from lapsing. False: the turn is to stop; a runner that does not is not waited for."""
        renewed = self._sql(
            "UPDATE turn SET due_at = ?"
            " WHERE id = ? AND status = 'in_progress' AND attempt = ? AND cancel_requested = 0 RETURNING 1",
            self._clock.now() + LEASE_S,
            turn_id,
            attempt,
        )
        return bool(renewed)
