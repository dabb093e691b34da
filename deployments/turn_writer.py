"""How does what a runner makes get into its session?

A writer takes events at any speed and writes them down in batches: what comes before the answer after a moment, the
first of the answer at once, and from then on after a short pause, or sooner if there are many. Pieces of text that wait
together become one event.
One batch is on its way at a time, so that the numbers of events can't go wrong, and whoever adds faster than they leave
is made to wait.

A batch that can't be written is tried again for as long as the session may take the runner for alive, and no event is
lost: what was not written is there for whoever ends the turn.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from actors import ChatSession, DurableError, ObjectNotFound
from actors.runtime.namespace import Stub
from actors.turn import CONTENT, Claim, EventType, NewEvent, Usage

#: Before the answer begins: the model is asked first, and the first word of a quick one goes with what went before it.
FIRST_WAIT_S = 0.1
#: Between two batches of an answer. Short enough for a reader to see text flow; each costs a commit, and a message to
#: each reader, on the cores that the model needs.
FLUSH_EVERY_S = 0.08
#: Between two batches of any answers of one process, on average.
FLUSH_ANY_EVERY_S = 0.06
#: However many answers there are.
FLUSH_PAUSE_MAX_S = 0.4
#: Pieces that are not kept waiting.
FLUSH_PIECES = 16
#: Characters that may wait before the one who adds them does.
WAITING_CHARS_MAX = 256 * 1024
#: How long one batch is tried. The claim has lapsed by then.
WRITE_WITHIN_S = 20.0
RETRY_PAUSE_S = 0.5


class Pace:
    """How long the writers of one process pause between two batches: the longer the more of them there are."""

    def __init__(self, flush_every_s: float = FLUSH_EVERY_S) -> None:
        self._flush_every_s = flush_every_s
        self._writers = 0

    def enter(self) -> None:
        self._writers += 1

    def leave(self) -> None:
        self._writers -= 1

    @property
    def pause_s(self) -> float:
        return max(self._flush_every_s, min(self._writers * FLUSH_ANY_EVERY_S, FLUSH_PAUSE_MAX_S))


class TurnWriter:
    """Writes one claim's events, from `start` to `close`; what is left then is `take_rest`'s to have."""

    def __init__(
        self,
        session: Stub[ChatSession],
        claim: Claim,
        *,
        pace: Pace,
        write_within_s: float = WRITE_WITHIN_S,
        retry_pause_s: float = RETRY_PAUSE_S,
    ) -> None:
        self._session = session
        self._claim = claim
        self._pace = pace
        self._write_within_s = write_within_s
        self._retry_pause_s = retry_pause_s
        self._after = claim["last_event"]
        self._waiting: list[NewEvent] = []
        self._pieces = 0
        self._chars = 0
        self._is_paced = False
        self._news = asyncio.Event()
        self._many = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        #: The session has the turn stopped, or knows it no more, or can't be written to: see `failure`.
        self.stopped = asyncio.Event()
        #: Why nothing can be written any more, where that is so.
        self.failure: DurableError | None = None
        #: The session has heard of this claim's runner, and has it go on.
        self.has_written = asyncio.Event()
        #: Something of the answer was added, whether or not it was written yet, by this attempt or an earlier one.
        self.has_content = claim["told"] is not None
        #: Tools were called on the way to it.
        self.has_calls = False

    def start(self, used: Callable[[], Usage | None] = lambda: None) -> None:
        """
        Args:
            used: says what was used until now. It is told with each batch, for the case that nothing else comes.
        """
        self._used = used
        self._task = asyncio.get_running_loop().create_task(self._write())

    async def add(self, event_type: EventType, data: dict[str, Any]) -> None:
        self.has_content |= event_type in CONTENT
        self.has_calls |= event_type == "tool.call"
        # What could not be written stays as it is: it may have been, and only the word of it lost.
        last = self._waiting[-1] if self._waiting and self.failure is None else None
        if event_type == "text.delta":
            self._chars += len(data["text"])
        if event_type == "text.delta" and last is not None and last["type"] == "text.delta":
            last["data"] = {"text": last["data"]["text"] + data["text"]}
        else:
            self._waiting.append({"type": event_type, "data": data})
        self._pieces += 1
        self._news.set()
        if self._pieces >= FLUSH_PIECES or (not self._is_paced and event_type in CONTENT):
            self._many.set()
        if self._chars > WAITING_CHARS_MAX and not self.stopped.is_set():
            self._room.clear()
            await self._room.wait()

    async def close(self) -> None:
        """Returns when nothing is on its way any more."""
        self._closing = True
        self._news.set()
        self._many.set()
        if self._task is not None:
            await self._task

    def take_rest(self) -> tuple[int, list[NewEvent]]:
        """What was not written, and the number of the last event that was. Only when it is closed."""
        rest, self._waiting = self._waiting, []
        return self._after, rest

    async def _write(self) -> None:
        self._pace.enter()
        try:
            while True:
                await self._news.wait()
                if not self._is_paced:
                    await self._pause(FIRST_WAIT_S)
                if self._closing:
                    return
                self._news.clear()
                self._many.clear()
                batch, self._waiting, self._pieces, self._chars = self._waiting, [], 0, 0
                self._is_paced |= any(event["type"] in CONTENT for event in batch)
                self._room.set()
                if not await self._record(batch):
                    return
                self.has_written.set()
                if self._is_paced:
                    await self._pause(self._pace.pause_s)
        finally:
            self._pace.leave()
            if not self._closing:
                self.stopped.set()
            # Nobody waits for room that will not come.
            self._room.set()

    async def _pause(self, pause_s: float) -> None:
        """Or less, if many wait, or the first of the answer does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._many.wait()

    async def _record(self, batch: list[NewEvent]) -> bool:
        """Returns whether the turn goes on."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self._write_within_s
        while True:
            try:
                goes_on: bool = await self._session.record(
                    self._claim["turn_id"], self._claim["attempt"], self._after, batch, self._used()
                )
            except ObjectNotFound:
                return False
            except DurableError as error:
                if error.retryable and loop.time() < give_up_s and not self._closing:
                    await asyncio.sleep(error.retry_after_s or self._retry_pause_s)
                    continue
                self._waiting = [*batch, *self._waiting]
                self.failure = error
                return False
            self._after += len(batch)
            return goes_on
