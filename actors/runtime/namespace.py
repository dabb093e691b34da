"""How does a caller reach an object?

    sessions = objects.namespace(ChatSession)
    session = sessions.get("acme", "s1")            # touches nothing
    await session.append("user", "hello")           # rides with other calls to the same host
    ref = session.append.remote("user", "hello")    # a Ray ObjectRef, for callers who know Ray
    await session.append.once("m-17")("user", "hi") # done once however often it is called with this id

Objects call each other in the same way, from async methods. A call leaves when what the caller has written is durable,
and is refused where the object that is called waits for it: it would never return.

An error arrives as the class that was raised. Where the host was lost, or the object was reset before it replied, the
stub repeats what is declared safe to repeat, under one deadline and with one request id; anything else raises
`ObjectReset`, and the caller decides.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from actors.runtime.call import (
    Call,
    HostLost,
    HostRetired,
    Reply,
    Trail,
    checked_request_id,
    new_request_id,
    pack_arguments,
    unpack,
)
from actors.runtime.deadlines import Deadlines
from actors.runtime.errors import CallCycle, ObjectOverloaded, ObjectReset
from actors.runtime.lane import LaneFull
from actors.runtime.object import ClassSpec, DurableObject, MethodSpec, Repeat
from actors.runtime.object_id import ObjectId
from actors.runtime.turn import CALL_TIMEOUT_S, TurnContext, current_turn

Class = TypeVar("Class", bound=DurableObject)

#: A host restarts in one to two seconds; repeating goes on for longer than that, and not for ever.
REPEAT_FOR_S = 15.0
#: A living host says at once that it reset the object: a disk or a `start` that failed so often fails again.
RESETS_REPEATED_MAX = 3
_PAUSE_FIRST_S = 0.02
_PAUSE_MAX_S = 0.5


class Backend(Protocol):
    """Where hosts live: in this process, or in Ray actors."""

    async def send(self, object_id: ObjectId, call: Call) -> Reply:
        """
        Raises:
            HostLost: the call may or may not have run.
            HostRetired: the call has not run.
        """

    def send_ref(self, object_id: ObjectId, call: Call) -> Any:
        """Sends one call by itself; returns a Ray `ObjectRef` to its result."""


class Objects(Protocol):
    """All objects of a data directory, wherever they live: what a program that uses objects needs to be given."""

    def namespace(self, durable_class: type[Class]) -> Namespace[Class]:
        """All objects of one class."""

    async def ready(self) -> None:
        """Returns when objects of every slot can run; raises what keeps them from it."""


class StubMethod:
    """One method of one object."""

    __slots__ = ("_backend", "_deadlines", "_id", "_method", "_request_id", "_timeout_s")

    def __init__(
        self,
        backend: Backend,
        deadlines: Deadlines,
        object_id: ObjectId,
        method: MethodSpec,
        timeout_s: float,
        request_id: str = "",
    ) -> None:
        self._backend = backend
        self._deadlines = deadlines
        self._id = object_id
        self._method = method
        self._timeout_s = timeout_s
        self._request_id = request_id

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        turn = current_turn.get()
        if turn is None or (turn.ended and not turn.lost):
            return await self._repeat(self._call(args, kwargs), self._timeout_s, ())
        return await self._call_within(turn, self._call(args, kwargs))

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Calls once, and returns Ray's `ObjectRef` to the result. Nothing is repeated."""
        turn = current_turn.get()
        if turn is not None and (turn.lost or not turn.ended):
            raise TypeError(f"{self._id}: await the method; .remote would leave before what the turn wrote is durable")
        return self._backend.send_ref(self._id, self._call(args, kwargs))

    def once(self, request_id: str) -> StubMethod:
        """The same method for a request that the caller may repeat, in another process and after a restart too.

        The object runs it once, and answers every later call with this id and the same arguments as it did the first,
        for a day at least. An id is good for one call of the object, whichever its method. One that failed may be
        called again.

        Raises:
            InvalidArgument: the id is empty or too long, or holds other than visible ASCII characters.
            TypeError: the method is not declared @exactly_once.
        """
        if self._method.repeat is not Repeat.EXACTLY_ONCE:
            raise TypeError(f"{self._id.class_name}.{self._method.name} is not declared @exactly_once")
        request_id = checked_request_id(request_id)
        return StubMethod(self._backend, self._deadlines, self._id, self._method, self._timeout_s, request_id)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        once = self._method.repeat is Repeat.EXACTLY_ONCE
        request_id = self._request_id or (new_request_id() if once else "")
        object_id = self._id
        arguments = pack_arguments(args, kwargs)
        return object_id.class_name, object_id.tenant, object_id.name, self._method.name, arguments, request_id, None

    async def _call_within(self, turn: TurnContext, call: Call) -> Any:
        """Calls from within a turn of another object."""
        key = str(self._id)
        if not turn.may_await:
            raise TypeError(f"{key} was called from a plain method; only async methods call other objects")
        if key in turn.chain and not self._method.interleaved:
            raise CallCycle(key, turn.chain)
        await turn.output.opened()
        if turn.lost:  # whether or not it has ended
            raise ObjectReset(key, "it was not called: what its caller had written was not kept")
        if (left_s := turn.left_s) <= 0:
            raise ObjectReset(key, "it was not called: the deadline of the call that led here has passed")
        return await self._repeat(call, min(self._timeout_s, left_s), turn.chain)

    async def _repeat(self, call: Call, timeout_s: float, chain: tuple[str, ...]) -> Any:
        loop = asyncio.get_running_loop()
        # Repeated under a deadline for all tries together, and not for long.
        deadline_s = loop.time() + timeout_s
        give_up_s = min(deadline_s, loop.time() + REPEAT_FOR_S)
        pause_s = _PAUSE_FIRST_S
        key, repeatable = str(self._id), self._method.repeat is not Repeat.NEVER
        resets = 0
        while True:
            left_s = deadline_s - loop.time()
            if chain or timeout_s != CALL_TIMEOUT_S:
                trail: Trail = (left_s, chain)
                call = (*call[:6], trail)
            try:
                with self._deadlines.until(deadline_s):
                    reply = await self._backend.send(self._id, call)
            except HostRetired as retired:
                error, safe = ObjectReset(key, str(retired) or "its host is ending"), True
            except HostLost as lost:
                error, safe = ObjectReset(key, lost.reason), repeatable
            except TimeoutError:
                raise ObjectReset(key, f"no reply within {timeout_s:g} s") from None
            except LaneFull:
                raise ObjectOverloaded(key, "too many calls wait for its host", 1.0) from None
            else:
                try:
                    return unpack(reply)
                except ObjectReset as reset:
                    # That of another object is an error of the method like any other: who called it has repeated it.
                    if reset.object_key != key or not repeatable:
                        raise
                    resets += 1
                    error, safe = reset, resets <= RESETS_REPEATED_MAX
                    pause_s = max(pause_s, reset.retry_after_s or 0.0)
            if not safe or loop.time() + pause_s >= give_up_s:
                raise error
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)


class Stub(Generic[Class]):
    """An object's address. Its attributes are the object's methods, each to be awaited or sent with `.remote(...)`."""

    __slots__ = ("_backend", "_deadlines", "_methods", "_timeout_s", "id")

    def __init__(
        self,
        backend: Backend,
        deadlines: Deadlines,
        object_id: ObjectId,
        methods: Callable[[str], MethodSpec | None],
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self._backend = backend
        self._deadlines = deadlines
        self._methods = methods
        self._timeout_s = timeout_s
        self.id = object_id

    def __getattr__(self, name: str) -> StubMethod:
        method = self._methods(name)
        if method is None:
            raise AttributeError(f"{self.id.class_name} has no method {name!r} that can be called from outside")
        return StubMethod(self._backend, self._deadlines, self.id, method, self._timeout_s)

    def __repr__(self) -> str:
        return f"<Stub {self.id}>"


class Namespace(Generic[Class]):
    """All objects of one class."""

    def __init__(self, backend: Backend, spec: ClassSpec) -> None:
        self._backend = backend
        self._spec = spec
        self._deadlines = Deadlines()

    def get(self, tenant: str, name: str, *, timeout_s: float = CALL_TIMEOUT_S) -> Stub[Class]:
        """The object of that name, whether or not it was ever used.

        Args:
            tenant: whose object it is.
            name: which of theirs.
            timeout_s: a call that has no reply by then is given up with `ObjectReset`, whatever became of it. What the
                object calls on the way has no more time than that either.

        Raises:
            InvalidArgument: the names are empty or too long.
        """
        object_id = ObjectId(self._spec.name, tenant, name)
        return Stub(self._backend, self._deadlines, object_id, self._spec.methods.get, timeout_s)
