"""What do a turn's events look like as the AI SDK's UI message stream (version 1)?

The stream is a pure function of the events, so that one that is read again from its first event is the same again.
Whatever is begun in it is ended in it, also where the turn breaks off: each text, each step, and each call of a tool.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from actors import DurableError
from actors.message import FOR_CLIENT
from actors.turn import TurnEvent
from deployments.ingress.events import PING_EVERY_S

logger = logging.getLogger("mobula.ingress")

MARK = {"x-vercel-ai-ui-message-stream": "v1"}
DONE = "[DONE]"
#: What documents are to the service, whatever they were to begin with.
SOURCE_MEDIA_TYPE = "text/plain"
PROVIDER = "mobula"
NO_RESULT = "the turn ended before the tool had answered"
CUT_OFF = "the answer can't be followed for now; it goes on, and can be resumed"
#: What models call the ways in which an answer ends, and what the AI SDK calls them.
_FINISH_REASONS = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content-filter",
    "tool_calls": "tool-calls",
}

Part = dict[str, Any]


class UIMessageStream:
    """One turn, told event by event."""

    def __init__(self, session_id: str, turn_id: str) -> None:
        self._names = {"session_id": session_id, "turn_id": turn_id}
        self._is_started = False
        self._in_step = False
        self._texts = 0
        self._in_text = False
        self._open_calls: dict[str, str] = {}
        self._has_results = False
        self._sources: set[str] = set()

    def parts(self, event: TurnEvent) -> Iterator[Part]:
        if not self._is_started:
            self._is_started = True
            yield {"type": "start", "messageId": self._names["turn_id"], "messageMetadata": self._names}
        data = event["data"]
        match event["type"]:
            case "sources":
                yield from self._told_sources(data["sources"])
            case "text.delta":
                yield from self._step()
                yield from self._text(data["text"])
            case "tool.call":
                yield from self._step()
                yield from self._call(data)
            case "tool.result":
                yield from self._result(data)
            case "turn.completed":
                yield from self._close()
                reason = _FINISH_REASONS.get(data["finish_reason"] or "", "other")
                yield {"type": "finish", "finishReason": reason, "messageMetadata": _ending(data)}
            case "turn.cancelled":
                yield from self._close()
                yield {"type": "message-metadata", "messageMetadata": _ending(data)}
                yield {"type": "abort", "reason": "cancelled"}
            case "turn.incomplete":
                yield from self._close()
                yield {"type": "message-metadata", "messageMetadata": _ending(data)}
                error = data.get("error")
                yield {"type": "error", "errorText": error["message"] if error else "the answer broke off"}
            case "error":
                yield from self._close()
                yield {"type": "error", "errorText": data["message"]}

    def _told_sources(self, sources: list[dict[str, Any]]) -> Iterator[Part]:
        yield from self._step()
        for source in sources:
            # A turn that was begun again looks them up again.
            if source["chunk_id"] not in self._sources:
                self._sources.add(source["chunk_id"])
                yield source_part(source)

    def _step(self) -> Iterator[Part]:
        """What comes after results of tools is another step of the model."""
        if self._has_results:
            yield from self._close()
        if not self._in_step:
            self._in_step = True
            yield {"type": "start-step"}

    def _text(self, text: str) -> Iterator[Part]:
        if not self._in_text:
            self._in_text = True
            self._texts += 1
            yield {"type": "text-start", "id": self._text_id}
        yield {"type": "text-delta", "id": self._text_id, "delta": text}

    @property
    def _text_id(self) -> str:
        return f"text-{self._texts}"

    def _end_text(self) -> Iterator[Part]:
        if self._in_text:
            self._in_text = False
            yield {"type": "text-end", "id": self._text_id}

    def _call(self, call: dict[str, Any]) -> Iterator[Part]:
        yield from self._end_text()
        if not call.get(FOR_CLIENT):
            self._open_calls[call["id"]] = call["name"]
        yield {
            "type": "tool-input-available",
            "toolCallId": call["id"],
            "toolName": call["name"],
            "input": arguments_of(call),
            **_run_by(call),
        }

    def _result(self, result: dict[str, Any]) -> Iterator[Part]:
        if self._open_calls.pop(result["id"], None) is None:
            return
        self._has_results = True
        told = {"toolCallId": result["id"], **_BY_SERVICE}
        if "error" in result:
            yield {"type": "tool-output-error", "errorText": error_text(result["error"]), **told}
        else:
            yield {"type": "tool-output-available", "output": result.get("result"), **told}

    def _close(self) -> Iterator[Part]:
        yield from self._end_text()
        for call_id in list(self._open_calls):
            yield from self._result({"id": call_id, "error": NO_RESULT})
        self._has_results = False
        if self._in_step:
            self._in_step = False
            yield {"type": "finish-step"}


#: The client is to call no tool for these, and need not know them beforehand.
_BY_SERVICE = {"providerExecuted": True, "dynamic": True}


def _run_by(call: dict[str, Any]) -> Part:
    """Whose a call is to run: where another client of the session brought the tool, that one's."""
    return {"dynamic": True} if call.get(FOR_CLIENT) else _BY_SERVICE


def source_part(source: dict[str, Any]) -> Part:
    """A passage, as a part of a stream and of a message."""
    more = {name: source[name] for name in ("document_id", "text", "start", "end")}
    return {
        "type": "source-document",
        "sourceId": source["chunk_id"],
        "mediaType": SOURCE_MEDIA_TYPE,
        "title": source["title"] or source["document_id"],
        "providerMetadata": {PROVIDER: more},
    }


def arguments_of(call: dict[str, Any]) -> Any:
    """What a tool was called with; as it came, where the model wrote no JSON."""
    try:
        return json.loads(call["arguments"])
    except (ValueError, RecursionError):
        return call["arguments"]


def error_text(error: Any) -> str:
    return error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)


def _ending(data: dict[str, Any]) -> dict[str, Any]:
    reason = data.get("finish_reason") or data.get("reason")
    return {"message_id": data["message_id"], "usage": data["usage"]} | ({"finish_reason": reason} if reason else {})


def ui_streamed(events: AsyncIterator[TurnEvent], session_id: str, turn_id: str, *, location: str) -> Response:
    """The answer as a UI message stream. `location` is where its events are to be had by their numbers."""
    headers = {"X-Accel-Buffering": "no", "Content-Location": location, **MARK}
    stream = _sse(UIMessageStream(session_id, turn_id), events)
    return EventSourceResponse(stream, ping=PING_EVERY_S, headers=headers)


async def _sse(stream: UIMessageStream, events: AsyncIterator[TurnEvent]) -> AsyncIterator[ServerSentEvent]:
    try:
        async for event in events:
            for part in stream.parts(event):
                yield _encoded(part)
    except DurableError as error:
        # A reader would take a stream that just ends for an answer that is whole.
        logger.warning("a stream was cut off: %s", error)
        yield _encoded({"type": "error", "errorText": CUT_OFF})
    yield ServerSentEvent(data=DONE)


def _encoded(part: Part) -> ServerSentEvent:
    # JSON has no line ends: no text can become a field or another event. In ASCII, since a piece of text may end in the
    # middle of what UTF-16 needs two codes for, which the reader will join.
    return ServerSentEvent(data=json.dumps(part, separators=(",", ":")))
