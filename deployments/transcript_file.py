"""How does a conversation read as a file?

As JSON lines, all that is kept of it; as Markdown, what a person wants to read of it. Either is made page by page, so
that no conversation is too long. What was said stands in fenced blocks that it can't close, and what stands elsewhere
is escaped: no text becomes a heading, a link or HTML, or looks as if somebody else had said it.
"""

from __future__ import annotations

import datetime
import re
import string
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal, NamedTuple

from pydantic_core import to_json

from actors.directory import SessionMetadata
from actors.message import Message

Format = Literal["jsonl", "md"]
Pages = AsyncIterator[list[Message]]

_ROLES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
_FENCE = "`"
_FENCES = re.compile(r"`+")
_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")
#: Whatever ends a line somewhere, and what is not shown at all.
_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class Kind(NamedTuple):
    media_type: str
    write: Callable[[SessionMetadata, Pages], AsyncIterator[bytes]]


async def json_lines(session: SessionMetadata, pages: Pages) -> AsyncIterator[bytes]:
    """A line for the session, then one for each message."""
    yield to_json({"type": "session", **session}) + b"\n"
    async for page in pages:
        yield b"".join(to_json({"type": "message", **message}) + b"\n" for message in page)


async def markdown(session: SessionMetadata, pages: Pages) -> AsyncIterator[bytes]:
    """A heading for the session, then one for each message, with what was said below it."""
    lines = [f"# {_escaped(session['title'] or '') or 'Untitled'}", ""]
    lines += [f"- Session: {session['id']}", f"- Begun: {_time(session['created_at'])}"]
    if session["user_id"] is not None:
        lines.append(f"- User: {_escaped(session['user_id'])}")
    lines += [f"- {_escaped(name)}: {_escaped(value)}" for name, value in session["metadata"].items()]
    yield _encoded(lines)
    async for page in pages:
        for message in page:
            yield _encoded(["", *_message(message)])


def _message(message: Message) -> list[str]:
    data = message["data"] or {}
    who = _ROLES.get(message["role"]) or _escaped(message["role"])
    if message["role"] == "tool" and data.get("name"):
        who += f" {_escaped(str(data['name']))}"
    lines = [f"## {who}, {_time(message['created_at'])}"]
    if message["content"]:
        lines += ["", *_block(message["content"])]
    for call in data.get("tool_calls") or ():
        lines += ["", f"Calls {_escaped(str(call['name']))}:", "", *_block(str(call["arguments"]))]
    sources = data.get("sources") or ()
    if sources:
        lines += ["", "Sources:", ""]
        lines += [f"{number}. {_source(source)}" for number, source in enumerate(sources, start=1)]
    return lines


def _source(source: dict[str, Any]) -> str:
    document_id = str(source.get("document_id", ""))
    return _escaped(f"{source.get('title') or document_id} ({document_id})")


def _block(text: str) -> list[str]:
    longest = max((len(run) for run in _FENCES.findall(text)), default=0)
    fence = _FENCE * max(3, longest + 1)
    return [f"{fence}text", text, fence]


def _escaped(text: str) -> str:
    """One line that means nothing but itself."""
    return _PUNCTUATION.sub(r"\\\1", _BLANK.sub(" ", text).strip())


def _time(time: float) -> str:
    return datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _encoded(lines: list[str]) -> bytes:
    # Half of a surrogate pair can't be written.
    return ("\n".join(lines) + "\n").encode(errors="replace")


KINDS: dict[Format, Kind] = {
    "jsonl": Kind("application/jsonl", json_lines),
    "md": Kind("text/markdown", markdown),
}
