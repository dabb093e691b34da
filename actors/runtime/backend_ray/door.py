"""How is a host reached by processes of its own node, without Ray in between?

A call by way of Ray costs both ends together about a millisecond of computing; over a socket of the kernel's it costs a
twentieth. Ray still starts the hosts, finds them, and tells of their end: a caller asks a host by way of Ray where its
door is, and knocks with the key that it is told.

The socket has no file, only a name that nobody can guess (unix(7), "abstract"): it goes with its process, and leaves
nothing behind. What comes in is unpickled, so it is looked at only from a process of the same user that has the key.
"""

from __future__ import annotations

import asyncio
import hmac
import pickle
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from actors.runtime.backend_ray.frames import FRAME_BYTES_MAX, Frames, is_own
from actors.runtime.call import raised

KEY_BYTES: Final = 32
#: What one caller may have under way here; it is not read from while it has more.
UNDER_WAY_MAX: Final = 4_096
_CALLERS_WAITING_MAX: Final = 128

#: Does an operation with its argument.
Serve = Callable[[str, Any], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class DoorAddress:
    """Where to knock: on this node alone."""

    node_id: str
    socket_name: bytes
    key: bytes = field(repr=False)


class Door:
    """Serves whoever knocks with the key, for as long as the process lives."""

    def __init__(self, name: str, node_id: str, serve: Serve) -> None:
        self._name = name
        self._serve = serve
        self._server: asyncio.Server | None = None
        self.address = DoorAddress(
            node_id=node_id,
            socket_name=b"\0mobula-" + secrets.token_hex(16).encode(),
            key=secrets.token_bytes(KEY_BYTES),
        )

    @staticmethod
    def can_be() -> bool:
        """Whether this system has such sockets."""
        return sys.platform == "linux"

    async def open(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.address.socket_name)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Caller(self._name, self.address.key, self._serve), sock=listener, backlog=_CALLERS_WAITING_MAX
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()


class _Caller(Frames):
    """A connection that somebody has made."""

    def __init__(self, name: str, key: bytes, serve: Serve) -> None:
        super().__init__(frame_bytes_max=KEY_BYTES)
        self._name = name
        self._key = key
        self._serve = serve
        self._is_known = False
        self._under_way: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not is_own(transport.get_extra_info("socket")):
            self.abort()

    def frame_received(self, frame: bytes) -> None:
        if not self._is_known:
            self._is_known = hmac.compare_digest(frame, self._key)
            if not self._is_known:
                self.abort()
            self._frame_bytes_max = FRAME_BYTES_MAX
            return
        number, operation, argument = pickle.loads(frame)  # noqa: S301  from one who has the key
        task = asyncio.get_running_loop().create_task(self._answer(number, operation, argument))
        self._under_way.add(task)
        task.add_done_callback(self._done)
        if len(self._under_way) >= UNDER_WAY_MAX and self._transport is not None:
            self._transport.pause_reading()

    async def _answer(self, number: int, operation: str, argument: Any) -> None:
        try:
            answer = (number, True, await self._serve(operation, argument))
        except Exception as error:  # whatever it is, it is the caller's to know
            answer = (number, False, raised(self._name, error)[1])
        # What was begun is done, whether or not anybody still wants to know.
        if self._transport is not None and not self._transport.is_closing():
            self.send(pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if len(self._under_way) == UNDER_WAY_MAX - 1 and self._transport is not None:
            self._transport.resume_reading()
