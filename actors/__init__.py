"""Durable objects for Ray: named, single-threaded objects, each with a SQLite database of its own."""

from __future__ import annotations

from actors.chat_session import ChatSession
from actors.directory import Directory
from actors.document_index import DocumentIndex
from actors.key_value import KeyValue
from actors.limit_news import LimitNews
from actors.runtime import (
    AlarmInfo,
    DurableError,
    DurableObject,
    InvalidArgument,
    ObjectConflict,
    ObjectNotFound,
    ObjectOverloaded,
    ObjectQuarantined,
    ObjectReset,
    exactly_once,
    idempotent,
    interleaved,
    read,
)
from actors.runtime.backend_local import LocalBackend
from actors.runtime.backend_ray import RayBackend, connect, start
from actors.runtime.namespace import Objects
from actors.runtime.object_id import ObjectId
from actors.runtime.operations import ManagedObjects, Operator
from actors.token_bucket import TokenBucket
from actors.token_usage import TokenUsage
from actors.turn_queue import TurnQueue

__all__ = [
    "AlarmInfo",
    "ChatSession",
    "Directory",
    "DocumentIndex",
    "DurableError",
    "DurableObject",
    "InvalidArgument",
    "KeyValue",
    "LimitNews",
    "LocalBackend",
    "ManagedObjects",
    "ObjectConflict",
    "ObjectId",
    "ObjectNotFound",
    "ObjectOverloaded",
    "ObjectQuarantined",
    "ObjectReset",
    "Objects",
    "Operator",
    "RayBackend",
    "TokenBucket",
    "TokenUsage",
    "TurnQueue",
    "connect",
    "exactly_once",
    "idempotent",
    "interleaved",
    "read",
    "start",
]
