"""Can objects be looked after without disturbing the others?"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from actors import LocalBackend, Operator
from actors.runtime import (
    ObjectNotFound,
    ObjectReset,
)
from actors.runtime.call import HostLost, HostRetired, unpack
from actors.runtime.object_id import ObjectId
from actors.runtime.operations import Inspectable
from tests.conformance.support import ticks
from tests.objects import AlarmClock, Notebook
from tests.unit.inspection.support import (
    MADE,
    NOW,
    SETTINGS,
    Endless,
    Growing,
    GrowingBefore,
    busy,
    bytes_of,
    exported,
    lines,
    names,
    notebook,
    path_of,
    write,
)


async def test_an_object_is_evicted_unless_a_turn_runs(
    backend: LocalBackend, operator: Operator, tmp_path: Path
) -> None:
    stub, turn, open_gate = await busy(backend, tmp_path)
    assert not await operator.evict(notebook("one"))
    open_gate()
    await turn
    assert await operator.evict(notebook("one"))
    assert backend.host.resident_objects == 0
    assert await stub.lines() == ["text before", "text after"]


async def test_by_force_what_runs_and_what_waits_is_ended_and_what_was_committed_stays(
    backend: LocalBackend, operator: Operator, tmp_path: Path
) -> None:
    stub, turn, _ = await busy(backend, tmp_path)
    waiting = asyncio.create_task(stub.add("never"))
    await ticks()
    assert await operator.evict(notebook("one"), force=True)
    for call in (turn, waiting):
        with pytest.raises(ObjectReset, match="by force"):
            await call
    assert backend.host.resident_objects == 0
    assert await stub.add("after") == 2
    assert await stub.lines() == ["text before", "after"]


@pytest.mark.parametrize("method", ["hang", "hang_alone"])
async def test_an_object_whose_turn_never_ends_is_looked_after_once_it_was_evicted_by_force(
    backend: LocalBackend, operator: Operator, method: str
) -> None:
    stub = backend.namespace(Endless).get("acme", "e")
    call = asyncio.create_task(getattr(stub, method)(*(["hung"] if method == "hang" else [])))
    await ticks()
    assert not await operator.evict(stub.id)
    assert await operator.evict(stub.id, force=True)
    with pytest.raises(ObjectReset):
        await call
    await ticks()
    assert await stub.text() == ("hung" if method == "hang" else "alone")
    assert (await operator.query(stub.id, "SELECT 1")).rows == ((1,),)
    await operator.delete(stub.id)
    assert await stub.text() is None


@pytest.mark.parametrize("method", ["erase_and_hang", "erase_and_hang_alone"])
async def test_a_turn_that_goes_on_after_it_deleted_its_object_is_ended_by_force_and_touches_no_new_one(
    backend: LocalBackend, operator: Operator, method: str
) -> None:
    before = asyncio.all_tasks()
    stub = backend.namespace(Endless).get("acme", "e")
    call = asyncio.create_task(getattr(stub, method)())
    await ticks()
    assert await operator.evict(stub.id, force=True)
    new = asyncio.create_task(stub.put("of the new one"))  # it is there before the old turn learns of its end
    with pytest.raises(ObjectReset):
        await call
    await new
    await ticks()
    assert asyncio.all_tasks() == before
    assert await stub.text() == "of the new one"
    assert backend.host.evict(stub.id)
    assert await stub.text() == "of the new one"
    await operator.delete(stub.id)
    with pytest.raises(ObjectNotFound):
        await operator.evict(stub.id, force=True)


async def test_an_alarm_whose_handler_was_ended_by_force_is_fired_again_later(
    backend: LocalBackend, operator: Operator
) -> None:
    stub = backend.namespace(Endless).get("acme", "e")
    await stub.ring_now()
    (turn,) = backend.host.fire_due()
    await ticks()
    assert await operator.evict(stub.id, force=True)
    with pytest.raises(ObjectReset):
        unpack(await turn.wait())
    await ticks()
    assert await stub.text() == "alarm"
    assert (await operator.describe(stub.id)).alarm_at == NOW
    assert backend.host.alarms.next_at is not None
    assert backend.host.alarms.next_at > NOW


async def test_force_leaves_the_file_to_whoever_looks_into_it(backend: LocalBackend, operator: Operator) -> None:
    stub = backend.namespace(Notebook).get("acme", "one")
    await stub.add("a line")
    async with backend.host.hold(stub.id, 1.0) as activation:
        instance = activation.instance
        waiting = asyncio.create_task(stub.add("never"))
        await ticks()
        assert await operator.evict(stub.id, force=True)
        with pytest.raises(ObjectReset):
            await waiting
        assert activation.instance is instance is not None
    assert await stub.lines() == ["a line"]


@pytest.mark.parametrize("asleep", [True, False])
async def test_a_deleted_object_leaves_nothing_and_can_be_made_anew(
    backend: LocalBackend, operator: Operator, data_dir: Path, asleep: bool
) -> None:
    await write(backend, notebook("one"), notebook("one.a5"), asleep=asleep)
    path = path_of(data_dir, notebook("one"))
    path.with_suffix(".a1700000000000").touch()
    backend.host.quarantine.crashed(notebook("one"), "add")
    assert path.with_suffix(".trouble").exists()
    await operator.delete(notebook("one"))
    assert not path.exists()
    assert not path.with_suffix(".a1700000000000").exists()
    assert not path.with_suffix(".trouble").exists()
    assert names((await operator.list("Notebook")).objects) == ["one.a5"]
    assert await lines(backend, notebook("one")) == []
    assert await lines(backend, notebook("one.a5")) == ["a line"]


async def test_an_object_without_an_alarm_fires_none(backend: LocalBackend, operator: Operator) -> None:
    await write(backend, notebook("one"))
    assert not await operator.fire_alarm(notebook("one"))


async def test_an_alarm_is_fired_when_somebody_says_so(
    backend: LocalBackend, operator: Operator, tmp_path: Path
) -> None:
    bell = tmp_path / "bell"
    await backend.namespace(AlarmClock).get("acme", "one").ring_at(NOW + 1000, bell)
    assert await operator.fire_alarm(ObjectId("AlarmClock", "acme", "one"))
    assert bell.exists()
    assert not await operator.fire_alarm(ObjectId("AlarmClock", "acme", "one"))


async def test_an_alarm_comes_and_goes_with_the_database(
    backend: LocalBackend, operator: Operator, data_dir: Path, tmp_path: Path
) -> None:
    one, two = [ObjectId("AlarmClock", "acme", name) for name in ("one", "two")]
    clocks = backend.namespace(AlarmClock)
    await clocks.get("acme", "one").ring_at(NOW + 1000, tmp_path / "bell")
    await clocks.get("acme", "two").ring_at(NOW + 1, tmp_path / "another")
    data = await exported(operator, one)
    info = await operator.import_(two, bytes_of(data), replace=True)
    assert (info.alarm_at, info.quarantined) == (NOW + 1000, False)
    await operator.delete(one)
    assert [path.name for path in path_of(data_dir, one).parent.glob("acme:one*")] == []
    assert [(await operator.describe(two)).alarm_at, backend.host.alarms.next_at] == [NOW + 1000, NOW + 1000]


async def test_a_sweep_brings_all_objects_up_to_date_tells_how_far_it_is_and_wakes_none(data_dir: Path) -> None:
    with contextlib.closing(LocalBackend(data_dir, [GrowingBefore], settings=SETTINGS)) as before:
        for number in range(120):
            await before.namespace(GrowingBefore).get("acme", f"g{number}").add("fails" if number == 7 else "fine")
    MADE.clear()
    with contextlib.closing(LocalBackend(data_dir, [Growing, Notebook], settings=SETTINGS)) as backend:
        operator = Operator(backend)
        await backend.namespace(Growing).get("acme", "resident").add("thing")
        await write(backend, notebook("one"))
        MADE.clear()
        assert (await operator.describe(ObjectId("Growing", "acme", "g3"))).schema_version == "first"
        told = [progress async for progress in operator.migrate("Growing")]
        assert [(one.seen, one.total) for one in told] == [(0, 121), (50, 121), (100, 121), (121, 121)]
        assert (told[-1].migrated, told[-1].failures) == (119, 1)
        ((failed, why),) = told[-1].failed
        assert (failed.name, why) == ("g7", "ValueError: this one can't be brought up to date")
        assert (await operator.describe(ObjectId("Growing", "acme", "g3"))).schema_version == "second"
        assert (await operator.describe(ObjectId("Growing", "acme", "g7"))).schema_version == "first"
        assert MADE == []
        again = [progress async for progress in operator.migrate()]
        assert (again[-1].total, again[-1].migrated, again[-1].failures) == (122, 0, 1)
        await backend.namespace(Growing).get("acme", "g3").add("works")


class Losing(Inspectable):
    """Loses the first answers."""

    def __init__(self, backend: LocalBackend, *losses: Exception) -> None:
        self._backend = backend
        self._losses = list(losses)
        self.asked: list[str] = []

    @property
    def hosts(self) -> int:
        return 1

    async def inspect(self, where: ObjectId | int, operation: str, arguments: dict[str, Any], *, start: bool) -> Any:
        self.asked.append(operation)
        if self._losses:
            raise self._losses.pop(0)
        return await self._backend.inspect(where, operation, arguments, start=start)


async def test_what_is_safe_to_repeat_is_asked_again_and_the_rest_only_if_it_was_not_done(
    backend: LocalBackend,
) -> None:
    await write(backend, notebook("one"))
    lost = HostLost("host-0", "gone")
    losing = Losing(backend, lost, lost)
    assert (await Operator(losing).describe(notebook("one"))).id == notebook("one")
    assert losing.asked == ["describe"] * 3
    with pytest.raises(ObjectReset):
        await Operator(Losing(backend, lost)).delete(notebook("one"))
    await Operator(Losing(backend, HostRetired(), HostRetired())).delete(notebook("one"))
    with pytest.raises(ObjectNotFound):
        await Operator(backend).describe(notebook("one"))
