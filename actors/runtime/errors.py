"""What can go wrong with a durable object, and what should the caller do about it?

Every error answers two questions by itself, `retryable` and `retry_after_s`; nothing else about retrying is decided
anywhere else. Errors cross process boundaries by pickle, so each passes all of its constructor arguments to
`Exception`: one that loses them would fail at the caller instead of arriving there.

    DurableError
    ├ InvalidArgument(field, value, problem)        the caller's input; never retried
    ├ SlotOwned(slot, owner)                        another host owns what was asked for
    ├ ClassesRefused(file, tag, class_name, ...)    the history of classes does not fit the code or the data
    └ ObjectError(object_key, ...)
       ├ ObjectNotFound                             never created, deleted or expired
       ├ ObjectConflict(reason)                     the object is not as what was asked needs it to be
       ├ ObjectOverloaded(reason, retry_after_s)    retryable
       ├ ObjectReset(reason)                        retryable: the instance was lost before it replied
       ├ ObjectFailed(error, message)               the class raised something that could not travel
       ├ CallCycle(chain)                           the object waits for the caller, and would wait for ever
       ├ ObjectQuarantined(reason, since)           it failed again and again, and is not loaded until it is released
       ├ RequestReused                              a request id came back with other arguments
       ├ SchemaTooNew(found, known)                 the file was written by newer code
       ├ StatementRefused(action, why)              the author's SQL did what is the runtime's
       └ StorageFull(operation)                     retryable once there is space
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


class DurableError(Exception):
    """Root of every error that the runtime and the object classes raise on purpose."""

    retryable: bool = False
    retry_after_s: float | None = None


class InvalidArgument(DurableError, ValueError):
    """An argument that can never be accepted. `value` is kept short and printable, since it is shown to people.

    `code` is one word for what is wrong, where programs know it by one.
    """

    def __init__(self, field: str, value: Any, problem: str, code: str | None = None) -> None:
        shown = ascii(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(field, shown, problem, code)
        self.field = field
        self.value = shown
        self.problem = problem
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return _invalid_argument, (self.field, self.value, self.problem, self.code)

    def __str__(self) -> str:
        return f"{self.field}: {self.problem} (got {self.value})"


def _invalid_argument(field: str, value: str, problem: str, code: str | None) -> InvalidArgument:
    # The value was made printable once; doing it again on each hop would quote the quotes.
    error = InvalidArgument(field, "", problem, code)
    error.value = value
    return error


class SlotOwned(DurableError):
    """Another live process holds the lock: of a slot, or of a dedicated object's file."""

    retryable = True
    retry_after_s = 1.0

    def __init__(self, slot: str, owner: str) -> None:
        super().__init__(slot, owner)
        self.slot = slot
        self.owner = owner

    def __str__(self) -> str:
        return f"slot {self.slot} is owned by {self.owner or 'another process'}"


class ClassesRefused(DurableError):
    """The history of classes does not fit the code or the data. Nothing was changed; `file` is where to look.

    `tag` and `class_name` are "" where the problem is not about one.
    """

    def __init__(self, file: str, tag: str, class_name: str, problem: str) -> None:
        super().__init__(file, tag, class_name, problem)
        self.file = file
        self.tag = tag
        self.class_name = class_name
        self.problem = problem

    def __str__(self) -> str:
        tag = f"tag {self.tag!r}: " if self.tag else ""
        return f"{self.file}: {tag}{self.class_name}{': ' if self.class_name else ''}{self.problem}"


class ObjectError(DurableError):
    """Something about one object. `object_key` is `Class/tenant:name`, encoded."""

    def __init__(self, object_key: str, *args: Any) -> None:
        super().__init__(object_key, *args)
        self.object_key = object_key


class ObjectNotFound(ObjectError):
    """The object was never created, or is deleted or expired."""

    def __str__(self) -> str:
        return f"{self.object_key} does not exist"


class ObjectConflict(ObjectError):
    """The object is not as what was asked for needs it to be; whoever asked decides what to do about it."""

    def __init__(self, object_key: str, reason: str) -> None:
        super().__init__(object_key, reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.object_key}: {self.reason}"


class ObjectOverloaded(ObjectError):
    """A limit of the object, of its host or of its node is reached. The call was not run."""

    retryable = True

    def __init__(self, object_key: str, reason: str, retry_after_s: float) -> None:
        super().__init__(object_key, reason, retry_after_s)
        self.reason = reason
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.object_key} is overloaded: {self.reason}; retry after {self.retry_after_s:g} s"


class ObjectReset(ObjectError):
    """The instance was lost before it replied. The call may or may not have run; the object itself goes on."""

    retryable = True
    retry_after_s = 0.1

    def __init__(self, object_key: str, reason: str) -> None:
        super().__init__(object_key, reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.object_key} was reset: {self.reason}"


class ObjectFailed(ObjectError):
    """The method raised an error, or returned a value, that can't be pickled. What the turn wrote was rolled back."""

    def __init__(self, object_key: str, error: str, message: str) -> None:
        super().__init__(object_key, error, message)
        self.error = error
        self.message = message

    def __str__(self) -> str:
        return f"{self.object_key} raised {self.error}: {self.message}"


class CallCycle(ObjectError):
    """A call to an object that waits for the one that calls. The call was not made."""

    def __init__(self, object_key: str, chain: tuple[str, ...]) -> None:
        super().__init__(object_key, chain)
        self.chain = chain

    def __str__(self) -> str:
        return f"{self.object_key} waits for this call, by way of {' > '.join(self.chain)}: it would wait for ever"


class ObjectQuarantined(ObjectError):
    """The object ended its host, or failed to activate, time after time. The call was not run, and none will be until
    somebody releases the object or other code is deployed. `since` is in seconds since 1970.
    """

    def __init__(self, object_key: str, reason: str, since: float) -> None:
        super().__init__(object_key, reason, since)
        self.reason = reason
        self.since = since

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).isoformat(sep=" ", timespec="seconds")
        return f"{self.object_key} is quarantined since {since}: {self.reason}"


class RequestReused(ObjectError):
    """A request id was used before with another method or other arguments."""

    def __init__(self, object_key: str, request_id: str) -> None:
        super().__init__(object_key, request_id)
        self.request_id = request_id

    def __str__(self) -> str:
        return f"request id {self.request_id} of {self.object_key} was used with other arguments"


class SchemaTooNew(ObjectError):
    """The database holds migrations that this code does not know. Run the newer code; nothing was changed."""

    def __init__(self, object_key: str, found: str, known: str) -> None:
        super().__init__(object_key, found, known)
        self.found = found
        self.known = known

    def __str__(self) -> str:
        newest = f"it has migration {self.found!r}, and this code ends at {self.known!r}"
        return f"{self.object_key} was written by newer code: {newest}"


class StatementRefused(ObjectError):
    """The author's SQL would have done what is the runtime's to do. Nothing of the statement was run."""

    def __init__(self, object_key: str, action: str, why: str) -> None:
        super().__init__(object_key, action, why)
        self.action = action
        self.why = why

    def __str__(self) -> str:
        return f"{self.object_key} may not {self.action}: {self.why}"


class StorageFull(ObjectError):
    """The disk, or the object's allowance on it, is full. What the turn wrote was rolled back."""

    retryable = True
    retry_after_s = 5.0

    def __init__(self, object_key: str, operation: str) -> None:
        super().__init__(object_key, operation)
        self.operation = operation

    def __str__(self) -> str:
        return (
            f"no space left for {self.object_key} ({self.operation}), on disk or in its allowance; free some and retry"
        )
