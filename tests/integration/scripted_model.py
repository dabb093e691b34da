"""What answers where a test needs to know every word of an answer, when it comes, and when nobody wants it any more?

An OpenAI-compatible server in a thread of the test. How it answers stands in the question itself: `pieces=30 pause=0.02
tag=x` is answered in so many pieces with so many seconds before each, and behind them by the calls of tools that
`steps` holds for each time that it is asked. What goes wrong with it stands there too. It goes on from a part of an
answer where it is asked to. It writes down who went away before the end, and what it was told by those who want more
than text.
"""

from __future__ import annotations

import base64
import json
import re
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

MODEL = "scripted"
KEY = "sk-scripted"
#: Longer than any test waits.
STALL_S = 120.0


def question(
    tag: str,
    *,
    pieces: int,
    pause_s: float = 0.0,
    first_s: float = 0.0,
    call: str = "",
    steps: Sequence[Sequence[tuple[str, str]]] = (),
    for_ever: bool = False,
    fails: Literal["busy", "stalls", "breaks off", "rubbish", ""] = "",
    in_step: int = 0,
    times: int = 1_000,
    again_after_s: int = 0,
) -> str:
    """
    Args:
        call: a tool that is called with the tag for its `word`, once.
        steps: the calls, each a name and arguments, of each step; of the last step again and again if `for_ever`.
        fails: what goes wrong in step `in_step`, the first `times` that the tag is asked.
        again_after_s: what a server that is busy says.
    """
    steps = [[(call, json.dumps({"word": tag}))]] if call else steps
    script = {
        "tag": tag,
        "pieces": pieces,
        "pause": pause_s,
        "first": first_s,
        "steps": base64.b64encode(json.dumps(steps).encode()).decode() if steps else "",
        "for_ever": "yes" if for_ever else "",
        "fails": fails.replace(" ", "_"),
        "in_step": in_step if fails else "",
        "times": times if fails else "",
        "again_after": again_after_s if fails else "",
    }
    return " ".join(f"{name}={value}" for name, value in script.items() if value != "")


def piece(tag: str, number: int) -> str:
    return f"{tag}:{number} é🐟\n"


def answer(tag: str, pieces: int) -> str:
    return "".join(piece(tag, number) for number in range(pieces))


class ScriptedModel:
    """The server.

    `asked` holds the tags in the order in which they came, `gone` when each listener left, if it did, and `told` the
    last request of each tag whose answer is more than text.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.told: dict[str, dict[str, Any]] = {}
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


def _calls(tag: str, script: dict[str, str], step: int) -> list[dict[str, Any]]:
    steps = json.loads(base64.b64decode(script["steps"])) if "steps" in script else []
    of_step = steps[min(step, len(steps) - 1) if "for_ever" in script else step :][:1]
    return [
        {
            "index": index,
            "id": f"call_{tag}" + (f"_{step}_{index}" if step or index else ""),
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for index, (name, arguments) in enumerate(of_step[0] if of_step else ())
    ]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        messages = body["messages"]
        place = max(number for number, message in enumerate(messages) if message["role"] == "user")
        script = dict(re.findall(r"(\w+)=(\S+)", messages[place]["content"]))
        step = sum("tool_calls" in message for message in messages[place:])
        tag, pieces, pause_s = script["tag"], int(script["pieces"]), float(script["pause"])
        model = self.server.model
        model.asked.append(tag)
        if "steps" in script or "fails" in script:
            model.told[tag] = body
        fails = script.get("fails")
        if fails and (step != int(script["in_step"]) or model.asked.count(tag) - step > int(script["times"])):
            fails = None
        if fails == "busy":
            self.send_response(429)
            self.send_header("retry-after", script["again_after"])
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        try:
            if fails == "rubbish":
                self.wfile.write(b"data: <html>\n\n")
                return
            self._wait(float(script["first"]))
            # What it is to go on from, it has said.
            said = messages[-1]["content"].count("\n") if body.get("continue_final_message") else 0
            for number in range(said, pieces):
                self._wait(pause_s)
                self._send({"choices": [{"index": 0, "delta": {"content": piece(tag, number)}}]})
            if fails == "breaks_off":
                return
            if fails == "stalls":
                self._wait(STALL_S)
                return
            calls = _calls(tag, script, step)
            if calls:
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
