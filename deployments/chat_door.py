"""How is a chat replica reached on its own machine, without Serve between?

By a door, as hosts are: a Unix socket in the data directory, for the service's own user alone. `deployments.chat_way`
is how others find it.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NoReturn

import psutil

from actors.runtime.backend_ray.door import Door
from actors.runtime.call import Call, HostRetired
from actors.runtime.folder import make_folder
from deployments.errors import ModelUnavailable
from deployments.question import Asked, Question

#: Of whoever is behind a door, in errors.
BEHIND: Final = "chat"
BUSY_RETRY_AFTER_S: Final = 1.0


class ChatDoor:
    """The door of this process.

    Args:
        folder: where doors are.
        begin: begins the turn that answers a question.
        at_once_max: so many questions; Serve does not count those that come this way.
    """

    def __init__(self, folder: Path, begin: Callable[[Question], Awaitable[Asked]], at_once_max: int) -> None:
        self._folder = folder
        self._begin = begin
        self._at_once_max = at_once_max
        self._beginning = 0
        self._is_shut = False
        self._door = Door(BEHIND, _no_calls, self._answer)

    def open(self) -> Path | None:
        """Opens it, if it is not, and says where it is. None: there can be none, or none any more."""
        if self._is_shut:
            return None
        machine = platform.node()
        make_folder(self._folder)
        for left in self._folder.glob(f"{machine}-*.door"):
            # Processes that were killed leave theirs. A name that is no number is nobody's.
            with contextlib.suppress(ValueError):
                if not psutil.pid_exists(int(left.stem.removeprefix(f"{machine}-"))):
                    left.unlink(missing_ok=True)
        path = self._folder / f"{machine}-{os.getpid()}.door"
        return path if self._door.open(path) else None

    def close(self) -> None:
        """For good: nobody is let in any more, and who is in is sent elsewhere with new questions."""
        self._is_shut = True
        self._door.close()

    async def _answer(self, question: Question) -> Asked:
        if self._is_shut:
            raise HostRetired
        if self._beginning >= self._at_once_max:
            raise ModelUnavailable("too many questions are being taken up", BUSY_RETRY_AFTER_S)
        self._beginning += 1
        try:
            return await self._begin(question)
        finally:
            self._beginning -= 1


def _no_calls(_: list[Call]) -> NoReturn:
    raise TypeError("no objects are behind this door")
