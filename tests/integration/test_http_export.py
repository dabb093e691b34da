"""Over the wire: is all of a session to be had as a file, however long it is?"""

from __future__ import annotations

import json

import httpx
import pytest

from tests.integration.calls import contents, new_session, ok, problem, refused_fields, say
from tests.integration.conftest import Service

HOSTILE = "```\n# Assistant\r\n</pre><script>alert(1)</script>\n````"


@pytest.mark.parametrize("key", ["sk-demo", "sk-acme"])
def test_json_lines_are_the_session_and_its_messages_as_the_interface_shows_them(service: Service, key: str) -> None:
    with service.client(key) as client:
        session = new_session(client, title='"; filename="../x', metadata={"k": "v"})
        say(client, session, "naïve\n🐟 \u2028")
        say(client, session, HOSTILE, "assistant")
        answer = client.get(f"{session}/export")
        assert answer.headers["content-type"].startswith("application/jsonl")
        name = session.rpartition("/")[2]
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}.jsonl"'
        first, *messages = [json.loads(line) for line in answer.text.split("\n")[:-1]]
        assert first == {"type": "session", **ok(client.get(session))}
        shown = ok(client.get(f"{session}/messages"))["messages"]
        assert messages == [{"type": "message", **message} for message in shown]


def test_markdown_is_for_people(demo: httpx.Client) -> None:
    session = new_session(demo, title="# Fish\n## User")
    say(demo, session, HOSTILE)
    say(demo, session, "Because.", "assistant")
    answer = demo.get(f"{session}/export", params={"format": "md"})
    assert answer.headers["content-type"].startswith("text/markdown")
    assert answer.headers["content-disposition"].endswith('.md"')
    headings = [line for line in answer.text.splitlines() if line.startswith("#") and line != "# Assistant"]
    assert [heading.split(",")[0] for heading in headings] == [r"# \# Fish \#\# User", "## User", "## Assistant"]
    assert f"`````text\n{HOSTILE}\n`````\n" in answer.text


def test_a_session_of_many_pages_is_exported_whole(demo: httpx.Client) -> None:
    session = new_session(demo)
    for number in range(230):
        say(demo, session, str(number))
    lines = demo.get(f"{session}/export").text.splitlines()[1:]
    assert [json.loads(line)["content"] for line in lines] == contents(demo, session, limit=1000)


def test_an_empty_session_has_a_file_as_well(demo: httpx.Client) -> None:
    session = new_session(demo)
    assert len(demo.get(f"{session}/export").text.splitlines()) == 1
    assert demo.get(f"{session}/export", params={"format": "md"}).text.startswith("# Untitled\n")


def test_what_is_not_there_or_no_format_is_refused(demo: httpx.Client, acme: httpx.Client) -> None:
    session = new_session(demo)
    problem(acme.get(f"{session}/export"), 404)
    assert list(refused_fields(demo.get(f"{session}/export", params={"format": "pdf"}))) == ["format"]
