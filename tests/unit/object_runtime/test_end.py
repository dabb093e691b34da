"""Who is told, and what is refused, when a host goes or may not come?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import ObjectReset, SlotOwned, sqlite
from actors.runtime.backend_local import LocalBackend
from actors.runtime.call import HostRetired
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from tests.conformance.support import call_of, ticks
from tests.objects import Notebook, gate_in
from tests.unit.object_runtime.backend import SETTINGS, opened


class TestEnd:
    """What happens to calls when their host goes?"""

    async def test_a_closed_backend_refuses_calls_and_opens_nothing(
        self, backend: LocalBackend, notebook: Stub[Notebook], path_of: Callable[[Stub[Any]], Path]
    ) -> None:
        await notebook.add("x")
        backend.close()
        backend.close()
        with pytest.raises(RuntimeError, match="closed"):
            await notebook.lines()
        with pytest.raises(HostRetired):
            backend.host.submit([call_of(notebook, "lines")])
        assert not sqlite.wal_of(path_of(notebook)).exists()

    async def test_turns_under_way_are_told_when_their_host_closes_and_run_no_further(
        self, backend: LocalBackend, notebook: Stub[Notebook], data_dir: Path, tmp_path: Path
    ) -> None:
        gate, open_gate = gate_in(tmp_path)
        calls = [
            asyncio.ensure_future(call)
            for call in (notebook.add_around_gate("x", gate), notebook.add("waiting"), notebook.add_in_steps("waiting"))
        ]
        await ticks()
        backend.close()
        open_gate()
        for call in calls:
            with pytest.raises(ObjectReset, match="its host is stopping"):
                await call
        with opened(data_dir) as successor:
            assert await successor.namespace(Notebook).get("acme", "n1").lines() == ["x before"]

    async def test_a_retired_host_refuses_and_ran_nothing(
        self, backend: LocalBackend, notebook: Stub[Notebook], tmp_path: Path
    ) -> None:
        gate, open_gate = gate_in(tmp_path)
        turn = asyncio.ensure_future(notebook.add_around_gate("x", gate))
        await ticks()
        assert not backend.host.retire()
        assert backend.host.idle_for_s == 0.0
        open_gate()
        await turn
        assert backend.host.retire()
        with pytest.raises(HostRetired):
            backend.host.submit([call_of(notebook, "add", "y")])

    async def test_a_second_backend_on_the_same_files_is_refused_by_name(
        self, backend: LocalBackend, data_dir: Path
    ) -> None:
        with pytest.raises(SlotOwned, match=r"slot 000 is owned by process \d+, without Ray"):
            LocalBackend(data_dir, [Notebook], settings=SETTINGS)

    async def test_another_number_of_slots_is_refused(self, backend: LocalBackend, data_dir: Path) -> None:
        backend.close()
        with pytest.raises(ValueError, match=r"objects\.slots: .* was made with 4 slots"):
            LocalBackend(data_dir, [Notebook], settings=HostSettings(slots=8))

    async def test_a_file_that_another_process_has_open_is_refused(
        self, backend: LocalBackend, notebook: Stub[Notebook], path_of: Callable[[Stub[Any]], Path]
    ) -> None:
        await notebook.add("x")
        assert backend.host.evict(notebook.id)
        rival = sqlite.connect(path_of(notebook))
        with pytest.raises(SlotOwned, match="another process that has its database open"):
            await notebook.lines()
        rival.close()
        assert await notebook.lines() == ["x"]


def test_a_sqlite_that_loses_commits_is_refused(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.runtime.sqlite.sqlite3.sqlite_version_info", (3, 51, 2))
    with pytest.raises(sqlite.SqliteTooOld, match=r"3\.51\.3 or newer is needed"):
        LocalBackend(data_dir, [Notebook], settings=SETTINGS)
    # The slots are free again.
    monkeypatch.undo()
    LocalBackend(data_dir, [Notebook], settings=SETTINGS).close()
