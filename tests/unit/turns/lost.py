"""How does a test of lost turns see what was offered, and what was counted?"""

from __future__ import annotations

from actors import LocalBackend, TokenUsage, TurnQueue
from actors.runtime.namespace import Stub
from actors.testing import Lab
from actors.token_usage import USAGE_NAME
from actors.turn import LEASE_S
from actors.turn_queue import QUEUE_NAME, QUEUE_TENANT

#: A lease has lapsed, and not two.
LAPSED_S = LEASE_S + 1


def queue(lab: Lab) -> Stub[TurnQueue]:
    return lab.get(TurnQueue, QUEUE_TENANT, QUEUE_NAME)


async def offered(lab: Lab) -> list[str]:
    """The turns of the session `s1` that wait in the queue, taken out of it."""
    found = []
    while (orphan := await queue(lab).take(0.0)) is not None:
        assert (orphan["tenant"], orphan["session_id"]) == ("acme", "s1")
        found.append(orphan["turn_id"])
    return found


async def counted(lab: Lab) -> list[tuple[str, int, int, int]]:
    """What was used, by model: turns, tokens read and written."""
    days = await lab.get(TokenUsage, "acme", USAGE_NAME).days("2000-01-01", "2100-01-01")
    return [(day["model"], day["turns"], day["input_tokens"], day["output_tokens"]) for day in days]


def backend(lab: Lab) -> LocalBackend:
    return lab._running
