"""What travels between a stub and a host?

A call and its reply, as plain tuples: hundreds of them ride in one batch, and a tuple of strings and bytes costs a
microsecond to carry where an instance costs several. Arguments and results are pickled one by one, by the two ends, so
that one that can't be pickled spoils its own call only, and so that objects share no memory with their callers, in
process as over Ray.
"""

from __future__ import annotations

import pickle
import re
import secrets
from typing import Any, TypeAlias

from actors.runtime.errors import DurableError, InvalidArgument, ObjectFailed

#: Of a call that an object makes: how many seconds its caller goes on waiting, and the objects that wait for it.
Trail: TypeAlias = tuple[float, tuple[str, ...]]
#: class name, tenant, name, method, pickled (args, kwargs), request id or "", trail or None
Call: TypeAlias = tuple[str, str, str, str, bytes, str, Trail | None]
#: status, then: pickled result | pickled error | ticket to wait with
Reply: TypeAlias = tuple[int, Any]

#: An object keeps it for a day with each request.
REQUEST_ID_CHARS_MAX = 128
_REQUEST_ID = re.compile(rf"[!-~]{{1,{REQUEST_ID_CHARS_MAX}}}")

RETURNED = 0
RAISED = 1
PENDING = 2


def pack_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """
    Raises:
        InvalidArgument: they are nested too deep to be packed. What JSON may hold can be.
    """
    try:
        return pickle.dumps((args, kwargs), protocol=pickle.HIGHEST_PROTOCOL)
    except RecursionError:
        raise InvalidArgument("arguments", "...", "are nested too deep") from None


def unpack_arguments(packed: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = pickle.loads(packed)  # noqa: S301  written by a stub of this cluster, never by a client
    return args, kwargs


def returned(value: Any) -> Reply:
    return RETURNED, pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


def raised(object_key: str, error: Exception) -> Reply:
    """Packs an error so that it surely arrives: one that would not survive the journey goes as `ObjectFailed`."""
    try:
        packed = pickle.dumps(error, protocol=pickle.HIGHEST_PROTOCOL)
        pickle.loads(packed)  # noqa: S301  what was packed on the line above
    except Exception:  # pickling runs the error's own code, which may raise anything
        packed = pickle.dumps(failed(object_key, error))
    return RAISED, packed


def failed(object_key: str, error: BaseException) -> ObjectFailed:
    """What to tell of an error that can't travel itself."""
    try:
        message = str(error)
    except Exception:  # the error's own code, as above
        message = "an error that can't be shown"
    return ObjectFailed(object_key, type(error).__name__, message)


def unpack(reply: Reply) -> Any:
    """The result of a call, or its error, raised."""
    status, packed = reply
    value = pickle.loads(packed)  # noqa: S301  written by a host of this cluster
    if status == RAISED:
        raise value
    return value


def new_request_id() -> str:
    return secrets.token_hex(16)


def checked_request_id(request_id: str) -> str:
    """
    Raises:
        InvalidArgument: it is none that a caller may choose.
    """
    if not _REQUEST_ID.fullmatch(request_id):
        problem = f"must have 1 to {REQUEST_ID_CHARS_MAX} visible ASCII characters"
        raise InvalidArgument("request_id", request_id, problem)
    return request_id


class HostLost(DurableError):
    """The host went away before it replied. The call may or may not have run."""

    retryable = True

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(host, reason)
        self.host = host
        self.reason = reason


class HostRetired(DurableError):
    """The host is ending and ran nothing of what it was sent. Always safe to send elsewhere."""

    retryable = True
    retry_after_s = 0.05


class NotOwner(HostRetired):
    """The host does not own the object: it, or the caller, belongs to another deployment. It ran nothing."""

    def __init__(self, host: str, object_key: str) -> None:
        super().__init__(host, object_key)
        self.host = host
        self.object_key = object_key

    def __str__(self) -> str:
        return f"{self.host} does not own it"
