"""What makes an object durable. Classes import this surface and nothing behind it."""

from __future__ import annotations

from actors.runtime.alarm import AlarmInfo
from actors.runtime.clock import Clock
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
from actors.runtime.fingerprint import fingerprint
from actors.runtime.object import DurableObject, exactly_once, idempotent, interleaved, read
from actors.runtime.object_id import ObjectId
from actors.runtime.storage import Storage

__all__ = [
    "AlarmInfo",
    "CallCycle",
    "ClassesRefused",
    "Clock",
    "DurableError",
    "DurableObject",
    "InvalidArgument",
    "ObjectConflict",
    "ObjectError",
    "ObjectFailed",
    "ObjectId",
    "ObjectNotFound",
    "ObjectOverloaded",
    "ObjectQuarantined",
    "ObjectReset",
    "RequestReused",
    "SchemaTooNew",
    "SlotOwned",
    "StatementRefused",
    "Storage",
    "StorageFull",
    "exactly_once",
    "fingerprint",
    "idempotent",
    "interleaved",
    "read",
]
