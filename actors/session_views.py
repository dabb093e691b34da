"""What do callers of a session get to see?"""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict

from actors.directory import SessionMetadata
from actors.message import Message
from actors.turn import Begun, TurnInfo


class Shown(TypedDict):
    """What the session's listing shows now."""

    message_count: int
    last_active_at: float
    expires_at: float | None


class Appended(Shown):
    """The number that a message got."""

    id: int
    created_at: float


class Extended(Shown):
    """The messages that were added."""

    messages: list[Message]


class History(TypedDict):
    """A page of messages, oldest first. `has_more` says that there are older ones."""

    messages: list[Message]
    has_more: bool


class Transcript(TypedDict):
    """A page of messages, oldest first. `has_more` says that there are newer ones."""

    messages: list[Message]
    has_more: bool


class SessionUsage(TypedDict):
    """Tokens of all turns of a session."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class TurnPage(TypedDict):
    """Turns, newest first. `has_more` says that there are older ones."""

    turns: list[TurnInfo]
    has_more: bool


class AnsweredTurn(TypedDict):
    """A turn with what was asked of whoever runs it, and its messages: what led to it, the question, the answer."""

    turn: TurnInfo
    request: dict[str, Any]
    messages: list[Message]


class Opened(TypedDict):
    """A session that was made with its first turn."""

    session: SessionMetadata
    begun: Begun


class Ended(Shown):
    """A turn as it is now."""

    turn: TurnInfo
