"""Do objects run on the loop that Ray's workers use?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import uvloop

from actors import KeyValue, LocalBackend


def test_an_alarm_may_be_set_while_another_is_due(tmp_path: Path) -> None:
    async def both() -> None:
        objects = LocalBackend(tmp_path, [KeyValue])
        try:
            stores = objects.namespace(KeyValue)
            # Over before the next one is put.
            await asyncio.gather(*[stores.get("acme", f"s{n}").put("k", 1, ttl_s=1e-9) for n in range(20)])
        finally:
            objects.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(both())
