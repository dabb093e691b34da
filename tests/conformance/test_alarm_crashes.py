"""What is left of an alarm by a crash, and by a disk that fails?"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import ObjectReset
from actors.runtime.alarms import entry_of
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.testing import Lab
from tests.conformance.classes import Desk
from tests.conformance.support import FAR_S


@pytest.fixture
def entries(tmp_path: Path) -> Callable[[], list[tuple[str, float]]]:
    """What the index of alarms in `tmp_path` says on disk."""

    def entries() -> list[tuple[str, float]]:
        found = [entry_of(path.name) for path in (tmp_path / "data" / "objects").rglob("*.a*")]
        return sorted(entry for entry in found if entry is not None)

    return entries


#: Seconds from now, of the alarm there is and the one that is to be.
CHANGES: dict[str, tuple[float | None, float | None]] = {
    "set": (None, 100.0),
    "set in the past": (None, -100.0),
    "move earlier": (200.0, 100.0),
    "move later": (100.0, 200.0),
    "set to the same": (100.0, 100.0),
    "take back": (100.0, None),
    "erase": (100.0, None),
}


class TestCrashes:
    """Is an alarm lost, or fired too soon, by a crash at any moment?"""

    @staticmethod
    async def change(desk: Stub[Desk], what: str, at: float | None) -> None:
        if what == "erase":
            await desk.erase()
        elif at is None:
            await desk.delete_alarm()
        else:
            await desk.set_alarm_in(at)

    @pytest.mark.parametrize("how", ["crash", "failed commit"])
    @pytest.mark.parametrize("reached_disk", [False, True])
    @pytest.mark.parametrize("what", list(CHANGES))
    async def test_the_alarm_is_what_was_committed_whenever_a_change_of_it_is_cut_off(
        self,
        tmp_path: Path,
        settings: dict[str, Any],
        entries: Callable[[], list[tuple[str, float]]],
        what: str,
        reached_disk: bool,
        how: str,
    ) -> None:
        before, after = CHANGES[what]
        async with Lab([Desk], data_dir=tmp_path / "data", settings=HostSettings(**settings)) as lab:
            desk = lab.get(Desk, "acme", "d")
            await desk.add("x")
            start = lab.clock.now()
            if before is not None:
                await desk.set_alarm_in(before)
            spoil = lab.crash_in_next_commit if how == "crash" else lab.fail_next_commit
            spoil(desk, reached_disk=reached_disk)
            with pytest.raises(ObjectReset):
                await self.change(desk, what, after)
            expected = after if reached_disk else before
            assert lab.alarm_of(desk) == (None if expected is None else start + expected)
            if expected is not None:
                # The index may say too soon, and never too late.
                assert min(at for _, at in entries()) <= start + expected
                await lab.advance(max(0.0, expected) - 0.001 if expected > 0 else 0.0)
                assert len(await desk.runs()) == (1 if expected < 0 else 0)
            await lab.advance(FAR_S)
            assert len(await desk.runs()) == (expected is not None)
            assert entries() == []

    @pytest.mark.parametrize("what", list(CHANGES))
    async def test_the_alarm_is_what_is_in_the_object_whatever_the_index_says(
        self,
        tmp_path: Path,
        settings: dict[str, Any],
        entries: Callable[[], list[tuple[str, float]]],
        what: str,
    ) -> None:
        before, after = CHANGES[what]
        async with Lab([Desk], data_dir=tmp_path / "data", settings=HostSettings(**settings)) as lab:
            desk = lab.get(Desk, "acme", "d")
            await desk.add("x")
            if before is not None:
                await desk.set_alarm_in(before)
            await self.change(desk, what, after)
            # A crash in the middle of the index's own work: two entries of one object, and one of nobody.
            for each in (desk, lab.get(Desk, "acme", "nobody")):
                path = each.id.path(tmp_path / "data" / "objects", settings["slots"])
                path.parent.mkdir(parents=True, exist_ok=True)
                (path.parent / f"{each.id.stem}.a{int((lab.clock.now() + 5) * 1000)}").touch()
            lab.crash()
            await lab.advance(6)
            assert len(await desk.runs()) == (what == "set in the past")
            await lab.advance(FAR_S)
            assert len(await desk.runs()) == (after is not None)
            assert entries() == []

    async def test_each_change_leaves_one_entry_and_the_end_none(
        self, tmp_path: Path, settings: dict[str, Any], entries: Callable[[], list[tuple[str, float]]]
    ) -> None:
        async with Lab([Desk], data_dir=tmp_path / "data", settings=HostSettings(**settings)) as lab:
            desk = lab.get(Desk, "acme", "d")
            for seconds in (100.0, 50.0, 200.0, 200.0):
                at = await desk.set_alarm_in(seconds)
                assert entries() == [(desk.id.stem, at)]
            await desk.delete_alarm()
            assert entries() == []
            await desk.set_alarm_in(10)
            await desk.erase()
            assert entries() == []
            await desk.set_alarm_in(10)
            await lab.advance(10)
            assert entries() == []

    async def test_the_entry_of_any_millisecond_is_found_and_removed_after_a_restart(
        self, tmp_path: Path, settings: dict[str, Any], entries: Callable[[], list[tuple[str, float]]]
    ) -> None:
        # Some whole numbers are not the same when divided by 1000 and multiplied again.
        now_ms = 8_796_080_000_000
        odd_ms = [ms for ms in range(now_ms, now_ms + 100) if math.floor(ms / 1000 * 1000) != ms]
        assert odd_ms
        lab = Lab([Desk], data_dir=tmp_path / "data", settings=HostSettings(**settings), now=now_ms / 1000 - 1)
        async with lab:
            desks = [lab.get(Desk, "acme", str(ms)) for ms in odd_ms]
            for desk, ms in zip(desks, odd_ms, strict=True):
                await desk.set_alarm_at((ms + 0.5) / 1000)
            lab.crash()
            taken_back, fired = desks[::2], desks[1::2]
            for desk in taken_back:
                await desk.delete_alarm()
            assert len(entries()) == len(fired)
            await lab.advance(FAR_S)
            assert [len(await desk.runs()) for desk in fired] == [1] * len(fired)
            assert entries() == []

    async def test_an_alarm_that_can_not_be_indexed_is_not_acknowledged(
        self, lab: Lab, desk: Stub[Desk], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await desk.add("kept")
        at = await desk.set_alarm_in(100)

        def refuse(*_: object) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(lab._running.host.alarms, "set", refuse)
            with pytest.raises(ObjectReset, match="set the alarm failed"):
                await desk.append_and_set_alarm("lost", at - 50)
            # Nothing is lost by an entry that comes too soon, though.
            assert await desk.append_and_set_alarm("kept, too", at + 50) == 2
        assert await desk.lines() == ["kept", "kept, too"]
        await lab.advance(149)
        assert await desk.runs() == []
        await lab.advance(1)
        assert len(await desk.runs()) == 1

    async def test_an_alarm_of_an_object_whose_file_is_gone_is_dropped(
        self, tmp_path: Path, settings: dict[str, Any], entries: Callable[[], list[tuple[str, float]]]
    ) -> None:
        async with Lab([Desk], data_dir=tmp_path / "data", settings=HostSettings(**settings)) as lab:
            desk = lab.get(Desk, "acme", "d")
            await desk.set_alarm_in(10)
            lab.evict(desk)
            desk.id.path(tmp_path / "data" / "objects", settings["slots"]).unlink()
            await lab.advance(10)
            assert entries() == []
            assert not lab.exists(desk)
