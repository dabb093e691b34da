"""How is an object's database opened, created and removed?

With `connection` and `authorizer` all that knows the SQLite driver. One connection a file, held exclusively: the
WAL-reset bug of SQLite before 3.51.3 needs two connections and is refused at start all the same, since a file may
outlive this process's care.

A new database is a copy of a template prepared once per class, five times faster than creating a schema. It appears
under its name complete and on disk, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from sqlite_utils.utils import sqlite3

from actors.runtime.connection import DRIVER_STATEMENTS_MAX, ROW_BYTES_MAX, ObjectConnection
from actors.runtime.folder import make_folder, sync_folder
from actors.runtime.sqlite_limit import open_limited

Error = sqlite3.Error

VERSION_MIN = (3, 51, 3)
#: Pages of cache per open database, negative for KiB. Objects are small and many; the default of 2 MiB is for one.
CACHE_KIB = 256
#: What a database may grow to, its log not counted.
DATABASE_BYTES_MAX = 10 * 1024**3
PAGE_BYTES = 4096

_SQLITE_BUSY = 5
_SQLITE_FULL = 13
# Errors after which SQLite may have rolled back by itself, or what it holds in memory can't be trusted.
_CRITICAL = {
    7: "out of memory",
    9: "interrupted",
    10: "disk I/O error",
    11: "database is corrupt",
    26: "not a database",
}

# Order matters: exclusive mode before the first access keeps the WAL index in memory, without a -shm file.
# Recursive triggers are what sqlite-utils would set on its first use: a REPLACE must not change its meaning by that.
_SETUP = f"""
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA synchronous = FULL;
PRAGMA foreign_keys = ON;
PRAGMA recursive_triggers = ON;
PRAGMA trusted_schema = OFF;
PRAGMA cache_size = -{CACHE_KIB};
PRAGMA max_page_count = %d;
"""


class SqliteTooOld(RuntimeError):
    """The SQLite library loses commits in WAL mode. `pip install pysqlite3` brings a newer one."""


def require_version() -> None:
    if sqlite3.sqlite_version_info < VERSION_MIN:
        wanted = ".".join(map(str, VERSION_MIN))
        raise SqliteTooOld(
            f"SQLite {sqlite3.sqlite_version} can lose commits in WAL mode; {wanted} or newer is needed: "
            "pip install pysqlite3"
        )


def connect(path: Path, size_bytes_max: int = DATABASE_BYTES_MAX) -> ObjectConnection:
    """Opens an existing database and takes the file for this connection alone.

    It is the runtime's until `guard` is called. One that is larger than `size_bytes_max` opens and grows no more.

    Raises:
        Error: `is_busy(error)` says that another process has it.
        OSError: the disk failed.
    """
    _sync_log(path)
    connection = open_limited(
        lambda: sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=0,
            factory=ObjectConnection,
            cached_statements=DRIVER_STATEMENTS_MAX,
        ),
        ROW_BYTES_MAX,
    )
    try:
        # First: what the driver keeps itself would stay.
        connection.crowd_driver()
        connection.executescript(_SETUP % max(1, size_bytes_max // PAGE_BYTES))
        # The first read takes the exclusive lock and, after a crash, recovers the WAL.
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _sync_log(path: Path) -> None:
    """Makes durable what is about to be read.

    A log that is there at an opening was left by a process that was killed, or whose disk failed: its last commits may
    never have been synced, and SQLite takes them for good when it reads them back.
    """
    try:
        descriptor = os.open(wal_of(path), os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


def peek(path: Path) -> ObjectConnection:
    """Opens a database that nobody has open, to read a little of it: cheaper than `connect`, and it changes nothing."""
    uri, logged = uri_to_peek(path)
    connection: ObjectConnection = sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=0, factory=ObjectConnection
    )
    try:
        if logged:
            connection.run_own("PRAGMA locking_mode = EXCLUSIVE")
    except BaseException:
        connection.close()
        raise
    return connection


def uri_to_peek(path: Path) -> tuple[str, bool]:
    """How to open a database that nobody has open, to read it. Says whether there is a log, left by a crash.

    The index of a log is made in memory then, which takes `locking_mode = EXCLUSIVE`; and since a file that is open for
    reading only can't be locked, the VFS is the one without locks. That it can't be written keeps the log from being
    copied into the database when it is closed. A log that holds no commit is removed: nothing is in it.

    Raises:
        OSError: the disk failed.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro"
    if not is_logged(path):
        return f"{uri}&immutable=1", False
    _sync_log(path)
    return f"{uri}&vfs=unix-none", True


def is_logged(path: Path) -> bool:
    """Whether there is something in the log: since the database was opened, or left by a crash."""
    try:
        return os.stat(f"{path}-wal").st_size > 0
    except FileNotFoundError:
        return False


def driver() -> tuple[str, Path]:
    """The name of the driver, and the folder that it is in, for a process that knows neither."""
    return sqlite3.__name__, Path(sqlite3.__file__).resolve().parents[1]


def copy_to(source: ObjectConnection, path: Path, pages: int, progress: Callable[[], None]) -> None:
    """Copies an open database into a new file, some pages at a time, with `progress` between; it may raise to stop.

    The copy is one file that any SQLite opens, without a log. It is not synced.
    """
    target = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        target.execute("PRAGMA synchronous = OFF")
        source.backup(target, pages=pages, progress=lambda *_: progress(), sleep=0)
        target.execute("PRAGMA journal_mode = DELETE")
    finally:
        target.close()


def prepare_template(build: Callable[[ObjectConnection], None]) -> bytes:
    """The bytes of an empty database in WAL mode, after `build` has made its schema."""
    with tempfile.TemporaryDirectory(prefix="mobula-template-") as folder:
        path = Path(folder) / "template.sqlite"
        connection = sqlite3.connect(path, isolation_level=None, factory=ObjectConnection)
        try:
            connection.run_own(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.run_own("PRAGMA journal_mode = WAL")
            build(connection)
            connection.run_own("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
        return path.read_bytes()


def create(path: Path, template: bytes) -> None:
    """Makes the database at `path`, whole and synced, but for its name: nothing is in it yet that could be lost."""
    make_folder(path.parent)
    unfinished = path.with_suffix(".new")
    try:
        write_synced(unfinished, template)
        put(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):  # the next one to make it writes over it
            unfinished.unlink(missing_ok=True)
        raise


def put(written: Path, path: Path) -> None:
    """Makes a file that was written and synced the database at `path`."""
    # A WAL without its database is left by a crash while deleting; a new database must not swallow it.
    wal_of(path).unlink(missing_ok=True)
    os.rename(written, path)


def write_synced(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Takes a closed database from the disk, for good when this returns."""
    path.unlink(missing_ok=True)
    wal_of(path).unlink(missing_ok=True)
    sync_folder(path.parent)


def wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def is_busy(error: Exception) -> bool:
    return _primary_code(error) == _SQLITE_BUSY


def is_full(error: Exception) -> bool:
    return _primary_code(error) == _SQLITE_FULL or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    )


def critical(error: Exception) -> str | None:
    """Why the connection can't be used any more after `error`, or None if it can."""
    return _CRITICAL.get(_primary_code(error))


def is_critical(code: int) -> bool:
    """The same of an error's code, where the error itself is another process's."""
    return code & 0xFF in _CRITICAL


def is_full_code(code: int) -> bool:
    return code & 0xFF == _SQLITE_FULL


def code_of(error: Exception) -> int:
    """SQLite's code of an error; 0: it has none."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code or 0


def _primary_code(error: Exception) -> int:
    return code_of(error) & 0xFF if isinstance(error, sqlite3.Error) else 0
