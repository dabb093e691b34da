"""How is code of a durable class run?

`AuthorCode` calls the methods of one object's class: marked, watched, and with whatever it raises turned into what a
caller may be told. What a turn may begin, and when its writes are durable, is not its question.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any

from actors.runtime.call import Reply, failed, returned, unpack_arguments
from actors.runtime.fingerprint import fingerprint
from actors.runtime.gates import Gate
from actors.runtime.object import DurableObject, MethodSpec, Repeat
from actors.runtime.object_id import ObjectId
from actors.runtime.once import answer_once
from actors.runtime.running import ACTIVATION
from actors.runtime.services import HostServices
from actors.runtime.steps import require_unwritten, run_in_steps
from actors.runtime.storage import Storage
from actors.runtime.turn import Turn

_ACTIVATION = ACTIVATION.encode()


class AuthorCode:
    """The code of one object's class."""

    __slots__ = ("_id", "_key", "_mark", "_services")

    def __init__(self, object_id: ObjectId, services: HostServices) -> None:
        self._id = object_id
        self._key = str(object_id)
        self._mark = f"{object_id.class_name}\0{object_id.stem}\0".encode()
        self._services = services

    def activate(self, open_object: Callable[[], DurableObject]) -> DurableObject:
        """Makes the instance."""
        watch = self._services.watch
        watch.enter(self._mark + _ACTIVATION)
        try:
            return open_object()
        finally:
            watch.leave(self._id, ACTIVATION)

    def call(self, instance: DurableObject, turn: Turn) -> Reply:
        """Runs a plain method. A request that was answered before is answered by that."""
        method = turn.method
        storage = instance.storage
        args, kwargs = unpack_arguments(turn.arguments)
        if method.repeat is Repeat.EXACTLY_ONCE and turn.request_id:
            request = fingerprint(method.name, args, kwargs)
            now = instance.clock.now()
            invoke = functools.partial(self._invoke, instance, method, args, kwargs)
            return answer_once(self._key, storage, turn.request_id, request, now, invoke)
        before = storage.rows_changed
        reply = self._invoke(instance, method, args, kwargs)
        require_unwritten(method, storage, before)
        return reply

    def _invoke(
        self, instance: DurableObject, method: MethodSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Reply:
        watch = self._services.watch
        watch.enter(self._mark + method.mark)
        try:
            value = method.function(instance, *args, **kwargs)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:  # such as `SystemExit`: it ends the turn, not the host with all its objects
            raise failed(self._key, error) from error
        finally:
            watch.leave(self._id, method.name)
            self.survived(method)
        return self.pack(value)

    async def in_steps(
        self,
        instance: DurableObject,
        method: MethodSpec,
        coroutine: Coroutine[Any, Any, Any],
        finish: Callable[[Any], Any],
        commit: Callable[[Storage], None],
        *,
        gate: Gate | None,
        is_over: Callable[[], bool] = lambda: False,
    ) -> Any:
        """Runs an async method, as `run_in_steps` does it."""
        watch, mark = self._services.watch, self._mark + method.mark
        return await run_in_steps(
            coroutine,
            method=method,
            storage=instance.storage,
            commit=commit,
            enter=lambda: watch.enter(mark),
            leave=lambda: watch.leave(self._id, method.name),
            finish=finish,
            gate=gate,
            is_over=is_over,
        )

    def survived(self, method: MethodSpec) -> None:
        """The method has ended, and its host lives."""
        quarantine = self._services.quarantine
        if quarantine.is_suspect(self._id):
            quarantine.succeeded(self._id, method.name)

    def pack(self, value: Any) -> Reply:
        """The reply with what a method returned."""
        try:
            return returned(value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # pickling runs the value's own code, which may raise anything
            raise failed(self._key, error) from error
