"""How do turns of one object follow each other?

An `Activation` is one object as its host knows it: its mailbox, and, while it is resident, the instance with its open
storage. Turns run in order of arrival and never overlap. Plain methods that wait together share one transaction, each
behind a savepoint; their replies are held until it is committed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from actors.runtime import sqlite
from actors.runtime.call import RETURNED, Reply, raised, returned, unpack_arguments
from actors.runtime.clock import Clock
from actors.runtime.errors import DurableError, ObjectFailed, ObjectOverloaded, ObjectReset, RequestReused
from actors.runtime.object import DurableObject, MethodSpec, Repeat
from actors.runtime.object_id import ObjectId
from actors.runtime.schema import REQUESTS_TABLE
from actors.runtime.storage import Storage

logger = logging.getLogger("mobula.objects")

#: How long a repeated request is recognised. Longer than any stub keeps retrying, by far.
REQUESTS_KEPT_S = 86_400.0
#: Expired requests are removed a few with each new one, so that no turn pays for a day's worth.
_REQUESTS_PRUNED_PER_TURN = 4


class Turn:
    """One call on its way through one object."""

    __slots__ = ("_waiters", "arguments", "arrived_s", "held", "method", "reply", "request_id")

    def __init__(self, method: MethodSpec, arguments: bytes, request_id: str, arrived_s: float) -> None:
        self.method = method
        self.arguments = arguments
        self.request_id = request_id
        self.arrived_s = arrived_s
        #: What will be replied once the turn's writes are durable.
        self.held: Reply | None = None
        #: What may leave.
        self.reply: Reply | None = None
        self._waiters: list[asyncio.Future[Reply]] = []

    def settle(self, reply: Reply) -> None:
        self.reply = reply
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(reply)

    async def wait(self) -> Reply:
        if self.reply is not None:
            return self.reply
        waiter: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return await waiter


class Activation:
    """One object in its host. Not resident until `open` is called; may be closed and opened again between turns."""

    __slots__ = ("_clock", "_open", "_task", "id", "instance", "last_used_s", "mailbox", "mailbox_bytes")

    def __init__(self, object_id: ObjectId, open_object: Callable[[ObjectId], DurableObject], clock: Clock) -> None:
        self.id = object_id
        self._open = open_object
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self.instance: DurableObject | None = None
        self.mailbox: deque[Turn] = deque()
        self.mailbox_bytes = 0
        self.last_used_s = clock.monotonic()

    @property
    def idle(self) -> bool:
        """No turn is running or waiting."""
        return self._task is None and not self.mailbox

    @property
    def running(self) -> bool:
        return self._task is not None

    def put(self, turn: Turn) -> None:
        self.mailbox.append(turn)
        self.mailbox_bytes += len(turn.arguments)

    def _take(self) -> Turn:
        turn = self.mailbox.popleft()
        self.mailbox_bytes -= len(turn.arguments)
        return turn

    def close(self) -> None:
        """Lets the object hibernate: closes its file, and forgets the instance."""
        instance, self.instance = self.instance, None
        if instance is not None:
            try:
                instance.storage.close()
            except (sqlite.Error, OSError) as error:
                # What was committed is in the WAL, and the next activation reads it there.
                logger.warning("object=%s closing failed: %s", self.id, error)

    def run_waiting(self, age_max_s: float, resume: Callable[[Activation], None]) -> list[Turn]:
        """Runs the plain methods at the head of the mailbox, in one transaction that is left open.

        An async method at the head is started as a task, which calls `resume` when it has ended.

        Returns:
            The turns whose replies are held until `commit`; empty if there is nothing to commit.
        """
        held: list[Turn] = []
        now_s = self._clock.monotonic()
        while self.mailbox and self._task is None:
            if held and self.mailbox[0].method.is_async:
                break
            turn = self._take()
            if now_s - turn.arrived_s > age_max_s:
                waited = f"the call waited longer than {age_max_s:g} s"
                turn.settle(raised(str(self.id), ObjectOverloaded(str(self.id), waited, 1.0)))
                continue
            try:
                instance = self.instance
                if instance is None:
                    instance = self.instance = self._open(self.id)
            except Exception as error:  # constructors and migrations are the author's code
                turn.settle(raised(str(self.id), self._as_activation_error(error)))
                continue
            if turn.method.is_async:
                self._task = asyncio.get_running_loop().create_task(self._run_async(instance, turn, resume))
                break
            if not self._run_plain(instance, turn, held):
                break
            if instance.storage.delete_requested:
                break
        self.last_used_s = now_s
        return held

    def commit(self, held: list[Turn]) -> None:
        """Makes what `held` wrote durable and lets the replies go; or resets the object, and none of them leaves."""
        if self.instance is None:
            return
        storage = self.instance.storage
        try:
            storage.commit()
        except DurableError as error:
            self._reset(error, held)
            return
        if storage.deleted:
            self.instance = None
        for turn in held:
            assert turn.held is not None
            turn.settle(turn.held)

    def _run_plain(self, instance: DurableObject, turn: Turn, held: list[Turn]) -> bool:
        """Runs one turn within the group's transaction. False if the group ended with it."""
        storage = instance.storage
        try:
            if held:
                storage.savepoint()
            else:
                storage.begin()
        except sqlite.Error as error:
            self._reset(error, [*held, turn])
            held.clear()
            return False
        try:
            reply = self._call_plain(instance, turn)
            if not storage.in_transaction:
                raise RuntimeError(f"{turn.method.name} ended the transaction that it ran in")
        except Exception as error:  # whatever the author's method raises goes to the caller
            meaning = storage.what_it_means(error)
            if meaning or not storage.in_transaction:
                self._reset(meaning or error, [*held, turn])
                held.clear()
                return False
            turn.settle(raised(str(self.id), error))
            if held:
                storage.rollback_to_savepoint()
            else:
                storage.rollback()
            return True
        if held:
            storage.release()
        turn.held = reply
        held.append(turn)
        return True

    def _call_plain(self, instance: DurableObject, turn: Turn) -> Reply:
        method = turn.method
        storage = instance.storage
        if method.repeat is Repeat.EXACTLY_ONCE and turn.request_id:
            return self._call_once(instance, turn)
        before = storage.rows_changed
        args, kwargs = unpack_arguments(turn.arguments)
        reply = returned(method.function(instance, *args, **kwargs))
        if method.repeat is Repeat.READ and storage.rows_changed != before:
            raise RuntimeError(f"{method.name} is declared @read and wrote")
        return reply

    def _call_once(self, instance: DurableObject, turn: Turn) -> Reply:
        """Answers a request that was seen before from its record; records a new one with what it wrote."""
        storage = instance.storage
        fingerprint = hashlib.blake2b(turn.method.name.encode() + b"\0" + turn.arguments, digest_size=16).digest()
        seen = storage.sql(
            f"SELECT fingerprint, result FROM {REQUESTS_TABLE} WHERE request_id = ?",  # noqa: S608  a constant
            turn.request_id,
        )
        if seen:
            if seen[0][0] != fingerprint:
                raise RequestReused(str(self.id), turn.request_id)
            return RETURNED, seen[0][1]
        args, kwargs = unpack_arguments(turn.arguments)
        reply = returned(turn.method.function(instance, *args, **kwargs))
        now = instance.clock.now()
        storage.sql(
            f"DELETE FROM {REQUESTS_TABLE} WHERE request_id IN"  # noqa: S608  constants
            f" (SELECT request_id FROM {REQUESTS_TABLE} WHERE at < ? LIMIT {_REQUESTS_PRUNED_PER_TURN})",
            now - REQUESTS_KEPT_S,
        )
        storage.sql(
            f"INSERT INTO {REQUESTS_TABLE} VALUES (?, ?, ?, ?)",  # noqa: S608  a constant
            turn.request_id,
            fingerprint,
            reply[1],
            now,
        )
        return reply

    async def _run_async(self, instance: DurableObject, turn: Turn, resume: Callable[[Activation], None]) -> None:
        reset: Exception | None = None
        try:
            args, kwargs = unpack_arguments(turn.arguments)
            value = await _commit_between_awaits(turn.method.function(instance, *args, **kwargs), instance.storage)
            reply = returned(value)
        except _CommitFailed as failed:
            reset = failed.error
        except asyncio.CancelledError:
            reset = ObjectReset(str(self.id), "its host is stopping")
        except Exception as error:  # whatever the author's method raises goes to the caller
            reset = instance.storage.what_it_means(error)
            reply = raised(str(self.id), error)
        self._task = None
        self.last_used_s = self._clock.monotonic()
        if reset:
            self._reset(reset, [turn])
        else:
            if instance.storage.deleted:
                self.instance = None
            turn.settle(reply)
        resume(self)

    def _reset(self, error: Exception, turns: list[Turn]) -> None:
        """Drops the instance: nobody is told what was not kept, and the next turn starts from what is durable."""
        logger.warning("object=%s reset: %s", self.id, error)
        instance = self.instance
        if instance is not None:
            try:
                instance.storage.rollback()
            except sqlite.Error:
                logger.warning("object=%s could not roll back; the file is read again from its log", self.id)
        self.close()
        meaning = error if isinstance(error, DurableError) else ObjectReset(str(self.id), f"the turn failed: {error}")
        for turn in turns:
            turn.settle(raised(str(self.id), meaning))

    def _as_activation_error(self, error: Exception) -> Exception:
        if isinstance(error, DurableError):
            return error
        return ObjectFailed(str(self.id), type(error).__name__, f"activation failed: {error}")


class _CommitFailed(Exception):
    """Tells a failed commit of this object from an error that its method raised."""

    def __init__(self, error: DurableError) -> None:
        super().__init__(error)
        self.error = error


@types.coroutine
def _commit_between_awaits(coroutine: Coroutine[Any, Any, Any], storage: Storage) -> Generator[Any, Any, Any]:
    """Drives an async method by hand, so that what it wrote is durable whenever it waits for the world outside.

    The step between two awaits runs in one transaction. It is committed before the awaited thing is handed to the event
    loop: nothing that the step asked for, a call to another object included, can leave before.
    """
    resume: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        storage.begin()
        try:
            awaited = resume(value)
        except StopIteration as stop:
            _commit(storage)
            return stop.value
        except BaseException:
            storage.rollback()
            raise
        try:
            if storage.in_transaction_block:
                raise RuntimeError("a storage.transaction() must not be held open across an await")
            _commit(storage)
        except BaseException:
            coroutine.close()
            storage.rollback()
            raise
        try:
            value, resume = (yield awaited), coroutine.send
        except BaseException as error:  # a cancellation, too, is for the method to see
            value, resume = error, coroutine.throw


def _commit(storage: Storage) -> None:
    try:
        storage.commit()
    except DurableError as error:
        raise _CommitFailed(error) from error
