"""How does an async method commit what it writes?

It is driven by hand, so that what it wrote is durable whenever it waits for the world outside. The step between two
awaits runs in one transaction. It is committed before the awaited thing is handed to the event loop: nothing that the
step asked for, a call to another object included, can leave before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from actors.runtime import sqlite
from actors.runtime.errors import DurableError
from actors.runtime.gates import Gate
from actors.runtime.object import MethodSpec, Repeat
from actors.runtime.storage import Storage

logger = logging.getLogger("mobula.objects")

Result = TypeVar("Result")


class StorageLost(Exception):
    """Tells a failed commit of the object from an error that its method raised."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@types.coroutine
def run_in_steps(
    coroutine: Coroutine[Any, Any, Any],
    *,
    method: MethodSpec,
    storage: Storage,
    commit: Callable[[Storage], None],
    enter: Callable[[], None],
    leave: Callable[[], None],
    finish: Callable[[Any], Result],
    gate: Gate | None,
    is_over: Callable[[], bool],
) -> Generator[Any, Any, Result]:
    """
    Args:
        coroutine: an async method under way.
        method: what it is of.
        storage: of its object.
        commit: makes a step durable.
        enter: told before the method's own code runs; `leave` after it.
        finish: makes the result of what the method returns, within the last step.
        gate: no step starts while it is shut.
        is_over: whether its time is up. Then a cancellation ends it, also where the method would go on after it.

    Raises:
        StorageLost: a step could not be committed.
    """
    resume: Callable[[Any], Any] = coroutine.send
    value: Any = None
    thrown = False
    while True:
        returned = False
        awaited: Any = None
        result: Any = None
        try:
            _begin(storage)
            before = storage.rows_changed
            enter()
            try:
                awaited = resume(value)
            except StopIteration as end:
                returned, result = True, end.value
            finally:
                leave()
            if thrown and isinstance(value, asyncio.CancelledError) and is_over():
                raise value
            if returned:
                result = finish(result)
            require_unwritten(method, storage, before)
            if storage.in_transaction_block:
                raise RuntimeError("a storage.transaction() must not be held open across an await")
            _commit(storage, commit)
        except BaseException:
            _abandon(coroutine, storage)
            raise
        if returned:
            done: Result = result
            return done
        try:
            value, resume, thrown = (yield awaited), coroutine.send, False
        except BaseException as error:  # a cancellation, too, is for the method to see
            value, resume, thrown = error, coroutine.throw, True
        try:
            while gate is not None and not gate.is_open:
                yield from gate.opened().__await__()
        except BaseException as error:
            value, resume, thrown = error, coroutine.throw, True


def _abandon(coroutine: Coroutine[Any, Any, Any], storage: Storage) -> None:
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


def require_unwritten(method: MethodSpec, storage: Storage, rows_changed_before: int) -> None:
    if method.repeat is Repeat.READ and (storage.rows_changed != rows_changed_before or storage.delete_requested):
        raise RuntimeError(f"{method.name} is declared @read and wrote")


def _begin(storage: Storage) -> None:
    try:
        storage.begin()
    except DurableError as error:
        raise StorageLost(error) from error


def _commit(storage: Storage, commit: Callable[[Storage], None]) -> None:
    try:
        commit(storage)
    except DurableError as error:
        raise StorageLost(error) from error
