"""How does a caller get the reply to a call that outlived its batch?

By a ticket: the batch answers with it, and another call waits for what it stands for. A reply that nobody collects is
kept for a while.
"""

from __future__ import annotations

import secrets

from actors.runtime.call import Reply
from actors.runtime.clock import Clock
from actors.runtime.turn import Turn

#: From when the ticket was given.
KEPT_S = 120.0


class Tickets:
    """The tickets of one host."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._given: dict[str, tuple[Turn, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._given)

    def give(self, turn: Turn) -> str:
        ticket = secrets.token_hex(8)
        self._given[ticket] = (turn, self._clock.monotonic())
        return ticket

    async def wait(self, ticket: str) -> Reply:
        """
        Raises:
            KeyError: no such ticket; it was collected, or the host that gave it is gone.
        """
        turn, _ = self._given[ticket]
        reply = await turn.wait()
        self._given.pop(ticket, None)
        return reply

    def forget_uncollected(self) -> None:
        """Lets go of the replies that were kept for long enough."""
        before_s = self._clock.monotonic() - KEPT_S
        uncollected = [ticket for ticket, (_, since_s) in self._given.items() if since_s < before_s]
        for ticket in uncollected:
            if self._given[ticket][0].reply is not None:
                del self._given[ticket]
