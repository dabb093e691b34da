"""When are the alarms of a host's objects fired, and how many at once?

`Ringing` fires what the index says is due: by the timer of the loop that runs turns, or whenever its holder asks. A few
at a time, and only so many are under way: however many are due, half of the host's objects are there for calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from actors.runtime.alarms import AlarmIndex
from actors.runtime.clock import Clock
from actors.runtime.object_id import ObjectId
from actors.runtime.turn import Turn

#: Alarms that have stood still for any reason are looked at again this often.
SWEPT_EVERY_S = 60.0
#: Alarms fired before the loop turns to what else has come. Each may open a file, and remove it.
_AT_ONCE = 2
#: How long the others wait while as many as may be are under way.
_PAUSE_S = 0.1


class Ringing:
    """Fires the alarms of one host.

    Args:
        alarms: the index; it is to say when its next alarm is another one (`changed`).
        clock: tells the time.
        objects_max: how many objects the host has open at most.
        fire: puts an alarm into its object's mailbox.
        refused: whether the object is kept from running; its alarm is looked at again with the next sweep.
    """

    def __init__(
        self,
        alarms: AlarmIndex,
        clock: Clock,
        *,
        objects_max: int,
        fire: Callable[[ObjectId], Turn],
        refused: Callable[[ObjectId], bool],
    ) -> None:
        self._alarms = alarms
        self._clock = clock
        self._under_way_max = max(1, objects_max // 2)
        self._fire = fire
        self._refused = refused
        #: Alarms that were fired and are not over.
        self._under_way: list[Turn] = []
        self._timer: tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle, float] | None = None
        self._swept_s = clock.monotonic()
        self._closed = False

    def fire_due(self) -> list[Turn]:
        """Puts alarms whose time has come into their objects' mailboxes, a few at a time."""
        now = self._clock.now()
        if self._clock.monotonic() - self._swept_s >= SWEPT_EVERY_S:
            self._swept_s = self._clock.monotonic()
            self._alarms.rearm()
        due = self._alarms.take_due(now, min(_AT_ONCE, self._room))
        fired = [self._fire(object_id) for object_id in due if not self._refused(object_id)]
        self._under_way += [turn for turn in fired if turn.reply is None]
        return fired

    @property
    def _room(self) -> int:
        """How many more may be under way."""
        self._under_way = [turn for turn in self._under_way if turn.reply is None]
        return self._under_way_max - len(self._under_way)

    def changed(self) -> None:
        """The index has another next alarm."""
        if self._timer is not None and not self._timer[0].is_closed():
            loop, timer, rings_at = self._timer
            next_at = self._alarms.next_at
            if next_at is not None and next_at - self._clock.now() < rings_at - loop.time():
                timer.cancel()
                self._timer = None
                self.begin()

    def begin(self) -> None:
        """Has the running loop fire alarms when their time comes."""
        loop = asyncio.get_running_loop()
        if self._timer is None or self._timer[0] is not loop:
            next_at = self._alarms.next_at
            # Not for long at once: the wall clock may be set.
            wait_s = SWEPT_EVERY_S if next_at is None else next_at - self._clock.now()
            least_s = 0.0 if self._room > 0 else _PAUSE_S
            wait_s = max(least_s, min(wait_s, SWEPT_EVERY_S))
            # Not asked of the timer: uvloop's can't say it where there is nothing to wait for.
            self._timer = (loop, loop.call_later(wait_s, self._ring), loop.time() + wait_s)

    def _ring(self) -> None:
        self._timer = None
        if not self._closed:
            try:
                self.fire_due()
            finally:  # whatever one object does, the others have alarms too
                self.begin()

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer[1].cancel()
