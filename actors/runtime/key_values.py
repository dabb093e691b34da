"""What does an object keep under names of its own, without a table?

    self.storage.kv.put("settings", {"theme": "dark"})
    self.storage.kv.get("settings")                          # {'theme': 'dark'}
    self.storage.kv.list("day/", limit=7, reverse=True)      # the last seven days
    self.storage.kv.delete("settings")                       # True

Values are what JSON can hold, and are read back equal to what was put: anything else is refused, so a tuple, which JSON
would make a list, or bytes. That keeps exports readable by people and other languages, and a stored value can't run
code when it is read, as a pickle would. For more, make a table, or encode it first.

Reads and writes are part of the turn: they are rolled back and committed with it. Every entry is on disk; nothing is
kept in memory between turns.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Mapping
from typing import Any

from actors.runtime.authorizer import RESERVED_PREFIX
from actors.runtime.errors import InvalidArgument

TABLE = RESERVED_PREFIX + "kv"
CREATE_TABLE = f"CREATE TABLE IF NOT EXISTS {TABLE} (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"

KEY_BYTES_MAX = 2048
VALUE_BYTES_MAX = 2 * 1024 * 1024

_GET = f"SELECT value FROM {TABLE} WHERE key = ?"  # noqa: S608  a constant, as below
_PUT = f"INSERT INTO {TABLE} VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"  # noqa: S608
_DELETE = f"DELETE FROM {TABLE} WHERE key = ? RETURNING 1"  # noqa: S608
_LIST = f"SELECT key, value FROM {TABLE}"  # noqa: S608

_SURROGATES = (0xD800, 0xDFFF)
_LAST_CHAR = chr(0x10FFFF)


class KeyValues:
    """The entries of one object, in order of their keys' UTF-8 bytes, which is that of their code points.

    Args:
        run: runs a statement that may touch `TABLE`.
    """

    def __init__(self, run: Callable[..., builtins.list[tuple[Any, ...]]]) -> None:
        self._run = run

    def get(self, key: str, default: Any = None) -> Any:
        rows = self._run(_GET, _checked_key(key))
        return json.loads(rows[0][0]) if rows else default

    def put(self, key: str, value: Any) -> None:
        """Stores `value` in place of what was there.

        Raises:
            InvalidArgument: the key or the value is too large, or the value would not be read back equal.
        """
        self._run(_PUT, _checked_key(key), _encode(value))

    def put_many(self, values: Mapping[str, Any]) -> None:
        """Stores all of `values`, or, where one is refused, none."""
        encoded = [(_checked_key(key), _encode(value)) for key, value in values.items()]
        for key, text in encoded:
            self._run(_PUT, key, text)

    def delete(self, key: str) -> bool:
        """False if there was nothing under `key`."""
        return bool(self._run(_DELETE, _checked_key(key)))

    def list(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> dict[str, Any]:
        """The entries whose keys begin with `prefix`, in order. All of them are read into memory: set a `limit`.

        Args:
            prefix: what keys begin with.
            start: the lowest key that may come, itself included.
            start_after: the same without itself: the last key of the page before.
            end: the lowest key that does not come any more.
            limit: how many entries at most.
            reverse: from the highest key down. `start` and `end` stay what they are.
        """
        conditions: builtins.list[str] = []
        binds: builtins.list[Any] = []
        after_prefix = _after_prefix(prefix)
        for condition, bound in (
            ("key >= ?", prefix or None),
            ("key < ?", after_prefix),
            ("key >= ?", start),
            ("key > ?", start_after),
            ("key < ?", end),
        ):
            if bound is not None:
                conditions.append(condition)
                binds.append(bound)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        if limit is not None and limit < 0:
            raise InvalidArgument("limit", limit, "must not be negative")
        query = f"{_LIST}{where} ORDER BY key {'DESC' if reverse else 'ASC'} LIMIT ?"
        return {key: json.loads(text) for key, text in self._run(query, *binds, -1 if limit is None else limit)}


def _checked_key(key: str) -> str:
    if not isinstance(key, str):
        raise InvalidArgument("key", key, "must be text")
    # Only a long one can be too large, and lone surrogates are refused where the value is bound.
    if len(key) * 4 > KEY_BYTES_MAX and len(key.encode(errors="surrogatepass")) > KEY_BYTES_MAX:
        raise InvalidArgument("key", key, f"must take at most {KEY_BYTES_MAX} bytes")
    return key


def _encode(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument("value", type(value).__name__, f"must be what JSON can hold: {error}") from error
    if len(text) * 4 > VALUE_BYTES_MAX:
        size_bytes = len(text.encode(errors="surrogatepass"))
        if size_bytes > VALUE_BYTES_MAX:
            raise InvalidArgument("value", f"{size_bytes} bytes", f"must take at most {VALUE_BYTES_MAX} bytes as JSON")
    if json.loads(text) != value:  # a tuple came back as a list, or a key that is no text as text
        raise InvalidArgument("value", value, "must be what JSON can hold, and is not the same when read back")
    return text


def _after_prefix(prefix: str) -> str | None:
    """The lowest text above all that begin with `prefix`; None if there is none."""
    prefix = prefix.rstrip(_LAST_CHAR)
    if not prefix:
        return None
    following = ord(prefix[-1]) + 1
    if _SURROGATES[0] <= following <= _SURROGATES[1]:
        following = _SURROGATES[1] + 1
    return prefix[:-1] + chr(following)
