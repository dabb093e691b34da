"""How does a program learn that there is no cluster where it was told to look?"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from ray._private import services

from actors.cli.commands import main

WITHIN_S = 15.0


@pytest.fixture
def nowhere() -> str:
    """An address that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silence() -> Iterator[str]:
    """The address of somebody who takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def another() -> Iterator[str]:
    """The address of a server that speaks as Ray's do, and is none of them."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a web server, the service's own for one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.mark.parametrize(
    ("who", "by"),
    [
        ("nowhere", "option"),
        ("nowhere", "environment"),
        ("nowhere", "record"),
        ("silence", "option"),  # one, since it takes as long as it may
        ("another", "option"),
        ("web", "environment"),
    ],
)
def test_an_address_where_no_ray_answers_is_told_in_one_line_and_soon(
    who: str, by: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    address: str = request.getfixturevalue(who)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", list)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: address if by == "record" else None)
    if by == "environment":
        monkeypatch.setenv("RAY_ADDRESS", address)
    out, err = io.StringIO(), io.StringIO()
    began_s = time.monotonic()
    assert main(["list", *(["--address", address] if by == "option" else [])], out, err) == 1
    assert time.monotonic() - began_s < WITHIN_S
    assert out.getvalue() == ""
    (line,) = err.getvalue().splitlines()
    assert "Ray cluster" in line
    assert f"answers at {address}" in line


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "nobody.invalid:6379"])
def test_an_address_that_can_be_nobodys_is_told_as_well(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    out, err = io.StringIO(), io.StringIO()
    assert main(["list", "--address", address], out, err) == 1
    assert address in err.getvalue()
