"""Which durable classes are there, how did they come to be, and may the history go on so?

A class's name is part of where its objects are on disk, so a new name in the code alone would leave them behind. Each
change of the set of classes is therefore written down once, as a `ClassMigration` with a tag, and never edited again.
Here are the rules, without any disk: what a history declares, what of it is still to be applied, and which objects that
moves. Every refusal is a `ClassesRefused` that names the tag and the class.

Within one migration the order is: renamed, new, transferred, deleted. So one tag can rename `A` to `B` and begin a new
`A`, or transfer the objects of a class to a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from actors.runtime.errors import ClassesRefused
from actors.runtime.object_id import CLASS_NAME

#: What errors call a history that was not read from a file.
IN_CODE = "the class history"
#: Objects that an error names one by one.
_NAMED_MAX = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Deletion:
    """A class whose objects go. Only `confirmed` may take objects along."""

    name: str
    confirmed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassMigration:
    """One change of the set of durable classes, applied once and recorded by its tag."""

    tag: str
    new: tuple[str, ...] = ()
    #: (from, to): the class has another name from now on; its objects come along.
    renamed: tuple[tuple[str, str], ...] = ()
    #: (from, to): the objects of one class become objects of another that exists; the first class is no more.
    transferred: tuple[tuple[str, str], ...] = ()
    deleted: tuple[Deletion, ...] = ()
    #: Where a person mends it; for errors only.
    file: str = field(default=IN_CODE, compare=False, repr=False)

    @property
    def moves_objects(self) -> bool:
        return bool(self.renamed or self.transferred or self.deleted)

    def same_as(self, other: ClassMigration) -> bool:
        """Whether both say the same. The order of names doesn't matter, nor does a confirmation once it was used."""
        return self._content == other._content

    @property
    def _content(self) -> tuple[object, ...]:
        deleted = sorted(deletion.name for deletion in self.deleted)
        return self.tag, sorted(self.new), self.renamed, self.transferred, deleted

    def refusal(self, class_name: str, problem: str) -> ClassesRefused:
        return ClassesRefused(self.file, self.tag, class_name, problem)


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """The objects of `source` become objects of `target`, or are deleted where there is none."""

    tag: str
    source: str
    target: str | None


def names_in(history: Iterable[ClassMigration]) -> frozenset[str]:
    """Every name that a class has or had."""
    names: set[str] = set()
    for migration in history:
        names.update(migration.new, *migration.renamed, *migration.transferred)
    return frozenset(names)


def declared(history: Iterable[ClassMigration]) -> frozenset[str]:
    """The classes there are after the whole history.

    Raises:
        ClassesRefused: a tag comes twice, or a step is about a class that is not there, or is there already.
    """
    known: set[str] = set()
    tags: set[str] = set()
    for migration in history:
        if migration.tag in tags:
            raise migration.refusal("", "the tag comes twice")
        tags.add(migration.tag)
        for source, target in migration.renamed:
            if source == target:
                raise migration.refusal(source, "has that name already")
            _remove(known, migration, source)
            _add(known, migration, target)
        for name in migration.new:
            _add(known, migration, name)
        for source, target in migration.transferred:
            _remove(known, migration, source)
            if target not in known:
                raise migration.refusal(target, "can't take over objects: no such class is declared up to here")
        for deletion in migration.deleted:
            _remove(known, migration, deletion.name)
    return frozenset(known)


def _add(known: set[str], migration: ClassMigration, name: str) -> None:
    if not CLASS_NAME.fullmatch(name):
        raise migration.refusal(name, "can't be the name of a class: 1 to 64 letters, digits or _")
    if name in known:
        raise migration.refusal(name, "is declared already; to join two classes, transfer one to the other")
    known.add(name)


def _remove(known: set[str], migration: ClassMigration, name: str) -> None:
    if name not in known:
        raise migration.refusal(name, "can't be changed: no such class is declared up to here")
    known.remove(name)


def require_declared(history: Sequence[ClassMigration], classes: AbstractSet[str]) -> None:
    """
    Raises:
        ClassesRefused: the code has a class that the history does not declare, or lacks one that it does.
    """
    known = declared(history)
    last = history[-1] if history else ClassMigration(tag="")
    for name in sorted(classes - known):
        problem = "is in the code and not declared: add a tag with it in new_classes, or as `to` in renamed_classes"
        raise last.refusal(name, problem)
    for name in sorted(known - classes):
        raise last.refusal(name, "is declared and not in the code: add a tag that renames, transfers or deletes it")


def pending(history: Sequence[ClassMigration], applied: Sequence[ClassMigration]) -> Sequence[ClassMigration]:
    """What of the history is still to be applied.

    Raises:
        ClassesRefused: the history does not begin with what was applied.
    """
    file = history[-1].file if history else IN_CODE
    tags = [migration.tag for migration in history]
    applied_tags = [migration.tag for migration in applied]
    for old, new in zip(applied, history, strict=False):
        if old.tag == new.tag:
            if not old.same_as(new):
                raise new.refusal("", "was applied to this data and has changed since: restore it, and add a new tag")
        elif old.tag in tags or new.tag in applied_tags:
            problem = f"stands where {old.tag!r} was applied: tags keep their order, and new ones come last"
            raise new.refusal("", problem)
        else:
            raise ClassesRefused(file, old.tag, "", "was applied to this data and is missing: restore it")
    if len(applied) > len(history):
        missing = applied[len(history)].tag
        raise ClassesRefused(file, missing, "", "was applied to this data and is missing: run the newer code")
    return history[len(applied) :]


def plan(migrations: Iterable[ClassMigration], objects_of: Callable[[str], AbstractSet[str]]) -> list[Move]:
    """The moves that the migrations make, in order.

    Args:
        migrations: what is to be applied.
        objects_of: the keys of the objects that a class has on disk before the first of them.

    Raises:
        ClassesRefused: objects would be deleted without confirmation, or meet others of the same key or class.
    """
    objects: dict[str, AbstractSet[str]] = {}

    def now(name: str) -> AbstractSet[str]:
        if name not in objects:
            objects[name] = objects_of(name)
        return objects[name]

    moves: list[Move] = []
    for migration in migrations:
        for source, target in migration.renamed:
            if now(target):
                problem = f"can't be the new name of {source}: there are {_count(now(target))} of that class already"
                raise migration.refusal(target, problem)
            objects[target], objects[source] = now(source), frozenset()
            moves.append(Move(tag=migration.tag, source=source, target=target))
        for source, target in migration.transferred:
            if both := now(source) & now(target):
                raise migration.refusal(source, f"{target} has objects of the same key: {_count(both)}")
            objects[target], objects[source] = now(target) | now(source), frozenset()
            moves.append(Move(tag=migration.tag, source=source, target=target))
        for deletion in migration.deleted:
            if now(deletion.name) and not deletion.confirmed:
                problem = f"has {_count(now(deletion.name))}: they are deleted only with `confirm: true`"
                raise migration.refusal(deletion.name, problem)
            objects[deletion.name] = frozenset()
            moves.append(Move(tag=migration.tag, source=deletion.name, target=None))
    return moves


def _count(keys: AbstractSet[str]) -> str:
    named = ", ".join(sorted(keys)[:_NAMED_MAX])
    return f"{len(keys)} object{'s' if len(keys) > 1 else ''} ({named}{', …' if len(keys) > _NAMED_MAX else ''})"
