"""Which tokens were used that the tenant's count does not know of yet?

What a turn has used is entered with its end, in one commit, and leaves when the count has it. The count knows a turn's
usage by the turn's id, so telling it again after a crash adds nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, cast

from actors.runtime import Clock, Storage

#: Told in one go; more are told in the next.
TOLD_AT_ONCE_MAX = 100
#: A count that can't be told is told later, for as long as it takes.
AGAIN_AFTER_S = 30.0


class Used(NamedTuple):
    """What one turn has used, and when it ended."""

    turn_id: str
    at: float
    model: str
    input_tokens: int
    output_tokens: int


class UsageOutbox:
    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._sql = storage.sql
        self._clock = clock

    def put(self, used: Used) -> None:
        self._sql("INSERT INTO untold_usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", *used, used.at)

    async def empty(self, tell: Callable[[Used], Awaitable[None]]) -> bool:
        """Tells what is in it, whether or not its time has come. False: there is more.

        Raises:
            DurableError: as `tell` does; what was told before has left.
        """
        rows = self._sql(
            "SELECT turn, at, model, input_tokens, output_tokens FROM untold_usage ORDER BY due_at LIMIT ?",
            TOLD_AT_ONCE_MAX,
        )
        for used in [Used(*row) for row in rows]:
            await tell(used)
            self._sql("DELETE FROM untold_usage WHERE turn = ?", used.turn_id)
        return self.next_due_at() is None

    def put_off(self) -> None:
        self._sql("UPDATE untold_usage SET due_at = ?", self._clock.now() + AGAIN_AFTER_S)

    def next_due_at(self) -> float | None:
        ((due_at,),) = self._sql("SELECT min(due_at) FROM untold_usage")
        return cast("float | None", due_at)
