"""Do objects run on the loop that Ray's workers use?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import uvloop

from actors import KeyValue, LocalBackend, ObjectId


def test_an_alarm_may_be_set_while_another_is_due(tmp_path: Path) -> None:
    async def one_after_the_other() -> None:
        objects = LocalBackend(tmp_path, [KeyValue])
        try:
            # Has the host begin to keep time.
            await objects.namespace(KeyValue).get("acme", "s").list()
            for number in range(3):
                objects.host.alarms.set(ObjectId("KeyValue", "acme", f"s{number}"), 1.0)
        finally:
            objects.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(one_after_the_other())
