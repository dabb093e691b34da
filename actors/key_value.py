"""What did a tenant put under a key?

Values are anything that JSON can hold. A value put with a time to live is gone when it has passed.
"""

from __future__ import annotations

import json
import math
from typing import Any

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations
from typing_extensions import TypedDict

from actors.runtime import DurableObject, InvalidArgument, exactly_once, idempotent, read

#: The name of the object that holds what a tenant stores by the API; the search cache and others are beside it.
STORE_NAME = "store"
KEY_CHARS_MAX = 512
VALUE_BYTES_MAX = 1024 * 1024
LIST_MAX = 1000
#: Expired values are removed a few with each put, so that none pays for all.
_EXPIRED_REMOVED_PER_PUT = 8
_LAST_CHAR = "\U0010ffff"

migrations = Migrations("key_value")


@migrations()
def create_tables(database: Database) -> None:
    database.execute(
        "CREATE TABLE item (key TEXT PRIMARY KEY, value TEXT NOT NULL, updated_at REAL NOT NULL, expires_at REAL)"
        " WITHOUT ROWID"
    )
    database.execute("CREATE INDEX item_expires_at ON item (expires_at) WHERE expires_at IS NOT NULL")
    database.execute("CREATE INDEX item_updated_at ON item (updated_at)")


class Item(TypedDict):
    """One value. Times are seconds since 1970."""

    key: str
    value: Any
    updated_at: float
    expires_at: float | None


class KeyValue(DurableObject):
    migrations = migrations

    @read
    def get(self, key: str) -> Item | None:
        rows = self.storage.sql(
            "SELECT key, value, updated_at, expires_at FROM item WHERE key = ? AND ifnull(expires_at, ?) > ?",
            key,
            *self._alive(),
        )
        return _item(rows[0]) if rows else None

    @idempotent
    def put(self, key: str, value: Any, *, ttl_s: float | None = None, keep_newest: int | None = None) -> Item:
        """Stores a value in place of what was there.

        Args:
            keep_newest: how many keys the object keeps at most; those put longest ago leave. For caches.

        Raises:
            InvalidArgument: the key or the value is too long, the value is not JSON, or the time to live is no time.
        """
        if not 0 < len(key) <= KEY_CHARS_MAX:
            raise InvalidArgument("key", key, f"must have 1 to {KEY_CHARS_MAX} characters")
        try:
            encoded = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise InvalidArgument("value", type(value).__name__, "must be JSON") from None
        if len(encoded) > VALUE_BYTES_MAX:
            raise InvalidArgument("value", f"{len(encoded)} bytes", f"must have at most {VALUE_BYTES_MAX} bytes")
        if ttl_s is not None and not 0 <= ttl_s < math.inf:
            raise InvalidArgument("ttl_s", ttl_s, "must be a number of seconds from 0")
        now = self.clock.now()
        expires_at = None if ttl_s is None else now + ttl_s
        self.storage.sql("INSERT OR REPLACE INTO item VALUES (?, ?, ?, ?)", key, encoded, now, expires_at)
        self.storage.sql(
            "DELETE FROM item WHERE key IN (SELECT key FROM item WHERE expires_at <= ? LIMIT ?)",
            now,
            _EXPIRED_REMOVED_PER_PUT,
        )
        if keep_newest is not None:
            # This key apart: after the clock went back it is the newest and does not look it.
            self.storage.sql(
                "DELETE FROM item WHERE key IN"
                " (SELECT key FROM item WHERE key <> ? ORDER BY updated_at DESC LIMIT -1 OFFSET ?)",
                key,
                max(0, keep_newest - 1),
            )
        return {"key": key, "value": value, "updated_at": now, "expires_at": expires_at}

    @exactly_once
    def swap(
        self, key: str, expected: Any, value: Any, *, ttl_s: float | None = None, keep_newest: int | None = None
    ) -> Item | None:
        """Stores `value` if `expected` is there, None standing for no value. Returns what is there then.

        Of several that expect the same, one stores its value, and the others are told it.

        Args:
            keep_newest: as of `put`.

        Raises:
            InvalidArgument: as of `put`.
        """
        item = self.get(key)
        if _canonical(item and item["value"]) != _canonical(expected):
            return item
        return self.put(key, value, ttl_s=ttl_s, keep_newest=keep_newest)

    @idempotent
    def delete(self, key: str) -> bool:
        """Removes a key. False if it was not there."""
        existed = self.get(key) is not None
        self.storage.sql("DELETE FROM item WHERE key = ?", key)
        return existed

    @read
    def list(self, prefix: str = "", *, limit: int = 100, after: str = "") -> list[Item]:
        """Items whose key starts with `prefix`, in the order of their keys, from behind the key `after`."""
        rows = self.storage.sql(
            "SELECT key, value, updated_at, expires_at FROM item"
            " WHERE key >= ? AND key <= ? AND key > ? AND ifnull(expires_at, ?) > ? ORDER BY key LIMIT ?",
            prefix,
            # The last key that can start so. Not substr(), which reads on behind the last match and stops at a NUL.
            prefix + _LAST_CHAR * (KEY_CHARS_MAX - len(prefix)),
            after,
            *self._alive(),
            max(1, min(limit, LIST_MAX)),
        )
        return [_item(row) for row in rows]

    def _alive(self) -> tuple[float, float]:
        now = self.clock.now()
        return now + 1, now


def _canonical(value: Any) -> str:
    # Not by ==, to which 1, 1.0 and True are the same.
    return json.dumps(value, sort_keys=True)


def _item(row: tuple[Any, ...]) -> Item:
    key, value, updated_at, expires_at = row
    return {"key": key, "value": json.loads(value), "updated_at": updated_at, "expires_at": expires_at}
