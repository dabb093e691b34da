"""Which way does a question take to a process that answers it?

On the same machine through the door of a chat replica, as calls take to hosts: Serve's own way there, and its routing,
take several times as long as a process takes to begin a turn, and the first word waits for it. Of doors one learns by
Serve, from whichever replica it chooses, and again and again, so that none is forgotten. Where there is none to be
reached, as on another machine, questions go by Serve.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from ray.serve.handle import DeploymentHandle

from actors.runtime.backend_ray.door import Line, connect
from actors.runtime.call import HostRetired
from deployments.chat_door import BEHIND
from deployments.question import Asked, Question

logger = logging.getLogger("mobula.chat")

#: How long one goes on with the replicas that one knows of. New ones may have come.
LOOK_EVERY_S: Final = 5.0
#: For Serve to name a door.
LOOK_WITHIN_S: Final = 5.0


class ChatWay:
    """The ways of one process to all chat replicas."""

    def __init__(self, chat: DeploymentHandle, monotonic: Callable[[], float]) -> None:
        self._chat = chat
        self._monotonic = monotonic
        #: By the paths of the doors. The next question takes the first one, which then comes last.
        self._lines: dict[Path, Line] = {}
        self._looked_at_s: float | None = None
        self._looking: asyncio.Task[None] | None = None

    async def begin(self, question: Question) -> Asked:
        """Has a replica begin the turn that answers the question.

        Raises:
            HostLost: the replica was lost on the way. The turn may or may not have been begun.
            DurableError, ServiceError, RayError: nothing was begun.
        """
        self._look_soon()
        while (found := self._next_line()) is not None:
            path, line = found
            try:
                return cast(Asked, await line.ask(question))
            except HostRetired:  # the replica is stopping, and has begun nothing of this one
                self._lines.pop(path, None)
        return cast(Asked, await self._chat.begin.remote(question))

    async def ready(self) -> bool:
        """Raises what keeps questions from being answered."""
        return cast(bool, await self._chat.ready.remote())

    def _next_line(self) -> tuple[Path, Line] | None:
        while self._lines:
            path = next(iter(self._lines))
            line = self._lines.pop(path)
            if line.is_usable:
                self._lines[path] = line
                return path, line
            self._looked_at_s = None  # another replica will take its place
        return None

    def _look_soon(self) -> None:
        now_s = self._monotonic()
        if self._looked_at_s is None or now_s - self._looked_at_s >= LOOK_EVERY_S:
            self._looked_at_s = now_s
            if self._looking is None or self._looking.done():
                # In a context of its own: Serve ends every call made in a request's context when its client goes away.
                self._looking = asyncio.get_running_loop().create_task(self._look(), context=contextvars.Context())

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(LOOK_WITHIN_S):
                named: str | None = await self._chat.door.remote()
        except Exception as error:  # whatever Serve says of a replica: there is the other way
            logger.info("no door to a chat replica: %s", error)
            return
        path = None if named is None else Path(named)
        if path is not None and path not in self._lines and (line := await connect(BEHIND, path)) is not None:
            self._lines[path] = line
