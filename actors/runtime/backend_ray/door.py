"""How does a call reach a host on the same machine, without Ray between them?

A host opens a `Door`: a Unix socket beside the locks of its slots, for its own user alone, so that whoever knocks may
be believed. A stub's process asks the host by a Ray call whether it has one, connects, and sends batches of calls over
a `Line`: a fraction of the time of an actor call, and of the work on both sides. Ray still starts hosts, finds them and
restarts them.

Where there is no way to the door, on another machine or in another container, calls go by Ray. A line that breaks says
so at once to all that wait on it: the host's process has ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

from actors.runtime.call import Call, HostLost, Reply, raised, unpack
from actors.runtime.lane import BATCH_BYTES_MAX, CALL_BYTES_MAX

logger = logging.getLogger("mobula.objects")

#: What a batch may take, with as much again for what else than arguments its calls carry.
REQUEST_BYTES_MAX = 2 * (BATCH_BYTES_MAX + CALL_BYTES_MAX)
#: What the name of a Unix socket may have on any system.
_PATH_BYTES_MAX = 103
_BACKLOG = 128
#: How long a host that could not admit somebody, with as many files open as it may have, has no door.
_SHUT_FOR_S = 60.0
_READ_BYTES = 256 * 1024
_LENGTH = struct.Struct(">Q")

#: A number that the answer will have, and a batch of calls, or something else that takes its time: a ticket.
Request: TypeAlias = tuple[int, Any]
#: The number of the request, the replies, and what kept the host from giving any.
Answer: TypeAlias = tuple[int, Any, Reply | None]


def door_of(data_dir: Path, host: str) -> Path:
    """Where the door of a host is, which is called as in logs."""
    return data_dir / "slots" / f"{blake2b(host.encode(), digest_size=8).hexdigest()}.door"


class Wire:
    """Messages over a connected socket, each pickled behind its length. Belongs to one event loop.

    Not a transport of asyncio: a stub's process need not close what it has open, nor have its loop live as long.

    Args:
        loop: that is running.
        connection: which is the wire's from now on.
        message_bytes_max: of one that comes in. A longer one ends the connection.
        received: called with each message.
        lost: called once, when the other end has gone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        *,
        message_bytes_max: int,
        received: Callable[[Any], None],
        lost: Callable[[], None],
    ) -> None:
        connection.setblocking(False)
        self.loop = loop
        self._descriptor = connection.detach()
        self._message_bytes_max = message_bytes_max
        self._received = received
        self._lost = lost
        self._incoming = bytearray()
        self._outgoing = bytearray()
        loop.add_reader(self._descriptor, self._read)

    @property
    def is_open(self) -> bool:
        return self._descriptor >= 0

    def send(self, packed: bytes) -> None:
        """Sends it, now or when the other end takes it. Nothing arrives where the connection is lost meanwhile."""
        if not self.is_open:
            return
        message = _LENGTH.pack(len(packed)) + packed
        if self._outgoing:
            self._outgoing += message
            return
        sent = self._write(message)
        if self.is_open and sent < len(message):
            self._outgoing += message[sent:]
            self.loop.add_writer(self._descriptor, self._write_more)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            if not self.loop.is_closed():
                self.loop.remove_reader(descriptor)
                self.loop.remove_writer(descriptor)
            os.close(descriptor)

    def __del__(self) -> None:
        # Its loop is gone, or it would not be: a loop keeps what it calls.
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _write(self, message: bytes | bytearray) -> int:
        try:
            return os.write(self._descriptor, message)
        except BlockingIOError:
            return 0
        except OSError:
            self._end()
            return 0

    def _write_more(self) -> None:
        del self._outgoing[: self._write(self._outgoing)]
        if self.is_open and not self._outgoing:
            self.loop.remove_writer(self._descriptor)

    def _read(self) -> None:
        try:
            read = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            read = b""
        if not read:
            self._end()
            return
        incoming = self._incoming
        incoming += read
        begin = 0
        while self.is_open and len(incoming) >= begin + _LENGTH.size:
            (size_bytes,) = _LENGTH.unpack_from(incoming, begin)
            if size_bytes > self._message_bytes_max:
                self._end()
                return
            end = begin + _LENGTH.size + size_bytes
            if len(incoming) < end:
                break
            message = pickle.loads(incoming[begin + _LENGTH.size : end])  # noqa: S301  from a process of the same user
            begin = end
            self._received(message)
        del incoming[:begin]

    def _end(self) -> None:
        if self.is_open:
            self.close()
            self._lost()


class Door:
    """A host's end. Every caller has a connection of its own.

    Args:
        host: who it is.
        answer: runs a batch of calls.
        answer_later: gives what else is asked for, such as the reply of a call that outlived its batch.
    """

    def __init__(
        self,
        host: str,
        answer: Callable[[list[Call]], list[Reply]],
        answer_later: Callable[[Any], Coroutine[Any, Any, Any]],
    ) -> None:
        self._host = host
        self._answer = answer
        self._answer_later = answer_later
        self._path: Path | None = None
        self._listening: socket.socket | None = None
        self._shut_until_s = 0.0
        self._wires: set[Wire] = set()
        self._waiting: set[asyncio.Task[None]] = set()

    def open(self, path: Path) -> bool:
        """Opens it there, in place of one that a host left which was killed. False: there can be none.

        Only for who has the lock beside it.
        """
        loop = asyncio.get_running_loop()
        if self._listening is None and loop.time() >= self._shut_until_s:
            try:
                self._listening = _listen(path)
            except OSError as error:
                logger.warning("path=%s calls go by Ray: %s", path, error)
                return False
            self._path = path
            loop.add_reader(self._listening, self._admit)
        return self._listening is not None

    def close(self) -> None:
        """Admits nobody any more. Whoever is connected stays so."""
        if self._listening is not None and self._path is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
            self._path.unlink(missing_ok=True)

    def _admit(self) -> None:
        assert self._listening is not None
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # whoever it was has gone
        except OSError as error:
            # As when too many files are open. Whoever has come would wait for ever, and is told so by the shut door.
            logger.warning("path=%s is shut for %g s, and calls go by Ray: %s", self._path, _SHUT_FOR_S, error)
            self._shut_until_s = asyncio.get_running_loop().time() + _SHUT_FOR_S
            self.close()
            return
        wire = Wire(
            asyncio.get_running_loop(),
            connection,
            message_bytes_max=REQUEST_BYTES_MAX,
            received=lambda request: self._received(wire, request),
            lost=lambda: self._wires.discard(wire),
        )
        self._wires.add(wire)

    def _received(self, wire: Wire, request: Request) -> None:
        number, asked = request
        if not isinstance(asked, list):
            task = asyncio.get_running_loop().create_task(self._reply_later(wire, number, asked))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
            return
        try:
            answer: Answer = number, self._answer(asked), None
        except Exception as error:  # whatever the host says of the batch is for its caller
            answer = number, None, raised(self._host, error)
        wire.send(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))

    async def _reply_later(self, wire: Wire, number: int, asked: Any) -> None:
        try:
            answer: Answer = number, await self._answer_later(asked), None
        except Exception as error:  # as above
            answer = number, None, raised(self._host, error)
        wire.send(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))


class Line:
    """A caller's end.

    Args:
        host: who is at the other end, for errors.
        connection: to its door.
    """

    def __init__(self, host: str, connection: socket.socket) -> None:
        self._host = host
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._wire = Wire(
            asyncio.get_running_loop(),
            connection,
            message_bytes_max=2**63,
            received=self._received,
            lost=self._lost,
        )

    @property
    def is_usable(self) -> bool:
        """It is connected, and of the loop that is running."""
        return self._wire.is_open and self._wire.loop is asyncio.get_running_loop()

    def close(self) -> None:
        self._wire.close()

    def ask(self, asked: Any) -> Awaitable[Any]:
        """Sends a batch of calls, or what else the door takes, and gives what the host will answer. The sending is done
        when it returns, so that batches arrive in the order in which they were asked.

        Raises:
            HostLost: the line broke before the answer came.
        """
        self._number += 1
        request: Request = self._number, asked
        packed = pickle.dumps(request, pickle.HIGHEST_PROTOCOL)
        answer = self._waiting[self._number] = self._wire.loop.create_future()
        self._wire.send(packed)
        return answer

    def _received(self, answer: Answer) -> None:
        number, value, failure = answer
        waiting = self._waiting.pop(number)
        if waiting.done():
            return  # its caller gave up
        if failure is None:
            waiting.set_result(value)
            return
        try:
            unpack(failure)
        except Exception as error:  # what the host has raised
            waiting.set_exception(error)

    def _lost(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(HostLost(self._host, "its host was lost and is restarting"))


async def connect(host: str, path: Path) -> Line | None:
    """A line to a host's door; None where there is no way to it."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        with _short(path) as name:
            await asyncio.get_running_loop().sock_connect(connection, name)
    except OSError:
        connection.close()
        return None
    return Line(host, connection)


def _listen(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        path.unlink(missing_ok=True)
        with _short(path) as name:
            listening.bind(name)
        path.chmod(0o600)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of the path that a socket can have, which are short."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
