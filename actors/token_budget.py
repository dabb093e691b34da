"""May so many tokens be promised to one call of a model?

A budget allows so many tokens in each calendar day or month, in UTC. What it has spent is what was used, and what is
promised to calls that have not ended. A call is promised tokens only if they fit beside all that, so however many ask
at once, no more is promised than there is. With a budget of 100 a day:

    asked   used   promised   ruling
    40      0      0          granted
    40      0      40         granted
    40      25     40         promised: not now; those others may come to use less than they are promised
    40      65     0          spent: not before tomorrow
    120     0      0          never

To count the tokens of a prompt takes time, and its bytes are never fewer. So one that was not counted is taken for its
bytes where there is plenty left, and has to be counted first where there is not (`inexact`).

This is the arithmetic alone, with the time as a parameter.
"""

from __future__ import annotations

import datetime
import enum
from typing import Literal, NamedTuple

#: A prompt that was not counted may be this part of what is left. Only where more such calls than this are under way at
#: once can what they were promised too much keep out a call that would have fitted.
INEXACT_SHARE = 16
#: What is promised comes back when calls end, and nobody knows when that is.
PROMISED_RETRY_AFTER_S = 5.0


class Budget(NamedTuple):
    """Tokens that may be used in each window; None: any number. `model` None: whichever the model."""

    name: str
    model: str | None
    per: Literal["day", "month"]
    input_tokens: int | None
    output_tokens: int | None

    def is_for(self, model: str) -> bool:
        return self.model in (None, model)


class Tokens(NamedTuple):
    """Tokens read and written."""

    input: int = 0
    output: int = 0


class Window(NamedTuple):
    """Days from `first` to before `next_first`, in UTC and ISO 8601; `ends_at` in seconds since 1970."""

    first: str
    next_first: str
    ends_at: float


class Ruling(enum.IntEnum):
    """What becomes of a call that asks for tokens; the higher one counts where there are several."""

    GRANTED = 0
    #: Not before its prompt was counted.
    INEXACT = 1
    #: Not now: too much is promised to others, who may come to use less.
    PROMISED = 2
    #: Not in this window.
    SPENT = 3
    #: In no window: the budget is smaller than the call.
    NEVER = 4


def window_of(per: Literal["day", "month"], now: float) -> Window:
    """The window that `now` is in."""
    today = datetime.datetime.fromtimestamp(now, datetime.UTC).date()
    if per == "day":
        first, next_first = today, today + datetime.timedelta(days=1)
    else:
        first = today.replace(day=1)
        next_first = (first + datetime.timedelta(days=31)).replace(day=1)
    midnight = datetime.datetime.combine(next_first, datetime.time(), datetime.UTC)
    return Window(first.isoformat(), next_first.isoformat(), midnight.timestamp())


def judge(budget: Budget, *, used: Tokens, promised: Tokens, asked: Tokens, is_exact: bool) -> Ruling:
    """
    Args:
        used: In the window, whether or not it was counted yet.
        promised: To calls that have not ended.
        asked: For one call.
        is_exact: Its prompt was counted; else it has no more tokens than are asked for.
    """
    of_input = _judge(budget.input_tokens, used.input, promised.input, asked.input, is_exact=is_exact)
    of_output = _judge(budget.output_tokens, used.output, promised.output, asked.output, is_exact=True)
    return max(of_input, of_output)


def _judge(limit: int | None, used: int, promised: int, asked: int, *, is_exact: bool) -> Ruling:
    if limit is None:
        return Ruling.GRANTED
    left = limit - used - promised
    if not is_exact:
        if asked * INEXACT_SHARE <= left:
            return Ruling.GRANTED
        if left > 0:
            return Ruling.INEXACT
        asked = 1  # it has one at least, which does not fit either
    if asked <= left:
        return Ruling.GRANTED
    if asked > limit:
        return Ruling.NEVER
    return Ruling.SPENT if asked > limit - used else Ruling.PROMISED
