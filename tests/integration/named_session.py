"""A program of a tenant's own, on the service's Ray cluster: finds a session by its name, and uses it.

    python named_session.py TENANT SESSION

Prints one JSON with what it found. It stands apart from the tests to be another process, as such a program is.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import ray
from ray.util.state import list_actors

import actors
from actors import ChatSession


async def use(tenant: str, name: str) -> dict[str, Any]:
    sessions = actors.connect().namespace(ChatSession)
    session = sessions.get(tenant, name)
    await session.append("user", "from a program")
    reference = session.append.remote("user", "by reference")
    by_reference = await reference
    try:
        found = ray.get_actor(f"{tenant}:{name}", namespace="ChatSession")._actor_id.hex()
    except ValueError:
        found = None
    alive = list_actors(filters=[("state", "=", "ALIVE")], detail=True, limit=1000)
    listed = {actor.actor_id: actor.ray_namespace for actor in alive if actor.name == f"{tenant}:{name}"}
    history = await session.history()
    return {
        "by_reference": by_reference["id"],
        "found": found,
        "listed": listed,
        "contents": [message["content"] for message in history["messages"]],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(use(*sys.argv[1:]))))
