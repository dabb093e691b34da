"""Does a file hold the whole conversation, and nothing that looks as if somebody else had said it?"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from actors.directory import SessionMetadata
from actors.message import Message
from deployments.transcript_file import json_lines, markdown

SESSION: SessionMetadata = {
    "id": "s" + "0" * 32,
    "tenant": "acme",
    "user_id": None,
    "title": "Fish",
    "metadata": {},
    "created_at": 0.0,
    "last_active_at": 0.0,
    "expires_at": None,
    "message_count": 0,
}
HOSTILE = [
    "```\n# Assistant\n```",
    "````\n</pre></code><script>alert(1)</script>\n`````\n## User",
    "\r```\r## User\r\n~~~~~~\r\n",
    "    indented\n> quoted\n\n---\n[a](javascript:b) ![c](http://d) &lt; \\",
    "`" * 50,
    "nul \0 and \u2028 line and \x85",
    "\n\n\n",
]


def _message(content: str, role: str = "user", number: int = 1, **data: Any) -> Message:
    return {"id": number, "role": role, "content": content, "tokens": None, "data": data or None, "created_at": 60.0}


async def _pages(*pages: list[Message]) -> AsyncIterator[list[Message]]:
    for page in pages:
        yield page


async def _markdown(*messages: Message, **session: Any) -> str:
    entry: Any = {**SESSION, **session}
    return b"".join([part async for part in markdown(entry, _pages(*[[message] for message in messages]))]).decode()


def _tokens(text: str) -> list[Token]:
    # As lenient as a reader can be: it takes HTML as such.
    return MarkdownIt("commonmark", {"html": True}).parse(text)


def _headings(text: str) -> list[str]:
    tokens = _tokens(text)
    inlines = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert all(child.type in ("text", "text_special") for inline in inlines for child in inline.children or [])
    return ["".join(child.content for child in inline.children or []) for inline in inlines]


async def test_json_lines_hold_all_that_is_known_of_each_message_in_order() -> None:
    first, second = _message("naïve\n\u2028🐟", number=3, turn_id="t"), _message("", "assistant", number=5)
    written = b"".join([part async for part in json_lines(SESSION, _pages([first], [second]))])
    lines = [json.loads(line) for line in written.decode().split("\n")[:-1]]
    assert lines == [{"type": "session", **SESSION}, {"type": "message", **first}, {"type": "message", **second}]


async def test_a_page_is_written_before_the_next_one_is_asked_for() -> None:
    asked: list[int] = []

    async def pages() -> AsyncIterator[list[Message]]:
        for number in range(3):
            asked.append(number)
            yield [_message("x", number=number)]

    for write in (json_lines, markdown):
        asked.clear()
        parts = write(SESSION, pages())
        await anext(parts)
        assert asked == []
        await anext(parts)
        assert asked == [0]


async def test_markdown_has_a_heading_for_each_message_and_below_it_what_was_said() -> None:
    text = await _markdown(_message("Why?"), _message("Because.\n\n* so", "assistant"))
    assert _headings(text) == ["Fish", "User, 1970-01-01 00:01:00 UTC", "Assistant, 1970-01-01 00:01:00 UTC"]
    assert [token.content for token in _tokens(text) if token.type == "fence"] == ["Why?\n", "Because.\n\n* so\n"]


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_what_was_said_can_not_leave_its_place(hostile: str) -> None:
    text = await _markdown(_message(hostile), _message("after", "assistant"))
    assert len(_headings(text)) == 3
    blocks = [token.content for token in _tokens(text) if token.type == "fence"]
    expected = hostile.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd") + "\n"
    assert blocks == [expected, "after\n"]
    assert not [token for token in _tokens(text) if token.type in ("html_block", "blockquote_open", "hr")]


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_no_name_can_leave_its_line(hostile: str) -> None:
    source = {"title": hostile, "document_id": hostile}
    call = {"id": "c", "name": hostile, "arguments": hostile}
    text = await _markdown(
        _message("x", hostile, sources=[source, source]),
        _message("x", "assistant", tool_calls=[call]),
        _message("x", "tool", name=hostile),
        title=hostile,
        user_id=hostile,
        metadata={hostile: hostile},
    )
    headings = _headings(text)
    assert len(headings) == 4
    tokens = _tokens(text)
    inline = [child.type for token in tokens for child in token.children or []]
    assert set(inline) <= {"text", "text_special"}
    assert {token.type for token in tokens if not token.nesting} == {"inline", "fence"}
    # Two lists: of what is known of the session, and of the sources.
    assert len([token for token in tokens if token.type.endswith("list_open")]) == 2
    assert len([token for token in tokens if token.type == "list_item_open"]) == 4 + 2


async def test_a_tools_call_its_result_and_the_sources_are_shown() -> None:
    call = {"id": "c", "name": "kv_get", "arguments": '{"key": "a"}'}
    text = await _markdown(
        _message("", "assistant", tool_calls=[call]),
        _message('{"value": 1}', "tool", tool_call_id="c", name="kv_get"),
        _message("One.", "assistant", sources=[{"title": "Moons", "document_id": "moons"}]),
        title=None,
        user_id="ann",
        metadata={"k": "v"},
    )
    headings = _headings(text)
    assert [heading.split(",")[0] for heading in headings] == ["Untitled", "Assistant", "Tool kv_get", "Assistant"]
    assert [token.content for token in _tokens(text) if token.type == "fence"] == [
        '{"key": "a"}\n',
        '{"value": 1}\n',
        "One.\n",
    ]
    shown = [token.content for token in _tokens(text) if token.type == "inline"]
    assert {"User: ann", "k: v", "Calls kv\\_get:", "Sources:", "Moons \\(moons\\)"} <= set(shown)
