"""What makes an object durable. Classes import this surface and nothing behind it."""

from __future__ import annotations

from actors.runtime.errors import (
    ClassesRefused,
    DurableError,
    InvalidArgument,
    ObjectConflict,
    ObjectError,
    ObjectFailed,
    ObjectNotFound,
    ObjectOverloaded,
    ObjectReset,
    RequestReused,
    SchemaTooNew,
    SlotOwned,
    StatementRefused,
    StorageFull,
)
from actors.runtime.object import DurableObject, exactly_once, idempotent, read

__all__ = [
    "ClassesRefused",
    "DurableError",
    "DurableObject",
    "InvalidArgument",
    "ObjectConflict",
    "ObjectError",
    "ObjectFailed",
    "ObjectNotFound",
    "ObjectOverloaded",
    "ObjectReset",
    "RequestReused",
    "SchemaTooNew",
    "SlotOwned",
    "StatementRefused",
    "StorageFull",
    "exactly_once",
    "idempotent",
    "read",
]
