"""Does a reply leave only when what it tells of is durable?"""

from __future__ import annotations

import asyncio
import resource
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import ObjectReset, StorageFull, sqlite
from actors.runtime.backend_local import LocalBackend
from actors.runtime.call import unpack
from actors.runtime.namespace import Namespace, Stub
from actors.runtime.storage import Storage
from tests.conformance.support import call_of, outcomes_of
from tests.objects import Notebook, Refusal, gate_in
from tests.unit.object_runtime.backend import SETTINGS, opened


class FailingDisk:
    """Makes the commits of chosen objects fail, before or after they have reached the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before_writing: set[str] = set()
        self.after_writing: set[str] = set()
        commit = Storage.commit

        def commit_or_fail(storage: Storage) -> None:
            key = storage._object_key
            if key in self.before_writing:
                raise ObjectReset(key, "the disk said no")
            commit(storage)
            if key in self.after_writing:
                raise ObjectReset(key, "the disk did not answer")

        monkeypatch.setattr(Storage, "commit", commit_or_fail)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    return FailingDisk(monkeypatch)


def gate_reached(stub: Stub[Any], data_dir: Path) -> bool:
    wal = sqlite.wal_of(stub.id.path(data_dir / "objects", SETTINGS.slots))
    return wal.exists() and wal.stat().st_size > 0


class TestOutputGate:
    """No reply leaves before what it tells of is durable."""

    async def test_a_reply_leaves_after_the_commit_of_its_group(
        self, notebook: Stub[Notebook], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[asyncio.Future[Any]] = []
        done_at_commit: list[bool] = []
        commit = Storage.commit

        def watched(storage: Storage) -> None:
            done_at_commit.append(any(call.done() for call in calls))
            commit(storage)

        monkeypatch.setattr(Storage, "commit", watched)
        calls += [asyncio.ensure_future(notebook.add(str(number))) for number in range(50)]
        await asyncio.gather(*calls)
        assert done_at_commit == [False]  # and all fifty shared one commit

    async def test_a_reply_is_withheld_when_the_commit_fails(self, notebook: Stub[Notebook], disk: FailingDisk) -> None:
        await notebook.add("durable")
        incarnation = await notebook.incarnation()
        disk.before_writing = {str(notebook.id)}
        outcomes = await outcomes_of(notebook.add("lost"), notebook.lines(), notebook.add("lost"))
        assert [str(outcome) for outcome in outcomes] == [f"{notebook.id} was reset: the disk said no"] * 3
        disk.before_writing = set()
        assert await notebook.lines() == ["durable"]
        assert await notebook.incarnation() != incarnation

    async def test_an_error_that_tells_of_an_uncommitted_write_is_withheld_too(
        self, notebook: Stub[Notebook], disk: FailingDisk
    ) -> None:
        disk.before_writing = {str(notebook.id)}
        added, refused = await outcomes_of(
            notebook.add("a"), notebook.add_and_raise("b", Refusal("there is an a already", 1))
        )
        assert isinstance(added, ObjectReset)
        assert isinstance(refused, ObjectReset)

    async def test_a_failed_commit_of_one_object_is_no_other_objects(
        self, notebooks: Namespace[Notebook], disk: FailingDisk
    ) -> None:
        stubs = [notebooks.get("acme", str(number)) for number in range(5)]
        disk.before_writing = {str(stubs[2].id)}
        outcomes = await outcomes_of(*[stub.add("x") for stub in stubs])
        assert [type(outcome) for outcome in outcomes] == [int, int, ObjectReset, int, int]

    async def test_the_disk_is_asked_for_all_commits_of_a_batch_at_once(
        self, backend: LocalBackend, notebooks: Namespace[Notebook], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stubs = [notebooks.get("acme", str(number)) for number in range(SETTINGS.resident_objects_max)]
        await asyncio.gather(*[stub.add("first") for stub in stubs])
        # A slow disk: none of them is done before all have been asked for.
        all_asked = threading.Barrier(len(stubs), timeout=20)
        commit = Storage.commit

        def slow(storage: Storage) -> None:
            all_asked.wait()
            commit(storage)

        monkeypatch.setattr(Storage, "commit", slow)

        await asyncio.gather(*[stub.add("second") for stub in stubs])

        assert not all_asked.broken

    async def test_a_commit_whose_outcome_is_unknown_is_read_back_from_disk(
        self, backend: LocalBackend, notebook: Stub[Notebook], disk: FailingDisk
    ) -> None:
        request = call_of(notebook, "append", "x", request_id="r1")
        disk.after_writing = {str(notebook.id)}
        with pytest.raises(ObjectReset):
            unpack(await backend.send(notebook.id, request))
        disk.after_writing = set()
        assert unpack(await backend.send(notebook.id, request)) == 1
        assert await notebook.lines() == ["x"]

    @pytest.mark.parametrize("reached_disk", [False, True])
    async def test_an_async_turn_whose_commit_fails_is_ended_and_reset(
        self, notebook: Stub[Notebook], disk: FailingDisk, reached_disk: bool
    ) -> None:
        await notebook.add("durable")
        failing = disk.after_writing if reached_disk else disk.before_writing
        failing.add(str(notebook.id))
        with pytest.raises(ObjectReset, match="the disk"):
            await notebook.add_in_finally("step")
        failing.clear()
        # And nothing of its `finally`, which ran after its step had failed.
        assert await notebook.lines() == ["durable", "step"][: 2 if reached_disk else 1]

    async def test_what_an_async_turn_wrote_between_awaits_survives_a_crash(
        self, notebook: Stub[Notebook], data_dir: Path, tmp_path: Path
    ) -> None:
        gate, open_gate = gate_in(tmp_path)
        turn = asyncio.ensure_future(notebook.add_around_gate("x", gate))
        while not gate_reached(notebook, data_dir):
            await asyncio.sleep(0)
        shutil.copytree(data_dir, tmp_path / "after the crash")
        with opened(tmp_path / "after the crash") as survivor:
            assert await survivor.namespace(Notebook).get("acme", "n1").lines() == ["x before"]
        open_gate()
        await turn

    async def test_what_was_acknowledged_survives_a_crash(
        self, notebook: Stub[Notebook], data_dir: Path, tmp_path: Path
    ) -> None:
        await notebook.add("acknowledged")
        shutil.copytree(data_dir, tmp_path / "after the crash")
        with opened(tmp_path / "after the crash") as survivor:
            assert await survivor.namespace(Notebook).get("acme", "n1").lines() == ["acknowledged"]

    async def test_a_full_disk_undoes_the_turn_and_says_so(self, data_dir: Path) -> None:
        with opened(data_dir, database_bytes_max=100_000) as backend:
            notebook = backend.namespace(Notebook).get("acme", "n1")
            await notebook.add("durable")
            added, filled = await outcomes_of(notebook.add("lost"), notebook.fill(1_000_000))
            assert isinstance(added, StorageFull)
            assert isinstance(filled, StorageFull)
            assert filled.object_key == str(notebook.id)
            assert filled.retryable
            assert await notebook.lines() == ["durable"]
            assert await notebook.add("goes on") == 2

    async def test_a_write_that_the_disk_refuses_is_not_acknowledged(
        self, notebook: Stub[Notebook], path_of: Callable[[Stub[Any]], Path]
    ) -> None:
        await notebook.add("durable")
        wal_bytes = sqlite.wal_of(path_of(notebook)).stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (wal_bytes + 100, hard))
        try:
            outcomes = await outcomes_of(notebook.add("x" * 50_000), notebook.add("lost"), notebook.add("too"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {type(outcome) for outcome in outcomes} <= {ObjectReset, StorageFull}
        assert await notebook.lines() == ["durable"]
        await notebook.add("goes on")
