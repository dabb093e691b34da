"""/v1/chat/completions: an answer to a conversation that the client keeps, or to the next message of a session.

Without a session nothing is stored but the tokens that were used, and a client that goes away stops the model. With
`metadata.session_id`, the last message becomes a turn of that session, like one of `POST /chat`: the history is the
session's, the turn goes on without its client, and can be followed and stopped as any other. The client may bring tools
of its own to either; in a session their results are messages at the end, and all before them is passed over.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from pydantic_core import to_json
from sse_starlette import EventSourceResponse, ServerSentEvent

from actors.turn import TurnEvent
from deployments.chat_request import ModelOptions, ToolSpec
from deployments.ingress.access import Caller, asker_of, guarded_by
from deployments.ingress.events import PING_EVERY_S
from deployments.ingress.fields import Body, Text, TopK, TopP
from deployments.ingress.idempotency import REPLAYED_HEADER, IdempotencyKey
from deployments.ingress.openai import shapes
from deployments.ingress.openai.completion import Completion, new_completion_id
from deployments.ingress.openai.completion_turn import ask_in_session
from deployments.ingress.openai.direct import DirectQuestion, ask_model
from deployments.ingress.openai.errors import Refused
from deployments.ingress.openai.formats import CompletionFormat
from deployments.ingress.openai.messages import Messages, for_model, for_session
from deployments.ingress.openai.models import required
from deployments.ingress.openai.parameters import Ignored, Metadata, ModelName, Only, Penalty, Seed, Stop
from deployments.ingress.openai.tools import TOOLS_MAX, FunctionChoice, FunctionTool, ToolChoiceWord, checked, word_or
from deployments.ingress.replies import reply
from deployments.ingress.services import Services, services_of
from deployments.keyring import Principal
from deployments.question import Question

router = APIRouter(route_class=guarded_by("chat", "chat"), tags=["OpenAI: chat completions"])

_WHOLE = "an answer is text, made once, and its tokens are not shown"


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class NewCompletion(Body):
    model: ModelName
    messages: Messages
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=TOOLS_MAX)] | None = None
    tool_choice: Annotated[ToolChoiceWord | FunctionChoice | None, word_or(FunctionChoice)] = None
    metadata: Metadata | None = Field(
        default=None, description="`session_id`: a session to ask in; `retrieve`: `true` looks for passages first"
    )
    user: Annotated[Text, Field(max_length=256)] | None = None
    stop: Stop = None
    response_format: CompletionFormat | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    retrieve: bool | None = Field(default=None, description="look for passages in the tenant's documents first")
    top_k: TopK | None = None

    n: Annotated[Any, Only(_WHOLE, 1)] = None
    logprobs: Annotated[Any, Only(_WHOLE, False)] = None
    top_logprobs: Annotated[Any, Only(_WHOLE, 0)] = None
    logit_bias: Annotated[Any, Only("the model's tokens are not shown", {})] = None
    modalities: Annotated[Any, Only(_WHOLE, ["text"])] = None
    audio: Annotated[Any, Only(_WHOLE)] = None
    functions: Annotated[Any, Only("use `tools`")] = None
    function_call: Annotated[Any, Only("use `tool_choice`")] = None
    web_search_options: Annotated[Any, Only("the service looks at nothing but the tenant's documents")] = None
    moderation: Annotated[Any, Only("nothing is moderated")] = None
    store: Annotated[Any, Only("nothing is stored; use a session, or /v1/responses", False)] = None

    parallel_tool_calls: Ignored = None
    prediction: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    reasoning_effort: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    verbosity: Ignored = None

    @property
    def tokens_max(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def options(self) -> ModelOptions:
        return ModelOptions(
            top_p=self.top_p,
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=self.stop or None,
            response_format=None if self.response_format is None else self.response_format.asked(),
            user=self.user or None,
        )

    def offered(self) -> tuple[tuple[ToolSpec, ...], str | None]:
        """
        Raises:
            Refused: tools, and which of them is to be called, do not go together.
        """
        choice = self.tool_choice.function.name if isinstance(self.tool_choice, FunctionChoice) else self.tool_choice
        return checked([tool.function.spec() for tool in self.tools or ()], choice)

    def is_to_retrieve(self) -> bool:
        """
        Raises:
            Refused: nobody can say.
        """
        if self.retrieve is not None:
            return self.retrieve
        wanted = (self.metadata or {}).get("retrieve", "false").lower()
        if wanted not in ("true", "false"):
            raise Refused("metadata.retrieve: must be 'true' or 'false'", "metadata.retrieve")
        return wanted == "true"


@router.post(
    "/v1/chat/completions",
    response_model=shapes.Completion,
    responses={
        200: {
            "description": "with `stream` chunks of a completion as events without a name, then `[DONE]`",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def create(request: Request, caller: Caller, body: NewCompletion, key: IdempotencyKey) -> Response:
    services = services_of(request)
    model = required(body.model, services.tenants[caller.tenant].model.name)
    session_id = (body.metadata or {}).get("session_id")
    joined = False
    if session_id is None:
        events = await _directly(services, caller, body, asker_of(request, caller))
        completion = Completion(new_completion_id(), model, time.time())
    else:
        given = for_session(body.messages, services.config.limits.message_chars_max)
        asked = await ask_in_session(
            request,
            _question(caller.tenant, body),
            session_id,
            given,
            lambda: body.model_dump(exclude={"stream", "stream_options"}),
            key,
        )
        joined = asked.joined
        events = await services.turns.answer(caller.tenant, asked)
        turn = await services.turns.get(caller.tenant, session_id, asked.turn_id)
        completion = Completion(f"chatcmpl-{asked.turn_id[1:]}", model, turn["created_at"])
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        response: Response = EventSourceResponse(_chunks(events, completion, with_usage), ping=PING_EVERY_S)
    else:
        async for event in events:
            completion.take(event)
        response = reply(completion.whole())
    if joined:
        response.headers[REPLAYED_HEADER] = "true"
    return response


async def _directly(services: Services, caller: Principal, body: NewCompletion, asker: str) -> AsyncIterator[TurnEvent]:
    specs, choice = body.offered()
    return await ask_model(
        services,
        DirectQuestion(
            tenant=caller.tenant,
            messages=for_model(body.messages, services.tenants[caller.tenant].model.system_prompt),
            tools=specs,
            tool_choice=choice,
            max_tokens=body.tokens_max,
            temperature=body.temperature,
            options=body.options,
            retrieve=body.is_to_retrieve(),
            top_k=body.top_k,
            asker=asker,
        ),
    )


def _question(tenant: str, body: NewCompletion) -> Question:
    """How a turn of a session is to be answered."""
    specs, choice = body.offered()
    return Question(
        tenant=tenant,
        message=None,
        retrieve=body.is_to_retrieve(),
        top_k=body.top_k,
        max_tokens=body.tokens_max,
        temperature=body.temperature,
        options=body.options,
        functions=specs,
        tool_choice=choice,
    )


async def _chunks(
    events: AsyncIterator[TurnEvent], completion: Completion, with_usage: bool
) -> AsyncIterator[ServerSentEvent]:
    async for event in events:
        for chunk in completion.chunks(event, with_usage=with_usage):
            yield ServerSentEvent(data=to_json(chunk).decode())
    yield ServerSentEvent(data="[DONE]")
