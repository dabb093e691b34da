"""How is a data directory brought to the classes that the code has?

`apply` compares the history that ships with the code with the record in the data directory, refuses what does not fit,
and otherwise applies what is new, once and in order, before any object is opened. First it writes down what it is about
to do; after a crash at any point the next `apply` does the rest, with the same history, a longer one, or none.

Data without a record (made before there was a history, or by code that has none) is taken as it is: its first `apply`
applies the whole history to it. Classes that are on disk and in no history are left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.runtime.class_files import ClassFiles, ClassRecord
from actors.runtime.class_migration import ClassMigration, Move, declared, pending, plan, require_declared
from actors.runtime.errors import ClassesRefused
from actors.runtime.folder import make_folder
from actors.runtime.slot import ACQUIRE_WAIT_S, SlotLock

_NOTHING = ClassRecord(applied=(), moves=())


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassChanges:
    """What `apply` did."""

    #: Tags that were applied now.
    applied: tuple[str, ...] = ()
    #: (from, to, objects); no `to` means that they were deleted. After a crash: those that were left.
    moved: tuple[tuple[str, str | None, int], ...] = ()


def check(data_dir: Path, history: Sequence[ClassMigration] | None, classes: Iterable[str]) -> None:
    """Changes nothing; raises what `apply` would refuse now.

    Raises:
        ClassesRefused: see `apply`.
    """
    if history is None:
        return
    # No file moves here, so the number of slots does not matter.
    files = ClassFiles(data_dir / "objects", 1, _pass)
    record = files.read()
    left = _left(record, history, classes)
    if not (record and record.moves):  # else objects are between two classes, and are counted when they have arrived
        _plan(files, record, history, left)


def apply(
    data_dir: Path,
    history: Sequence[ClassMigration] | None,
    classes: Iterable[str],
    *,
    slots: int,
    owner: str | None,
    wait_s: float = ACQUIRE_WAIT_S,
    step: Callable[[str], None] | None = None,
) -> ClassChanges:
    """Brings the data directory up to `history`, or leaves it as it was.

    Args:
        data_dir: of the objects.
        history: None leaves classes as they are, and does no more than finish what a crash interrupted.
        classes: the names of the code's classes.
        slots: the data directory's number of slots.
        owner: who this is, for whoever wants the slots while files move. None: the caller has all of them.
        wait_s: how long to wait for each slot.
        step: told before each change on disk; for tests.

    Raises:
        ClassesRefused: a class of the code is not declared or a declared one is missing; what was applied before is
            missing, changed or in another order; objects would be lost or get mixed up.
        SlotOwned: files would have to move and another process has some of them open.
    """
    files = ClassFiles(data_dir / "objects", slots, step or _pass)
    record = files.read()
    left = _left(record, history, classes)
    if not left and not (record and record.moves) and (record or history is None):
        return ClassChanges()
    moving = bool(record and record.moves) or any(migration.moves_objects for migration in left)
    make_folder(data_dir / "objects")
    with _alone(data_dir, slots if moving else 0, owner=owner, wait_s=wait_s):
        # Read again: another process may just have done it all.
        record = files.read()
        left = _left(record, history, classes)
        moved = _finish(files, record, wait_s) if record and record.moves else []
        if left or (record is None and history is not None):
            moves = _plan(files, record, history or (), left)
            record = ClassRecord(applied=(*(record or _NOTHING).applied, *left), moves=tuple(moves))
            moved += _finish(files, record, wait_s)
        return ClassChanges(applied=tuple(migration.tag for migration in left), moved=tuple(moved))


def _left(
    record: ClassRecord | None, history: Sequence[ClassMigration] | None, classes: Iterable[str]
) -> Sequence[ClassMigration]:
    if history is None:
        return ()
    require_declared(history, frozenset(classes))
    return pending(history, (record or _NOTHING).applied)


def _plan(
    files: ClassFiles,
    record: ClassRecord | None,
    history: Sequence[ClassMigration],
    left: Sequence[ClassMigration],
) -> list[Move]:
    moves = plan(left, files.keys)
    known = declared(history)
    for move in moves:
        if record is None and move.source in known and files.keys(move.source):
            # It was moved away and came back later. With its record lost, these may be the objects that came later.
            problem = f"has objects from before or after tag {move.tag!r}, and no record says which: restore it"
            raise ClassesRefused(str(files.record_path), move.tag, move.source, problem)
        if move.target is not None:
            files.require_movable(move.source)
    return moves


def _finish(files: ClassFiles, record: ClassRecord, wait_s: float) -> list[tuple[str, str | None, int]]:
    """Writes the record, and carries out its moves. Each is struck out when it is done, lest it meet what a later one
    brings."""
    done = []
    with contextlib.ExitStack() as stack:
        # Before anything is written: what can't begin must not stand there as begun.
        for source in sorted({move.source for move in record.moves}):
            for path in files.dedicated_locks(source):
                stack.callback(SlotLock(path, "a migration of classes", wait_s=wait_s).release)
        files.write(record)
        for number, move in enumerate(record.moves, 1):
            done.append((move.source, move.target, files.carry_out(move)))
            files.write(ClassRecord(applied=record.applied, moves=record.moves[number:]))
    return done


@contextlib.contextmanager
def _alone(data_dir: Path, slots: int, *, owner: str | None, wait_s: float) -> Iterator[None]:
    """Keeps out who would apply a history too, and whoever would open an object in one of the first `slots` slots."""
    locks = data_dir / "slots"
    with contextlib.ExitStack() as stack:
        stack.callback(SlotLock(locks / "classes.lock", owner or "this process", wait_s=wait_s).release)
        if owner is not None:
            for slot in range(slots):
                stack.callback(SlotLock(locks / f"{slot:03d}.lock", owner, wait_s=wait_s).release)
        yield


def _pass(_: str) -> None:
    """The step of a run that nobody interrupts."""
