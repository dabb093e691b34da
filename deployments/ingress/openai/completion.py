"""What does an answer's event come to in a completion, whole or in chunks?"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from actors.message import FOR_CLIENT
from actors.turn import TurnEvent, Usage
from deployments.errors import BudgetExceeded, ModelRefused, ModelUnavailable
from deployments.ingress.openai.errors import error_body
from deployments.ingress.problem import INSUFFICIENT_QUOTA
from deployments.turn_runner import as_raised

#: What clients know; whatever else a server says, the answer is at its end.
_FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter"})


def new_completion_id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"


class Completion:
    """One answer, as its events come.

    Args:
        created_at: seconds since 1970.
    """

    def __init__(self, completion_id: str, model: str, created_at: float) -> None:
        self._id = completion_id
        self._model = model
        self._created = int(created_at)
        self._more: dict[str, Any] = {}
        self._text: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._finish_reason = "stop"
        self._usage: Usage | None = None

    def take(self, event: TurnEvent) -> None:
        """
        Raises:
            ModelUnavailable, ModelRefused, BudgetExceeded: the event says that there is no answer.
        """
        data = event["data"]
        match event["type"]:
            case "turn.created":
                self._more |= {name: data[name] for name in ("session_id", "turn_id") if name in data}
            case "sources" if data["sources"]:
                self._more["sources"] = data["sources"]
            case "text.delta":
                self._text.append(data["text"])
            case "tool.call" if data.get(FOR_CLIENT):  # the service has run the others
                function = {"name": data["name"], "arguments": data["arguments"]}
                self._calls.append({"id": data["id"], "type": "function", "function": function})
            case "turn.completed":
                reason = data["finish_reason"]
                self._finish_reason = reason if reason in _FINISH_REASONS else "stop"
                self._usage = data["usage"]
            case "turn.incomplete":
                # What there is of it is worth having, and a client that tried again would ask the session twice.
                self._finish_reason = "length"
                self._usage = data["usage"]
            case "turn.cancelled":
                self._usage = data["usage"]
            case "error":
                raise as_raised(data)

    def whole(self) -> dict[str, Any]:
        text = "".join(self._text)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._calls:
            message |= {"content": text or None, "tool_calls": self._calls}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish_reason}
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice],
            "usage": self._shown_usage(),
            **self._more,
        }

    def chunks(self, event: TurnEvent, *, with_usage: bool) -> Iterator[dict[str, Any]]:
        """What the event adds. An error ends the answer, and is told in it."""
        try:
            self.take(event)
        except ModelUnavailable as error:
            yield error_body(error.problem, status=503)
            return
        except BudgetExceeded as error:
            yield error_body(str(error), status=429, code=INSUFFICIENT_QUOTA)
            return
        except ModelRefused as error:
            yield error_body(error.problem, status=400, code=error.code)
            return
        match event["type"]:
            case "turn.created":
                yield self._chunk({"role": "assistant", "content": ""}, with_usage)
            case "text.delta":
                yield self._chunk({"content": event["data"]["text"]}, with_usage)
            case "tool.call" if event["data"].get(FOR_CLIENT):
                index = len(self._calls) - 1
                yield self._chunk({"tool_calls": [{"index": index, **self._calls[index]}]}, with_usage)
            case "turn.completed" | "turn.incomplete" | "turn.cancelled":
                yield self._chunk({}, with_usage, self._finish_reason) | self._more
                if with_usage:
                    yield {**self._chunk({}, with_usage), "choices": [], "usage": self._shown_usage()}

    def _chunk(self, delta: dict[str, Any], with_usage: bool, finish_reason: str | None = None) -> dict[str, Any]:
        chunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        }
        return {**chunk, "usage": None} if with_usage else chunk

    def _shown_usage(self) -> dict[str, Any] | None:
        if self._usage is None:
            return None
        return {
            "prompt_tokens": self._usage["input_tokens"],
            "completion_tokens": self._usage["output_tokens"],
            "total_tokens": self._usage["total_tokens"],
        }
