"""What does an answer cost beyond the model that makes it?

The same questions go to the embedded model itself, at its own listener, and through the whole service, in turns. The
model is started a second time for it, with the same settings, since the service tells nobody its model's key.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx

from deployments.embedded_model import EmbeddedServer, EmbeddedSettings
from tests.benchmarks.report import Row, at_least_ratio, at_most_more
from tests.benchmarks.streams import StreamClient, Streamed

SYSTEM_PROMPT: Final = "You are a helpful assistant. Answer briefly."
TEMPERATURE: Final = 0.2
FIRST_TOKEN_MORE_S: Final = 0.015
TOKENS_RATIO: Final = 0.95
SHORT_TOKENS: Final = 16
LONG_TOKENS: Final = 192
SHORTER_TOKENS: Final = 64
AT_ONCE: Final = 4
#: Between two answers: the last words of the one before are still being written down.
PAUSE_S: Final = 0.1
RAY_WORKER_NICENESS: Final = 15
SUBJECTS: Final = ("river", "stone", "cloud", "bridge", "lamp", "garden", "violin", "harbour", "candle", "forest")


class DirectModel:
    """The embedded model, asked without the service."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server

    def connect(self) -> StreamClient:
        # Its listener drops connections that are kept.
        return StreamClient(self._server.base_url, "/chat/completions", self._server.api_key, keep=False)

    def ask(self, client: StreamClient, question: str, max_tokens: int) -> Streamed:
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]
        return client.ask(
            {
                "messages": messages,
                "max_tokens": max_tokens,
                "temperature": TEMPERATURE,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
            _text_of_chunk,
            lambda data: (data.get("usage") or {}).get("completion_tokens"),
        )


class Service:
    """The service, asked as its clients do."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key

    def connect(self) -> StreamClient:
        return StreamClient(self._url, "/chat", self._key)

    def session(self) -> str:
        response = httpx.post(
            f"{self._url}/chat/sessions", json={}, headers={"Authorization": f"Bearer {self._key}"}, verify=False
        )
        return str(response.raise_for_status().json()["id"])

    def ask(self, client: StreamClient, question: str, max_tokens: int, session_id: str | None) -> Streamed:
        return client.ask(
            # There are no documents, and the model itself is asked without any search.
            {"message": question, "max_tokens": max_tokens, "session_id": session_id, "retrieve": False},
            lambda data: data.get("text"),
            lambda data: (data.get("usage") or {}).get("output_tokens"),
        )


def measure(url: str, key: str, *, quick: bool) -> Iterator[Row]:
    service = Service(url, key)
    with _model() as model:
        yield from _first_token(service, model, 6 if quick else 100)
        yield from _throughput(service, model, *((1, SHORTER_TOKENS) if quick else (10, LONG_TOKENS)))


def _first_token(service: Service, model: DirectModel, rounds: int) -> list[Row]:
    """Seconds until the first text of an answer, one question at a time."""
    bare: list[float] = []
    known: list[float] = []
    new: list[float] = []
    with model.connect() as direct, service.connect() as ours:
        for number in range(rounds):
            # In turns, and each way first as often as the others.
            for turn in range(3):
                way = (number + turn) % 3
                session_id = service.session() if way == 1 else None
                time.sleep(PAUSE_S)
                # As long as the others, and never asked before: the model remembers what it has read.
                subject, year = SUBJECTS[number % len(SUBJECTS)], 1000 + 3 * number + turn
                question = f"In the year {year} there was a {subject}. Write two sentences about it."
                if way == 0:
                    bare.append(model.ask(direct, question, SHORT_TOKENS).first_s)
                else:
                    (known if way == 1 else new).append(service.ask(ours, question, SHORT_TOKENS, session_id).first_s)
    return [
        at_most_more("first token, in a session", known, "the model itself", bare, more_s=FIRST_TOKEN_MORE_S),
        at_most_more("first token, in a new session", new, "the model itself", bare, more_s=FIRST_TOKEN_MORE_S),
    ]


def _throughput(service: Service, model: DirectModel, rounds: int, tokens: int) -> list[Row]:
    """Tokens a second of several answers at once."""
    bare: list[float] = []
    through: list[float] = []
    with ThreadPoolExecutor(AT_ONCE) as threads, contextlib.ExitStack() as stack:
        direct = [stack.enter_context(model.connect()) for _ in range(AT_ONCE)]
        ours = [stack.enter_context(service.connect()) for _ in range(AT_ONCE)]

        def ask_model(client: StreamClient, question: str) -> Streamed:
            return model.ask(client, question, tokens)

        def ask_service(client: StreamClient, question: str) -> Streamed:
            return service.ask(client, question, tokens, None)

        for number in range(2 * rounds):
            is_direct = number % 4 in (0, 3)
            questions = [f"Tell a long story about a {subject}, part {number}." for subject in SUBJECTS[:AT_ONCE]]
            time.sleep(PAUSE_S)
            begun = time.perf_counter()
            answers = list(threads.map(*((ask_model, direct) if is_direct else (ask_service, ours)), questions))
            rate = sum(answer.tokens for answer in answers) / (time.perf_counter() - begun)
            (bare if is_direct else through).append(rate)
    return [
        at_least_ratio(
            f"tokens of {AT_ONCE} chats at once", through, "the model itself", bare, ratio=TOKENS_RATIO, unit="tokens/s"
        )
    ]


@contextlib.contextmanager
def _model() -> Iterator[DirectModel]:
    with ThreadPoolExecutor(1) as thread:
        # Ray has its workers give way to others, and so this model has to, or it would not be the same: threads take
        # this over from the one that starts them.
        server = thread.submit(_niced_server).result()
        try:
            yield DirectModel(server)
        finally:
            server.close()


def _niced_server() -> EmbeddedServer:
    os.nice(RAY_WORKER_NICENESS)
    return EmbeddedServer(EmbeddedSettings())


def _text_of_chunk(data: dict[str, Any]) -> str | None:
    choices = data["choices"]
    return choices[0]["delta"].get("content") if choices else None
