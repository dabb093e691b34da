"""What comes of it when a model calls a tool?

Promise: always a `ToolResult`, in bounded time and of bounded size. Arguments that don't fit, a tool that doesn't
exist, an exception and a tool that takes too long are results too, which tell the model what went wrong and nothing of
how the service is made. Plain functions run in threads of this box, of which there are few: one that never returns
keeps its thread, and makes its own tenant's tools slow, nobody else's.

It does not ask a model, and does not bound how often a tool is called.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from deployments.chat_request import ToolCall, ToolSpec
from deployments.tool import Tool, ToolContext, ToolError
from deployments.tool_call_pieces import clean

logger = logging.getLogger("mobula.tools")

THREADS_MAX = 8
ERROR_CHARS_MAX = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolResult:
    """What a call came to. `content` is JSON, for the model: the result, or an object with `error` alone."""

    id: str
    name: str
    content: str
    is_error: bool = False

    @classmethod
    def failed(cls, call: ToolCall, problem: str) -> ToolResult:
        content = json.dumps({"error": clean(problem)[:ERROR_CHARS_MAX]}, ensure_ascii=False)
        return cls(id=call.id, name=call.name, content=content, is_error=True)

    def shown(self) -> dict[str, Any]:
        """What a client is told."""
        value = json.loads(self.content)
        outcome = {"error": value["error"]} if self.is_error else {"result": value}
        return {"id": self.id, "name": self.name, **outcome}


class ToolBox:
    """The tools of one tenant.

    Args:
        tools: No two of one name.
        timeout_s: How long one call may take.
        result_bytes_max: Of one result, as JSON.
    """

    def __init__(self, tools: Iterable[Tool], *, timeout_s: float, result_bytes_max: int) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.spec.name in self._tools:
                raise ValueError(f"two tools are named {tool.spec.name}")
            self._tools[tool.spec.name] = tool
        self._timeout_s = timeout_s
        self._result_bytes_max = result_bytes_max
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="tool")

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        return tuple(tool.spec for tool in self._tools.values())

    async def run(self, call: ToolCall, context: ToolContext, *, timeout_s: float | None = None) -> ToolResult:
        """Runs a call; `timeout_s` where the caller has less time than a call may take."""
        timeout_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        try:
            tool = self._tools.get(call.name)
            if tool is None:
                known = ", ".join(self._tools) or "none"
                raise ToolError(f"there is no tool of this name; those there are: {known}")
            values = _guarded(functools.partial(tool.parsed, call.arguments), call, context)
            value = await self._value(tool, values, call, context, timeout_s)
            content = _guarded(functools.partial(_as_json, value), call, context)
            size_bytes = len(content.encode())
            if size_bytes > self._result_bytes_max:
                raise ToolError(f"the result has {size_bytes} bytes, and may have {self._result_bytes_max}")
        except ToolError as error:
            return ToolResult.failed(call, str(error))
        return ToolResult(id=call.id, name=call.name, content=content)

    def close(self) -> None:
        """Waits for no thread: one may run for ever."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _value(
        self, tool: Tool, values: dict[str, Any], call: ToolCall, context: ToolContext, timeout_s: float
    ) -> Any:
        work = functools.partial(tool.function, context, **values)
        task = asyncio.ensure_future(
            _awaited(work, call, context) if tool.is_async else self._in_thread(work, call, context)
        )
        # One that ends with an error after nobody waits for it any more is not to be reported as forgotten.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            # Not `asyncio.timeout`, which would wait for a tool that does not mind being cancelled.
            await asyncio.wait({task}, timeout=timeout_s)
        finally:
            task.cancel()
        if not task.done():
            raise ToolError(f"the tool took longer than {timeout_s:g} s")
        if task.cancelled():
            raise ToolError("the tool failed")
        return task.result()

    async def _in_thread(self, work: Callable[[], Any], call: ToolCall, context: ToolContext) -> Any:
        def run() -> tuple[Any, ToolError | None]:
            # The error is handed over as a value: a future takes no `StopIteration`.
            try:
                return _guarded(work, call, context), None
            except ToolError as error:
                return None, error

        value, error = await asyncio.get_running_loop().run_in_executor(self._threads, run)
        if error is not None:
            raise error
        return value


async def _awaited(work: Callable[[], Any], call: ToolCall, context: ToolContext) -> Any:
    try:
        return await work()
    except ToolError:
        raise
    except (Exception, SystemExit) as error:  # whatever a tool's author let happen; see `_failure`
        raise _failure(error, call, context) from None


def _guarded(work: Callable[[], Any], call: ToolCall, context: ToolContext) -> Any:
    try:
        return work()
    except ToolError:
        raise
    except (Exception, SystemExit) as error:  # whatever a tool's author let happen; see `_failure`
        raise _failure(error, call, context) from None


def _failure(error: BaseException, call: ToolCall, context: ToolContext) -> ToolError:
    """For the log the error itself; for the model, which may repeat what it reads to anybody, that there was one."""
    logger.error("tenant=%s turn=%s tool=%s failed", context.tenant, context.turn_id, call.name, exc_info=error)
    if getattr(error, "retryable", False) is True:
        return ToolError("the tool is busy just now; it may work later")
    return ToolError("the tool failed")


def _as_json(value: Any) -> str:
    return clean(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
