"""Which objects does a history change, and what is left of them?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from actors.runtime import ClassesRefused
from actors.runtime.class_files import RECORD_NAME
from actors.runtime.class_history import ClassChanges, apply, check
from actors.runtime.class_migration import ClassMigration, Deletion, declared
from actors.runtime.object_id import ObjectId

SLOTS = 8
BEGIN = ClassMigration(tag="v1", new=("Apple", "Pear"))
FILE = "somewhere/migrations.yaml"
#: What may stand beside an object's database.
COMPANIONS = ("trouble", "a1700000000000", "a1700000000001", "sqlite-wal")

World = dict[tuple[str, str], str]


class Crash(BaseException):
    """The process ends here. Not an `Exception`: nothing may handle it."""


class Data:
    """A data directory whose objects are files with a text in them."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.objects_dir = data_dir / "objects"
        self.objects_dir.mkdir(parents=True)
        self.steps: list[str] = []

    def path(self, class_name: str, name: str, ending: str = "") -> Path:
        path = ObjectId(class_name, "acme", name).path(self.objects_dir, SLOTS)
        return path.with_name(path.name + ending)

    def put(self, class_name: str, *names: str, ending: str = "", text: str | None = None) -> None:
        for name in names:
            path = self.path(class_name, name, ending)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text if text is not None else f"{class_name} {name}{ending}")

    def world(self, ending: str = ".sqlite") -> World:
        """Class and name of each object, with what is in its file; all of them where they belong."""
        found: World = {}
        for path in self.objects_dir.rglob(f"*{ending}"):
            class_name = path.relative_to(self.objects_dir).parts[0]
            object_id = ObjectId.from_key(class_name, path.name.rpartition(".")[0])
            assert path.parent == object_id.path(self.objects_dir, SLOTS).parent, path
            found[class_name, object_id.name] = path.read_text()
        return found

    def apply(
        self,
        *history: ClassMigration,
        classes: set[str] | None = None,
        step: Callable[[str], None] | None = None,
        owner: str | None = None,
    ) -> ClassChanges:
        names = declared(history) if classes is None else classes
        return apply(
            self.data_dir, history, names, slots=SLOTS, owner=owner, wait_s=0.0, step=step or self.steps.append
        )

    def refusal(self, *history: ClassMigration, classes: set[str] | None = None) -> ClassesRefused:
        """What is refused, with a look that nothing is changed by it."""
        before = self.everything()
        with pytest.raises(ClassesRefused) as checked:
            check(self.data_dir, history, declared(history) if classes is None else classes)
        with pytest.raises(ClassesRefused) as caught:
            self.apply(*history, classes=classes)
        assert str(checked.value) == str(caught.value)
        assert self.everything() == before
        return caught.value

    def everything(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.objects_dir.rglob("*") if path.is_file()}

    @property
    def record(self) -> Path:
        return self.objects_dir / RECORD_NAME


def second(
    *,
    new: tuple[str, ...] = (),
    renamed: tuple[tuple[str, str], ...] = (),
    transferred: tuple[tuple[str, str], ...] = (),
    deleted: tuple[Deletion, ...] = (),
) -> ClassMigration:
    return ClassMigration(tag="v2", new=new, renamed=renamed, transferred=transferred, deleted=deleted, file=FILE)


def put_beside(data: Data, class_name: str, name: str, *endings: str, text: str = "") -> None:
    path = data.path(class_name, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    for ending in endings:
        path.with_suffix(f".{ending}").write_text(text or f"{class_name} {name} {ending}")


def crash_at(number: int) -> Callable[[str], None]:
    """Ends the run at its step of that number, before it is done."""
    count = iter(range(number + 1))

    def step(_: str) -> None:
        if next(count) == number:
            raise Crash

    return step
