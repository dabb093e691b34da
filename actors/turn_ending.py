"""What is done when a turn ends?

All of it is one commit, whoever ends the turn: what has come of the answer is in the history, what gave way to it goes
or comes back, what was used is counted, the readers are told, and the next turn's time has come.
"""

from __future__ import annotations

import json
from typing import Any

from actors.message import Draft, drafts_of, ends_as_answer
from actors.session_parts import SessionParts
from actors.turn import FINAL_EVENT, LEASE_S, FinalStatus, TurnError, Usage, turn_error, usage_together
from actors.usage_outbox import Used

RUNNER_LOST = turn_error("RunnerLost", "the process that was answering was lost")


class TurnEnding:
    """Ends the turns of one session."""

    def __init__(self, parts: SessionParts) -> None:
        self._id = parts.object_id
        self._sql = parts.storage.sql
        self._clock = parts.clock
        self._row = parts.row
        self._messages = parts.messages
        self._turns = parts.turns
        self._events = parts.events
        self._outbox = parts.outbox
        self._moved = parts.moved
        self._plan = parts.plan

    def end(
        self,
        turn_id: str,
        status: FinalStatus,
        *,
        finish_reason: str | None = None,
        usage: Usage | None = None,
        error: TurnError | None = None,
        is_over: bool = False,
    ) -> None:
        """The turn's messages, usage, last event and state, at once.

        Args:
            usage: of the last attempt; where nobody is there to say, it counts what that had told before.
            is_over: the session ends as well, and is to be no younger by this.
        """
        usage = usage_together(
            self._turns.used_before(turn_id), self._turns.used_by_lost(turn_id) if usage is None else usage
        )
        now = self._clock.now()
        message_id, rolled_back, model, limits = self._turns.get(turn_id, "message_id, rolled_back, model, limits")
        if rolled_back:
            # It may have come to its end just before it was told.
            status, finish_reason, error = "cancelled", None, None
        elif status == "failed":
            error = error or RUNNER_LOST
        answer_id: int | None = None
        if not rolled_back and status != "failed":
            answer_id = self._store_answer(turn_id, status, finish_reason or status, usage, now)
        self._settle_replaced(turn_id, kept=answer_id is not None, rolled_back=bool(rolled_back))
        if usage:
            asked, answered = usage["input_tokens"], usage["output_tokens"]
            self._row.add_usage(asked, answered)
            self._outbox.put(Used(turn_id, now, model, asked, answered))
        if message_id is not None:
            self._row.recount()
            if not is_over:
                self._row.touch()
        told = self._ending(turn_id, status, answer_id, finish_reason, usage, error)
        self._events.add(turn_id, FINAL_EVENT[status], told)
        kept: dict[str, float] = json.loads(limits)
        kept_s = kept["events_kept_s" if status in ("completed", "cancelled") else "broken_events_kept_s"]
        # What was asked is in the history, or shall not be; how it was is for whoever asks of the turn.
        self._sql(
            "UPDATE turn SET status = ?, ended_at = ?, runner = NULL, answer_id = ?, finish_reason = ?, usage = ?,"
            " error = ?, due_at = ?, message = NULL, leading = NULL,"
            " request = CASE WHEN rolled_back THEN '{}' ELSE request END WHERE id = ?",
            status,
            now,
            answer_id,
            finish_reason,
            json.dumps(usage) if usage else None,
            json.dumps(error) if error else None,
            now + kept_s,
            turn_id,
        )
        # The next one's runner has until then to take it.
        self._sql(
            "UPDATE turn SET due_at = ? WHERE number ="
            " (SELECT min(number) FROM turn WHERE ended_at IS NULL AND status = 'queued')",
            now + LEASE_S,
        )
        self._plan()
        self._moved()

    def _store_answer(
        self, turn_id: str, status: str, finish_reason: str, usage: Usage | None, now: float
    ) -> int | None:
        sources = self._events.sources(turn_id)
        drafts = drafts_of(self._events.content(turn_id))
        if status == "completed" and not ends_as_answer(drafts):
            # A model may have nothing to say; a question that was answered has an answer.
            drafts.append(Draft("assistant", "", {}))
        closing: dict[str, Any] = {} if sources is None else {"sources": sources}
        closing |= {"finish_reason": finish_reason} | ({"usage": usage} if usage else {})
        answer_id = None
        # What was broken off while tools ran ends with their results; the answer is what called them.
        last = max((number for number, draft in enumerate(drafts) if draft.role == "assistant"), default=None)
        for number, draft in enumerate(drafts):
            is_answer = number == last
            tokens = usage["output_tokens"] if is_answer and usage else None
            data = {"turn_id": turn_id, **draft.data} | (closing if is_answer else {})
            message_id = self._messages.add(draft.role, draft.content, now, tokens=tokens, data=data, turn_id=turn_id)
            answer_id = message_id if is_answer else answer_id
        return answer_id

    def _settle_replaced(self, turn_id: str, *, kept: bool, rolled_back: bool) -> None:
        """What gave way to the turn goes, or, where nothing came of the turn, comes back in its place."""
        (replaces,) = self._turns.get(turn_id, "replaces")
        if kept:
            self._messages.drop_replaced(turn_id)
        else:
            self._messages.bring_back(turn_id, instead=rolled_back or replaces is not None)

    def _ending(
        self,
        turn_id: str,
        status: FinalStatus,
        answer_id: int | None,
        finish_reason: str | None,
        usage: Usage | None,
        error: TurnError | None,
    ) -> dict[str, Any]:
        names = {"turn_id": turn_id, "session_id": self._id.name}
        if status == "failed":
            return {**names, **(error or {}), "usage": usage}
        told: dict[str, Any] = {**names, "message_id": answer_id, "usage": usage}
        if status == "completed":
            told["finish_reason"] = finish_reason
        elif status == "incomplete":
            told |= {"reason": finish_reason or "broken_off", "error": error}
        return told
