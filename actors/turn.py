"""What is one turn of a conversation, as a session's ledger tells of it?

A turn is a message of the user and what is done to answer it. It has a row before anything runs, and ends in exactly
one of the final states. What happens in it is a list of events, numbered from 1 without a gap, whose last says how it
ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from actors.message import Message, NewMessage
from actors.runtime import InvalidArgument

TurnStatus = Literal["queued", "in_progress", "completed", "failed", "cancelled", "incomplete"]
#: `incomplete`: what had come of the answer is kept. `failed`: nothing had, or nothing is.
FinalStatus = Literal["completed", "failed", "cancelled", "incomplete"]
FINAL: frozenset[str] = frozenset({"completed", "failed", "cancelled", "incomplete"})

#: What a new message does where an answer is under way: wait for it, be refused, end it and keep what it has written,
#: or end it and take it and its question out of the history.
OnConflict = Literal["enqueue", "reject", "interrupt", "rollback"]

EventType = Literal[
    "turn.queued",
    "turn.created",
    "turn.retrying",
    "sources",
    "text.delta",
    "tool.call",
    "tool.result",
    "turn.completed",
    "turn.incomplete",
    "turn.cancelled",
    "error",
]
#: Those that an answer consists of: a turn that has one can't be begun again without the reader's noticing.
CONTENT: tuple[EventType, ...] = ("text.delta", "tool.call", "tool.result")
#: What each event that a runner tells must have, since the answer is made of it. The others are the ledger's to tell.
_RECORDABLE: dict[str, tuple[tuple[str, type], ...]] = {
    "turn.created": (),
    "sources": (("sources", list),),
    "text.delta": (("text", str),),
    "tool.call": (("id", str), ("name", str), ("arguments", str)),
    "tool.result": (("id", str),),
}
#: How each final state is told.
FINAL_EVENT: dict[str, EventType] = {
    "completed": "turn.completed",
    "incomplete": "turn.incomplete",
    "cancelled": "turn.cancelled",
    "failed": "error",
}


#: The code of the refusal of a turn whose session begins with more instructions than it may.
INSTRUCTIONS_TOO_LONG = "context_length_exceeded"
#: A runner that has not been heard of for so long is taken for dead. It renews its claim several times within that.
LEASE_S = 10.0


class Usage(TypedDict):
    """Tokens. `estimated` where the model's server has not counted all of them, or who counted was lost."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    estimated: bool


def usage_of(input_tokens: int, output_tokens: int, *, estimated: bool) -> Usage:
    return {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "estimated": estimated,
    }


def usage_together(*usages: Usage | None) -> Usage | None:
    """The sum of those that there are; None if there are none."""
    known = [usage for usage in usages if usage is not None]
    if not known:
        return None
    return usage_of(
        sum(usage["input_tokens"] for usage in known),
        sum(usage["output_tokens"] for usage in known),
        estimated=any(usage["estimated"] for usage in known),
    )


class TurnError(TypedDict):
    """Why a turn did not complete, fit for a client."""

    code: str
    message: str
    retryable: bool
    retry_after_s: float | None
    #: The limits that ended the turn, by their names, where it was those.
    violated_policies: NotRequired[list[str]]


def turn_error(code: str, message: str, *, retryable: bool = True) -> TurnError:
    return {"code": code, "message": message, "retryable": retryable, "retry_after_s": 1.0 if retryable else None}


class TurnEvent(TypedDict):
    number: int
    type: EventType
    data: dict[str, Any]


class NewEvent(TypedDict):
    """An event that has no number yet."""

    type: EventType
    data: dict[str, Any]


def require_recordable(event: NewEvent) -> None:
    """
    Raises:
        InvalidArgument: it is no event that a runner tells, or lacks what the answer is made of.
    """
    required = _RECORDABLE.get(event["type"])
    if required is None:
        raise InvalidArgument("type", event["type"], "is no event that a runner tells")
    for name, kind in required:
        if not isinstance(event["data"].get(name), kind):
            raise InvalidArgument(
                f"data.{name}", event["data"].get(name), f"of {event['type']} must be {kind.__name__}"
            )


class TurnLimits(TypedDict):
    """What a tenant allows. Times are seconds."""

    #: Turns that may wait for the one that runs.
    queue_max: int
    #: Runners that may try, one after another.
    attempts_max: int
    #: A model can go on from the part of an answer that a lost runner had told. Else that part is all of it.
    continues: bool
    #: How long the events of a turn that completed, or was cancelled, can be read.
    events_kept_s: float
    #: Of one that failed or is incomplete.
    broken_events_kept_s: float


class ClientCall(TypedDict):
    """A call of a tool that a client has run."""

    id: str
    name: str


class NewTurn(TypedDict):
    """What is asked of a session.

    `turn_id` is one that no other turn of the tenant has had. `message` None answers the last message of the user
    again. `leading` comes into the history with the message, in front of it. With `replace`, the id of a message of the
    user, that message and all that follow it give way, to `message` where there is one. With `follows`, the id of a
    turn, it is refused where another has begun since that one.

    `instructions_bytes_max` is how long the instructions may be that the session begins with; where it is not given,
    nobody looks.

    `request` is the runner's own, and comes back to whoever runs the turn; of it the ledger sees `result_of` alone, a
    `ClientCall`: then `message` is not the user's, but what came of that call. `model` is what the turn's tokens count
    for. `key` names the request: another one with the same key joins this turn, whatever its `turn_id`.
    """

    turn_id: str
    message: str | None
    leading: Sequence[NewMessage]
    replace: int | None
    follows: str | None
    model: str
    request: dict[str, Any]
    key: str | None
    on_conflict: OnConflict
    limits: TurnLimits
    instructions_bytes_max: NotRequired[int]


class TurnInfo(TypedDict):
    """A turn without its events. Times are seconds since 1970; `last_event` is the number of its newest event.

    `message_id` is the user's message, or the result of a tool that a client has run; `answer_id` is that of the
    answer, where there is one.
    """

    id: str
    status: TurnStatus
    created_at: float
    started_at: float | None
    ended_at: float | None
    message_id: int | None
    answer_id: int | None
    attempt: int
    last_event: int
    cancel_requested: bool
    finish_reason: str | None
    usage: Usage | None
    error: TurnError | None


class Told(TypedDict):
    """The part of an answer that an earlier attempt has told, to be gone on from. Its tokens may be estimated."""

    text: str
    sources: list[dict[str, Any]]
    output_tokens: int


class Older(TypedDict):
    """What was said before the history that comes with a claim: instructions, and how much of everything else."""

    #: What the system says before the user's first message, oldest first.
    instructions: list[str]
    turns: int
    messages: int
    #: Of what the messages say.
    size_bytes: int


class Claim(TypedDict):
    """A turn in the hands of one runner. What comes from an earlier attempt is refused from here on."""

    turn_id: str
    attempt: int
    last_event: int
    #: An earlier attempt has told that the turn has begun.
    is_created: bool
    message_id: int
    message: str
    request: dict[str, Any]
    #: None where the answer is to be begun.
    told: Told | None
    #: What was said before, oldest first.
    history: list[Message]
    #: What was said before that, where `history` is not all: then that is of whole turns.
    older: Older | None


class Claiming(TypedDict):
    """Where a runner is with a turn: `claim` if it is its to run; else, while `queued`, it may ask again."""

    turn: TurnInfo
    claim: Claim | None


class Begun(TypedDict):
    """`joined`: the request had come before, and this is the turn that it began."""

    turn: TurnInfo
    claim: Claim | None
    joined: bool


class EventPage(TypedDict):
    """Events after the one that was asked for, oldest first. `is_over`: the last of them ends the turn."""

    events: list[TurnEvent]
    is_over: bool
