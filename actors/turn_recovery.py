"""What becomes of a turn that nobody runs any more, or nobody ever did?

One whose runner was lost waits for another as long as its attempts last, if nothing of its answer was told, or if its
model can go on with what was; else it ends with what there is. One that nobody claims is offered to whoever looks for
work, and fails in the end.
"""

from __future__ import annotations

import json

from actors.session_parts import SessionParts
from actors.turn import LEASE_S, TurnError, TurnStatus, turn_error, usage_together
from actors.turn_claims import TurnClaims
from actors.turn_ending import RUNNER_LOST, TurnEnding

#: How often a turn whose time has come is offered, once in a lease, before it fails: long enough for all runners to be
#: replaced by others.
OFFERS_MAX = 30

_NOT_RUN = turn_error("NotRun", "nothing that could answer was there for too long")


class TurnRecovery:
    """Looks after the turns of one session."""

    def __init__(self, parts: SessionParts, *, claims: TurnClaims, ending: TurnEnding) -> None:
        self._sql = parts.storage.sql
        self._clock = parts.clock
        self._turns = parts.turns
        self._events = parts.events
        self._moved = parts.moved
        self._claims = claims
        self._ending = ending

    def next_due(self) -> tuple[str, TurnStatus] | None:
        """A turn for which something is to be done now, with its state."""
        return self._turns.next_due(self._clock.now())

    def look_after(self, turn_id: str, status: TurnStatus) -> bool:
        """Does what is due for a turn. Returns whether it is to be offered to runners."""
        if status == "in_progress":
            # Nobody has been heard of who runs it.
            return self._start_over(turn_id, "runner_lost", RUNNER_LOST)
        if status == "queued":
            return self._offer(turn_id)
        # It has ended, and its events were kept for as long as its tenant wants.
        self._events.forget(turn_id)
        self._turns.set_due(turn_id, None)
        return False

    def release(self, turn_id: str, attempt: int, reason: str) -> bool:
        """Has a turn run by another, from the start or from what was told, where it may. False: not the caller's."""
        if not self._claims.holds(turn_id, attempt):
            return False
        self._start_over(turn_id, reason, turn_error(reason, "the answer could not be made"))
        return True

    def _start_over(self, turn_id: str, reason: str, error: TurnError) -> bool:
        """Has a turn that lost its runner wait for another; ends it where that may not be. Returns whether it waits."""
        attempt, cancel_requested, limits = self._turns.get(turn_id, "attempt, cancel_requested, limits")
        limits = json.loads(limits)
        continues = self._events.has_content(turn_id)
        # Who has read a part can't unread it; a model can go on with a text, and not with what it had its tools do.
        may_go_on = not continues or (limits.get("continues") and not self._events.has(turn_id, "tool.call"))
        if cancel_requested:
            self._ending.end(turn_id, "cancelled")
        elif not may_go_on or attempt >= limits["attempts_max"]:
            self._give_up(turn_id, reason, error)
        else:
            # Who has heard nothing yet hears of a beginning first, from whoever makes one.
            if self._events.has_begun(turn_id):
                retrying = {"attempt": attempt + 1, "reason": reason, "continues": continues}
                self._events.add(turn_id, "turn.retrying", retrying)
            used = usage_together(self._turns.used_before(turn_id), self._turns.used_by_lost(turn_id))
            self._sql(
                "UPDATE turn SET status = 'queued', runner = NULL, used = NULL, used_before = ?, due_at = ?"
                " WHERE id = ?",
                json.dumps(used) if used else None,
                # Who gave it back may claim it again until then.
                self._clock.now() + LEASE_S,
                turn_id,
            )
            self._moved()
            return True
        return False

    def _offer(self, turn_id: str) -> bool:
        """A turn waits and nobody asks for it. Returns whether it is to be offered; then it has time to be claimed."""
        if not self._turns.is_first(turn_id):
            # Its time comes when the one before it ends.
            self._turns.set_due(turn_id, None)
            return False
        (offers,) = self._turns.get(turn_id, "offers")
        if offers >= OFFERS_MAX:
            self._give_up(turn_id, "not_run", _NOT_RUN)
            return False
        self._sql("UPDATE turn SET offers = offers + 1, due_at = ? WHERE id = ?", self._clock.now() + LEASE_S, turn_id)
        return True

    def _give_up(self, turn_id: str, reason: str, error: TurnError) -> None:
        if self._events.has_content(turn_id):
            self._ending.end(turn_id, "incomplete", finish_reason=reason, error=error)
        else:
            self._ending.end(turn_id, "failed", error=error)
