"""What does a client ask in a chat?"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from actors.message import NewMessage
from actors.turn import ClientCall, OnConflict
from deployments.chat_request import ModelOptions, ToolSpec


def new_turn_id() -> str:
    return f"t{secrets.token_hex(12)}"


def can_be_gone_on_with(request: Mapping[str, Any]) -> bool:
    """Whether a part of an answer, however it is to be made, can be gone on from where its model can do that.

    A server that keeps to a format begins it anew with what it says next.
    """
    return "response_format" not in request.get("options", {})


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One message of a user, to be answered.

    Attributes:
        message: None asks again what was asked last, or what stood in the message that is replaced.
        leading: Messages that belong in front of it.
        follows: The turn that it goes on from: it is refused where another has begun since.
        replace: The id of a message of the user that gives way, with all that follows it.
        session_id: Where it belongs. None makes a session, with the id `new_session_id` if that is given.
        key: Names the request within its session: one that comes again joins the turn that the first has begun.
        turn_id: What the turn is to be called, where that must be the same if it is begun twice.
        on_conflict: What becomes of an answer that is under way; None leaves it to the tenant.
        instructions: For the model, in place of the tenant's.
        options: How else the model is asked.
        functions: What the model may call beside the service's own tools, for the client to run; `tool_choice` is as in
            `ChatRequest`.
        result_of: The call that `message` is the result of; None where it is the user's.
        asker: Who asks, as the tenant's limits on turns know its clients.
        client: What whoever asked wants to find again with the turn; nothing to those who answer.
    """

    tenant: str
    message: str | None
    session_id: str | None = None
    new_session_id: str | None = None
    turn_id: str | None = None
    key: str | None = None
    leading: tuple[NewMessage, ...] = ()
    follows: str | None = None
    replace: int | None = None
    on_conflict: OnConflict | None = None
    user_id: str | None = None
    retrieve: bool = True
    top_k: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    instructions: str | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    functions: Sequence[ToolSpec] = ()
    tool_choice: str | None = None
    result_of: ClientCall | None = None
    client: dict[str, Any] | None = None
    asker: str = ""

    def request(self) -> dict[str, Any]:
        """How it is to be answered, as the session keeps it for whoever does it."""
        optional = {
            "instructions": self.instructions,
            "options": self.options.given() or None,
            "functions": [asdict(function) for function in self.functions] or None,
            "tool_choice": self.tool_choice,
            "result_of": self.result_of,
            "client": self.client,
        }
        return {
            **{name: value for name, value in optional.items() if value is not None},
            "retrieve": self.retrieve,
            "top_k": self.top_k,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Where the answer is to be followed. `joined`: by a turn that the same request began before."""

    session_id: str
    turn_id: str
    joined: bool
