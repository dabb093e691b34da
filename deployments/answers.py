"""How is one answer made?

Documents are searched, the model is told as much as it can take, and asked; the tools that it calls are run, and it is
asked again. What comes of all that goes to a writer as it comes.

It does not know when a turn may run, or what becomes of it when something fails.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from actors import Objects
from actors.document_index import Passage
from actors.message import Message
from actors.turn import Claim, Usage
from configs.tenant import TenantConfig
from deployments import prompt, token_count
from deployments.chat_request import ChatRequest, Finished, ModelEvent, ModelOptions, TextDelta, ToolCall
from deployments.documents import source_of
from deployments.errors import ModelUnavailable
from deployments.generation import Generation, GenerationLimits
from deployments.prompt import Prompt
from deployments.tool import ToolContext
from deployments.toolbox import ToolBox, ToolResult
from deployments.tools import toolbox_of
from deployments.turn_writer import TurnWriter

BROKE_OFF_RETRY_AFTER_S = 1.0


class Answers:
    """Makes answers for all tenants."""

    def __init__(
        self,
        *,
        objects: Objects,
        tenants: Mapping[str, TenantConfig],
        model: DeploymentHandle,
        search: DeploymentHandle,
    ) -> None:
        self._tenants = tenants
        self._model = model.options(stream=True)
        self._search = search
        self._counters = token_count.counters_of(tenants, model)
        self._boxes: dict[str, ToolBox | None] = {
            name: toolbox_of(tenant, search=search, objects=objects) for name, tenant in tenants.items()
        }

    def to(self, tenant: str, session_id: str, claim: Claim, writer: TurnWriter) -> Answer:
        """The answer to the question of a claimed turn, yet to be made."""
        return Answer(self, tenant, session_id, claim, writer)

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
    ) -> Prompt:
        """What the model is told.

        Raises:
            InvalidArgument: the question does not fit even by itself.
        """
        tenant, box = self._tenants[tenant_name], self._boxes[tenant_name]
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
            tools=() if box is None else box.specs,
            reserved_tokens=tenant.tool_tokens,
        )

    def generation(
        self, tenant_name: str, context: ToolContext, request: Mapping[str, Any], made: Prompt
    ) -> Generation:
        tenant, box = self._tenants[tenant_name], self._boxes[tenant_name]
        asked = ChatRequest(
            messages=made.messages,
            max_tokens=tenant.model.answer_tokens(request["max_tokens"]),
            temperature=tenant.model.temperature if request["temperature"] is None else request["temperature"],
            timeout_s=tenant.model.timeout_s,
            base_url=tenant.model.base_url,
            model=tenant.model.model,
            api_key_env=tenant.model.api_key_env,
            tools=() if box is None else box.specs,
            options=ModelOptions(**request.get("options", {})),
        )
        limits = GenerationLimits(
            steps_max=tenant.tools.steps_max,
            calls_per_step_max=tenant.tools.calls_per_step_max,
            tool_tokens_max=tenant.tool_tokens,
        )
        return Generation(stream=self._ask, request=asked, toolbox=box, context=context, limits=limits)

    async def _ask(self, request: ChatRequest) -> AsyncGenerator[ModelEvent, None]:
        answer = self._model.stream.remote(request)
        try:
            async for event in answer:
                yield event
        finally:
            answer.cancel()  # nobody else tells the model's replica that its listener has gone


class Answer:
    """One answer. `make` makes it, once."""

    def __init__(self, answers: Answers, tenant: str, session_id: str, claim: Claim, writer: TurnWriter) -> None:
        self._answers = answers
        self._tenant = tenant
        self._session_id = session_id
        self._claim = claim
        self._writer = writer
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
        made = await self._prompt()
        await self._writer.add("sources", {"sources": [source_of(passage) for passage in made.passages]})
        context = ToolContext(tenant=self._tenant, session_id=self._session_id, turn_id=self._claim["turn_id"])
        self._generation = self._answers.generation(self._tenant, context, self._claim["request"], made)
        finished: Finished | None = None
        async for event in self._generation.events():
            match event:
                case TextDelta():
                    await self._writer.add("text.delta", {"text": event.text})
                case ToolCall():
                    call = {"id": event.id, "name": event.name, "arguments": event.arguments}
                    await self._writer.add("tool.call", call)
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
        try:
            passages: list[Passage] = []
            if request["retrieve"]:
                passages = await self._answers.found(self._tenant, question, request["top_k"])
            made = await self._answers.prompt(self._tenant, question, request, history, passages)
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


def usage_of(input_tokens: int, output_tokens: int, *, estimated: bool) -> Usage:
    return {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "estimated": estimated,
    }
