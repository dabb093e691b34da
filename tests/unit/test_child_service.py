"""Is a service started where none answers, ended with its block, and left alone where it was there before?

A stand-in plays the service: what counts here is who starts and ends whom.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from deployments.child_service import ready_service
from deployments.server import ServerError, StopRequested, StopSignals

#: Answers as the service does when every part of it is ready, until SIGINT.
STAND_IN = """
import http.server
import signal
import sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status":"ok"}')

    def log_message(self, *_):
        pass

# Whatever started the tests may have them ignore it, as a shell does with what runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
with http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler) as standing_in:
    print(f"ready at http://127.0.0.1:{sys.argv[1]}", flush=True)
    try:
        standing_in.serve_forever()
    except KeyboardInterrupt:
        print("ended as asked", flush=True)
"""
END_WITHIN_S = 30.0


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def client(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        yield client


@pytest.fixture
def command(tmp_path: Path, port: int) -> list[str]:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    return [sys.executable, str(script), str(port)]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_service_is_started_where_none_answers_and_has_ended_after_the_block(
    client: httpx.Client, console: Console, command: list[str]
) -> None:
    with StopSignals() as signals, ready_service(client, console, signals, command=command):
        assert client.get("/readyz").is_success
    with pytest.raises(httpx.ConnectError):
        client.get("/healthz")
    assert said(console).splitlines()[-1] == "ended as asked"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_service_that_was_started(
    number: signal.Signals, client: httpx.Client, console: Console, command: list[str]
) -> None:
    before = signal.getsignal(number)
    with (
        pytest.raises(StopRequested),
        StopSignals() as signals,
        ready_service(client, console, signals, command=command),
    ):
        os.kill(os.getpid(), number)
    with pytest.raises(httpx.ConnectError):
        client.get("/healthz")
    assert "ended as asked" in said(console)
    assert signal.getsignal(number) == before


def test_a_service_that_was_there_before_is_left_running(
    client: httpx.Client, console: Console, command: list[str]
) -> None:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as earlier:
        assert earlier.stdout is not None
        assert "ready" in earlier.stdout.readline()
        # Whoever tried to start another would find no such program.
        with StopSignals() as signals, ready_service(client, console, signals, command=["/no/such/program"]):
            pass
        assert client.get("/healthz").is_success
        earlier.send_signal(signal.SIGINT)
        earlier.wait(END_WITHIN_S)


def test_a_service_that_ends_before_it_is_ready_is_said_with_its_own_words(
    client: httpx.Client, console: Console
) -> None:
    command = [sys.executable, "-c", "print('cannot serve: no such luck'); raise SystemExit(1)"]
    with (
        pytest.raises(ServerError, match="ended before it was ready"),
        StopSignals() as signals,
        ready_service(client, console, signals, command=command),
    ):
        pass
    assert "cannot serve: no such luck" in said(console)
