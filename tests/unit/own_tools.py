"""What might a tenant give the service as tools of its own, good and bad?"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from deployments.tool import ToolContext, ToolError

SECRET = "/etc/secret-path"


async def weather(context: ToolContext, place: str, days: Annotated[int, Field(ge=1, le=7)] = 1) -> dict[str, Any]:
    """The weather
    of a place.

    Nothing that the model is told.
    """
    return {"place": place, "days": days, "for": context.tenant}


def plain(context: ToolContext, json: str = "none", copy: list[int] | None = None) -> list[Any]:
    """Takes names that pydantic has too."""
    return [json, copy, threading.current_thread() is threading.main_thread()]


def whoami(context: ToolContext) -> str:
    """Says who asks."""
    return f"{context.tenant}/{context.session_id}/{context.turn_id}"


async def explains(context: ToolContext) -> None:
    """Fails for a reason."""
    raise ToolError("the shop is closed on Sundays")


async def raises(context: ToolContext) -> None:
    """Fails."""
    raise OSError(f"no file {SECRET}")


def raises_plainly(context: ToolContext) -> None:
    """Fails."""
    raise StopIteration(SECRET)


async def leaves(context: ToolContext) -> None:
    """Ends the process."""
    sys.exit(SECRET)


def leaves_plainly(context: ToolContext) -> None:
    """Ends the process."""
    sys.exit(SECRET)


async def gives_up(context: ToolContext) -> None:
    """Cancels itself."""
    raise asyncio.CancelledError


async def sleeps(context: ToolContext) -> None:
    """Never returns."""
    await asyncio.Event().wait()


async def stubborn(context: ToolContext) -> str:
    """Never returns, cancelled or not, until it was cancelled twice."""
    for _ in range(2):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue
    return "late"


async def nothing_json(context: ToolContext) -> object:
    """Gives what JSON can't hold."""
    return object()


async def not_a_number(context: ToolContext) -> float:
    """Gives what JSON can't hold."""
    return float("nan")


async def half(context: ToolContext) -> str:
    """Gives half of a character."""
    return "a\ud800"


async def much(context: ToolContext, bytes: int) -> str:
    """Gives much."""
    return "x" * bytes


def without_context(place: str) -> str:
    """Takes no context."""
    return place


def without_parameters() -> str:
    """Takes nothing."""
    return ""


def undocumented(context: ToolContext) -> str:
    return ""


def starred(context: ToolContext, *places: str) -> str:
    """Takes many."""
    return "".join(places)


def takes_functions(context: ToolContext, function: Callable[[], int]) -> str:
    """Takes what JSON can't hold."""
    return str(function)


number = 7
