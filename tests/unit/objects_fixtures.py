"""How do tests see whether an object keeps all that it needs in its storage?

They run twice: with an object that stays resident, and with one that hibernates after each call.
"""

from __future__ import annotations

from actors import LocalBackend
from actors.runtime.call import Call, Reply, unpack
from actors.runtime.clock import ManualClock
from actors.runtime.object_id import ObjectId


async def ring(backend: LocalBackend, clock: ManualClock) -> int:
    """Fires the alarms that are due by `clock`, and those that they set. Returns how many handlers ran."""
    ran = 0
    while due := backend.host.alarms.take_due(clock.now(), 100):
        for object_id in due:
            ran += unpack(await backend.host.fire_alarm(object_id).wait())
    return ran


class Hibernating(LocalBackend):
    """Closes an object's file after each call: only what is stored survives."""

    async def send(self, object_id: ObjectId, call: Call) -> Reply:
        reply = await super().send(object_id, call)
        self.host.evict(object_id)
        return reply
