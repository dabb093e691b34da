"""What does an author of a durable class write?

A class extending `DurableObject`, with ordinary methods. The runtime runs one of them at a time per object, each as one
transaction, and lets no reply out before its writes are durable. An author sees `id`, `storage`, `clock` and `logger`,
and nothing of hosts, slots or Ray.

    class Counter(DurableObject):
        migrations = Migrations("counter")

        @exactly_once
        def add(self, amount: int) -> int:
            self.storage.sql("UPDATE counter SET value = value + ?", amount)
            return self.value()

        @read
        def value(self) -> int:
            ((value,),) = self.storage.sql("SELECT value FROM counter")
            return int(value)
"""

from __future__ import annotations

import enum
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sqlite_utils.migrations import Migrations

from actors.runtime.alarm import AlarmInfo
from actors.runtime.clock import Clock
from actors.runtime.object_id import CLASS_NAME, ObjectId
from actors.runtime.storage import Storage

if TYPE_CHECKING:
    from actors.runtime.namespace import Objects

Method = TypeVar("Method", bound=Callable[..., Any])
Result = TypeVar("Result")


class Repeat(enum.Enum):
    """May a call be sent again when its host was lost before it replied?"""

    #: No: the caller gets `ObjectReset` and decides.
    NEVER = "never"
    #: Yes: running it twice does no more than running it once.
    IDEMPOTENT = "idempotent"
    #: Yes, and it must not write: a turn that does is rolled back and fails.
    READ = "read"
    #: Yes: the request id and the result are stored with the write, so a repeat answers what the first did.
    EXACTLY_ONCE = "exactly_once"


def read(method: Method) -> Method:
    """Declares that the method writes nothing. After a lost host the stub asks again."""
    return _mark(method, Repeat.READ)


def idempotent(method: Method) -> Method:
    """Declares that running the method twice does no more than once. After a lost host the stub calls again."""
    return _mark(method, Repeat.IDEMPOTENT)


def exactly_once(method: Method) -> Method:
    """Records request id and result in the turn's own transaction. After a lost host the stub repeats the same request.

    Only for plain `def` methods: an async one commits between awaits, and would be recorded too early or too late.
    """
    if inspect.iscoroutinefunction(method):
        raise TypeError(f"{method.__qualname__}: @exactly_once needs a plain def method")
    return _mark(method, Repeat.EXACTLY_ONCE)


def interleaved(method: Method) -> Method:
    """Lets turns of the method run while others of the object wait at an `await`, and others run while they wait.

    What runs between two awaits is still one transaction that nothing comes between. For what must not queue behind a
    long turn, such as asking how far it is, or having it stop.
    """
    vars(method)["__mobula_interleaved__"] = True
    return method


def _mark(method: Method, repeat: Repeat) -> Method:
    vars(method)["__mobula_repeat__"] = repeat
    return method


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectContext:
    """What the host hands to an object on activation."""

    id: ObjectId
    storage: Storage
    clock: Clock
    logger: logging.LoggerAdapter[logging.Logger]
    #: Gives all objects, this one's own class included.
    objects: Callable[[], Objects]
    #: Runs something as the only thing of the object.
    run_alone: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Awaitable[Any]]


class DurableObject:
    """A named, single-threaded object with a SQLite database of its own.

    An instance lives from activation to hibernation, which may come after any turn: what is not in `storage` is lost
    then. After a turn that raised, the storage is as before it, and what the turn left in attributes is the author's.
    """

    #: Schema changes in order, applied on activation. Never edit one that was released; add another.
    migrations: ClassVar[Migrations | None] = None

    def __init__(self, context: ObjectContext) -> None:
        self.__context = context

    @property
    def id(self) -> ObjectId:
        """The object's own name."""
        return self.__context.id

    @property
    def storage(self) -> Storage:
        """What is kept."""
        return self.__context.storage

    @property
    def clock(self) -> Clock:
        """What time it is; in a test, the test's."""
        return self.__context.clock

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """The log, with the object's name on each line."""
        return self.__context.logger

    @property
    def objects(self) -> Objects:
        """The other objects, to be called from async methods. A call leaves when what the turn wrote is durable."""
        return self.__context.objects()

    def start(self) -> Any:
        """Runs on each activation, before the first turn. May be async; then it runs as `block_concurrency_while` does.

        What it writes is kept, or it fails and the object is not activated.
        """

    def alarm(self, info: AlarmInfo) -> Any:
        """Called for what `storage.set_alarm` has set, at least once. May be async.

        If it raises it is called again after 2 s, 4 s, ... and given up after 6 times.
        """
        raise NotImplementedError

    def block_concurrency_while(self, callback: Callable[[], Coroutine[Any, Any, Result]]) -> Awaitable[Result]:
        """Runs `callback` while no other turn of the object starts or goes on, `@interleaved` ones included.

        If it raises, or takes longer than 30 s, the object is reset. In `__init__` and `start` it begins when they have
        returned and need not be awaited; elsewhere it must be.
        """
        return self.__context.run_alone(callback)


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodSpec:
    """One method that a stub may call."""

    name: str
    function: Callable[..., Any]
    is_async: bool
    repeat: Repeat
    interleaved: bool = False
    #: The name, as `Watch` notes it.
    mark: bytes = b""


#: What a class can't have of its own: the runtime uses it, and stubs have some of the names as well.
_GIVEN = ("id", "storage", "clock", "logger", "objects", "block_concurrency_while")


class ClassSpec:
    """A durable class as the runtime sees it: its name and the methods that stubs may call.

    Raises:
        TypeError: no object could be made of it.
    """

    def __init__(self, durable_class: type[DurableObject]) -> None:
        if not CLASS_NAME.fullmatch(durable_class.__name__):
            raise TypeError(f"{durable_class.__name__} can't be the name of a durable class")
        for name in _GIVEN:
            if inspect.getattr_static(durable_class, name) is not inspect.getattr_static(DurableObject, name):
                raise TypeError(f"{durable_class.__name__}.{name} takes the place of what every object is given")
        self.durable_class = durable_class
        self.name = durable_class.__name__
        self.methods: MutableMapping[str, MethodSpec] = {}
        for name, function in inspect.getmembers(durable_class, inspect.isfunction):
            if name.startswith("_") or hasattr(DurableObject, name):
                continue
            if isinstance(inspect.getattr_static(durable_class, name), staticmethod):
                continue  # a helper: it takes no object
            self.methods[name] = _spec(name, function)
        #: Not for stubs.
        self.alarm = _spec("alarm", durable_class.alarm)
        self.takes_alarms = durable_class.alarm is not DurableObject.alarm
        self.starts_async = inspect.iscoroutinefunction(durable_class.start)


def _spec(name: str, function: Callable[..., Any]) -> MethodSpec:
    return MethodSpec(
        name=name,
        function=function,
        is_async=inspect.iscoroutinefunction(function),
        repeat=getattr(function, "__mobula_repeat__", Repeat.NEVER),
        interleaved=getattr(function, "__mobula_interleaved__", False),
        mark=name.encode(),
    )


def by_name(specs: Iterable[ClassSpec]) -> dict[str, ClassSpec]:
    """
    Raises:
        ValueError: two classes have one name, and so would share their objects' files.
    """
    named: dict[str, ClassSpec] = {}
    for spec in specs:
        if spec.name in named:
            raise ValueError(f"two durable classes are named {spec.name}")
        named[spec.name] = spec
    return named
