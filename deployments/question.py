"""What does a client ask in a chat, and what does it see of the answer as it comes?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One message of a user, to be answered. `session_id` None opens a new session."""

    tenant: str
    message: str
    session_id: str | None = None
    user_id: str | None = None
    retrieve: bool = True
    top_k: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None


TurnEventType = Literal["turn.created", "sources", "text.delta", "turn.completed", "error"]


class TurnEvent(NamedTuple):
    """A step of a turn. Numbers count from 1 within the turn, without a gap."""

    number: int
    type: TurnEventType
    data: dict[str, Any]
