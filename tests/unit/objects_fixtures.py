"""How do tests see whether an object keeps all that it needs in its storage?

They run twice: with an object that stays resident, and with one that hibernates after each call.
"""

from __future__ import annotations

from actors import LocalBackend
from actors.runtime.call import Call, Reply
from actors.runtime.object_id import ObjectId


class Hibernating(LocalBackend):
    """Closes an object's file after each call: only what is stored survives."""

    async def send(self, object_id: ObjectId, call: Call) -> Reply:
        reply = await super().send(object_id, call)
        self.host.evict(object_id)
        return reply
