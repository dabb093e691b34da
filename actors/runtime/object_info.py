"""What is told of an object to those who look after it?"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from actors.runtime.object_id import ObjectId


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectInfo:
    """One object as it was when it was looked at. Times are seconds since 1970."""

    id: ObjectId
    #: Of its database with its log.
    size_bytes: int
    #: Its last turn. Of one that sleeps: when its file was last written, which is up to `idle_after_s` later.
    last_active_at: float | None
    #: When its alarm is due.
    alarm_at: float | None
    #: The last of its class's migrations that its file has, and how many it has; None: nobody could look.
    schema_version: str | None
    migrations: int | None
    #: It is open, here or in an actor of its own.
    resident: bool
    quarantined: bool
    calls_waiting: int = 0
    #: What keeps it from running, if it is quarantined; else why its file could not be looked into.
    problem: str | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it. Half of a surrogate pair in a name is escaped: not all that reads JSON reads it."""
        return {
            "class": self.id.class_name,
            "tenant": _in_utf8(self.id.tenant),
            "name": _in_utf8(self.id.name),
            **{field.name: getattr(self, field.name) for field in fields(self) if field.name != "id"},
        }


def _in_utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectPage:
    """Objects in the order of class, tenant and name. `next` is the cursor of the page after; None: there is none."""

    objects: tuple[ObjectInfo, ...]
    next: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MigrationProgress:
    """How far a sweep of schema migrations has come."""

    #: Objects there are, and those looked at so far.
    total: int
    seen: int = 0
    #: Brought up to date by the sweep; the others were, or failed.
    migrated: int = 0
    #: With the reason, and at most `FAILURES_KEPT` of them.
    failed: tuple[tuple[ObjectId, str], ...] = ()
    failures: int = 0


#: Failures that a sweep tells one by one.
FAILURES_KEPT = 100
