"""How large may a row get, and what a statement makes in memory?

SQLite's limit is 1 GB, and can be lowered for each connection, by a function that pysqlite3 does not have. It takes the
connection as SQLite knows it. SQLite itself hands that out, with each one that it opens, to whoever asked it to: here
it is told whether the connection is one to be limited.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from actors.runtime import sqlite_library

logger = logging.getLogger("mobula.objects")

Connection = TypeVar("Connection")

_LIMIT_LENGTH = 0
_OK = 0

_ENTRY_POINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


class _Opening(threading.local):
    """What the thread is opening a connection with: a thread opens one at a time, and is called back within it."""

    length_bytes_max: int | None = None


_opening = _Opening()


def open_limited(open_one: Callable[[], Connection], length_bytes_max: int) -> Connection:
    """Opens a connection in which no text, blob or row is longer. Where that can't be done, it has SQLite's limit."""
    ask = _asking()
    if ask is None:
        connection = open_one()
        if set_limit := getattr(connection, "setlimit", None):  # Python's own driver
            set_limit(_LIMIT_LENGTH, length_bytes_max)
        return connection
    ask()
    _opening.length_bytes_max = length_bytes_max
    try:
        return open_one()
    finally:
        _opening.length_bytes_max = None


@functools.cache
def _asking() -> Callable[[], Any] | None:
    """What asks SQLite to hand out connections. To ask again changes nothing, and `sqlite3_shutdown` forgets it."""
    try:
        library = sqlite_library.load()
        limit, hand_out = library.sqlite3_limit, library.sqlite3_auto_extension
    except (ImportError, OSError, AttributeError) as error:
        logger.info("what statements make in memory has SQLite's own limit: %s", error)
        return None
    limit.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)

    def opened(connection: int, _message: int, _functions: int) -> int:
        if _opening.length_bytes_max is not None:
            limit(connection, _LIMIT_LENGTH, _opening.length_bytes_max)
        return _OK

    # Kept for as long as the process, as SQLite keeps it.
    return functools.partial(hand_out, _ENTRY_POINT(opened))
