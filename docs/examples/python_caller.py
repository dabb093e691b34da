"""How does another program on the machine use the objects of a running service? No HTTP between them.

Start the service with `make run`, set the variables that it prints under "Ray from another process", and run this.
Run it again, or restart the service: what was appended is still there.
"""

from __future__ import annotations

import asyncio

import ray

import actors
from actors.bucket import Policy


async def talk(objects: actors.Objects) -> None:
    session = objects.namespace(actors.ChatSession).get("demo", "from-python")  # touches nothing yet
    await session.create(title="From Python")
    appended = await session.append("user", "Hello from another process")
    history = await session.history(limit=3)
    print(f"message {appended['id']} is on disk; the last ones are {[one['id'] for one in history['messages']]}")

    bucket = objects.namespace(actors.TokenBucket).get("demo", "python-caller")
    await bucket.reset()
    policies = [Policy("burst", refill_per_second=0, capacity=5)]
    decisions = await asyncio.gather(*[bucket.check(1, policies) for _ in range(20)])
    print(f"{sum(allowed for allowed, _, _ in decisions)} of {len(decisions)} checks at once were allowed")


if __name__ == "__main__":
    objects = actors.connect()
    asyncio.run(talk(objects))
    # Without asyncio: `.remote` gives a Ray ObjectRef, which other tasks and actors can be given too.
    reference = objects.namespace(actors.ChatSession).get("demo", "from-python").metadata.remote()
    print(f"the session holds {ray.get(reference)['message_count']} messages")
