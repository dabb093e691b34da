"""Does the demo show what it promises, of a service that runs, and say so where there is none to show?"""

from __future__ import annotations

import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from deployments import demo
from tests.integration.conftest import Service

RUN_WITHIN_S = 240.0
#: Wide enough that no cell of a table is broken in two.
COLUMNS = "200"


def run_demo(port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "deployments.demo"],
        env={**os.environ, "MOBULA_PORT": str(port), "COLUMNS": COLUMNS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_WITHIN_S,
    )


class _Stranger(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stranger_port() -> Iterator[int]:
    """Where something answers HTTP that is not the service."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Stranger) as stranger:
        serving = threading.Thread(target=stranger.serve_forever)
        serving.start()
        yield stranger.server_port
        stranger.shutdown()
        serving.join()


def test_the_demo_shows_answers_with_sources_a_history_and_a_limit(service: Service) -> None:
    ran = run_demo(service.port)
    shown = ran.stdout
    assert ran.returncode == 0, shown
    assert re.search(r"^\d+ documents in \d+ passages", shown, re.MULTILINE)

    answers = re.findall(r"^Answer: (.+?)^(\d+) tokens \(finish_reason: ", shown, re.MULTILINE | re.DOTALL)
    assert len(answers) == len(demo.QUESTIONS)
    assert all(text.strip() and int(tokens) > 0 for text, tokens in answers)
    # A source's row: the document, its title, from which character to which, and an excerpt.
    assert len(re.findall(r"^│ [^│]+│ [^│]+│ \d+-\d+ +│ [^│]+│$", shown, re.MULTILINE)) >= len(demo.QUESTIONS)

    # A message's row in the history: number, time, role.
    roles = re.findall(r"^│ \d+ +│ \d\d:\d\d:\d\d │ (user|assistant) +│", shown, re.MULTILINE)
    assert roles == ["user", "assistant"] * len(demo.QUESTIONS)

    refused = re.search(r"^(\d+) refused \(429, Retry-After: (\d+)\)$", shown, re.MULTILINE)
    assert refused is not None, shown
    assert int(refused[1]) >= 1
    assert int(refused[2]) >= 1


def test_a_second_demo_finds_the_documents_unchanged_and_the_bucket_full(service: Service) -> None:
    run_demo(service.port)
    ran = run_demo(service.port)
    assert ran.returncode == 0, ran.stdout
    told = re.search(r"^(\d+) documents in \d+ passages; (\d+) were there unchanged$", ran.stdout, re.MULTILINE)
    assert told is not None, ran.stdout
    assert told[1] == told[2]


def test_a_port_that_something_else_holds_is_said_and_left_alone(stranger_port: int) -> None:
    ran = run_demo(stranger_port)
    assert ran.returncode == 1
    assert f"127.0.0.1:{stranger_port} is held by something" in ran.stdout
    assert "MOBULA_PORT=" in ran.stdout
    assert "starting" not in ran.stdout.replace("still starting", "")
