"""Does the in-process backend look after its objects by itself?"""

from __future__ import annotations

import asyncio
import sys
import time
import types
from pathlib import Path

import pytest

from actors import DurableObject, KeyValue, LocalBackend, read
from actors.runtime.host_settings import HostSettings
from tests.conformance.support import until
from tests.objects import AlarmClock


async def test_an_idle_object_hibernates_without_being_told(data_dir: Path) -> None:
    backend = LocalBackend(data_dir, [KeyValue], settings=HostSettings(slots=2, idle_after_s=0.02))
    try:
        item = backend.namespace(KeyValue).get("acme", "a")
        await item.put("key", 1)
        async with asyncio.timeout(10):
            while backend.host.resident_objects:
                await asyncio.sleep(0.01)
        assert (await item.get("key"))["value"] == 1
    finally:
        backend.close()


async def test_an_object_that_its_alarm_woke_hibernates_without_being_told(data_dir: Path, tmp_path: Path) -> None:
    backend = LocalBackend(data_dir, [AlarmClock], settings=HostSettings(slots=2, idle_after_s=0.02))
    bell = tmp_path / "bell"

    async def nothing_is_resident() -> bool:
        return not backend.host.resident_objects

    async def it_rang() -> bool:
        return bell.exists()

    try:
        await backend.namespace(AlarmClock).get("acme", "a").ring_at(time.time() + 0.3, bell)
        await until(nothing_is_resident)
        assert not bell.exists()
        await until(it_rang)
        await until(nothing_is_resident)
    finally:
        backend.close()


async def test_a_class_typed_into_an_interpreter_is_in_no_file_and_runs_all_the_same(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Typed(DurableObject):
        @read
        def one(self) -> int:
            return 1

    monkeypatch.setitem(sys.modules, "interpreter", types.ModuleType("interpreter"))
    Typed.__module__ = "interpreter"
    backend = LocalBackend(data_dir, [Typed])
    try:
        assert await backend.namespace(Typed).get("acme", "a").one() == 1
    finally:
        backend.close()
