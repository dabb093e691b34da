"""When may a turn start, and when may a reply leave?

Each object has two gates. No turn starts while its input gate is shut: storage is in doubt, or the object has asked for
no company. No reply and no call to another object leaves while its output gate is shut. Replies are given to the output
gate after their commit, so that it is shut for longer only where somebody, such as a test, holds it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Gate:
    """Open, or held shut by any number of holders. Belongs to one event loop."""

    __slots__ = ("_holders", "_waiting")

    def __init__(self) -> None:
        self._holders = 0
        # Made when something waits: most gates of most objects never are shut.
        self._waiting: deque[Callable[[], None]] | None = None

    @property
    def is_open(self) -> bool:
        return not self._holders

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Shuts the gate until the block is left."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            self._let_through()

    def when_open(self, action: Callable[[], None]) -> None:
        """Does it now, or when the gate opens, after what has waited for longer."""
        if self._holders or self._waiting:
            if self._waiting is None:
                self._waiting = deque()
            self._waiting.append(action)
        else:
            action()

    async def opened(self) -> None:
        """Returns when the gate is open."""
        if self._holders:
            opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.when_open(lambda: None if opened.done() else opened.set_result(None))
            await opened

    def _let_through(self) -> None:
        # What is let through may shut the gate again.
        while self._waiting and not self._holders:
            self._waiting.popleft()()
