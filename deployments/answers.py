"""How is one answer made?

Documents are searched, the model is told as much as it can take, and asked; the tools that it calls are run, and it is
asked again. What comes of all that goes to a writer as it comes.

It does not know when a turn may run, or what becomes of it when something fails.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from actors import InvalidArgument, Objects
from actors.document_index import Passage
from actors.message import FOR_CLIENT, Message
from actors.turn import Claim, Older, Told, Usage, usage_of
from configs.tenant import TenantConfig
from deployments import prompt, token_count
from deployments.chat_request import (
    ChatMessage,
    ChatRequest,
    Finished,
    ModelOptions,
    TextDelta,
    ToolCall,
    ToolSpec,
)
from deployments.documents import passage_of, source_of
from deployments.errors import ModelUnavailable
from deployments.generation import Generation, GenerationLimits, Stream
from deployments.model_client import Models
from deployments.prompt import Prompt
from deployments.tool import ToolContext
from deployments.toolbox import ToolBox, ToolResult
from deployments.tools import toolbox_of
from deployments.turn_allowance import TurnAllowance
from deployments.turn_writer import TurnWriter

BROKE_OFF_RETRY_AFTER_S = 1.0


class Answers:
    """Makes answers for all tenants."""

    def __init__(
        self,
        *,
        objects: Objects,
        tenants: Mapping[str, TenantConfig],
        model: Models,
        search: DeploymentHandle,
    ) -> None:
        self._tenants = tenants
        self._model = model
        self._search = search
        self._counters = token_count.counters_of(tenants, model)
        self._boxes: dict[str, ToolBox | None] = {
            name: toolbox_of(tenant, search=search, objects=objects) for name, tenant in tenants.items()
        }

    def to(
        self,
        tenant: str,
        session_id: str,
        claim: Claim,
        writer: TurnWriter,
        allowance: TurnAllowance | None = None,
    ) -> Answer:
        """The answer to the question of a claimed turn, yet to be made."""
        stream: Stream = self._model.stream
        if allowance is not None:
            stream = allowance.paid(stream, claim["attempt"])
        return Answer(self, tenant, session_id, claim, writer, stream)

    async def found(self, tenant: str, question: str, top_k: int | None) -> list[Passage]:
        passages: list[Passage] = (await self._search.find.remote(tenant, question, top_k=top_k)).passages
        return passages

    async def prompt(
        self,
        tenant_name: str,
        question: str,
        request: Mapping[str, Any],
        history: Sequence[Message] = (),
        passages: Sequence[Passage] = (),
        result_of: str | None = None,
        older: Older | None = None,
    ) -> Prompt:
        """What the model is told; `result_of` is the id of the call whose result the question is, if it is one.

        Raises:
            InvalidArgument: the question does not fit even by itself, or a tool that the client brings has the name of
                one of the service.
        """
        tenant = self._tenants[tenant_name]
        return await prompt.build(
            system=request.get("instructions") or tenant.model.system_prompt,
            history=history,
            question=question,
            passages=passages,
            fence=f"<<{secrets.token_hex(8)}>>",
            passages_chars_max=tenant.retrieval.context_chars_max,
            context_tokens=tenant.model.context_tokens,
            max_tokens=tenant.model.answer_tokens(request["max_tokens"]),
            counter=self._counters[tenant_name],
            tools=self._tools(tenant_name, request),
            reserved_tokens=tenant.tool_tokens,
            result_of=result_of,
            older=older,
        )

    def instructions_bytes_max(self, tenant_name: str, request: Mapping[str, Any], made: Prompt) -> int:
        """How long the instructions of a session may be beside a question's prompt, as an estimate has it."""
        model = self._tenants[tenant_name].model
        room = (
            model.context_tokens - model.answer_tokens(request["max_tokens"]) - self._tenants[tenant_name].tool_tokens
        )
        return prompt.bytes_left(made.messages, self._tools(tenant_name, request), room)

    def generation(
        self,
        tenant_name: str,
        context: ToolContext,
        request: Mapping[str, Any],
        made: Prompt,
        told: Told | None,
        stream: Stream,
    ) -> Generation | None:
        """What makes the answer, or goes on from what was told of it. None: that has all that an answer may have."""
        tenant, box = self._tenants[tenant_name], self._boxes[tenant_name]
        max_tokens = tenant.model.answer_tokens(request["max_tokens"])
        messages = made.messages
        if told is not None:
            max_tokens -= told["output_tokens"]
            messages = (*messages, ChatMessage(role="assistant", content=told["text"]))
        if max_tokens < 1:
            return None
        tools = self._tools(tenant_name, request)
        asked = ChatRequest(
            messages=messages,
            continues=told is not None,
            max_tokens=max_tokens,
            temperature=tenant.model.temperature if request["temperature"] is None else request["temperature"],
            timeout_s=tenant.model.timeout_s,
            base_url=tenant.model.base_url,
            model=tenant.model.model,
            api_key_env=tenant.model.api_key_env,
            tools=tools,
            tool_choice=request.get("tool_choice") if tools else None,
            options=ModelOptions(**request.get("options", {})),
        )
        limits = GenerationLimits(
            steps_max=tenant.tools.steps_max,
            calls_per_step_max=tenant.tools.calls_per_step_max,
            tool_tokens_max=tenant.tool_tokens,
        )
        return Generation(stream=stream, request=asked, toolbox=box, context=context, limits=limits)

    def _tools(self, tenant_name: str, request: Mapping[str, Any]) -> tuple[ToolSpec, ...]:
        """The service's own, then those that the client brings."""
        box = self._boxes[tenant_name]
        own = () if box is None else box.specs
        brought = tuple(ToolSpec(**function) for function in request.get("functions", ()))
        taken = {spec.name for spec in own}
        for spec in brought:
            if spec.name in taken:
                raise InvalidArgument("tools", spec.name, "is what a tool of the service is called")
        return (*own, *brought)


class Answer:
    """One answer. `make` makes it, once."""

    def __init__(
        self, answers: Answers, tenant: str, session_id: str, claim: Claim, writer: TurnWriter, stream: Stream
    ) -> None:
        self._answers = answers
        self._tenant = tenant
        self._session_id = session_id
        self._claim = claim
        self._writer = writer
        self._stream = stream
        self._generation: Generation | None = None

    @property
    def usage(self) -> Usage | None:
        """What was used until now; None where the model was not asked."""
        if self._generation is None:
            return None
        used = self._generation.usage
        return usage_of(used.input_tokens, used.output_tokens, estimated=used.estimated)

    async def make(self) -> Finished:
        """
        Raises:
            InvalidArgument, ServiceError: there is no whole answer; the writer has what there is of it.
        """
        made, told = await self._prompt(), self._claim["told"]
        if told is None:
            await self._writer.add("sources", {"sources": [source_of(passage) for passage in made.passages]})
        context = ToolContext(tenant=self._tenant, session_id=self._session_id, turn_id=self._claim["turn_id"])
        request = self._claim["request"]
        for_client = {function["name"] for function in request.get("functions", ())}
        self._generation = self._answers.generation(self._tenant, context, request, made, told, self._stream)
        if self._generation is None:
            return Finished(finish_reason="length", input_tokens=0, output_tokens=0, estimated=False)
        finished: Finished | None = None
        async for event in self._generation.events():
            match event:
                case TextDelta():
                    await self._writer.add("text.delta", {"text": event.text})
                case ToolCall():
                    call = {"id": event.id, "name": event.name, "arguments": event.arguments}
                    marks = {FOR_CLIENT: True} if event.name in for_client else {}
                    await self._writer.add("tool.call", {**call, **marks})
                case ToolResult():
                    await self._writer.add("tool.result", event.shown())
                case Finished():
                    finished = event
        if finished is None:
            raise ModelUnavailable("the answer broke off", BROKE_OFF_RETRY_AFTER_S)
        return finished

    async def _prompt(self) -> Prompt:
        """What the model is told, when it is told to the reader that the turn has begun and what had to be left out."""
        claim = self._claim
        question, request, history = claim["message"], claim["request"], claim["history"]
        dropped: dict[str, Any] | None = None
        result_of = request["result_of"]["id"] if "result_of" in request else None
        try:
            passages: list[Passage] = []
            if claim["told"] is not None:
                # An answer refers to them by their numbers.
                passages = [passage_of(source) for source in claim["told"]["sources"]]
            elif request["retrieve"]:
                # Also where a client's tool has answered: the model is told anew, and of what the user asked.
                query = question if result_of is None else _last_question(history)
                passages = await self._answers.found(self._tenant, query, request["top_k"])
            made = await self._answers.prompt(
                self._tenant, question, request, history, passages, result_of, claim["older"]
            )
            dropped = made.dropped._asdict()
            return made
        finally:
            # Also where that failed: the reader is to know which message it was about.
            if not claim["is_created"]:
                await self._writer.add(
                    "turn.created",
                    {
                        "turn_id": claim["turn_id"],
                        "session_id": self._session_id,
                        "message_id": claim["message_id"],
                        "dropped": dropped,
                    },
                )


def _last_question(history: Sequence[Message]) -> str:
    return next((message["content"] for message in reversed(history) if message["role"] == "user"), "")
