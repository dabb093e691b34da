"""What is known of one call on its way through one object?

A `Turn` is made when the call arrives and settled when its reply may leave. While its code runs, `current_turn` says
whose it is: stubs used inside learn from it whom the call came through, by when it must be over, and what they have to
wait for before they call.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

from actors.runtime.call import Reply, Trail
from actors.runtime.clock import Clock, SystemClock
from actors.runtime.gates import Gate
from actors.runtime.object import MethodSpec

#: A call that has no reply by then is given up by its caller, whatever became of it.
CALL_TIMEOUT_S = 60.0


class Turn:
    """One call of one method."""

    __slots__ = (
        "_waiters",
        "arguments",
        "arrived_s",
        "held",
        "is_alarm",
        "is_forced",
        "method",
        "reply",
        "request_id",
        "trail",
    )

    def __init__(
        self, method: MethodSpec, arguments: bytes, request_id: str, arrived_s: float, trail: Trail | None = None
    ) -> None:
        self.method = method
        self.arguments = arguments
        self.request_id = request_id
        self.arrived_s = arrived_s
        self.trail = trail
        #: An alarm's time has come; where it is forced, or somebody says so.
        self.is_alarm = self.is_forced = False
        #: What will be replied once the turn's writes are durable.
        self.held: Reply | None = None
        #: What may leave.
        self.reply: Reply | None = None
        self._waiters: list[asyncio.Future[Reply]] = []

    @property
    def deadline_s(self) -> float:
        """On the host's monotonic clock. Nobody waits for the reply any more after it."""
        return self.arrived_s + (self.trail[0] if self.trail else CALL_TIMEOUT_S)

    def settle(self, reply: Reply) -> None:
        if self.reply is not None:
            return  # its host stopped, and said so
        self.reply = reply
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(reply)

    async def wait(self) -> Reply:
        if self.reply is not None:
            return self.reply
        waiter: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return await waiter


class TurnContext:
    """What code that runs in a turn may do outside of its object."""

    __slots__ = ("_clock", "_deadline_s", "chain", "ended", "lost", "may_await", "output")

    def __init__(
        self, chain: tuple[str, ...], deadline_s: float, clock: Clock, output: Gate, *, may_await: bool = True
    ) -> None:
        #: Objects that wait for this turn, its own included: a call to one of them would wait for ever.
        self.chain = chain
        self._deadline_s = deadline_s
        self._clock = clock
        self.output = output
        self.may_await = may_await
        #: What the turn started and did not wait for is nobody's turn any more.
        self.ended = False
        #: What the turn wrote was not kept: nothing that it started may call anybody.
        self.lost = False

    @property
    def left_s(self) -> float:
        """How long whoever waits for the turn will go on waiting."""
        return self._deadline_s - self._clock.monotonic()


#: Of plain methods: they can't wait for another object.
PLAIN_TURN = TurnContext((), 0.0, SystemClock(), Gate(), may_await=False)

current_turn: ContextVar[TurnContext | None] = ContextVar("current_turn", default=None)


def context_of(object_key: str, turn: Turn, clock: Clock, output: Gate, alarm_timeout_s: float) -> TurnContext:
    """For an async turn; nobody waits for one of an alarm, which has a time of its own."""
    chain: tuple[str, ...] = turn.trail[1] if turn.trail else ()
    if not turn.method.interleaved:
        chain = (*chain, object_key)
    deadline_s = clock.monotonic() + alarm_timeout_s if turn.is_alarm else turn.deadline_s
    return TurnContext(chain, deadline_s, clock, output)
