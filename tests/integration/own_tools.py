"""What a tenant of the tests gives the service as tools of its own."""

from __future__ import annotations

import asyncio

from deployments.tool import ToolContext


def whoami(context: ToolContext, name: str = "nobody") -> dict[str, str | None]:
    """Says for whom tools are run."""
    return {"tenant": context.tenant, "session": context.session_id, "turn": context.turn_id, "name": name}


async def hangs(context: ToolContext) -> None:
    """Never comes to an end."""
    await asyncio.Event().wait()
