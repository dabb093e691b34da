"""How does a model come to its answer where it may use tools on the way?

It is asked; the tools it calls are run; it is asked again with what they gave; until it calls none, or until it has
been asked `steps_max` times: the last time it is offered none, so that it has to answer.

Promise: text, calls and results come as they are known, and exactly one `Finished` at the end, with the usage of all
steps; or else a `ModelError`. Every call that is run here has its result. All of it ends within the request's
`timeout_s`, however many steps it takes. When the generator is closed, so is the model's stream, and tools that run are
cancelled. `usage` tells at any time what was used, also after an error.

It stores nothing, sends nothing to a client, and repeats no request that failed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from deployments.call_usage import CallUsage
from deployments.chat_request import ChatMessage, ChatRequest, Finished, ModelEvent, TextDelta, ToolCall, ToolSpec
from deployments.errors import ModelTimeout, ModelUnavailable
from deployments.token_count import estimate
from deployments.tool import ToolContext
from deployments.toolbox import ToolBox, ToolResult

BROKE_OFF_RETRY_AFTER_S = 1.0
#: What a chat template puts around a call and its result.
TEMPLATE_TOKENS_PER_CALL = 80

#: Asks a model. Closing the generator must stop the model.
Stream: TypeAlias = Callable[[ChatRequest], AsyncGenerator[ModelEvent, None]]
GenerationEvent: TypeAlias = TextDelta | ToolCall | ToolResult | Finished


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationLimits:
    """How far a model may go with tools.

    Attributes:
        steps_max: Times that it is asked.
        calls_per_step_max: Calls that are run of one step. Further ones are as if the model had not made them: it may
            make them in the next.
        tool_tokens_max: Of all calls and results together, estimated. What is larger than what is left of them is
            withheld from the model, and when none are left the next step is the last.
    """

    steps_max: int
    calls_per_step_max: int
    tool_tokens_max: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens read and written. `estimated` where a server has not counted all of them."""

    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False

    def plus(self, input_tokens: int, output_tokens: int, *, estimated: bool) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + input_tokens,
            output_tokens=self.output_tokens + output_tokens,
            estimated=self.estimated or estimated,
        )

    def shown(self) -> dict[str, Any]:
        """What a client is told."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
            "estimated": self.estimated,
        }


@dataclass
class _Step:
    """What came of it when the model was asked once."""

    text: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str = ""


class Generation:
    """One answer.

    Args:
        stream: How the model is asked.
        request: What it is asked first. Its `tools` are those of the box, and may be others beside them, which are run
            elsewhere: an answer that calls one ends there, with the reason `tool_calls`.
        toolbox: What runs the model's calls; None where no tools are run here.
        context: For whom tools run.
        limits: How far the model may go with the tools of the box.
    """

    def __init__(
        self,
        *,
        stream: Stream,
        request: ChatRequest,
        toolbox: ToolBox | None,
        context: ToolContext,
        limits: GenerationLimits,
    ) -> None:
        self._stream = stream
        self._request = request
        self._toolbox = toolbox
        self._context = context
        self._limits = limits
        here = set() if toolbox is None else {spec.name for spec in toolbox.specs}
        self._elsewhere = {spec.name: spec for spec in request.tools if spec.name not in here}
        self._messages = list(request.messages)
        self._tool_tokens_left = limits.tool_tokens_max
        self._usage = Usage()
        self._unfinished: CallUsage | None = None

    @property
    def usage(self) -> Usage:
        """What was used until now; of a step that has not ended, estimated."""
        if self._unfinished is None or self._unfinished.tokens is None:
            return self._usage
        tokens = self._unfinished.tokens
        return self._usage.plus(tokens.input_tokens, tokens.output_tokens, estimated=tokens.estimated)

    async def events(self) -> AsyncGenerator[GenerationEvent, None]:
        """Makes the answer, once.

        Raises:
            ModelError: the model gave no whole answer.
        """
        deadline = asyncio.get_running_loop().time() + self._request.timeout_s
        for number in itertools.count(1):
            offers_all = self._toolbox is not None and number < self._limits.steps_max and self._tool_tokens_left > 0
            tools = self._request.tools if offers_all else tuple(self._elsewhere.values())
            step = _Step()
            async with aclosing(self._ask(step, tools, deadline, is_first=number == 1)) as deltas:
                async for delta in deltas:
                    yield delta
            passed_on = [call for call in step.calls if call.name in self._elsewhere]
            # One of a name that nobody knows is run too: the box tells the model so.
            run_here = [call for call in step.calls if call.name not in self._elsewhere] if offers_all else []
            run_here = run_here[: self._limits.calls_per_step_max]
            for call in (*run_here, *passed_on):
                yield call
            if run_here:
                for result in await self._run(step, run_here, passed_on, deadline):
                    yield result
            if passed_on or not run_here:
                break
        yield Finished(
            finish_reason=_finish_reason(step, passed_on),
            input_tokens=self._usage.input_tokens,
            output_tokens=self._usage.output_tokens,
            estimated=self._usage.estimated,
        )

    async def _ask(
        self, step: _Step, tools: Sequence[ToolSpec], deadline: float, *, is_first: bool
    ) -> AsyncGenerator[TextDelta, None]:
        time_left_s = deadline - asyncio.get_running_loop().time()
        if time_left_s <= 0:
            raise ModelTimeout(self._request.timeout_s)
        choice = self._request.tool_choice
        if not is_first and choice != "none":
            choice = None  # that it must call a tool is meant once, or it would have to for ever
        if not tools or choice not in (None, "auto", "none", "required", *(tool.name for tool in tools)):
            choice = None
        request = replace(
            self._request,
            messages=tuple(self._messages),
            timeout_s=time_left_s,
            tools=tuple(tools),
            tool_choice=choice,
            continues=self._request.continues and is_first,
        )
        self._unfinished = call = CallUsage(request)
        async with aclosing(self._stream(request)) as events:
            while True:
                try:
                    with call.watched():
                        async with asyncio.timeout_at(deadline):
                            event = await anext(events, None)
                except (TimeoutError, ModelTimeout):
                    # The time of the whole, and not what was left of it for this step.
                    raise ModelTimeout(self._request.timeout_s) from None
                if event is None:
                    raise ModelUnavailable("the answer broke off", BROKE_OFF_RETRY_AFTER_S)
                call.take(event)
                if isinstance(event, Finished):
                    break
                if isinstance(event, ToolCall):
                    step.calls.append(event)
                elif isinstance(event, TextDelta):
                    step.text.append(event.text)
                    yield event
        self._usage, self._unfinished = self.usage, None
        step.finish_reason = event.finish_reason

    async def _run(
        self, step: _Step, calls: Sequence[ToolCall], passed_on: Sequence[ToolCall], deadline: float
    ) -> list[ToolResult]:
        """Runs calls side by side, and has the model told in the next step what they gave."""
        assert self._toolbox is not None, "a step without tools has no calls to run"
        told = [self._affordable(call) for call in calls]
        timeout_s = max(0.0, deadline - asyncio.get_running_loop().time())
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._toolbox.run(call, self._context, timeout_s=timeout_s))
                for call, as_told in zip(calls, told, strict=True)
                if as_told is call
            ]
        done = {task.result().id: task.result() for task in tasks}
        results: list[ToolResult] = []
        for call in calls:
            result = done.get(call.id) or ToolResult.failed(call, "the arguments are longer than there is room for")
            if estimate(result.content) > self._tool_tokens_left:
                result = ToolResult.failed(call, "there is no room left for the result: answer with what there is")
            self._tool_tokens_left -= estimate(result.content)
            results.append(result)
        text = "".join(step.text)
        if self._messages[-1].role == "assistant":
            text = self._messages.pop().content + text  # this step went on from there
        self._messages.append(ChatMessage(role="assistant", content=text, tool_calls=(*told, *passed_on)))
        self._messages += [
            ChatMessage(role="tool", content=result.content, tool_call_id=result.id) for result in results
        ]
        return results

    def _affordable(self, call: ToolCall) -> ToolCall:
        """The call as the model will read it again: without its arguments where there is no room for them."""
        tokens = estimate(call.arguments)
        fits = tokens <= self._tool_tokens_left
        self._tool_tokens_left -= TEMPLATE_TOKENS_PER_CALL + (tokens if fits else 0)
        return call if fits else replace(call, arguments="{}")


def _finish_reason(step: _Step, passed_on: Sequence[ToolCall]) -> str:
    """Why the answer ended, after its last step."""
    if passed_on:
        return "tool_calls"
    if step.calls:
        return "length"  # it wanted more of the tools than it may have
    return "stop" if step.finish_reason == "tool_calls" else step.finish_reason
