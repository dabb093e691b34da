"""Does the in-process backend look after its objects by itself?"""

from __future__ import annotations

import asyncio
from pathlib import Path

from actors import KeyValue, LocalBackend
from actors.runtime.host import HostSettings


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
