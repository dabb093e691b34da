"""Which tokens are promised to calls of a model, or were used by them and are not counted yet?

A call has a row from before it is made until the turn that it is a part of is counted as a whole. The row says what the
call is promised, and once it has ended what it used. A row lapses by itself: a promise some time after the call must
have ended, for the case that its caller was lost; what was used a day later, when its turn is counted for sure.

A row that has lapsed is as if it were not there, and leaves when the next is asked for: nothing has to wake up for it.
"""

from __future__ import annotations

from typing import NamedTuple

from actors.runtime import Clock, Storage
from actors.token_budget import Tokens

#: Of what was used and is not counted. Sessions tell of a turn a moment after its end, or as soon as they can.
SETTLED_KEPT_S = 86_400.0
#: Of a promise, however long a call may take.
PROMISE_MAX_S = 86_400.0


class Promise(NamedTuple):
    """What is asked for one call of a model.

    `call` tells the calls of a turn apart. `is_exact`: the prompt was counted; else it has `input_tokens` at most. The
    call has ended within `ttl_s`, or its caller is lost.
    """

    call: int
    model: str
    input_tokens: int
    output_tokens: int
    is_exact: bool
    ttl_s: float

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.input_tokens, self.output_tokens)


class Outstanding(NamedTuple):
    """Of calls whose turns are not counted yet: what those used that have ended, and what the others are promised."""

    used: Tokens
    promised: Tokens


class TokenReservations:
    """The rows of one tenant."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._sql = storage.sql
        self._clock = clock

    def tidy(self) -> None:
        """Removes what has lapsed; where the clock was set back, nothing outlives its time by that."""
        now = self._clock.now()
        self._sql("DELETE FROM reservation WHERE expires_at <= ?", now)
        self._sql("UPDATE reservation SET expires_at = ? + ttl_s WHERE expires_at > ? + ttl_s", now, now)

    def outstanding(self, model: str | None, *, but: tuple[str, int] | None = None) -> Outstanding:
        """Of calls of one model, or of all; without the call `but` of a turn."""
        turn_id, call = but or ("", 0)
        rows = self._sql(
            "SELECT is_settled, sum(input_tokens), sum(output_tokens) FROM reservation WHERE expires_at > ?"
            " AND (? IS NULL OR model = ?) AND NOT (turn = ? AND call = ?) GROUP BY is_settled",
            self._clock.now(),
            model,
            model,
            turn_id,
            call,
        )
        sums = {bool(is_settled): Tokens(asked, answered) for is_settled, asked, answered in rows}
        return Outstanding(sums.get(True, Tokens()), sums.get(False, Tokens()))

    def put(self, turn_id: str, promise: Promise) -> None:
        """Promises the call its tokens, in place of what it was promised before. One that has ended stays as it is."""
        ttl_s = min(promise.ttl_s, PROMISE_MAX_S)
        self._sql(
            "INSERT INTO reservation VALUES (?, ?, ?, ?, ?, 0, ?, ?) ON CONFLICT DO UPDATE SET model = excluded.model,"
            " input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens, ttl_s = excluded.ttl_s,"
            " expires_at = excluded.expires_at WHERE is_settled = 0",
            turn_id,
            promise.call,
            promise.model,
            promise.input_tokens,
            promise.output_tokens,
            ttl_s,
            self._clock.now() + ttl_s,
        )

    def settle(self, turn_id: str, call: int, used: Tokens) -> None:
        """The call has ended. Nothing is written where its turn is counted already, or where the promise has lapsed."""
        if used == Tokens():
            self._sql("DELETE FROM reservation WHERE turn = ? AND call = ? AND is_settled = 0", turn_id, call)
            return
        self._sql(
            "UPDATE reservation SET is_settled = 1, input_tokens = ?, output_tokens = ?, ttl_s = ?, expires_at = ?"
            " WHERE turn = ? AND call = ? AND is_settled = 0",
            *used,
            SETTLED_KEPT_S,
            self._clock.now() + SETTLED_KEPT_S,
            turn_id,
            call,
        )

    def forget(self, turn_id: str) -> None:
        """The turn is counted."""
        self._sql("DELETE FROM reservation WHERE turn = ?", turn_id)
