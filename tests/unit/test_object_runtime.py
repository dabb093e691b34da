"""Does an object keep its promises in one process, where its commits can be made to fail and its clock be turned?"""

from __future__ import annotations

import asyncio
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors.runtime import (
    DurableError,
    DurableObject,
    InvalidArgument,
    ObjectFailed,
    ObjectOverloaded,
    ObjectReset,
    SchemaTooNew,
    SlotOwned,
    StorageFull,
    exactly_once,
    read,
    sqlite,
)
from actors.runtime.backend_local import LocalBackend
from actors.runtime.call import HostLost, HostRetired, unpack
from actors.runtime.clock import ManualClock
from actors.runtime.host import HostSettings
from actors.runtime.namespace import Namespace, Stub
from actors.runtime.object import ClassSpec
from actors.runtime.once import REQUESTS_KEPT_S
from actors.runtime.storage import Storage
from tests.conformance.support import call_of, outcomes_of
from tests.objects import Ledger, Notebook, Refusal, gate_in

SETTINGS = HostSettings(
    slots=4, idle_after_s=10.0, resident_objects_max=8, mailbox_calls_max=1000, mailbox_bytes_max=4_000_000
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@contextmanager
def opened(data_dir: Path, clock: ManualClock | None = None, **changes: Any) -> Iterator[LocalBackend]:
    """A backend on `data_dir`, closed at the end whatever happens."""
    settings = HostSettings(**{"slots": 4, "idle_after_s": 10.0, "resident_objects_max": 8, **changes})
    backend = LocalBackend(data_dir, [Notebook, Ledger], settings=settings, clock=clock)
    try:
        yield backend
    finally:
        backend.close()


@pytest.fixture
def backend(data_dir: Path, clock: ManualClock) -> Iterator[LocalBackend]:
    backend = LocalBackend(data_dir, [Notebook, Ledger], settings=SETTINGS, clock=clock)
    yield backend
    backend.close()


@pytest.fixture
def notebooks(backend: LocalBackend) -> Namespace[Notebook]:
    return backend.namespace(Notebook)


@pytest.fixture
def notebook(notebooks: Namespace[Notebook]) -> Stub[Notebook]:
    return notebooks.get("acme", "n1")


@pytest.fixture
def path_of(data_dir: Path) -> Callable[[Stub[Any]], Path]:
    return lambda stub: stub.id.path(data_dir / "objects", SETTINGS.slots)


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
            outcomes = await outcomes_of(notebook.add("x" * 50_000), notebook.add("lost"), notebook.lines())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {type(outcome) for outcome in outcomes} <= {ObjectReset, StorageFull}
        assert await notebook.lines() == ["durable"]
        await notebook.add("goes on")


async def ticks() -> None:
    """Lets everything happen that waits for nothing but its turn in the event loop."""
    for _ in range(20):
        await asyncio.sleep(0)


def gate_reached(stub: Stub[Any], data_dir: Path) -> bool:
    wal = sqlite.wal_of(stub.id.path(data_dir / "objects", SETTINGS.slots))
    return wal.exists() and wal.stat().st_size > 0


class TestMisbehaviour:
    """What an author does wrong harms no other turn, and is never acknowledged."""

    async def test_an_async_turn_that_ends_its_transaction_harms_no_later_one(self, notebook: Stub[Notebook]) -> None:
        ended, after = await outcomes_of(notebook.roll_back_by_conflict_later("early"), notebook.add("after"))
        assert isinstance(ended, ObjectReset)
        assert after == 1

    @pytest.mark.parametrize("method", ["roll_back_by_conflict", "roll_back_by_conflict_and_go_on"])
    async def test_a_turn_that_ends_the_groups_transaction_is_not_acknowledged(
        self, notebook: Stub[Notebook], method: str
    ) -> None:
        before, early, after = await outcomes_of(
            notebook.add("before"), getattr(notebook, method)("early"), notebook.add("after")
        )
        assert isinstance(before, ObjectReset)
        assert isinstance(early, ObjectReset)
        assert after == 1
        assert await notebook.lines() == ["after"]

    async def test_a_turn_that_closes_the_database_resets_the_object(self, notebook: Stub[Notebook]) -> None:
        before, closed, after = await outcomes_of(
            notebook.add("before"), notebook.close_storage(), notebook.add("after")
        )
        assert isinstance(before, ObjectReset)
        assert isinstance(closed, ObjectReset)
        assert after == 1

    async def test_what_was_acknowledged_stays_when_a_turn_closes_the_database(self, notebook: Stub[Notebook]) -> None:
        await notebook.add("kept")
        with pytest.raises(ObjectReset):
            await notebook.close_storage()
        assert await notebook.lines() == ["kept"]

    async def test_two_classes_of_one_name_are_refused(self, data_dir: Path) -> None:
        impostor = type("Notebook", (DurableObject,), {})
        with pytest.raises(ValueError, match="two durable classes are named Notebook"):
            LocalBackend(data_dir, [Notebook, impostor], settings=SETTINGS)

    def test_an_async_method_cannot_be_exactly_once(self) -> None:
        async def method(self: DurableObject) -> None: ...

        with pytest.raises(TypeError, match="needs a plain def method"):
            exactly_once(method)


class TestRequests:
    """Which requests are recognised, and for how long?"""

    @pytest.mark.parametrize(
        "request_id",
        ["", "x" * 129, "a b", "a\n", "caf\u00e9", "\ud83d", "\x7f"],
        ids=lambda request_id: ascii(request_id[:8]),
    )
    async def test_a_request_id_is_short_and_visible(self, notebook: Stub[Notebook], request_id: str) -> None:
        with pytest.raises(InvalidArgument) as refused:
            notebook.append.once(request_id)
        assert refused.value.field == "request_id"
        assert await notebook.append.once("!" * 128)("longest") == 1

    async def test_only_an_exactly_once_method_takes_a_request_id(self, notebook: Stub[Notebook]) -> None:
        for method in (notebook.add, notebook.put, notebook.lines):
            with pytest.raises(TypeError, match="is not declared @exactly_once"):
                method.once("r1")

    async def test_a_record_expires_after_its_time(
        self, backend: LocalBackend, notebook: Stub[Notebook], clock: ManualClock
    ) -> None:
        request = call_of(notebook, "append", "x", request_id="old")
        unpack(await backend.send(notebook.id, request))
        clock.advance(REQUESTS_KEPT_S - 1)
        await notebook.append("another")  # which looks for records to remove
        assert unpack(await backend.send(notebook.id, request)) == 1
        clock.advance(2)
        await notebook.append("another")
        assert unpack(await backend.send(notebook.id, request)) == 4
        assert await notebook.lines() == ["x", "another", "another", "x"]

    async def test_records_of_a_busy_day_do_not_pile_up(
        self, notebook: Stub[Notebook], clock: ManualClock, path_of: Callable[[Stub[Any]], Path]
    ) -> None:
        await asyncio.gather(*[notebook.append("x") for _ in range(200)])
        clock.advance(REQUESTS_KEPT_S + 1)
        await asyncio.gather(*[notebook.append("x") for _ in range(50)])
        clock.advance(0)
        backend = notebook._backend
        assert isinstance(backend, LocalBackend)
        backend.close()
        left = Database(path_of(notebook))
        assert left.execute("SELECT count(*) FROM _mobula_requests").fetchone() == (50,)
        left.close()

    async def test_a_record_survives_hibernation(self, backend: LocalBackend, notebook: Stub[Notebook]) -> None:
        request = call_of(notebook, "append", "x", request_id="r")
        unpack(await backend.send(notebook.id, request))
        assert backend.host.evict(notebook.id)
        assert unpack(await backend.send(notebook.id, request)) == 1


class TestResidence:
    """Who is open, and for how long?"""

    async def test_an_idle_object_hibernates_and_wakes(
        self, backend: LocalBackend, notebook: Stub[Notebook], clock: ManualClock
    ) -> None:
        await notebook.add("kept")
        incarnation = await notebook.incarnation()
        clock.advance(9.9)
        assert backend.host.sweep() == 0
        assert await notebook.incarnation() == incarnation  # which is a use
        clock.advance(9.9)
        assert backend.host.sweep() == 0
        clock.advance(0.1)
        assert backend.host.sweep() == 1
        assert backend.host.resident_objects == 0
        assert await notebook.lines() == ["kept"]
        assert await notebook.incarnation() != incarnation

    async def test_an_object_in_a_turn_does_not_hibernate(
        self, backend: LocalBackend, notebook: Stub[Notebook], clock: ManualClock, tmp_path: Path
    ) -> None:
        gate, open_gate = gate_in(tmp_path)
        turn = asyncio.ensure_future(notebook.add_around_gate("x", gate))
        await ticks()
        clock.advance(1000)
        assert backend.host.sweep() == 0
        assert not backend.host.evict(notebook.id)
        open_gate()
        assert await turn == "x"

    async def test_the_least_recently_used_object_makes_room(
        self, backend: LocalBackend, notebooks: Namespace[Notebook]
    ) -> None:
        stubs = [notebooks.get("acme", str(number)) for number in range(SETTINGS.resident_objects_max)]
        first = [await stub.incarnation() for stub in stubs]
        await stubs[0].lines()
        await notebooks.get("acme", "newcomer").lines()
        assert backend.host.resident_objects == SETTINGS.resident_objects_max
        assert await stubs[0].incarnation() == first[0]
        assert await stubs[2].incarnation() == first[2]
        assert await stubs[1].incarnation() != first[1]

    async def test_more_objects_than_may_be_open_share_one_batch(
        self, backend: LocalBackend, notebooks: Namespace[Notebook]
    ) -> None:
        stubs = [notebooks.get("acme", str(number)) for number in range(50)]
        await asyncio.gather(*[stub.add("a") for stub in stubs], *[stub.add("b") for stub in stubs])
        assert backend.host.resident_objects <= SETTINGS.resident_objects_max
        assert await asyncio.gather(*[stub.lines() for stub in stubs]) == [["a", "b"]] * 50

    async def test_a_newcomer_is_refused_while_all_are_busy(
        self, notebooks: Namespace[Notebook], tmp_path: Path
    ) -> None:
        gate, open_gate = gate_in(tmp_path)
        busy = [
            asyncio.ensure_future(notebooks.get("acme", str(number)).add_around_gate("x", gate))
            for number in range(SETTINGS.resident_objects_max)
        ]
        await ticks()
        with pytest.raises(ObjectOverloaded, match="all 8 objects of local are busy") as overloaded:
            await notebooks.get("acme", "newcomer").add("y")
        assert overloaded.value.retry_after_s == 1.0
        open_gate()
        await asyncio.gather(*busy)
        assert await notebooks.get("acme", "newcomer").add("y") == 1

    async def test_an_object_that_was_never_written_leaves_no_file(
        self, backend: LocalBackend, notebook: Stub[Notebook], clock: ManualClock, path_of: Callable[[Stub[Any]], Path]
    ) -> None:
        assert await notebook.lines() == []
        with pytest.raises(Refusal):
            await notebook.add_and_raise("x", Refusal("no", 1))
        clock.advance(11)
        assert backend.host.sweep() == 1
        assert list(path_of(notebook).parent.iterdir()) == []

    async def test_an_open_object_has_a_database_and_its_log_and_nothing_else(
        self, notebook: Stub[Notebook], path_of: Callable[[Stub[Any]], Path]
    ) -> None:
        await notebook.add("x")
        path = path_of(notebook)
        assert {file.name for file in path.parent.iterdir()} == {path.name, path.name + "-wal"}

    async def test_an_erased_objects_files_are_gone_before_the_reply(
        self, notebook: Stub[Notebook], path_of: Callable[[Stub[Any]], Path]
    ) -> None:
        await notebook.add("gone")
        erased = asyncio.ensure_future(notebook.erase())
        erased.add_done_callback(lambda _: left.extend(path_of(notebook).parent.iterdir()))
        left: list[Path] = []
        await erased
        assert left == []

    async def test_a_log_left_by_a_crash_while_erasing_is_not_read_by_the_next_object(
        self, backend: LocalBackend, notebook: Stub[Notebook], path_of: Callable[[Stub[Any]], Path]
    ) -> None:
        await notebook.add("gone")
        wal = sqlite.wal_of(path_of(notebook))
        left_over = wal.read_bytes()
        await notebook.erase()
        assert backend.host.evict(notebook.id)
        wal.write_bytes(left_over)  # the database went first, and then the machine stopped
        assert await notebook.lines() == []
        assert await notebook.add("new") == 1

    async def test_an_object_whose_activation_fails_says_why_and_is_tried_again(self, data_dir: Path) -> None:
        class Moody(DurableObject):
            failing = True

            def start(self) -> None:
                if Moody.failing:
                    raise Refusal("not in the mood", 1)

            @read
            def mood(self) -> str:
                return "fine"

        backend = LocalBackend(data_dir, [Moody], settings=SETTINGS)
        stub = backend.namespace(Moody).get("acme", "m")
        with pytest.raises(ObjectFailed, match="activation failed") as failure:
            await stub.mood()
        assert failure.value.error == "Refusal"
        folder = stub.id.path(data_dir / "objects", SETTINGS.slots).parent
        assert [path.name for path in folder.iterdir()] == ["acme:m.trouble"]
        Moody.failing = False
        assert await stub.mood() == "fine"
        assert "acme:m.trouble" not in [path.name for path in folder.iterdir()]
        backend.close()


class TestMailbox:
    """How much may wait for one object, and for how long?"""

    async def test_a_full_mailbox_refuses_at_once(self, data_dir: Path, tmp_path: Path) -> None:
        gate, open_gate = gate_in(tmp_path)
        with opened(data_dir, mailbox_calls_max=5) as backend:
            stub = backend.namespace(Notebook).get("acme", "n")
            slow = asyncio.ensure_future(stub.add_around_gate("slow", gate))
            await ticks()
            waiting = [asyncio.ensure_future(stub.add(str(number))) for number in range(5)]
            await ticks()
            with pytest.raises(ObjectOverloaded, match="5 calls are waiting"):
                await stub.add("one too many")
            open_gate()
            await asyncio.gather(slow, *waiting)
            assert await stub.lines() == ["slow before", "slow after", "0", "1", "2", "3", "4"]

    async def test_a_mailbox_is_bounded_in_bytes(self, data_dir: Path, tmp_path: Path) -> None:
        gate, open_gate = gate_in(tmp_path)
        with opened(data_dir, mailbox_bytes_max=10_000) as backend:
            stub = backend.namespace(Notebook).get("acme", "n")
            slow = asyncio.ensure_future(stub.add_around_gate("slow", gate))
            await ticks()
            waiting = asyncio.ensure_future(stub.add("x" * 6_000))
            await ticks()
            with pytest.raises(ObjectOverloaded, match="bytes are waiting"):
                await stub.add("x" * 6_000)
            open_gate()
            await asyncio.gather(slow, waiting)
            await stub.add("x" * 6_000)

    async def test_arguments_that_never_fit_are_refused_for_good(self, data_dir: Path) -> None:
        with opened(data_dir, mailbox_bytes_max=10_000) as backend:
            stub = backend.namespace(Notebook).get("acme", "n")
            with pytest.raises(InvalidArgument, match="must take at most 10000") as refused:
                await stub.add("x" * 11_000)
            assert not refused.value.retryable

    async def test_a_call_that_waited_for_too_long_is_not_run(self, data_dir: Path, tmp_path: Path) -> None:
        gate, open_gate = gate_in(tmp_path)
        clock = ManualClock()
        with opened(data_dir, clock, mailbox_age_max_s=30.0) as backend:
            stub = backend.namespace(Notebook).get("acme", "n")
            slow = asyncio.ensure_future(stub.add_around_gate("slow", gate))
            old = asyncio.ensure_future(stub.add("too late"))
            await ticks()
            clock.advance(20)
            young = asyncio.ensure_future(stub.add("in time"))
            await ticks()
            clock.advance(11)
            open_gate()
            with pytest.raises(ObjectOverloaded, match="waited longer than 30 s"):
                await old
            await asyncio.gather(slow, young)
            assert await stub.lines() == ["slow before", "slow after", "in time"]

    async def test_a_result_that_nobody_collects_is_dropped(
        self, backend: LocalBackend, notebook: Stub[Notebook], clock: ManualClock, tmp_path: Path
    ) -> None:
        gate, open_gate = gate_in(tmp_path)
        ((_, ticket),) = await backend.host.batch([call_of(notebook, "add_around_gate", "x", gate)])
        open_gate()
        while not backend.host.evict(notebook.id):
            await asyncio.sleep(0)
        clock.advance(121)
        backend.host.sweep()
        with pytest.raises(KeyError):
            await backend.host.wait(ticket)


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
            for call in (notebook.add_around_gate("x", gate), notebook.add("waiting"), notebook.lines())
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


class Repeating:
    """A backend whose host gets lost a number of times before it replies."""

    def __init__(self, backend: LocalBackend, losses: int, error: Exception) -> None:
        self._backend = backend
        self._error = error
        self.losses = losses
        self.runs_before_loss = True

    async def send(self, object_id: Any, call: Any) -> Any:
        if self.losses:
            self.losses -= 1
            if self.runs_before_loss:
                await self._backend.send(object_id, call)
            raise self._error
        return await self._backend.send(object_id, call)

    def send_ref(self, object_id: Any, call: Any) -> Any:
        raise NotImplementedError


class TestRepeating:
    """What does a stub do when the host is lost before it replied?"""

    @pytest.fixture
    def lossy(self, backend: LocalBackend) -> Repeating:
        return Repeating(backend, 1, HostLost("host-0", "it was killed"))

    @pytest.fixture
    def stub(self, lossy: Repeating) -> Stub[Notebook]:
        return Namespace[Notebook](lossy, ClassSpec(Notebook)).get("acme", "n1")

    async def test_a_read_is_asked_again(self, stub: Stub[Notebook]) -> None:
        assert await stub.lines() == []

    async def test_an_idempotent_call_is_made_again(self, stub: Stub[Notebook]) -> None:
        await stub.put("k", "v")
        assert await stub.get("k") == "v"

    async def test_an_exactly_once_call_is_repeated_and_done_once(self, stub: Stub[Notebook], lossy: Repeating) -> None:
        lossy.losses = 3
        assert await stub.append("x") == 1
        assert await stub.lines() == ["x"]

    async def test_a_plain_call_is_left_to_its_caller(self, stub: Stub[Notebook]) -> None:
        with pytest.raises(ObjectReset, match="it was killed"):
            await stub.add("x")
        assert await stub.lines() == ["x"]

    async def test_a_plain_call_that_surely_did_not_run_is_repeated(self, backend: LocalBackend) -> None:
        lossy = Repeating(backend, 2, HostRetired())
        lossy.runs_before_loss = False
        stub = Namespace[Notebook](lossy, ClassSpec(Notebook)).get("acme", "n1")
        assert await stub.add("x") == 1

    async def test_repeating_ends(
        self, stub: Stub[Notebook], lossy: Repeating, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("actors.runtime.namespace.REPEAT_FOR_S", 0.1)
        lossy.losses = 10_000
        with pytest.raises(ObjectReset, match="it was killed"):
            await stub.lines()
        assert lossy.losses > 9_900

    async def test_a_call_without_a_reply_is_given_up(self, lossy: Repeating, monkeypatch: pytest.MonkeyPatch) -> None:
        async def never(object_id: Any, call: Any) -> Any:
            await asyncio.Event().wait()

        monkeypatch.setattr(lossy, "send", never)
        stub = Namespace[Notebook](lossy, ClassSpec(Notebook)).get("acme", "n1", timeout_s=0.05)
        with pytest.raises(ObjectReset, match=r"no reply within 0\.05 s"):
            await stub.lines()


def test_a_sqlite_that_loses_commits_is_refused(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.runtime.sqlite.sqlite3.sqlite_version_info", (3, 51, 2))
    with pytest.raises(sqlite.SqliteTooOld, match=r"3\.51\.3 or newer is needed"):
        LocalBackend(data_dir, [Notebook], settings=SETTINGS)
    # The slots are free again.
    monkeypatch.undo()
    LocalBackend(data_dir, [Notebook], settings=SETTINGS).close()


def subclasses_of(root: type[DurableError]) -> list[type[DurableError]]:
    return [root, *[deeper for child in root.__subclasses__() for deeper in subclasses_of(child)]]


RUNTIME_ERRORS = [
    error for error in dict.fromkeys(subclasses_of(DurableError)) if error.__module__.startswith("actors.")
]
FIELDS: dict[str, Any] = {"retry_after_s": 2.5, "since": 1_000_000_000.0, "value": "x" * 200}


@pytest.mark.parametrize("error_class", RUNTIME_ERRORS, ids=lambda error_class: error_class.__name__)
def test_an_error_crosses_processes_with_all_its_fields(error_class: type[DurableError]) -> None:
    code = error_class.__init__.__code__ if error_class.__init__ is not Exception.__init__ else None
    names = list(code.co_varnames[1 : code.co_argcount]) if code else []
    error = error_class(*[FIELDS.get(name, f"some {name}") for name in names])
    there = pickle.loads(pickle.dumps(error))
    back = pickle.loads(pickle.dumps(there))
    assert type(back) is error_class
    assert vars(back) == vars(error)
    assert str(back) == str(error)
    assert (back.retryable, back.retry_after_s) == (error.retryable, error.retry_after_s)
    for name in names:
        assert hasattr(back, name)


class TestSchema:
    """Is a file brought up to date, all of it or nothing, and one of newer code left alone?"""

    @staticmethod
    def page_class(*steps: str) -> type[DurableObject]:
        migrations = Migrations("page")
        for step in steps:

            def migrate(database: Database, step: str = step) -> None:
                if step == "broken":
                    database.execute("CREATE TABLE half (a)")
                    raise Refusal("this migration does not work", 1)
                database.execute(f"CREATE TABLE {step} (text TEXT)")
                database.execute(f"INSERT INTO {step} VALUES ('made by {step}')")

            migrations(name=step)(migrate)

        class Page(DurableObject):
            def write(self, table: str, text: str) -> None:
                self.storage.sql(f"INSERT INTO {table} VALUES (?)", text)

            @read
            def tables(self) -> list[str]:
                rows = self.storage.sql("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
                return [name for (name,) in rows if not name.startswith("_")]

            @read
            def texts(self, table: str) -> list[str]:
                return [text for (text,) in self.storage.sql(f"SELECT text FROM {table}")]

        Page.migrations = migrations if steps else None
        return Page

    @contextmanager
    def page(self, data_dir: Path, page_class: type[DurableObject]) -> Iterator[Stub[Any]]:
        backend = LocalBackend(data_dir, [page_class], settings=SETTINGS)
        try:
            yield backend.namespace(page_class).get("acme", "p")
        finally:
            backend.close()

    async def test_an_older_file_is_migrated_on_activation(self, data_dir: Path) -> None:
        with self.page(data_dir, self.page_class("first")) as page:
            await page.write("first", "kept")
        with self.page(data_dir, self.page_class("first", "second", "third")) as page:
            assert await page.tables() == ["first", "second", "third"]
            assert await page.texts("first") == ["made by first", "kept"]
            assert await page.texts("third") == ["made by third"]

    async def test_a_file_from_before_there_were_migrations_is_migrated(self, data_dir: Path) -> None:
        with self.page(data_dir, self.page_class()) as page:
            with pytest.raises(Exception, match="no such table"):
                await page.write("first", "x")
            assert await page.tables() == []
        # Nothing was written, so that there is no file yet; an unmigrated one is made by hand.
        with self.page(data_dir, self.page_class()) as page:
            path = page.id.path(data_dir / "objects", SETTINGS.slots)
        by_hand = Database(path)
        by_hand.execute("CREATE TABLE _mobula_requests (request_id TEXT PRIMARY KEY, fingerprint, result, at)")
        by_hand.close()
        with self.page(data_dir, self.page_class("first")) as page:
            assert await page.texts("first") == ["made by first"]

    async def test_a_migration_that_fails_leaves_the_file_as_it_was(self, data_dir: Path) -> None:
        with self.page(data_dir, self.page_class("first")) as page:
            await page.write("first", "kept")
        broken = self.page_class("first")
        assert broken.migrations is not None
        with self.page(data_dir, broken) as page:
            path = page.id.path(data_dir / "objects", SETTINGS.slots)
            # Made broken after the template, which is made from scratch.
            step = broken.migrations

            @step(name="second")
            def second(database: Database) -> None:
                database.execute("CREATE TABLE second (text TEXT)")

            @step(name="third")
            def third(database: Database) -> None:
                database.execute("CREATE TABLE half (a)")
                raise Refusal("this migration does not work", 1)

            backend = page._backend
            assert isinstance(backend, LocalBackend)
            backend.host._schemas["Page"]._names.extend(["second", "third"])
            for _ in range(2):
                with pytest.raises(ObjectFailed, match="activation failed"):
                    await page.texts("first")
        left = Database(path)
        assert [name for name in left.table_names() if not name.startswith("_")] == ["first"]
        left.close()
        with self.page(data_dir, self.page_class("first", "second")) as page:
            assert await page.texts("first") == ["made by first", "kept"]
            assert await page.texts("second") == ["made by second"]

    async def test_a_file_of_newer_code_is_refused_and_left_alone(self, data_dir: Path) -> None:
        with self.page(data_dir, self.page_class("first", "second")) as page:
            await page.write("first", "kept")
            path = page.id.path(data_dir / "objects", SETTINGS.slots)
        before = path.read_bytes()
        with self.page(data_dir, self.page_class("first")) as page:
            with pytest.raises(SchemaTooNew) as too_new:
                await page.texts("first")
            assert (too_new.value.found, too_new.value.known) == ("second", "first")
        assert path.read_bytes() == before
