"""What does a client notice when the processes that hold the objects are killed, and where do the objects live?"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.calls import contents, eventually, found_by, ingest, new_session, ok, say, unique
from tests.integration.conftest import Service

logger = logging.getLogger("mobula.tests")

REPOSITORY = Path(__file__).parents[2]
HOSTS = "ray::ObjectHost"
#: What is wanted is 3 s; a machine that does other things as well may take longer.
RECOVERY_MAX_S = 10.0
PROGRAM_WITHIN_S = 60.0


def in_time(request: Callable[[], httpx.Response], status: int, what: str) -> Any:
    """The answer of the first request after a kill: it must succeed by itself, and soon."""
    started_s = time.monotonic()
    answer = ok(request(), status)
    took_s = time.monotonic() - started_s
    logger.warning("after the hosts were killed: %s took %.2f s", what, took_s)
    assert took_s < RECOVERY_MAX_S
    return answer


def id_of(session: str) -> str:
    return session.rpartition("/")[2]


@pytest.mark.parametrize(
    ("key", "first"),
    [("sk-demo", first) for first in ("read", "append", "create", "list", "check")]
    + [("sk-acme", first) for first in ("read", "append")],
)
def test_after_a_kill_of_the_hosts_the_next_request_succeeds_and_nothing_is_lost(
    service: Service, key: str, first: str
) -> None:
    with service.client(key) as client, service.client("sk-small") as small:
        small.headers["x-client"] = unique("killed")
        user = unique("killed")
        session = new_session(client, title="kept", user_id=user)
        said = [f"message {number}" for number in range(5)]
        assert [say(client, session, text) for text in said] == [1, 2, 3, 4, 5]
        ok(small.post("/ratelimit/check", json={"cost": 7}))

        assert service.kill(HOSTS) >= 1

        message = {"role": "user", "content": "after"}
        match first:
            case "read":
                in_time(lambda: client.get(f"{session}/messages"), 200, f"{key} history")
            case "append":
                in_time(lambda: client.post(f"{session}/messages", json=message), 201, f"{key} append")
                said.append("after")
            case "create":
                in_time(lambda: client.post("/chat/sessions", json={"user_id": "other"}), 201, f"{key} create")
            case "list":
                in_time(lambda: client.get("/chat/sessions"), 200, f"{key} list")
            case _:
                in_time(lambda: small.post("/ratelimit/check", json={"cost": 0}), 200, "check")
        assert contents(client, session) == said
        assert ok(client.get(session))["title"] == "kept"
        assert say(client, session, "last") == len(said) + 1
        assert [one["id"] for one in ok(client.get("/chat/sessions", params={"user_id": user}))["sessions"]] == [
            id_of(session)
        ]
        assert ok(small.get("/ratelimit/usage"))["remaining"] == 23


def test_after_a_kill_of_the_hosts_documents_and_values_are_there(service: Service) -> None:
    with service.client() as client:
        tag = unique("killed")
        ingest(client, {"id": tag, "text": f"The {tag} bridge was built of basalt."})
        ok(client.put(f"/kv/{tag}", json={"value": [1, 2, 3]}))
        service.kill(HOSTS)
        assert in_time(lambda: client.get(f"/kv/{tag}"), 200, "kv")["value"] == [1, 2, 3]
        assert found_by(client, f"what is the {tag} bridge built of?")[0] == tag
        assert client.delete(f"/documents/{tag}").status_code == 204


def test_hosts_that_are_killed_again_and_again_lose_nothing(service: Service) -> None:
    with service.client() as client:
        session = new_session(client)
        for number in range(1, 3):
            assert say(client, session, str(number)) == number
            service.kill(HOSTS)
        assert in_time(lambda: client.get(f"{session}/messages"), 200, "history")["messages"][-1]["id"] == 2
        assert contents(client, session) == ["1", "2"]


def test_a_kill_in_the_middle_of_an_answer_keeps_the_question_and_the_session(service: Service) -> None:
    with service.client() as client:
        session = new_session(client)
        question = {"message": "Tell me a long story.", "session_id": id_of(session), "retrieve": False}
        with client.stream("POST", "/chat", json={**question, "max_tokens": 40}) as response:
            lines = response.iter_lines()
            assert any("turn.created" in line for line in lines)
            service.kill(HOSTS)
            rest = list(lines)
        # The answer is stored by the hosts that came after, exactly once.
        assert any("turn.completed" in line for line in rest), rest
        eventually(lambda: len(contents(client, session)) == 2)


def program(service: Service, tenant: str, session: str) -> dict[str, Any]:
    script = Path(__file__).with_name("named_session.py")
    done = subprocess.run(
        [sys.executable, str(script), tenant, id_of(session)],
        env=service.ray_environ,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PROGRAM_WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_dedicated_session_is_an_actor_that_other_programs_find_by_its_name(
    service: Service, acme: httpx.Client
) -> None:
    session = new_session(acme)
    assert say(acme, session, "over HTTP") == 1
    answer = program(service, "acme", session)
    assert answer["contents"] == ["over HTTP", "from a program", "by reference"]
    assert answer["by_reference"] == 3
    assert answer["found"] is not None
    assert answer["listed"] == {answer["found"]: "ChatSession"}
    assert contents(acme, session) == answer["contents"]


def test_a_pooled_session_is_used_by_other_programs_in_the_same_way(service: Service, demo: httpx.Client) -> None:
    session = new_session(demo)
    assert say(demo, session, "over HTTP") == 1
    answer = program(service, "demo", session)
    assert (answer["found"], answer["listed"]) == (None, {})
    assert contents(demo, session) == answer["contents"] == ["over HTTP", "from a program", "by reference"]


def test_more_dedicated_sessions_than_may_live_at_once_are_all_there(service: Service, acme: httpx.Client) -> None:
    sessions = [new_session(acme) for _ in range(5)]
    for number, session in enumerate(sessions):
        say(acme, session, str(number))
    assert len(service.processes(HOSTS)) <= 2 + 4 + 1, "the pool's, the dedicated ones, and one that is ending"
    assert [contents(acme, session) for session in sessions] == [[str(number)] for number in range(5)]


def test_an_idle_session_lets_go_of_its_file_and_wakes_again(service: Service, demo: httpx.Client) -> None:
    session = new_session(demo)
    say(demo, session, "before")
    (file, *_) = service.files_of(id_of(session))

    def is_open() -> bool:
        return any(Path(one.path) == file for host in service.processes(HOSTS) for one in host.open_files())

    assert is_open()
    eventually(lambda: not is_open())
    assert contents(demo, session) == ["before"]
    assert say(demo, session, "after") == 2
