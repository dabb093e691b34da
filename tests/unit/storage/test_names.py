"""Who makes the name of an object's log durable, with the first commit since its file was opened?"""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.runtime import storage
from actors.runtime.backend_local import LocalBackend
from actors.runtime.clock import ManualClock
from actors.runtime.folder import sync_folder
from tests.objects import AlarmClock, Notebook


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were synced by storages, and not by the index of alarms."""
    folders: list[Path] = []

    def noted(folder: Path) -> None:
        folders.append(folder)
        sync_folder(folder)

    monkeypatch.setattr(storage, "sync_folder", noted)
    return folders


async def test_the_storage_does_once(data_dir: Path, synced: list[Path]) -> None:
    backend = LocalBackend(data_dir, [Notebook], keeps_time=False)
    try:
        notebook = backend.namespace(Notebook).get("acme", "n1")
        await notebook.lines()
        assert not synced
        for _ in range(2):
            await notebook.add("kept")
        assert len(synced) == 1
        assert backend.host.evict(notebook.id)
        await notebook.add("kept")
        assert len(synced) == 2
    finally:
        backend.close()


async def test_where_an_alarm_was_entered_just_before_its_index_has_done_so(
    data_dir: Path, synced: list[Path], tmp_path: Path
) -> None:
    clock = ManualClock()
    backend = LocalBackend(data_dir, [AlarmClock], clock=clock, keeps_time=False)
    try:
        await backend.namespace(AlarmClock).get("acme", "a1").ring_at(clock.now() + 10, tmp_path / "bell")
        assert not synced
        # One that is later is entered after the commit, which waits for the name itself.
        second = backend.namespace(AlarmClock).get("acme", "a2")
        await second.ring_at(clock.now() + 10, tmp_path / "bell")
        assert backend.host.evict(second.id)
        await second.ring_at(clock.now() + 20, tmp_path / "bell")
        assert len(synced) == 1
    finally:
        backend.close()
