"""How does a process talk to a host of its own node once it knows the door?"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import socket
from typing import Any

from actors.runtime.backend_ray.door import DoorAddress
from actors.runtime.backend_ray.frames import Frames, is_own


class WireLost(ConnectionError):
    """The other end is gone. What was asked and not answered may or may not have been done."""


class Wire(Frames):
    """A connection to a host's door. Questions are answered in any order, and taken up in theirs."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._lost = asyncio.get_running_loop().create_future()

    @classmethod
    async def to(cls, address: DoorAddress) -> Wire:
        """
        Raises:
            OSError: nobody is there any more, or somebody else.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            connection.connect(address.socket_name)
            # A name is free when its process has gone. Nobody else is told the key, or has his answers unpickled.
            if not is_own(connection):
                raise PermissionError("what answers at the door belongs to another user")
            _, wire = await asyncio.get_running_loop().create_unix_connection(cls, sock=connection)
        except BaseException:  # a cancelled one leaves nothing open either
            connection.close()
            raise
        wire.send(address.key)
        return wire

    @property
    def is_lost(self) -> bool:
        return self._lost.done()

    async def ask(self, operation: str, argument: Any) -> Any:
        """
        Raises:
            WireLost: the host went away before it answered.
        """
        if self._lost.done():
            raise WireLost
        number = next(self._numbers)
        frame = pickle.dumps((number, operation, argument), protocol=pickle.HIGHEST_PROTOCOL)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self.send(frame)
            return await answer
        finally:
            self._asked.pop(number, None)

    def frame_received(self, frame: bytes) -> None:
        number, is_result, value = pickle.loads(frame)  # noqa: S301  from a host of this cluster
        answer = self._asked.get(number)
        if answer is None or answer.done():
            return  # who asked has gone
        if is_result:
            answer.set_result(value)
        else:
            answer.set_exception(pickle.loads(value))  # noqa: S301  as above

    def connection_lost(self, error: Exception | None) -> None:
        if not self._lost.done():
            self._lost.set_result(None)
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(WireLost())

    async def keep(self) -> None:
        """Returns when the connection is lost, and closes it if it is cancelled: as every task is that an event loop
        still has when it ends, of which nobody else is told.
        """
        try:
            await self._lost
        finally:
            if self._transport is not None:
                self._transport.close()
