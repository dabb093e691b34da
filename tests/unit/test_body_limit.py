"""Is a body refused at its limit, however it comes, and is nothing beyond the limit read?"""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import BodyTooLarge
from deployments.ingress.body_limit import BodyLimit

LIMIT_BYTES = 10
LARGER_BYTES = 20


class Exchange:
    """One request to an app behind the limit, and what was read of it and answered to it."""

    def __init__(self, chunks: Iterable[bytes], headers: Iterable[tuple[bytes, bytes]] = (), path: str = "/") -> None:
        self._chunks = list(chunks)
        self._scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
        self.read = 0
        self.sent: list[Message] = []

    async def run(self, app: ASGIApp) -> None:
        limit = BodyLimit(app, LIMIT_BYTES, lambda path: LARGER_BYTES if path == "/large" else None)
        await limit(self._scope, self._receive, self._send)

    @property
    def status(self) -> int:
        (start,) = [message for message in self.sent if message["type"] == "http.response.start"]
        return int(start["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    async def _receive(self) -> Message:
        if self.read >= len(self._chunks):
            return {"type": "http.disconnect"}
        self.read += 1
        return {
            "type": "http.request",
            "body": self._chunks[self.read - 1],
            "more_body": self.read < len(self._chunks),
        }

    async def _send(self, message: Message) -> None:
        self.sent.append(message)


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(body)(scope, receive, send)


async def _hides_errors(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers 400 to whatever goes wrong while it reads, as frameworks do."""
    try:
        await Request(scope, receive).body()
    except Exception:  # what is stood in for catches everything
        await PlainTextResponse("bad", 400)(scope, receive, send)


async def _never_reads(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


async def _answers_while_reading(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    async for chunk in Request(scope, receive).stream():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})


@pytest.mark.parametrize("chunks", [[b""], [b"x" * 10], [b"xxxxx", b"xxxxx"], [b"x"] * 10, [b"", b"x", b""]])
async def test_a_body_up_to_the_limit_passes_as_it_is(chunks: list[bytes]) -> None:
    exchange = Exchange(chunks)
    await exchange.run(_echo)
    assert (exchange.status, exchange.body) == (200, b"".join(chunks))


@pytest.mark.parametrize("declared", [b"11", b"10485760", b"9" * 19, b"9" * 5000, b"0011"])
async def test_a_body_that_declares_to_be_longer_is_refused_unread(declared: bytes) -> None:
    exchange = Exchange([b"x" * 5] * 100, [(b"content-length", declared)])
    await exchange.run(_echo)
    assert (exchange.status, exchange.read) == (413, 0)


@pytest.mark.parametrize("declared", [None, b"", b"5", b"-1", b"1e9", b"ten", "²".encode(), b"0" * 30 + b"5"])
@pytest.mark.parametrize("app", [_echo, _hides_errors])
async def test_a_body_that_grows_beyond_the_limit_is_refused_there(app: ASGIApp, declared: bytes | None) -> None:
    exchange = Exchange([b"x" * 4] * 100, [] if declared is None else [(b"content-length", declared)])
    await exchange.run(app)
    assert (exchange.status, exchange.read) == (413, 3)
    assert json.loads(exchange.body)["detail"] == "a body has at most 10 bytes"


async def test_a_body_that_nobody_reads_refuses_nothing() -> None:
    exchange = Exchange([b"x" * 100])
    await exchange.run(_never_reads)
    assert (exchange.status, exchange.body, exchange.read) == (200, b"hello", 0)


async def test_an_answer_that_has_begun_is_broken_off_and_not_followed_by_another() -> None:
    exchange = Exchange([b"x" * 6] * 3)
    with pytest.raises(BodyTooLarge):
        await exchange.run(_answers_while_reading)
    assert (exchange.status, exchange.body) == (200, b"x" * 6)


async def test_what_is_no_http_request_is_let_through() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    await BodyLimit(app, LIMIT_BYTES)({"type": "lifespan"}, receive, send)
    assert seen == ["lifespan"]


@pytest.mark.parametrize(("size_bytes", "status"), [(LARGER_BYTES, 200), (LARGER_BYTES + 1, 413)])
@pytest.mark.parametrize("declared", [True, False])
async def test_a_path_may_have_a_limit_of_its_own(size_bytes: int, status: int, declared: bool) -> None:
    headers = [(b"content-length", str(size_bytes).encode())] if declared else []
    exchange = Exchange([b"x" * size_bytes], headers, "/large")
    await exchange.run(_echo)
    assert exchange.status == status
