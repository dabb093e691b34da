"""What answers where a test needs to know every word of an answer, when it comes, and when nobody wants it any more?

An OpenAI-compatible server in a thread of the test. How it answers stands in the question itself: `pieces=30 pause=0.02
tag=x` is answered in so many pieces with so many seconds before each, and `call=x` by a call of that tool behind them.
It goes on from a part of an answer where it is asked to. It writes down who went away before the end.
"""

from __future__ import annotations

import json
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "scripted"
KEY = "sk-scripted"


def question(tag: str, *, pieces: int, pause_s: float = 0.0, first_s: float = 0.0, call: str = "") -> str:
    return f"tag={tag} pieces={pieces} pause={pause_s} first={first_s}" + (f" call={call}" if call else "")


def piece(tag: str, number: int) -> str:
    return f"{tag}:{number} é🐟\n"


def answer(tag: str, pieces: int) -> str:
    return "".join(piece(tag, number) for number in range(pieces))


class ScriptedModel:
    """The server. `asked` holds the tags in the order in which they came, `gone` when each listener left, if it did."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gone: dict[str, float] = {}
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, model: ScriptedModel) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = model


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        messages = body["messages"]
        asked = next(message["content"] for message in reversed(messages) if message["role"] == "user")
        script = dict(re.findall(r"(\w+)=(\S+)", asked))
        tag, pieces, pause_s = script["tag"], int(script["pieces"]), float(script["pause"])
        self.server.model.asked.append(tag)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        try:
            self._wait(float(script["first"]))
            # What it is to go on from, it has said.
            said = messages[-1]["content"].count("\n") if body.get("continue_final_message") else 0
            for number in range(said, pieces):
                self._wait(pause_s)
                self._send({"choices": [{"index": 0, "delta": {"content": piece(tag, number)}}]})
            # Once: it is answered with what the tool gave.
            if "call" in script and messages[-1]["role"] != "tool":
                function = {"name": script["call"], "arguments": json.dumps({"word": tag})}
                calls = [{"index": 0, "id": f"call_{tag}", "type": "function", "function": function}]
                self._send({"choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": "tool_calls"}]})
            else:
                self._send({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self._send({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": pieces - said}})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.model.gone[tag] = time.monotonic()

    def _wait(self, pause_s: float) -> None:
        """Sees at once when the other side closes."""
        if pause_s <= 0:
            return
        readable, _, _ = select.select([self.connection], [], [], pause_s)
        if readable and not self.connection.recv(1, socket.MSG_PEEK):
            raise ConnectionResetError

    def _send(self, chunk: dict[str, Any]) -> None:
        whole = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, **chunk}
        self.wfile.write(f"data: {json.dumps(whole)}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def scripted_model() -> Iterator[ScriptedModel]:
    model = ScriptedModel()
    model.start()
    try:
        yield model
    finally:
        model.close()
