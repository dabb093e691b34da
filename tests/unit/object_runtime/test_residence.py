"""Which objects are open, and what do their files look like meanwhile and afterwards?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.runtime import DurableObject, ObjectFailed, ObjectOverloaded, read, sqlite
from actors.runtime.activation import Activation
from actors.runtime.backend_local import LocalBackend
from actors.runtime.clock import ManualClock
from actors.runtime.namespace import Namespace, Stub
from actors.runtime.residents import Residents
from actors.runtime.storage import Storage
from tests.conformance.support import ticks
from tests.objects import Notebook, Refusal, gate_in
from tests.unit.object_runtime.backend import SETTINGS


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[Storage]:
    """The storages that were put to rest."""
    rested: list[Storage] = []
    rest = Storage.rest

    def noted(storage: Storage) -> None:
        rested.append(storage)
        rest(storage)

    monkeypatch.setattr(Storage, "rest", noted)
    return rested


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

    async def test_an_object_that_is_not_used_rests_once_and_stays(
        self, backend: LocalBackend, notebook: Stub[Notebook], clock: ManualClock, rests: list[Storage]
    ) -> None:
        await notebook.add("kept")
        incarnation = await notebook.incarnation()
        clock.advance(0.9)
        backend.host.sweep()
        assert not rests
        clock.advance(0.1)
        for _ in range(3):
            backend.host.sweep()
            clock.advance(1.0)
        assert len(rests) == 1
        assert await notebook.lines() == ["kept"]
        assert await notebook.incarnation() == incarnation
        clock.advance(1.0)
        backend.host.sweep()
        assert len(rests) == 2

    async def test_an_object_in_a_turn_does_not_rest(
        self,
        backend: LocalBackend,
        notebook: Stub[Notebook],
        clock: ManualClock,
        rests: list[Storage],
        tmp_path: Path,
    ) -> None:
        gate, open_gate = gate_in(tmp_path)
        turn = asyncio.ensure_future(notebook.add_around_gate("x", gate))
        await ticks()
        clock.advance(5.0)
        backend.host.sweep()
        assert not rests
        open_gate()
        assert await turn == "x"

    async def test_an_object_that_is_kept_still_does_not_rest(
        self, backend: LocalBackend, notebook: Stub[Notebook], clock: ManualClock, rests: list[Storage]
    ) -> None:
        await notebook.lines()
        clock.advance(5.0)
        async with backend.host.hold(notebook.id, 1.0):
            backend.host.sweep()
            assert not rests

    def test_many_are_put_to_rest_a_few_at_a_time(self) -> None:
        slept: list[str] = []

        class Tired(Activation):
            __slots__ = ()

            def may_rest(self, unused_since_s: float) -> bool:
                return self.id.name not in slept

            def rest(self) -> None:
                slept.append(self.id.name)
                clock.advance(0.004)

        clock = ManualClock()
        services: Any = SimpleNamespace(clock=clock, mailbox_age_max_s=1.0)
        residents = Residents("h", 10, clock, make=lambda object_id: Tired(object_id, services), run=lambda _: None)
        for name in "abcdef":
            residents.take(("Notebook", "acme", name), {})
        clock.advance(1.0)
        assert residents.rest_unused(1.0, 0.005)
        assert slept == ["a", "b"]
        assert residents.rest_unused(1.0, 0.0)
        assert slept == ["a", "b", "c"]
        assert not residents.rest_unused(1.0, 1.0)
        assert slept == list("abcdef")

    async def test_an_object_that_has_closed_its_file_rests_all_the_same(
        self, backend: LocalBackend, notebook: Stub[Notebook], clock: ManualClock
    ) -> None:
        await notebook.add("kept")
        activation = backend.host.activation_of(notebook.id)
        assert activation is not None
        assert activation.instance is not None
        activation.instance.storage.connection.close()
        clock.advance(1.0)
        backend.host.sweep()
        assert await notebook.lines() == ["kept"]  # its stub repeats what only reads

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
