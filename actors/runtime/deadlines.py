"""When is a call given up, for less than a timer of its own?

Most calls are answered long before their deadline, and `asyncio.timeout` costs each as much as the rest of its way
through the caller's process: a timer that is made, put in order with all others, and taken back. Here one timer ends
all calls that are due, up to `TICK_S` late.
"""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Final

#: By how much a call may be given up late. Shorter than any time that somebody would choose to wait.
TICK_S: Final = 0.02


class Deadlines:
    """Of calls that are made in one event loop at a time."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: By the tick in which they end.
        self._limits: dict[int, set[Limit]] = {}

    def until(self, deadline_s: float) -> Limit:
        """Ends the task within it with `TimeoutError` at a time of its loop's clock, as `asyncio.timeout_at` does."""
        return Limit(self, math.ceil(deadline_s / TICK_S))

    def add(self, limit: Limit) -> set[Limit]:
        """Returns all that end when it does."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._timer, self._limits = loop, None, {}
        limits = self._limits.get(limit.tick)
        if limits is None:
            limits = self._limits[limit.tick] = set()
            at_s = limit.tick * TICK_S
            if self._timer is None or at_s < self._timer.when():
                self._set_timer(loop, at_s)
        limits.add(limit)
        return limits

    def forget(self, tick: int, limits: set[Limit]) -> None:
        """Nothing ends then any more. The timer stays: there will be other calls before its time."""
        if self._limits.get(tick) is limits:
            del self._limits[tick]

    def _set_timer(self, loop: asyncio.AbstractEventLoop, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(at_s, self._end_due, loop)

    def _end_due(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            return
        self._timer = None
        now_s = loop.time()
        for tick in [tick for tick in self._limits if tick * TICK_S <= now_s]:
            for limit in self._limits[tick]:
                limit.end()
        left = [tick for tick in self._limits if tick * TICK_S > now_s]
        if left:
            self._set_timer(loop, min(left) * TICK_S)


class Limit:
    """One call's deadline, while the call is under way."""

    __slots__ = ("_among", "_cancelled_before", "_deadlines", "_is_over", "_task", "tick")

    def __init__(self, deadlines: Deadlines, tick: int) -> None:
        self._deadlines = deadlines
        self._is_over = False
        self.tick = tick

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelled_before = task.cancelling()
        self._among = self._deadlines.add(self)

    def end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._among.discard(self)
        if not self._among:
            self._deadlines.forget(self.tick, self._among)
        # Whoever else has cancelled the task meanwhile has the last word.
        is_ours = self._is_over and self._task.uncancel() <= self._cancelled_before
        if is_ours and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error
