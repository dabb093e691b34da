"""What do the routes answer? For the documentation of the API, and for clients made from it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from actors import document_index, key_value, message
from actors.directory import SessionMetadata
from actors.turn import TurnError, TurnInfo


def reply(content: Any, status: int = 200) -> Response:
    """JSON of plain data. The data is the service's own, so nothing validates it on its way out."""
    return Response(to_json(content), status, media_type="application/json")


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str


def problems(descriptions: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Problems that routes may answer, by status, for the documentation."""
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {status: {"description": description, "content": content} for status, description in descriptions.items()}


class Session(SessionMetadata):
    """Times are seconds since 1970."""


class SessionList(BaseModel):
    """Newest first. Where `has_more`, ask again with `after` the last id."""

    sessions: list[Session]
    has_more: bool


class Message(message.Message):
    """`data` of an answer holds its sources, usage and how it ended."""


class MessageList(BaseModel):
    """Oldest first. Where `has_more`, ask again with `before` the first id."""

    messages: list[Message]
    has_more: bool


class UIMessage(BaseModel):
    """As the AI SDK has it."""

    id: str
    role: Literal["system", "user", "assistant"]
    metadata: dict[str, Any]
    parts: list[dict[str, Any]]


class UIMessageList(BaseModel):
    """Oldest first. Where there are older ones, ask again with `before`, as it is given."""

    session_id: str
    messages: list[UIMessage]
    before: int | None


class AppendedMessage(BaseModel):
    id: int
    created_at: float


class Source(BaseModel):
    """A passage: `text` stands at `start` to `end` (characters) of the document's text."""

    document_id: str
    chunk_id: str
    title: str
    text: str
    start: int
    end: int


class Usage(BaseModel):
    """Tokens. `estimated` where the model's server has not counted all of them, or who counted was lost."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    estimated: bool


class TokenCounts(BaseModel):
    input_tokens: int
    output_tokens: int
    total_tokens: int


class UsageTotals(TokenCounts):
    turns: int


class UsageOfDay(UsageTotals):
    """Of one day (UTC) and one model."""

    day: datetime.date
    model: str


class UsageReport(BaseModel):
    """Oldest day first; days and models without usage are left out."""

    model_config = ConfigDict(serialize_by_alias=True)

    first: datetime.date = Field(alias="from")
    last: datetime.date = Field(alias="to")
    days: list[UsageOfDay]
    totals: UsageTotals


class Answer(BaseModel):
    """`message_id` is the answer's, null where nothing of it is kept; `error` says why one is incomplete."""

    turn_id: str
    session_id: str
    message_id: int | None
    status: Literal["completed", "incomplete", "cancelled"]
    text: str
    sources: list[Source]
    finish_reason: str
    usage: Usage | None
    error: TurnError | None = None


class Turn(TurnInfo):
    """An answer and how far it is. Times are seconds since 1970.

    `message_id` is the question's, `answer_id` the answer's where there is one, `last_event` the number of the newest
    event.
    """


class TurnList(BaseModel):
    """Newest first. Where `has_more`, ask again with `before` the last id."""

    turns: list[Turn]
    has_more: bool


class IngestedDocument(BaseModel):
    document_id: str
    chunks: int
    status: Literal["stored", "unchanged", "failed"]
    error: str | None = None


class IngestedDocuments(BaseModel):
    documents: list[IngestedDocument]


class DocumentEntry(document_index.DocumentEntry):
    """Times are seconds since 1970."""


class Document(document_index.Document):
    """A document with its text."""


class DocumentList(BaseModel):
    """In the order of their ids. Where `has_more`, ask again with `after` the last id."""

    documents: list[DocumentEntry]
    has_more: bool


class SearchResult(Source):
    metadata: dict[str, Any]


class SearchResults(BaseModel):
    """Best first. `cached`: found by an earlier, equal search of the same documents."""

    results: list[SearchResult]
    cached: bool


class Item(key_value.Item):
    """Times are seconds since 1970."""


class ItemList(BaseModel):
    items: list[Item]


class RateLimitDecision(BaseModel):
    """`remaining` is the most that a check could cost now; null where nothing limits it, or nobody knows."""

    allowed: bool
    remaining: float | None
    retry_after_s: float


class TokensLeft(BaseModel):
    """`promised` to calls under way; what they do not use of it comes back. Null: not limited."""

    limit: int | None
    used: int
    promised: int
    remaining: int | None


class BudgetLeft(BaseModel):
    """A budget in the day or month (UTC) that it is for now. `model` null: all of the tenant."""

    name: str
    model: str | None
    per: str
    input_tokens: TokensLeft
    output_tokens: TokensLeft
    resets_in_s: float


class TurnsInFlight(BaseModel):
    """Of the caller and of its tenant, those that wait included, and how many may be."""

    client: int
    tenant: int
    per_client: int | None
    per_tenant: int | None


class PolicyUsage(BaseModel):
    """A bucket. `routes` are those that it counts for, null all; `full_after_s` is null where it never fills."""

    name: str
    capacity: float
    refill_per_second: float
    remaining: float
    full_after_s: float | None
    routes: list[str] | None
    shadow: bool


class RateLimitUsage(BaseModel):
    """`remaining` is the least that is left in any bucket that denies; null where none does. `turns_in_flight` is null
    where the tenant does not limit them.
    """

    client: str
    remaining: float | None
    policies: list[PolicyUsage]
    budgets: list[BudgetLeft]
    turns_in_flight: TurnsInFlight | None


class Reloaded(BaseModel):
    """`restart` says what of a tenant waits for the next start, `problems` why a file can't be used, by its name."""

    restart: dict[str, str]
    problems: dict[str, str]


class ManagedObject(BaseModel):
    """A durable object. Times are seconds since 1970.

    `schema_version` is the last of the migrations that its file has, `problem` why its file could not be read.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    class_name: str = Field(alias="class")
    tenant: str
    name: str
    size_bytes: int
    last_active_at: float | None
    alarm_at: float | None
    schema_version: str | None
    migrations: int | None
    resident: bool
    quarantined: bool
    calls_waiting: int
    problem: str | None


class ManagedObjects(BaseModel):
    """In the order of class, tenant and name. Where `next` is given, ask again with `after` set to it."""

    objects: list[ManagedObject]
    next: str | None


class QueryRows(BaseModel):
    """`truncated`: there were more rows than asked for, or than fit."""

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool


class Fired(BaseModel):
    """False: the object has no alarm."""

    fired: bool


class Released(BaseModel):
    """False: the object was in no quarantine."""

    released: bool


class Health(BaseModel):
    status: Literal["ok"]


class Readiness(BaseModel):
    """What can't be reached, by part; nothing where the status is ok."""

    status: Literal["ok", "unavailable"]
    failing: dict[str, str]
