"""How is a streamed answer timed? As a client sees it: server-sent events on a connection."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, kw_only=True, slots=True)
class Streamed:
    """One answer: seconds until its first text and until its end, and the tokens that the server says it has."""

    first_s: float
    whole_s: float
    tokens: int


class StreamClient:
    """A connection to one path that streams. `keep`: whether one connection serves all requests."""

    def __init__(self, url: str, path: str, key: str, *, keep: bool = True) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
        self._path = parts.path + path
        self._keep = keep
        self._headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
        }

    def ask(
        self,
        body: dict[str, Any],
        text_of: Callable[[dict[str, Any]], str | None],
        tokens_of: Callable[[dict[str, Any]], int | None],
    ) -> Streamed:
        """Asks, and reads the answer to its end."""
        payload = json.dumps(body)
        begun = time.perf_counter()
        self._connection.request("POST", self._path, payload, self._headers)
        response = self._connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{self._path} answered {response.status}: {response.read(500)!r}")
        first_s: float | None = None
        tokens = 0
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            data = json.loads(line[6:])
            if first_s is None and text_of(data):
                first_s = time.perf_counter() - begun
            tokens = tokens_of(data) or tokens
        whole_s = time.perf_counter() - begun
        if not self._keep:
            self._connection.close()
        if first_s is None:
            raise RuntimeError(f"{self._path} answered without text")
        return Streamed(first_s=first_s, whole_s=whole_s, tokens=tokens)

    def __enter__(self) -> StreamClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
