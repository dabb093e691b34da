"""Does the testing kit do what it says? And does the class in its document pass the test there?"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from actors.runtime import DurableObject, ObjectReset, exactly_once, idempotent, read
from actors.runtime.alarm import AlarmInfo
from actors.testing import Lab
from tests.conformance.support import ticks

DOCUMENT = Path(__file__).parents[2] / "docs" / "testing.md"
LINES_MAX = 40
RUN_WITHIN_S = 60.0


class Bell(DurableObject):
    """Rings, and has others rung."""

    def start(self) -> None:
        self.turns = 0

    @exactly_once
    def ring(self) -> int:
        rung = int(self.storage.kv.get("rung", 0)) + 1
        self.storage.kv.put("rung", rung)
        return rung

    def ring_once(self) -> int:
        return self.ring()

    @read
    def rung(self) -> int:
        return int(self.storage.kv.get("rung", 0))

    def turns_since_start(self) -> int:
        self.turns += 1
        return self.turns

    @idempotent
    def ring_at(self, *times: float) -> None:
        self.storage.kv.put("times", sorted(times))
        self.storage.set_alarm(min(times))

    @read
    def rung_at(self) -> list[float]:
        return list(self.storage.kv.get("rung_at", []))

    def alarm(self, info: AlarmInfo) -> None:
        self.turns += 1
        if self.storage.kv.get("broken"):
            raise ValueError("the bell is broken")
        self.storage.kv.put("rung_at", [*self.rung_at(), self.clock.now()])
        self.storage.kv.put("turns", self.turns)
        times = self.storage.kv.get("times")[1:]
        self.storage.kv.put("times", times)
        if times:
            self.storage.set_alarm(times[0])

    def break_it(self) -> None:
        self.storage.kv.put("broken", True)

    async def turns_of(self, other: str) -> int:
        bell = self.objects.namespace(Bell).get("acme", other)
        await bell.turns_since_start()
        return int(await bell.turns_since_start())


@pytest.mark.parametrize("always_evict", [False, True])
async def test_an_object_is_evicted_between_any_two_turns_and_only_if_so_wished(always_evict: bool) -> None:
    async with Lab([Bell], always_evict=always_evict) as lab:
        bell, other = lab.get(Bell, "acme", "a"), lab.get(Bell, "acme", "b")
        together = await asyncio.gather(*[bell.turns_since_start() for _ in range(3)])
        assert together == ([1, 1, 1] if always_evict else [1, 2, 3])
        assert await other.turns_of("a") == (1 if always_evict else 5)
        await bell.ring_at(lab.clock.now(), lab.clock.now() + 1)
        await lab.advance(1)
        assert lab.sql(bell, "SELECT value FROM _mobula_kv WHERE key = 'turns'") == [("1" if always_evict else "7",)]


async def test_time_passes_for_alarms_in_order_and_only_when_it_is_told_to() -> None:
    async with Lab([Bell]) as lab:
        start = lab.clock.now()
        first, second = lab.get(Bell, "acme", "1"), lab.get(Bell, "acme", "2")
        await first.ring_at(start + 10, start + 30.5, start + 31)
        await second.ring_at(start + 20)
        assert lab.alarm_of(first) == start + 10
        await lab.advance(9.9)
        assert await first.rung_at() == []
        await lab.advance(21)
        assert await first.rung_at() == [start + 10, start + 30.5]
        assert await second.rung_at() == [start + 20]
        assert lab.clock.now() == pytest.approx(start + 30.9)
        assert lab.alarm_of(second) is None


async def test_an_alarm_is_fired_now_and_says_what_it_raised() -> None:
    async with Lab([Bell]) as lab:
        bell = lab.get(Bell, "acme", "a")
        assert not await lab.fire_alarm(bell)
        await bell.ring_at(lab.clock.now() + 1000)
        assert await lab.fire_alarm(bell)
        assert await bell.rung_at() == [lab.clock.now()]
        await bell.ring_at(lab.clock.now() + 1000)
        await bell.break_it()
        with pytest.raises(ValueError, match="broken"):
            await lab.fire_alarm(bell)
        assert lab.alarm_of(bell) == lab.clock.now() + 2


async def test_an_alarm_that_is_always_due_ends_the_test_and_not_the_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.testing.ALARMS_FIRED_MAX", 20)
    async with Lab([Bell]) as lab:
        bell = lab.get(Bell, "acme", "a")
        await bell.ring_at(*[lab.clock.now()] * 100)
        with pytest.raises(RuntimeError, match="more than 20 alarms within 1 s"):
            await lab.advance(1)


@pytest.mark.parametrize("reached_disk", [False, True])
async def test_the_next_commit_fails_and_only_that(reached_disk: bool) -> None:
    async with Lab([Bell]) as lab:
        bell, other = lab.get(Bell, "acme", "a"), lab.get(Bell, "acme", "b")
        lab.fail_next_commit(bell, reached_disk=reached_disk)
        assert await other.ring() == 1
        with pytest.raises(ObjectReset, match="as the test wished"):
            await bell.ring_once()  # left to its caller
        assert await bell.rung() == (1 if reached_disk else 0)
        lab.fail_next_commit(bell, reached_disk=reached_disk)
        assert await bell.ring() == (2 if reached_disk else 1)  # repeated, and done once


@pytest.mark.parametrize("reached_disk", [False, True])
async def test_a_crash_in_a_commit_is_met_as_that_of_a_real_host(reached_disk: bool, tmp_path: Path) -> None:
    async with Lab([Bell], data_dir=tmp_path / "data") as lab:
        bell = lab.get(Bell, "acme", "a")
        lab.crash_in_next_commit(bell, reached_disk=reached_disk)
        assert await bell.ring() == 1  # repeated, and done once
        lab.crash_in_next_commit(bell, reached_disk=reached_disk)
        with pytest.raises(ObjectReset, match="its host was lost"):
            await bell.ring_once()  # left to its caller
        assert await bell.rung() == (2 if reached_disk else 1)
    assert list(tmp_path.rglob("*.sqlite"))


async def test_a_crash_loses_what_is_in_memory_and_nothing_else() -> None:
    async with Lab([Bell]) as lab:
        bell = lab.get(Bell, "acme", "a")
        assert [await bell.turns_since_start(), await bell.turns_since_start()] == [1, 2]
        await bell.ring()
        await bell.ring_at(lab.clock.now() + 5)
        lab.crash()
        assert [await bell.turns_since_start(), await bell.rung()] == [1, 1]
        await lab.advance(5)
        assert len(await bell.rung_at()) == 1


async def test_a_restart_ends_what_is_in_memory_too() -> None:
    async with Lab([Bell]) as lab:
        bell = lab.get(Bell, "acme", "a")
        assert [await bell.turns_since_start(), await bell.turns_since_start()] == [1, 2]
        with lab.hold_turns(bell):
            call = asyncio.ensure_future(bell.ring())
            await ticks()
            lab.restart()
        assert await call == 1
        assert await bell.turns_since_start() == 1


async def test_replies_and_turns_are_held() -> None:
    async with Lab([Bell]) as lab:
        bell = lab.get(Bell, "acme", "a")
        with lab.hold_replies(bell):
            reply = asyncio.ensure_future(bell.ring())
            await ticks()
            assert not reply.done()
            assert lab.sql(bell, "SELECT value FROM _mobula_kv") == [("1",)]
            with pytest.raises(RuntimeError, match="is busy"):
                lab.evict(bell)
        assert await reply == 1
        with lab.hold_turns(bell):
            reply = asyncio.ensure_future(bell.ring())
            await ticks()
            assert lab.sql(bell, "SELECT value FROM _mobula_kv") == [("1",)]
        assert await reply == 2
        lab.evict(bell)
        assert await bell.turns_since_start() == 1


async def test_what_is_durable_can_be_asked_and_not_changed() -> None:
    async with Lab([Bell]) as lab:
        bell = lab.get(Bell, "acme", "a")
        assert not lab.exists(bell)
        assert lab.alarm_of(bell) is None
        with pytest.raises(FileNotFoundError):
            lab.sql(bell, "SELECT 1")
        await bell.ring()
        assert lab.exists(bell)
        with pytest.raises(Exception, match="readonly"):
            lab.sql(bell, "DELETE FROM _mobula_kv")


async def test_a_lab_outside_of_its_block_runs_nothing() -> None:
    lab = Lab([Bell])
    with pytest.raises(RuntimeError, match="within its `async with`"):
        await lab.get(Bell, "acme", "a").ring()


def test_the_document_is_short_and_its_example_passes(tmp_path: Path) -> None:
    text = DOCUMENT.read_text()
    assert len(text.splitlines()) < LINES_MAX
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "test_reader.py").write_text(block)
    options = ["-q", "-W", "error", "-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=RUN_WITHIN_S,
    )
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout
