"""How do the commits of many objects take little longer than that of one?

A commit waits for the disk, and a disk that is asked for many things at once does them together. So what objects wrote
in one batch is committed side by side, in threads. Whoever has it done waits for all of it: nothing else of the host
runs meanwhile, and none of its objects is used by two threads at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from actors.runtime.object_id import ObjectId
from actors.runtime.storage import Storage

#: More bring little: their disk is one, and so is the interpreter's lock.
AT_ONCE_MAX = 16


class Commits:
    """Makes transactions durable.

    Args:
        commit: does it for one object, in any thread.
    """

    def __init__(self, commit: Callable[[ObjectId, Storage], None]) -> None:
        self._commit = commit
        self._threads = ThreadPoolExecutor(AT_ONCE_MAX, thread_name_prefix="commit")
        self._begun: list[Future[None]] = []

    def begin(self, object_id: ObjectId, storage: Storage) -> Callable[[], None]:
        """Begins to commit. What is returned raises, once `wait` was called, what came of it."""
        future = self._threads.submit(self._commit, object_id, storage)
        self._begun.append(future)
        return future.result

    def wait(self) -> None:
        """Returns when all that was begun is done."""
        begun, self._begun = self._begun, []
        wait(begun)

    def close(self) -> None:
        """Nothing may be begun any more."""
        self._threads.shutdown()
