"""What do a turn's events come to as the events of a response?

`ResponseEvents` takes the events of one turn, from the first and in order, and gives for each those of OpenAI's,
numbered from 0 without a gap. It looks at nothing else, no clock and no chance: whoever takes the same events gets the
same ones with the same numbers. So a stream can be taken up again behind any number by giving all events again and
leaving out what was seen.

Calls of the service's own tools are shown as `mcp_call`, which clients do not run; those of a client's tools, which it
is to run, as `function_call`. What retrieval found is a `file_search_call`, and cited by the text that follows.
"""

from __future__ import annotations

import json
from typing import Any

from actors.message import FOR_CLIENT
from actors.turn import TurnEvent, Usage
from deployments.errors import ModelRefused

SERVER_LABEL = "mobula"
#: Codes that clients know, by ours.
_CODES = {
    "ModelRefused": "invalid_prompt",
    "InvalidArgument": "invalid_prompt",
    ModelRefused.CONTEXT_LENGTH: "invalid_prompt",
    "BudgetTooSmall": "invalid_prompt",
    "BudgetExceeded": "rate_limit_exceeded",
}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseEvents:
    """One response, as its turn's events come.

    Args:
        response: the response before anything has happened, with `id` and `output` among its members.
        queries: what was looked for in the documents, where that was wanted.
        shows_results: what was found is to be told in full.
    """

    def __init__(self, response: dict[str, Any], *, queries: list[str] | None, shows_results: bool = False) -> None:
        self._response = response
        self._key = response["id"].removeprefix("resp_")
        self._queries = queries
        self._shows_results = shows_results
        self._output: list[dict[str, Any]] = []
        self._sources: list[dict[str, Any]] = []
        self._text: list[str] | None = None
        self._open_calls: dict[str, int] = {}
        self._number = 0
        self._new: list[dict[str, Any]] = []

    def take(self, event: TurnEvent) -> list[dict[str, Any]]:
        """What the event adds, oldest first."""
        self._new = []
        data = event["data"]
        if self._number == 0:
            self._response["status"] = "queued" if event["type"] == "turn.queued" else "in_progress"
            self._tell_response("response.created")
        match event["type"]:
            case "turn.queued":
                self._tell_response("response.queued")
            case "turn.created":
                self._response["status"] = "in_progress"
                self._tell_response("response.in_progress")
            case "sources" if self._queries is not None:
                self._search(data["sources"])
            case "text.delta":
                self._say(data["text"])
            case "tool.call" if data.get(FOR_CLIENT):
                self._give_call(data)
            case "tool.call":
                self._begin_call(data)
            case "tool.result":
                self._end_call(data)
            case "turn.completed":
                self._complete(data["finish_reason"], data["usage"])
            case "turn.incomplete":
                self._end("incomplete", "response.incomplete", data["usage"], _error(data["error"]))
            case "turn.cancelled":
                # OpenAI has no event of this name: the status tells the two apart.
                self._end("cancelled", "response.incomplete", data["usage"], None)
            case "error":
                self._end("failed", "response.failed", data["usage"], _error(data))
        return self._new

    def response(self) -> dict[str, Any]:
        """The response as it is now, with as much of its text as there is."""
        output = [dict(item) for item in self._output]
        if self._text is not None:
            output[-1]["content"] = [_part("".join(self._text), [])]
        return {**self._response, "output": output}

    # -- what is told

    def _tell(self, event_type: str, **fields: Any) -> None:
        self._new.append({"type": event_type, "sequence_number": self._number, **fields})
        self._number += 1

    def _tell_response(self, event_type: str) -> None:
        self._tell(event_type, response=self.response())

    def _tell_item(self, event_type: str, index: int) -> None:
        self._tell(event_type, output_index=index, item=dict(self._output[index]))

    def _add(self, prefix: str, **fields: Any) -> int:
        index = len(self._output)
        self._output.append({"id": f"{prefix}_{self._key}_{index}", **fields})
        self._tell_item("response.output_item.added", index)
        return index

    def _at(self, index: int) -> dict[str, Any]:
        return {"item_id": self._output[index]["id"], "output_index": index}

    # -- text

    def _say(self, text: str) -> None:
        if self._text is None:
            self._text = []
            index = self._add("msg", type="message", role="assistant", status="in_progress", content=[])
            self._tell("response.content_part.added", **self._at(index), content_index=0, part=_part("", []))
        self._text.append(text)
        self._tell(
            "response.output_text.delta", **self._at(len(self._output) - 1), content_index=0, delta=text, logprobs=[]
        )

    def _end_text(self, status: str) -> None:
        if self._text is None:
            return
        text, self._text = "".join(self._text), None
        index = len(self._output) - 1
        at = {**self._at(index), "content_index": 0}
        annotations = [_citation(source, len(text)) for source in self._sources]
        for number, annotation in enumerate(annotations):
            self._tell("response.output_text.annotation.added", **at, annotation_index=number, annotation=annotation)
        part = _part(text, annotations)
        self._tell("response.output_text.done", **at, text=text, logprobs=[])
        self._tell("response.content_part.done", **at, part=part)
        self._output[index] |= {"status": status, "content": [part]}
        self._tell_item("response.output_item.done", index)

    # -- tools

    def _search(self, sources: list[dict[str, Any]]) -> None:
        self._end_text("completed")
        self._sources = sources
        index = self._add("fs", type="file_search_call", status="in_progress", queries=self._queries, results=None)
        for state in ("in_progress", "searching", "completed"):
            self._tell(f"response.file_search_call.{state}", **self._at(index))
        results = [_result(source) for source in sources] if self._shows_results else None
        self._output[index] |= {"status": "completed", "results": results}
        self._tell_item("response.output_item.done", index)

    def _give_call(self, call: dict[str, Any]) -> None:
        self._end_text("completed")
        index = self._add(
            "fc", type="function_call", status="in_progress", call_id=call["id"], name=call["name"], arguments=""
        )
        at, arguments = self._at(index), call["arguments"]
        self._tell("response.function_call_arguments.delta", **at, delta=arguments)
        self._tell("response.function_call_arguments.done", **at, name=call["name"], arguments=arguments)
        self._output[index] |= {"status": "completed", "arguments": arguments}
        self._tell_item("response.output_item.done", index)

    def _begin_call(self, call: dict[str, Any]) -> None:
        self._end_text("completed")
        earlier = self._open_calls.pop(call["id"], None)
        if earlier is not None:
            self._fail_call(earlier, "the model called a tool again before this call was answered")
        index = self._add(
            "mcp",
            type="mcp_call",
            status="in_progress",
            server_label=SERVER_LABEL,
            name=call["name"],
            arguments="",
            output=None,
            error=None,
        )
        self._open_calls[call["id"]] = index
        self._tell("response.mcp_call.in_progress", **self._at(index))
        self._tell("response.mcp_call_arguments.delta", **self._at(index), delta=call["arguments"])
        self._tell("response.mcp_call_arguments.done", **self._at(index), arguments=call["arguments"])
        self._output[index]["arguments"] = call["arguments"]

    def _end_call(self, result: dict[str, Any]) -> None:
        index = self._open_calls.pop(result["id"], None)
        if index is None:
            return
        if "error" in result:
            self._fail_call(index, str(result["error"]))
            return
        self._output[index] |= {"status": "completed", "output": json.dumps(result.get("result"), ensure_ascii=False)}
        self._tell("response.mcp_call.completed", **self._at(index))
        self._tell_item("response.output_item.done", index)

    def _fail_call(self, index: int, problem: str) -> None:
        error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": problem}]}
        self._output[index] |= {"status": "failed", "error": error}
        self._tell("response.mcp_call.failed", **self._at(index))
        self._tell_item("response.output_item.done", index)

    # -- the end

    def _complete(self, finish_reason: str | None, usage: Usage | None) -> None:
        reason = _INCOMPLETE.get(finish_reason or "")
        if not self._output or self._output[-1]["type"] not in ("message", "function_call"):
            self._say("")  # a model may have nothing to say; a question that was answered has an answer
        if reason is None:
            self._end("completed", "response.completed", usage, None)
        else:
            self._response["incomplete_details"] = {"reason": reason}
            self._end("incomplete", "response.incomplete", usage, None)

    def _end(self, status: str, event_type: str, usage: Usage | None, error: dict[str, Any] | None) -> None:
        self._end_text("completed" if status == "completed" else "incomplete")
        for index in self._open_calls.values():
            self._fail_call(index, "the response ended before the tool had answered")
        self._open_calls.clear()
        if status == "failed":
            self._output.clear()  # as in the session: nothing of it is kept
        self._response |= {"status": status, "usage": _usage(usage), "error": error}
        self._tell_response(event_type)


def _part(text: str, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}


def _citation(source: dict[str, Any], index: int) -> dict[str, Any]:
    name = source["title"] or source["document_id"]
    return {"type": "file_citation", "file_id": source["document_id"], "filename": name, "index": index}


def _result(source: dict[str, Any]) -> dict[str, Any]:
    name = source["title"] or source["document_id"]
    # No score: how near a passage came tells of others' documents.
    return {"file_id": source["document_id"], "filename": name, "text": source["text"], "attributes": {}}


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage["input_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }


def _error(error: dict[str, Any] | None) -> dict[str, Any] | None:
    """One of the few codes that clients know."""
    if error is None:
        return None
    return {"code": _CODES.get(error["code"], "server_error"), "message": error["message"]}
