"""What is known of an object that makes trouble, and how is it kept?

A `Trouble` is what an object did to its host: how often in a row which of its methods ended the process, and how often
in a row it failed to activate. It stands beside the object's database as `<stem>.trouble`, one small JSON file that is
replaced whole. Objects that make no trouble have none. What follows from it is decided in `quarantine`.

Whose it is says the file's place, never its content: objects move when their class is renamed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from actors.runtime.folder import make_folder, sync_folder
from actors.runtime.object_id import ObjectId

ENDING = "trouble"
#: No ending holds a dot, or it could be the ending of another object whose name has one.
UNFINISHED_ENDING = "trouble-new"
FORMAT = 1
#: Far above what a whole record comes to. A longer file is none of ours, and is not read into memory.
RECORD_BYTES_MAX = 64 * 1024
#: Methods that an object's strikes are kept of. With more, those that are oldest are forgotten.
METHODS_MAX = 32
TEXT_CHARS_MAX = 500
# Later than any clock says, and what a date can still be made of.
_TIME_MAX = 1e11
_COUNT_MAX = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class Strikes:
    """How often in a row one method ended the host's process. It never returned in between."""

    method: str
    crashes: int
    last_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Trouble:
    """All that is held against one object. Times are in seconds since 1970."""

    id: ObjectId
    #: Of the code that did it, as its deployment is named. Other code has done nothing yet.
    code: str
    first_at: float
    last_at: float
    #: By method, the oldest first.
    strikes: tuple[Strikes, ...] = ()
    #: Activations that failed in a row, by an error of the object's own code.
    failures: int = 0
    failed_at: float = 0.0
    #: What the object did last: the method that crashed, and the error that kept it from activating.
    method: str = ""
    error: str = ""
    quarantined_at: float | None = None
    reason: str = ""

    @property
    def crashes(self) -> int:
        return sum(strikes.crashes for strikes in self.strikes)

    @property
    def empty(self) -> bool:
        """Nothing is held against the object any more."""
        return not self.strikes and not self.failures and self.quarantined_at is None


def bounded(text: str) -> str:
    return text if len(text) <= TEXT_CHARS_MAX else text[: TEXT_CHARS_MAX - 3] + "..."


def path_of(object_id: ObjectId, objects_dir: Path, slots: int) -> Path:
    return object_id.path(objects_dir, slots).with_suffix(f".{ENDING}")


def read(path: Path, object_id: ObjectId) -> Trouble:
    """What is recorded at `path`, of that object.

    Raises:
        FileNotFoundError: nothing is.
        OSError, ValueError: something is, and it can't be read.
    """
    with open(path, "rb", opener=_open_nothing_strange) as file:
        text = file.read(RECORD_BYTES_MAX + 1)
    if len(text) > RECORD_BYTES_MAX:
        raise ValueError(f"{path} is longer than a record")
    try:
        data = json.loads(text, parse_constant=_refuse)
        if data["format"] != FORMAT:
            raise ValueError(f"{path} has format {data['format']!r}")
        return _trouble(data, object_id)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no record: {error!r}") from error


def write(path: Path, trouble: Trouble, *, durable: bool) -> None:
    """Replaces the record whole.

    Args:
        path: where it belongs.
        trouble: what to record.
        durable: whether it has to survive a power cut; it survives the end of the process either way. Without, what a
            power cut leaves may be no record.

    Raises:
        OSError: it could not be written. The one that was there stands.
    """
    make_folder(path.parent)
    unfinished = path.with_suffix(f".{UNFINISHED_ENDING}")
    try:
        descriptor = os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(json.dumps(_plain(trouble), indent=2) + "\n")
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def remove(path: Path, *, durable: bool) -> None:
    """
    Raises:
        OSError: it could not be removed.
    """
    try:
        path.unlink()
    except FileNotFoundError:
        return
    if durable:
        sync_folder(path.parent)


def _open_nothing_strange(path: str, flags: int) -> int:
    # A link is not ours, and a pipe would have us wait.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _plain(trouble: Trouble) -> dict[str, Any]:
    return {
        "format": FORMAT,
        # For people: nothing reads these back.
        "class": trouble.id.class_name,
        "tenant": trouble.id.tenant,
        "name": trouble.id.name,
        "code": trouble.code,
        "first_at": trouble.first_at,
        "last_at": trouble.last_at,
        "strikes": [[strikes.method, strikes.crashes, strikes.last_at] for strikes in trouble.strikes],
        "failures": trouble.failures,
        "failed_at": trouble.failed_at,
        "method": trouble.method,
        "error": trouble.error,
        "quarantined_at": trouble.quarantined_at,
        "reason": trouble.reason,
    }


def _trouble(data: dict[str, Any], object_id: ObjectId) -> Trouble:
    quarantined_at = data["quarantined_at"]
    return Trouble(
        id=object_id,
        code=_text(data["code"]),
        first_at=_time(data["first_at"]),
        last_at=_time(data["last_at"]),
        strikes=tuple(
            Strikes(method=_text(method), crashes=_count(crashes), last_at=_time(last_at))
            for method, crashes, last_at in data["strikes"][:METHODS_MAX]
        ),
        failures=_count(data["failures"]),
        failed_at=_time(data["failed_at"]),
        method=_text(data["method"]),
        error=_text(data["error"]),
        quarantined_at=None if quarantined_at is None else _time(quarantined_at),
        reason=_text(data["reason"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return bounded(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _COUNT_MAX:
        raise ValueError(f"{value!r} is no count")
    return value


def _time(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no time")
    if not 0 <= value <= _TIME_MAX or not math.isfinite(value):
        raise ValueError(f"{value!r} is no time")
    return float(value)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
