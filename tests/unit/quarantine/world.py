"""Where does a quarantine stand that a test restarts and sets the clock of?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.runtime.clock import ManualClock
from actors.runtime.object_id import STEM_BYTES_MAX, ObjectId
from actors.runtime.quarantine import Quarantine
from actors.runtime.trouble import Trouble, path_of

SLOTS = 8
BAD = ObjectId("Notebook", "acme", "bad")
GOOD = ObjectId("Notebook", "acme", "good")
WIDEST = ObjectId("C" * 64, "t", "n" * (STEM_BYTES_MAX - 2))
BROKEN = ValueError("this can't start")


class World:
    """A data directory, a clock, and one host after the other."""

    def __init__(self, objects_dir: Path) -> None:
        self.objects_dir = objects_dir
        self.clock = ManualClock()
        self.host = self.restart()

    def restart(self, code: str = "code-1", **options: Any) -> Quarantine:
        self.host = Quarantine(self.objects_dir, SLOTS, code=code, clock=self.clock, **options)
        self.host.load(sorted(self.objects_dir.rglob("*")), lambda _: True)
        return self.host

    def crash(self, object_id: ObjectId = BAD, method: str = "crash", times: int = 1) -> Trouble:
        for _ in range(times):
            trouble = self.restart().crashed(object_id, method)
        return trouble

    def fail(self, object_id: ObjectId = BAD, error: Exception = BROKEN, times: int = 1) -> Trouble | None:
        for _ in range(times):
            trouble = self.host.activation_failed(object_id, error)
        return trouble

    def path(self, object_id: ObjectId = BAD) -> Path:
        return path_of(object_id, self.objects_dir, SLOTS)

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.objects_dir.rglob("*") if path.is_file())
