"""What does the service do, as a client sees it? `python -m deployments.demo`, or `make demo`.

It ingests this project's own documents, asks two questions in a new session, shows the session's history, and spends
the key's tokens until the limiter says no. All of it goes over HTTP with the shipped development key, as any program
could do it: nothing here reaches into the service.

The promise: a service that runs already is used, and left running; where none answers one is started, and it has ended
when this returns, also after Ctrl-C. Every wait has a limit. What can't be shown is said in one line, with exit code 1.

It does not judge the answers, which a small model gives, and it keeps what it stored: documents and session stay in the
demo tenant, where a second run finds the documents unchanged.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
from httpx_sse import connect_sse
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from configs.errors import ConfigError
from configs.loading import load_service
from configs.service import HttpConfig
from deployments import server
from deployments.child_service import CONNECT_WITHIN_S, ready_service

#: Of the tenant `demo` in the shipped configuration, and good for a service on loopback only.
KEY: Final = "sk-demo"
PROJECT_DIR: Final = Path(__file__).parents[1]
CORPUS: Final = ("README.md", "docs/*.md", "LICENSE", "configs/service.yaml", "configs/tenants/*.yaml")
#: About plain facts, of which a model of 135 million parameters can find some. The second follows up on the first.
QUESTIONS: Final = ("How many tokens does a full bucket hold?", "And how many tokens is the largest burst?")
#: Of more passages the embedded model mixes things up, and in longer answers it rambles.
TOP_K: Final = 1
ANSWER_TOKENS_MAX: Final = 64
EXCERPT_CHARS: Final = 100
#: Checks sent at once, each for so much of a full bucket: some fit, and the rest come sooner than it refills.
BURST: Final = 12
CHECK_COST_PART: Final = 0.3
#: The longest silence within an answer: the model reads its whole prompt before the first word.
ANSWER_WITHIN_S: Final = 120.0


class DemoError(Exception):
    """Something can't be shown; the text is for the person who watches."""


class Demo:
    """What is shown, step by step, of a service that is ready."""

    def __init__(self, client: httpx.Client, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._console = console
        self._clock = clock

    def run(self, documents: Sequence[Path], *, relative_to: Path) -> None:
        started_s = self._clock()
        self._ingest(documents, relative_to)
        session: dict[str, Any] = _checked(self._client.post("/chat/sessions", json={"title": "Demo"})).json()
        for question in QUESTIONS:
            self._ask(session["id"], question)
        self._show_history(session["id"])
        self._show_limiter()
        self._console.print(f"\nAll of it in {self._clock() - started_s:.0f} s.")

    def _ingest(self, documents: Sequence[Path], relative_to: Path) -> None:
        self._console.rule("POST /ingest: this project's own documents", align="left")
        chunks, unchanged = 0, 0
        with Progress(console=self._console) as progress:
            task = progress.add_task("ingesting", total=len(documents))
            for path in documents:
                name = path.relative_to(relative_to).as_posix()
                progress.update(task, description=name)
                content_type = "text/markdown" if path.suffix == ".md" else "text/plain"
                files = {"files": (name, path.read_bytes(), content_type)}
                (ingested,) = _checked(self._client.post("/ingest", files=files)).json()["documents"]
                if ingested["status"] == "failed":
                    raise DemoError(f"{name} could not be ingested: {ingested['error']}")
                chunks += ingested["chunks"]
                unchanged += ingested["status"] == "unchanged"
                progress.advance(task)
            progress.update(task, description="ingested")
        self._console.print(f"{len(documents)} documents in {chunks} passages; {unchanged} were there unchanged")

    def _ask(self, session_id: str, question: str) -> None:
        self._console.print()
        self._console.rule("POST /chat: an answer with its sources, as it comes", align="left")
        self._console.print(f"Question: {question}", style="bold")
        asked_s, first_word_s = self._clock(), 0.0
        body = {"session_id": session_id, "message": question, "top_k": TOP_K, "max_tokens": ANSWER_TOKENS_MAX}
        body["temperature"] = 0
        with connect_sse(self._client, "POST", "/chat", json=body, timeout=ANSWER_WITHIN_S) as stream:
            if stream.response.is_error:
                stream.response.read()
            _checked(stream.response)
            for event in stream.iter_sse():
                if not event.data:
                    continue  # httpx-sse makes an event of a comment, with which the service keeps a stream alive
                data = json.loads(event.data)
                match event.event:
                    case "sources":
                        self._console.print(_sources_table(data["sources"]))
                        self._console.print("Answer: ", style="bold", end="")
                    case "text.delta":
                        first_word_s = first_word_s or self._clock() - asked_s
                        self._console.print(_printable(data["text"]), end="", soft_wrap=True)
                    case "turn.completed":
                        tokens, reason = data["usage"]["output_tokens"], data["finish_reason"]
                        took = f"first word after {first_word_s:.1f} s, all after {self._clock() - asked_s:.1f} s"
                        self._console.print(f"\n{tokens} tokens (finish_reason: {reason}); {took}", style="dim")
                        return
                    case "error":
                        raise DemoError(f"no answer: {data['message']}")
        raise DemoError("the answer broke off")

    def _show_history(self, session_id: str) -> None:
        path = f"/chat/sessions/{session_id}/messages"
        self._console.print()
        self._console.rule("GET /chat/sessions/…/messages: the history that the session keeps", align="left")
        table = Table("id", "time", "role", "content", "tokens", "sources")
        for message in _checked(self._client.get(path)).json()["messages"]:
            told_at = time.strftime("%H:%M:%S", time.localtime(message["created_at"]))
            tokens = "" if message["tokens"] is None else str(message["tokens"])
            sources = str(len((message["data"] or {}).get("sources", [])) or "")
            table.add_row(str(message["id"]), told_at, message["role"], _excerpt(message["content"]), tokens, sources)
        self._console.print(table)

    def _show_limiter(self) -> None:
        self._console.print()
        self._console.rule("POST /ratelimit/check: the limiter says no", align="left")
        (policy,) = _checked(self._client.get("/ratelimit/usage")).json()["policies"]
        capacity, refill_per_second = policy["capacity"], policy["refill_per_second"]
        self._console.print(f"A bucket of {capacity:g} tokens that gains {refill_per_second:g} a second")
        cost = capacity * CHECK_COST_PART
        with ThreadPoolExecutor(BURST) as pool:
            answers = list(pool.map(lambda _: self._client.post("/ratelimit/check", json={"cost": cost}), range(BURST)))
        refused = [answer for answer in answers if answer.status_code == 429]
        allowed = [_checked(answer) for answer in answers if answer.status_code != 429]
        self._console.print(f"{BURST} checks of {cost:g} tokens at once: {len(allowed)} allowed (200)")
        if not refused:
            raise DemoError("the limiter refused none of them")
        wait_s = max(int(answer.headers["retry-after"]) for answer in refused)
        self._console.print(f"{len(refused)} refused (429, Retry-After: {wait_s})", style="bold red")
        _checked(self._client.post("/ratelimit/reset"))
        self._console.print("POST /ratelimit/reset: the bucket is full again")


def main() -> None:
    console = Console(highlight=False)
    try:
        http = load_service(os.environ).http
        with (
            server.StopSignals() as signals,
            # The environment's proxies are for other machines.
            httpx.Client(
                base_url=_url(http),
                headers={"Authorization": f"Bearer {KEY}"},
                timeout=httpx.Timeout(ANSWER_WITHIN_S, connect=CONNECT_WITHIN_S),
                trust_env=False,
            ) as client,
            ready_service(client, console, signals),
        ):
            documents = sorted(path for pattern in CORPUS for path in PROJECT_DIR.glob(pattern))
            Demo(client, console).run(documents, relative_to=PROJECT_DIR)
    except server.StopRequested:
        raise SystemExit(128 + signal.SIGINT) from None
    except (ConfigError, DemoError, server.ServerError, httpx.HTTPError) as error:
        console.print(f"cannot show it: {error or type(error).__name__}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(1) from None


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    asked = f"{answer.request.method} {answer.request.url.path}"
    if answer.status_code == 401:
        raise DemoError(f"{asked}: the service does not know the key {KEY} of the shipped configuration")
    raise DemoError(f"{asked}: {answer.status_code} {answer.text[:500]}")


def _sources_table(sources: Sequence[dict[str, Any]]) -> Table:
    table = Table("source", "title", "characters", "excerpt", title="Sources", title_justify="left", style="dim")
    for source in sources:
        place = f"{source['start']}-{source['end']}"
        table.add_row(*map(_excerpt, (source["document_id"], source["title"], place, source["text"])))
    return table


def _excerpt(text: str) -> Text:
    one_line = " ".join(text.split())
    return _printable(one_line if len(one_line) <= EXCERPT_CHARS else one_line[: EXCERPT_CHARS - 1] + "…")


def _printable(text: str) -> Text:
    """As it is, less what a terminal would take for a command. Not as markup: what is in brackets stays."""
    return Text("".join(char for char in text if char.isprintable() or char == "\n"))


def _url(http: HttpConfig) -> str:
    return f"http://[{http.host}]:{http.port}" if ":" in http.host else f"http://{http.host}:{http.port}"


if __name__ == "__main__":
    main()
