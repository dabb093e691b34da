"""Where is what SQLite offers to programs in C, and its driver in Python does not?"""

from __future__ import annotations

import ctypes
from importlib import import_module

from sqlite_utils.utils import sqlite3


def load() -> ctypes.CDLL:
    """The driver's own SQLite: there may be another one in the process.

    Raises:
        ImportError, OSError: it can't be reached. A function that is not there is an `AttributeError`.
    """
    return ctypes.CDLL(import_module(f"{sqlite3.__name__.partition('.')[0]}._sqlite3").__file__)
