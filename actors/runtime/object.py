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
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from sqlite_utils.migrations import Migrations

from actors.runtime.clock import Clock
from actors.runtime.object_id import CLASS_NAME, ObjectId
from actors.runtime.storage import Storage

Method = TypeVar("Method", bound=Callable[..., Any])


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


class DurableObject:
    """A named, single-threaded object with a SQLite database of its own.

    An instance lives from activation to hibernation, which may come after any turn: what is not in `storage` is lost
    then. After a turn that raised, the storage is as before it, and what the turn left in attributes is the author's.
    """

    #: Schema changes in order, applied on activation. Never edit one that was released; add another.
    migrations: ClassVar[Migrations | None] = None

    def __init__(self, context: ObjectContext) -> None:
        self.id = context.id
        self.storage = context.storage
        self.clock = context.clock
        self.logger = context.logger

    def start(self) -> None:
        """Runs on each activation, before the first turn. Must not write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodSpec:
    """One method that a stub may call."""

    name: str
    function: Callable[..., Any]
    is_async: bool
    repeat: Repeat


class ClassSpec:
    """A durable class as the runtime sees it: its name and the methods that stubs may call."""

    def __init__(self, durable_class: type[DurableObject]) -> None:
        if not CLASS_NAME.fullmatch(durable_class.__name__):
            raise TypeError(f"{durable_class.__name__} can't be the name of a durable class")
        self.durable_class = durable_class
        self.name = durable_class.__name__
        self.methods: MutableMapping[str, MethodSpec] = {}
        for name, function in inspect.getmembers(durable_class, inspect.isfunction):
            if name.startswith("_") or hasattr(DurableObject, name):
                continue
            if isinstance(inspect.getattr_static(durable_class, name), staticmethod):
                continue  # a helper: it takes no object
            self.methods[name] = MethodSpec(
                name=name,
                function=function,
                is_async=inspect.iscoroutinefunction(function),
                repeat=getattr(function, "__mobula_repeat__", Repeat.NEVER),
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
