"""How does a turn of a session begin, go on and end?

Each turn's row, its events, and the messages that it adds to the conversation are in the session's own database and
transactions. One turn runs at a time; the others wait in the order in which they came. Whatever is told of a turn is
written down first.

It knows nothing of models, documents or HTTP, and starts no work: `TurnClaims` says who may, and `TurnRecovery` what
becomes of a turn that nobody runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from actors.runtime import InvalidArgument, ObjectConflict, RequestReused, fingerprint
from actors.session_parts import SessionParts
from actors.turn import (
    INSTRUCTIONS_TOO_LONG,
    LEASE_S,
    FinalStatus,
    NewEvent,
    NewTurn,
    TurnError,
    TurnInfo,
    TurnStatus,
    Usage,
)
from actors.turn_claims import TurnClaims
from actors.turn_ending import TurnEnding
from actors.turn_recovery import TurnRecovery


class TurnLedger:
    """The turns of one session."""

    def __init__(self, parts: SessionParts) -> None:
        self._id = parts.object_id
        self._sql = parts.storage.sql
        self._clock = parts.clock
        self._row = parts.row
        self._messages = parts.messages
        self._moved = parts.moved
        self._plan = parts.plan
        self._ending = TurnEnding(parts)
        self.rows = parts.turns
        self.events = parts.events
        self.claims = TurnClaims(parts, ending=self._ending)
        self.recovery = TurnRecovery(parts, claims=self.claims, ending=self._ending)

    # -- beginning

    def begin(self, new: NewTurn) -> tuple[TurnInfo, bool]:
        """Enters a turn, or finds the one that the same request has begun. Returns whether it was found.

        Raises:
            RequestReused: the key came with another request.
            ObjectConflict: an answer is under way, and the new message may not wait for it, or too many do; or another
                turn has begun since the one that it is to follow.
            InvalidArgument: there is no message of the user to be answered again, or to be replaced; or the session's
                instructions are longer than the turn has room for, with the code `INSTRUCTIONS_TOO_LONG`.
        """
        turn_id = new["turn_id"]
        digest = fingerprint("turn", (new["message"], new["replace"], new["request"], *new["leading"]), {})
        known = self.rows.begun_as(turn_id, new["key"])
        if known is not None:
            known_id, known_digest = known
            if known_digest != digest:
                raise RequestReused(str(self._id), new["key"] or turn_id)
            return self.rows.info(known_id), True
        if new["follows"] is not None and self.rows.newest() != new["follows"]:
            raise ObjectConflict(str(self._id), "another turn has begun since the one that this is to follow")
        self._require_answerable(new)
        self._require_room(new)
        self._make_way(self.rows.open(), new)
        now = self._clock.now()
        self.rows.insert(new, digest, now, now + LEASE_S)
        waiting = len(self.rows.open()) - 1
        if waiting:
            names = {"turn_id": turn_id, "session_id": self._id.name}
            self.events.add(turn_id, "turn.queued", {**names, "position": waiting})
        self._plan()
        return self.rows.info(turn_id), False

    def _require_answerable(self, new: NewTurn) -> None:
        if new["message"] is None and new["replace"] is None and not self._messages.question():
            raise InvalidArgument("message", None, "is required: no message was asked before that could be again")
        # One that has given way to a turn that runs may come back before this one's time does.
        if new["replace"] is not None and not self._messages.is_question(new["replace"]):
            raise InvalidArgument(
                "replace", new["replace"], "must be the id of a message of the user that is in this session"
            )

    def _require_room(self, new: NewTurn) -> None:
        size_bytes_max = new.get("instructions_bytes_max")
        if size_bytes_max is None:
            return
        size_bytes = self._messages.instructions_size_bytes(new["leading"])
        if size_bytes > size_bytes_max:
            problem = "may not be added to the session's instructions: they are too long"
            raise InvalidArgument("message", f"{size_bytes} bytes before it", problem, INSTRUCTIONS_TOO_LONG)

    def _make_way(self, active: Sequence[tuple[str, TurnStatus]], new: NewTurn) -> None:
        if not active:
            return
        match new["on_conflict"]:
            case "reject":
                raise ObjectConflict(str(self._id), "an answer is under way")
            case "enqueue":
                if sum(status == "queued" for _, status in active) >= new["limits"]["queue_max"]:
                    raise ObjectConflict(str(self._id), "too many messages wait for an answer")
            case "interrupt" | "rollback" as how:
                for turn_id, _ in active:
                    if how == "rollback":
                        self._roll_back(turn_id)
                    else:
                        self.cancel(turn_id)

    def _roll_back(self, turn_id: str) -> None:
        """Has the turn end and leave nothing in the history."""
        self._sql("UPDATE turn SET rolled_back = 1 WHERE id = ?", turn_id)
        self.cancel(turn_id)

    # -- going on

    def record(
        self, turn_id: str, attempt: int, after: int, events: Sequence[NewEvent], used: Usage | None = None
    ) -> bool:
        """Writes down what happened after event `after`; what is there already is left. False: it is to stop.

        Args:
            used: by this attempt until now; counted if nothing more is heard of it.

        Raises:
            InvalidArgument: something is missing before the events, or they are none that a runner tells.
        """
        if not self.claims.holds(turn_id, attempt) or self.events.is_full(turn_id):
            return False
        self.events.append(turn_id, after, events)
        if used is not None and used["total_tokens"]:
            self._sql("UPDATE turn SET used = ? WHERE id = ?", json.dumps(used), turn_id)
        return self.claims.renew(turn_id, attempt) and not self.events.is_full(turn_id)

    # -- ending

    def finish(
        self,
        turn_id: str,
        attempt: int,
        after: int,
        events: Sequence[NewEvent],
        status: FinalStatus,
        *,
        finish_reason: str | None,
        usage: Usage | None,
        error: TurnError | None,
    ) -> TurnInfo:
        """Writes down the last events and ends the turn, if it is still the runner's to end.

        Raises:
            InvalidArgument: as `record`.
        """
        if self.claims.holds(turn_id, attempt):
            was_stopped = self.events.is_full(turn_id) and self.claims.goes_on(turn_id, attempt)
            self.events.append(turn_id, after, events)
            if status == "cancelled" and was_stopped:
                status, finish_reason = "incomplete", "length"  # it was this ledger that had it stopped
            self._ending.end(turn_id, status, finish_reason=finish_reason, usage=usage, error=error)
        return self.rows.info(turn_id)

    def cancel(self, turn_id: str) -> TurnInfo:
        """Ends a turn that waits; has the runner of one that runs end it."""
        (status,) = self.rows.get(turn_id, "status")
        if status == "queued":
            self._ending.end(turn_id, "cancelled")
        elif status == "in_progress":
            self._sql("UPDATE turn SET cancel_requested = 1 WHERE id = ?", turn_id)
            self._moved()
        return self.rows.info(turn_id)

    def end_all(self) -> None:
        """The session ends: so does what has not, without waiting for those who run it. What they used is counted."""
        for turn_id, _ in self.rows.open():
            self._ending.end(turn_id, "cancelled", is_over=True)

    # -- forgetting

    def clear(self) -> None:
        """Removes all that was said. Turns that have not ended end, and leave nothing."""
        self.events.forget_ended()
        self.rows.forget_requests()
        self._messages.clear()
        self._row.recount()
        for turn_id, _ in self.rows.open():
            self._roll_back(turn_id)

    def forget(self) -> None:
        """The session begins anew."""
        self.rows.clear()
        self.events.clear()
        self._moved()
