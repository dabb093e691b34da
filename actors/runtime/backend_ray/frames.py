"""How do two processes of one node send each other whole messages?

A frame is its length in four bytes, and then as many. `Frames` cuts what arrives into them. What it has not checked it
does not understand: whoever uses it decides what a frame means, and how large one may be until it knows who sends.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Final, cast

FRAME_BYTES_MAX: Final = 2**32 - 1
_LENGTH: Final = struct.Struct("<I")
#: `struct ucred` of unix(7): process, user, group.
_CREDENTIALS: Final = struct.Struct("3i")


class Frames(asyncio.Protocol):
    """One end of a connection. Subclasses take frames by `frame_received`."""

    def __init__(self, *, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._arrived = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        arrived = self._arrived
        arrived += data
        begin = 0
        while len(arrived) - begin >= _LENGTH.size:
            (size_bytes,) = _LENGTH.unpack_from(arrived, begin)
            if size_bytes > self._frame_bytes_max:
                self.abort()
                return
            end = begin + _LENGTH.size + size_bytes
            if end > len(arrived):
                break
            self.frame_received(bytes(memoryview(arrived)[begin + _LENGTH.size : end]))
            begin = end
        if begin:
            del arrived[:begin]

    def frame_received(self, frame: bytes) -> None:
        raise NotImplementedError

    def send(self, frame: bytes) -> None:
        """Sends it as soon as the other end takes it.

        Raises:
            ValueError: it is larger than any frame.
        """
        if len(frame) > FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {len(frame)} bytes is too large to be sent")
        if self._transport is not None:
            self._transport.writelines([_LENGTH.pack(len(frame)), frame])

    def abort(self) -> None:
        """Ends the connection at once."""
        self._arrived.clear()
        if self._transport is not None:
            self._transport.abort()


def is_own(connection: socket.socket) -> bool:
    """Whether the process at the other end belongs to the user of this one."""
    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.geteuid())
