"""Who may be there while a history is applied, and who comes to be?"""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.runtime import ClassesRefused, DurableObject, SlotOwned, idempotent, read
from actors.runtime.backend_local import LocalBackend
from actors.runtime.class_migration import ClassMigration
from actors.runtime.host_settings import HostSettings
from actors.runtime.placement import Cluster
from actors.runtime.slot import SlotLock
from tests.unit.class_history.data import BEGIN, SLOTS, Data, second


def test_files_do_not_move_while_another_process_may_have_them_open(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    lock = SlotLock(data.data_dir / "slots" / "003.lock", "the other one", wait_s=0.0)
    with pytest.raises(SlotOwned, match="003 is owned by the other one"):
        data.apply(BEGIN, second(renamed=(("Apple", "Fig"),)), owner="me")
    assert data.world() == {("Apple", "a"): "Apple a"}
    data.apply(BEGIN, owner="me")  # nothing to move, nothing to own
    lock.release()
    data.apply(BEGIN, second(renamed=(("Apple", "Fig"),)), owner="me")
    SlotLock(data.data_dir / "slots" / "003.lock", "the next", wait_s=0.0).release()


def test_files_do_not_move_while_a_dedicated_object_of_the_class_lives(data: Data) -> None:
    data.apply(BEGIN)
    data.put("Apple", "a")
    lock = SlotLock(data.path("Apple", "a").with_suffix(".lock"), "its own process", wait_s=0.0)
    with pytest.raises(SlotOwned, match="its own process"):
        data.apply(BEGIN, second(renamed=(("Apple", "Fig"),)))
    assert data.world() == {("Apple", "a"): "Apple a"}
    data.apply(BEGIN)  # the older release can still run
    lock.release()
    data.apply(BEGIN, second(renamed=(("Apple", "Fig"),)))
    assert data.world() == {("Fig", "a"): "Apple a"}


def test_only_one_process_applies_a_history(data: Data) -> None:
    lock = SlotLock(data.data_dir / "slots" / "classes.lock", "the other one", wait_s=0.0)
    with pytest.raises(SlotOwned, match="the other one"):
        data.apply(BEGIN)
    lock.release()


def note(name: str) -> type[DurableObject]:
    """A class of that name that keeps a text."""

    class Note(DurableObject):
        @idempotent
        def write(self, text: str) -> None:
            self.storage.sql("CREATE TABLE IF NOT EXISTS note (text TEXT)")
            self.storage.sql("INSERT INTO note VALUES (?)", text)

        @read
        def text(self) -> str:
            ((text,),) = self.storage.sql("SELECT text FROM note")
            return str(text)

    Note.__name__ = name
    return Note


async def test_an_object_of_a_renamed_class_has_what_it_had(tmp_path: Path) -> None:
    settings = HostSettings(slots=SLOTS)
    old, new = note("Apple"), note("Fig")
    begin = ClassMigration(tag="v1", new=("Apple",))
    backend = LocalBackend(tmp_path, [old], settings=settings, history=[begin])
    stub = backend.namespace(old).get("acme", "n1")
    await stub.write("kept")
    backend.close()
    history = [begin, second(renamed=(("Apple", "Fig"),))]
    backend = LocalBackend(tmp_path, [new], settings=settings, history=history)
    assert await backend.namespace(new).get("acme", "n1").text() == "kept"
    backend.close()


def test_a_backend_with_a_refused_history_does_not_start_and_keeps_nothing_locked(tmp_path: Path) -> None:
    settings = HostSettings(slots=SLOTS)
    with pytest.raises(ClassesRefused, match="Fig"):
        LocalBackend(tmp_path, [note("Fig")], settings=settings, history=[ClassMigration(tag="v1", new=("Apple",))])
    LocalBackend(tmp_path, [note("Fig")], settings=settings).close()


def test_clusters_with_different_histories_are_different() -> None:
    def cluster(*history: ClassMigration) -> Cluster:
        return Cluster(data_dir=Path("/nowhere"), classes=(), history=history)

    elsewhere = ClassMigration(tag="v1", new=("Apple", "Pear"), file="elsewhere")
    assert cluster(BEGIN).fingerprint == cluster(elsewhere).fingerprint
    assert cluster(BEGIN).fingerprint != cluster(BEGIN, second(new=("Fig",))).fingerprint
