"""What makes an object durable. Classes import this surface and nothing behind it."""

from __future__ import annotations

from actors.runtime.alarm import AlarmInfo
from actors.runtime.errors import (
    CallCycle,
    ClassesRefused,
    DurableError,
    InvalidArgument,
    ObjectConflict,
    ObjectError,
    ObjectFailed,
    ObjectNotFound,
    ObjectOverloaded,
    ObjectQuarantined,
    ObjectReset,
    RequestReused,
    SchemaTooNew,
    SlotOwned,
    StatementRefused,
    StorageFull,
)
from actors.runtime.object import DurableObject, exactly_once, idempotent, interleaved, read

__all__ = [
    "AlarmInfo",
    "CallCycle",
    "ClassesRefused",
    "DurableError",
    "DurableObject",
    "InvalidArgument",
    "ObjectConflict",
    "ObjectError",
    "ObjectFailed",
    "ObjectNotFound",
    "ObjectOverloaded",
    "ObjectQuarantined",
    "ObjectReset",
    "RequestReused",
    "SchemaTooNew",
    "SlotOwned",
    "StatementRefused",
    "StorageFull",
    "exactly_once",
    "idempotent",
    "interleaved",
    "read",
]
