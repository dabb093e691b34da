"""How does a host do what takes long without keeping its objects waiting?

In a few threads beside its event loop. Whoever waits for a piece of work waits until it has really ended, also when he
is cancelled: what the work has open is his again then, and not before. A piece that looks at `stopped` ends early.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from actors.runtime.errors import ObjectOverloaded

Result = TypeVar("Result")

THREADS = 4
#: Pieces that run or wait for a thread.
PIECES_MAX = 32


class SideWork:
    """The threads of one host. Belongs to one event loop at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._threads: ThreadPoolExecutor | None = None
        self._closing = threading.Event()
        self._pieces = 0

    async def run(self, piece: Callable[[Callable[[], bool]], Result]) -> Result:
        """Runs `piece(stopped)` in a thread.

        Raises:
            ObjectOverloaded: too much is under way.
        """
        if self._pieces >= PIECES_MAX or self._closing.is_set():
            raise ObjectOverloaded(self._name, f"{self._pieces} inspections are under way", 1.0)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="mobula-inspection")
        cancelled = threading.Event()

        def stopped() -> bool:
            return cancelled.is_set() or self._closing.is_set()

        self._pieces += 1
        try:
            working = asyncio.get_running_loop().run_in_executor(self._threads, piece, stopped)
            try:
                return await asyncio.shield(working)
            except asyncio.CancelledError:
                cancelled.set()
                await _ended(working)
                raise
        finally:
            self._pieces -= 1

    def close(self) -> None:
        """Has all pieces end, and waits for them."""
        self._closing.set()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)


async def _ended(working: asyncio.Future[Result]) -> None:
    while not working.done():
        try:
            await asyncio.wait([working])
        except asyncio.CancelledError:  # again; the thread is what counts
            continue
    if not working.cancelled():
        working.exception()  # nobody is left to hear of it
