"""What does an object run that waits for something?

`UnderWay` has the tasks of an object's async turns, and of what runs alone in it. It says which of the turns others
have to wait for, and ends them all: each is cancelled, and with its storage ended it gets no further than that, also
where the author's code keeps on after a cancellation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any

from actors.runtime.call import Reply
from actors.runtime.storage import Storage
from actors.runtime.turn import Turn


class UnderWay:
    """The tasks of one object. Those that end tell it by `over`, or are forgotten by themselves if they ran alone."""

    __slots__ = ("_alone", "_turns", "exclusive")

    def __init__(self) -> None:
        self._turns: dict[Turn, tuple[asyncio.Task[None], Storage]] = {}
        self._alone: dict[asyncio.Task[Any], Storage] = {}
        #: The turn that all others wait for, but those of `@interleaved` methods.
        self.exclusive: Turn | None = None

    def __bool__(self) -> bool:
        return bool(self._turns or self._alone)

    def begin(self, turn: Turn, storage: Storage, running: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(running)
        self._turns[turn] = task, storage
        if not turn.method.interleaved:
            self.exclusive = turn
        return task

    def over(self, turn: Turn) -> None:
        self._turns.pop(turn, None)
        if self.exclusive is turn:
            self.exclusive = None

    def begin_alone(self, storage: Storage, running: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(running)
        self._alone[task] = storage
        task.add_done_callback(self._alone.pop)
        return task

    def end_turns(self, reply: Reply, *, but: Collection[Turn] = ()) -> None:
        """Ends turns, and tells those who wait for them. They are under way until they are over."""
        for turn, (task, storage) in self._turns.items():
            if turn not in but:
                turn.settle(reply)
                _end(task, storage)

    def abandon(self, reply: Reply) -> None:
        """Ends everything, and forgets the turns."""
        self.end_turns(reply)
        for task, storage in self._alone.items():
            _end(task, storage)
        self._turns.clear()
        self.exclusive = None


def _end(task: asyncio.Task[Any], storage: Storage) -> None:
    storage.end()
    if not task.get_loop().is_closed():
        task.cancel()
