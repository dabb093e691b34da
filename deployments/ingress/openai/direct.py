"""How is a model asked without a session?

Nothing is kept of what is asked here but the tokens that it took. What comes back are events as those of a turn, with
numbers of their own, so that one reader tells both alike. Whoever stops reading stops the model.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from actors.document_index import Passage
from actors.message import FOR_CLIENT
from actors.turn import EventType, TurnEvent, Usage
from configs.tenant import TenantConfig
from deployments import prompt
from deployments.call_usage import CallUsage
from deployments.chat_request import (
    Accepted,
    ChatMessage,
    ChatRequest,
    Finished,
    ModelEvent,
    ModelOptions,
    TextDelta,
    ToolCall,
    ToolSpec,
)
from deployments.documents import Found, source_of
from deployments.errors import ModelUnavailable, ServiceError
from deployments.generation import Stream
from deployments.ingress.services import Services
from deployments.turn_allowance import FirstCall, TurnAllowance
from deployments.turn_runner import as_error, known
from deployments.usage_log import new_use_id

logger = logging.getLogger("mobula.ingress")

#: What there is of an answer itself.
AnswerEvent: TypeAlias = TextDelta | ToolCall | Finished


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectQuestion:
    """What is asked of the tenant's model. `messages` are all that it is told, but for what retrieval finds.

    `asker` is as in `Question`.
    """

    tenant: str
    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    retrieve: bool = False
    top_k: int | None = None
    names: Mapping[str, Any] = field(default_factory=dict)
    asker: str = ""


async def ask_model(services: Services, question: DirectQuestion) -> AsyncIterator[TurnEvent]:
    """The answer's events, from `turn.created` to the one that ends it.

    Raises:
        ModelError: at once, where nothing comes of it.
        TooManyTurns, BudgetExceeded, BudgetTooSmall: at once; the model was not asked.
    """
    tenant = services.tenants[question.tenant]
    messages, passages = await _with_passages(services, tenant, question)
    asked = ChatRequest(
        messages=messages,
        max_tokens=tenant.model.answer_tokens(question.max_tokens),
        timeout_s=tenant.model.timeout_s,
        temperature=tenant.model.temperature if question.temperature is None else question.temperature,
        base_url=tenant.model.base_url,
        model=tenant.model.model,
        api_key_env=tenant.model.api_key_env,
        tools=question.tools,
        tool_choice=question.tool_choice if question.tools else None,
        options=question.options,
    )
    use_id = new_use_id()
    first_call = FirstCall(asked.messages, asked.max_tokens, is_whole=True, tools=asked.tools)
    allowance = await services.allowances.admit(question.tenant, use_id, use_id, question.asker, first_call)
    pieces = _pieces(services, question.tenant, tenant.model.name, asked, use_id, allowance)
    first = await anext(pieces)  # raises what keeps the model from answering at all
    return _events(pieces, first, question, [source_of(passage) for passage in passages])


async def _with_passages(
    services: Services, tenant: TenantConfig, question: DirectQuestion
) -> tuple[tuple[ChatMessage, ...], Sequence[Passage]]:
    """The messages, the last question with what was found for it."""
    place = next((n for n, one in reversed(list(enumerate(question.messages))) if one.role == "user"), None)
    if not question.retrieve or place is None:
        return question.messages, ()
    asked = question.messages[place].content
    found: Found = await services.search.find.remote(question.tenant, asked, top_k=question.top_k)
    fence = f"<<{secrets.token_hex(8)}>>"
    text, passages = prompt.with_passages(asked, found.passages, fence, chars_max=tenant.retrieval.context_chars_max)
    told = ChatMessage(role="user", content=text)
    return (*question.messages[:place], told, *question.messages[place + 1 :]), passages


async def _pieces(
    services: Services, tenant: str, model: str, asked: ChatRequest, use_id: str, allowance: TurnAllowance | None
) -> AsyncGenerator[AnswerEvent, None]:
    """What the model says. Its tokens count for the tenant, however it ends."""
    used = CallUsage(asked)
    stream: Stream = services.model.stream
    if allowance is not None:
        allowance.hold()
        stream = allowance.paid(stream, attempt=1)
    try:
        async with aclosing(stream(asked)) as answer:
            event: ModelEvent | None = None
            while not isinstance(event, Finished):
                with used.watched():
                    event = await anext(answer, None)
                if event is None:
                    raise ModelUnavailable("the answer broke off", 1.0)
                used.take(event)
                if not isinstance(event, Accepted):
                    yield event
    finally:
        if used.tokens is not None:
            input_tokens, output_tokens, _ = used.tokens
            services.usage.note(tenant, model, input_tokens=input_tokens, output_tokens=output_tokens, use_id=use_id)
        if allowance is not None:
            allowance.close()


async def _events(
    pieces: AsyncGenerator[AnswerEvent, None],
    first: AnswerEvent,
    question: DirectQuestion,
    sources: list[dict[str, Any]],
) -> AsyncGenerator[TurnEvent, None]:
    number = 0

    def event(event_type: EventType, data: dict[str, Any]) -> TurnEvent:
        nonlocal number
        number += 1
        return {"number": number, "type": event_type, "data": data}

    yield event("turn.created", dict(question.names))
    if question.retrieve:
        yield event("sources", {"sources": sources})
    try:
        piece = first
        while not isinstance(piece, Finished):
            yield event(*_told(piece))
            piece = await anext(pieces)
        usage: Usage = {
            "input_tokens": piece.input_tokens,
            "output_tokens": piece.output_tokens,
            "total_tokens": piece.input_tokens + piece.output_tokens,
            "estimated": piece.estimated,
        }
        yield event("turn.completed", {"finish_reason": piece.finish_reason, "usage": usage})
    except Exception as error:  # whatever it was, who listens has to be told
        if not isinstance(known(error), ServiceError):
            logger.error("tenant=%s answer failed", question.tenant, exc_info=error)
        yield event("error", {**as_error(known(error)), "usage": None})
    finally:
        await pieces.aclose()


def _told(piece: TextDelta | ToolCall) -> tuple[EventType, dict[str, Any]]:
    if isinstance(piece, TextDelta):
        return "text.delta", {"text": piece.text}
    return "tool.call", {"id": piece.id, "name": piece.name, "arguments": piece.arguments, FOR_CLIENT: True}
