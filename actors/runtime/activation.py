"""How do turns of one object follow each other?

An `Activation` is one object as its host knows it: its mailbox, and, while it is resident, the instance with its open
storage. Turns run in order of arrival and never overlap. Plain methods that wait together share one transaction, each
behind a savepoint; their replies are held until it is committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from actors.runtime import sqlite
from actors.runtime.call import RETURNED, Reply, failed, raised, returned, unpack_arguments
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

#: Raised to end a process, a generator or a task. Out of a method they end the turn, not the host with all its objects.
_NOT_FOR_THE_HOST = (SystemExit, GeneratorExit, asyncio.CancelledError)


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
        if self.reply is not None:
            return  # its host stopped, and said so
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

    __slots__ = (
        "_clock",
        "_open",
        "_task",
        "_turn",
        "held",
        "id",
        "instance",
        "last_used_s",
        "mailbox",
        "mailbox_bytes",
    )

    def __init__(self, object_id: ObjectId, open_object: Callable[[ObjectId], DurableObject], clock: Clock) -> None:
        self.id = object_id
        self._open = open_object
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        #: What the task runs.
        self._turn: Turn | None = None
        self.instance: DurableObject | None = None
        self.mailbox: deque[Turn] = deque()
        self.mailbox_bytes = 0
        self.last_used_s = clock.monotonic()
        #: Somebody keeps the object still: no turn begins, and the event is set when none is running any more.
        self.held: asyncio.Event | None = None

    @property
    def idle(self) -> bool:
        """No turn is running or waiting, and nobody holds the object."""
        return self._task is None and not self.mailbox and self.held is None

    def may_begin(self) -> bool:
        """Whether a turn may begin now; tells the one who holds the object if it is still."""
        if self.held is None:
            return True
        if self._task is None:
            self.held.set()
        return False

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

    def abandon(self) -> None:
        """Closes the object whatever it does. What runs and what waits is told that the host is stopping."""
        stopping = raised(str(self.id), ObjectReset(str(self.id), "its host is stopping"))
        if self._turn is not None:
            self._turn.settle(stopping)
        if self._task is not None and not self._task.get_loop().is_closed():
            self._task.cancel()
        while self.mailbox:
            self._take().settle(stopping)
        self.close()

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
                self._turn = turn
                self._task = asyncio.get_running_loop().create_task(self._run_async(instance, turn, resume))
                break
            if not self._run_plain(instance, turn, held):
                break
            if instance.storage.delete_requested:
                break
        self.last_used_s = self._clock.monotonic()
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
        except (sqlite.Error, DurableError) as error:
            self._reset(error, [*held, turn])
            held.clear()
            return False
        try:
            reply = self._call_plain(instance, turn)
            if not storage.in_transaction:
                raise RuntimeError(f"{turn.method.name} ended the transaction that it ran in")
            if held:
                storage.release()
        except Exception as error:  # whatever the author's method raises goes to the caller
            meaning = storage.what_it_means(error)
            if meaning or not self._undo(storage, grouped=bool(held)):
                self._reset(meaning or error, [*held, turn])
                held.clear()
                return False
            reply = raised(str(self.id), error)
            if not held:
                turn.settle(reply)
                return True
            # It may tell of what earlier turns of the group wrote, so it waits for the commit as their replies do.
        turn.held = reply
        held.append(turn)
        return True

    @staticmethod
    def _undo(storage: Storage, *, grouped: bool) -> bool:
        """Undoes one turn. False where the turn, or its error, had ended the group's transaction."""
        if not storage.in_transaction:
            return False
        try:
            if grouped:
                storage.rollback_to_savepoint()
            else:
                storage.rollback()
        except sqlite.Error:
            return False
        return True

    def _call_plain(self, instance: DurableObject, turn: Turn) -> Reply:
        method = turn.method
        storage = instance.storage
        if method.repeat is Repeat.EXACTLY_ONCE and turn.request_id:
            return self._call_once(instance, turn)
        before = storage.rows_changed
        reply = self._invoke(instance, turn)
        _require_unwritten(method, storage, before)
        return reply

    def _invoke(self, instance: DurableObject, turn: Turn) -> Reply:
        args, kwargs = unpack_arguments(turn.arguments)
        try:
            value = turn.method.function(instance, *args, **kwargs)
        except _NOT_FOR_THE_HOST as error:
            raise failed(str(self.id), error) from error
        return self._pack(value)

    def _pack(self, value: Any) -> Reply:
        try:
            return returned(value)
        except Exception as error:  # pickling runs the value's own code, which may raise anything
            raise failed(str(self.id), error) from error

    def _call_once(self, instance: DurableObject, turn: Turn) -> Reply:
        """Answers a request that was seen before from its record; records a new one with what it wrote."""
        storage = instance.storage
        fingerprint = hashlib.blake2b(turn.method.name.encode() + b"\0" + turn.arguments, digest_size=16).digest()
        seen = storage.own_sql(
            f"SELECT fingerprint, result FROM {REQUESTS_TABLE} WHERE request_id = ?",  # noqa: S608  a constant
            turn.request_id,
        )
        if seen:
            if seen[0][0] != fingerprint:
                raise RequestReused(str(self.id), turn.request_id)
            return RETURNED, seen[0][1]
        reply = self._invoke(instance, turn)
        now = instance.clock.now()
        storage.own_sql(
            f"DELETE FROM {REQUESTS_TABLE} WHERE request_id IN"  # noqa: S608  constants
            f" (SELECT request_id FROM {REQUESTS_TABLE} WHERE at < ? LIMIT {_REQUESTS_PRUNED_PER_TURN})",
            now - REQUESTS_KEPT_S,
        )
        storage.own_sql(
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
            coroutine = turn.method.function(instance, *args, **kwargs)
            reply = await _commit_between_awaits(coroutine, turn.method, instance.storage, self._pack)
        except _StorageLost as lost:
            reset = lost.error
        except asyncio.CancelledError:
            reset = ObjectReset(str(self.id), "the turn was cancelled")
        except (SystemExit, GeneratorExit) as error:
            reply = raised(str(self.id), failed(str(self.id), error))
        except Exception as error:  # whatever the author's method raises goes to the caller
            reset = instance.storage.what_it_means(error)
            reply = raised(str(self.id), error)
        self._task = self._turn = None
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


class _StorageLost(Exception):
    """Tells a failed commit of this object from an error that its method raised."""

    def __init__(self, error: DurableError) -> None:
        super().__init__(error)
        self.error = error


@types.coroutine
def _commit_between_awaits(
    coroutine: Coroutine[Any, Any, Any], method: MethodSpec, storage: Storage, pack: Callable[[Any], Reply]
) -> Generator[Any, Any, Reply]:
    """Drives an async method by hand, so that what it wrote is durable whenever it waits for the world outside.

    The step between two awaits runs in one transaction. It is committed before the awaited thing is handed to the event
    loop: nothing that the step asked for, a call to another object included, can leave before.
    """
    resume: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        reply: Reply | None = None
        awaited: Any = None
        try:
            _begin(storage)
            before = storage.rows_changed
            try:
                awaited = resume(value)
            except StopIteration as stop:
                reply = pack(stop.value)
            _require_unwritten(method, storage, before)
            if storage.in_transaction_block:
                raise RuntimeError("a storage.transaction() must not be held open across an await")
            _commit(storage)
        except BaseException:
            _abandon_step(coroutine, storage)
            raise
        if reply is not None:
            return reply
        try:
            value, resume = (yield awaited), coroutine.send
        except BaseException as error:  # a cancellation, too, is for the method to see
            value, resume = error, coroutine.throw


def _abandon_step(coroutine: Coroutine[Any, Any, Any], storage: Storage) -> None:
    """Undoes a step that failed or could not be committed, and what the method's `finally` writes on its way out."""
    with contextlib.suppress(DurableError):  # its host stopped, and closed the file: nothing can be written
        if not storage.in_transaction:
            storage.begin()
    try:
        coroutine.close()
    except Exception as error:  # the author's code again; the failure that led here is the one to report
        logger.warning("an async method failed while it was ended: %s", error)
    with contextlib.suppress(sqlite.Error):  # the next `begin` finds it still open, and resets the object
        storage.rollback()


def _require_unwritten(method: MethodSpec, storage: Storage, rows_changed_before: int) -> None:
    if method.repeat is Repeat.READ and (storage.rows_changed != rows_changed_before or storage.delete_requested):
        raise RuntimeError(f"{method.name} is declared @read and wrote")


def _begin(storage: Storage) -> None:
    try:
        storage.begin()
    except DurableError as error:
        raise _StorageLost(error) from error


def _commit(storage: Storage) -> None:
    try:
        storage.commit()
    except DurableError as error:
        raise _StorageLost(error) from error
