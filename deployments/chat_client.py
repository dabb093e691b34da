"""How does a request become an answer from any server that speaks the OpenAI chat-completions protocol?

Promise: `ChatClient.stream` yields `Accepted` when the server has taken the request, the answer's text as it arrives,
then the calls of tools, each when it is whole, and ends with exactly one `Finished`, or raises a `ModelError`. It never
waits longer than the request's `timeout_s`, never reads more than `ANSWER_BYTES_MAX`, follows no redirect, and closes
the connection when the caller stops listening, so that the server stops generating too. A server is sent nothing but
the request and its own key.

The `openai` package would do this too, for a millisecond more before the first word; it describes each field of what a
server sends, which no server has to keep to.

Nothing is retried here: who retries decides that by the error's `retryable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import itertools
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple, cast

import httpx2

from deployments.chat_request import (
    Accepted,
    ChatMessage,
    ChatRequest,
    Finished,
    ModelEvent,
    TextDelta,
    ToolCall,
    ToolSpec,
)
from deployments.errors import ModelError, ModelRefused, ModelTimeout, ModelUnavailable
from deployments.tool_call_pieces import ToolCallPieces, arguments_of, clean, field_of

MAX_CONNECTIONS = 256
ANSWER_BYTES_MAX = 32 * 1024 * 1024  # about 100,000 tokens as server-sent events, more than any model here is asked for
PROBLEM_CHARS_MAX = 300
DEFAULT_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 300.0
CONNECT_TIMEOUT_S = 5.0
#: A server says that an answer is over right behind its last event; where it takes longer, a new connection costs less.
END_WITHIN_S = 0.05
NO_TOKEN = -1
#: What is behind the last event of a stream.
_LAST = "[DONE]"
_WORDS_LOOKED_AT_MAX = 2_000
#: More than any model reads or writes at once. What a server says is charged to budgets and kept with a turn: a number
#: below zero would pay back, and one that is too large could never be written down.
TOKENS_MAX = 10**8
#: For vLLM and its like. llama.cpp goes on from a last message of the assistant by itself, and takes these too.
_CONTINUING = {"add_generation_prompt": False, "continue_final_message": True}
_CONTEXT_CODES = frozenset({ModelRefused.CONTEXT_LENGTH, "exceed_context_size_error"})
_BUSY_STATUSES = frozenset({408, 409, 425, 429})
_KEY_STATUSES = frozenset({401, 403})
# A server or a model that can't take tools says so in words of its own, with 400, 404, 422 and even 500.
_OF_TOOLS = re.compile(r"\btools?\b|\btool[_ -](?:choice|call|use)|\bfunction[_ -]?call", re.IGNORECASE)
_NOT_TAKEN = re.compile(
    r"support|\brequires?\b|\benable|\bdisabled|unrecogni[sz]ed|\bunknown|not (?:allowed|permitted)|\bextra",
    re.IGNORECASE,
)


class ChatClient:
    """Talks to OpenAI-compatible servers. Holds one pool of connections, and no answer.

    Args:
        environ: Where keys are read, by the name that a request gives.
        clock: Seconds since the epoch; only dates in `Retry-After` need it.
        trust_environment: Whether proxies and certificates named by the environment are used. Off for a server on this
            machine, which no proxy could reach.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.time,
        trust_environment: bool = True,
    ) -> None:
        self._environ = environ
        self._clock = clock
        self._http = httpx2.AsyncClient(
            trust_env=trust_environment,
            follow_redirects=False,
            # Tenants may share a server: what it sets for one must not be sent for the other.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=16, keepalive_expiry=30),
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),  # the rest is bounded by each request's deadline
            headers={"accept-encoding": "identity", "user-agent": "mobula"},
            event_hooks={"request": [_use_plain_connection_once], "response": [_bound_body]},
        )

    async def stream(
        self,
        request: ChatRequest,
        *,
        base_url: str,
        model: str,
        api_key: str | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[ModelEvent, None]:
        """Asks and yields the answer.

        Args:
            request: What is asked; its `api_key_env` is looked up here, its `base_url` and `model` are not looked at.
            base_url: The server.
            model: The server's name for the model.
            api_key: The key itself, for a server that this process started; goes before `api_key_env`.
            more: What only this server understands of a request's body.
        """
        deadline = asyncio.get_running_loop().time() + request.timeout_s
        key = api_key or self._key(request.api_key_env)
        asked = self._http.build_request(
            "POST",
            f"{base_url.rstrip('/')}/chat/completions",
            content=json.dumps({**_body(request, model), **(more or {})}).encode(),
            headers={
                "accept": "text/event-stream",
                "content-type": "application/json",
                **({"authorization": f"Bearer {key}"} if key else {}),
            },
        )
        with _our_errors(request):
            async with asyncio.timeout_at(deadline):
                response = await self._http.send(asked, stream=True)
        try:
            if not response.is_success:
                with _our_errors(request):
                    async with asyncio.timeout_at(deadline):
                        await response.aread()
                raise self._refusal(request, response)
            yield Accepted()
            # Whatever it calls what it sends: events were asked for.
            response.headers["content-type"] = "text/event-stream"
            source = aiter(httpx2.EventSource(response, ANSWER_BYTES_MAX))
            answer = _Answer(request)
            async with contextlib.aclosing(cast("AsyncGenerator[httpx2.ServerSentEvent, None]", source)) as events:
                while True:
                    with _our_errors(request):
                        async with asyncio.timeout_at(deadline):
                            event = await anext(events, None)
                        if event is None:
                            break
                        if event.data.startswith(_LAST):
                            if asked.headers.get("connection") != "close":
                                await _read_to_the_end(events)
                            break
                        if not event.data:
                            continue  # such as `retry:` or `id:` alone, which say that the server lives
                        chunk = json.loads(event.data)
                    if error := field_of(chunk, "error"):
                        raise _from_event(request, ServerError.of(error))
                    text = answer.take(chunk)
                    if text:
                        yield TextDelta(text=text)
            finished, calls = answer.finished()
            for call in calls:
                yield call
            yield finished
        finally:
            # Reached as well when the caller closes this generator or is cancelled: closing the response is what
            # tells the server to stop.
            await response.aclose()

    async def count_tokens(self, texts: Sequence[str], *, url: str, api_key: str, timeout_s: float) -> list[int]:
        """The tokens of each text, by llama.cpp's `/tokenize`.

        Raises:
            ModelUnavailable: no answer in time, or none that can be understood.
        """
        # One request for all: what stands between the texts is a token that no text has.
        parts: list[str | int] = []
        for text in texts:
            parts += [text.encode(errors="replace").decode(), NO_TOKEN]
        try:
            async with asyncio.timeout(timeout_s):
                headers = {"authorization": f"Bearer {api_key}"}
                answer = await self._http.post(url, json={"content": parts}, headers=headers)
            tokens = answer.raise_for_status().json()["tokens"]
            ends = [position for position, token in enumerate(tokens) if token == NO_TOKEN]
            if len(ends) != len(texts):
                raise ValueError("not one count for each text")
        except (httpx2.HTTPError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise ModelUnavailable(f"tokens were not counted ({type(error).__name__})", DEFAULT_RETRY_AFTER_S) from None
        return [end - before - 1 for before, end in itertools.pairwise([-1, *ends])]

    async def get_ok(self, url: str, *, timeout_s: float) -> bool:
        """Whether a plain GET is answered with 200 in time."""
        try:
            async with asyncio.timeout(timeout_s):
                return (await self._http.get(url)).status_code == 200
        except (httpx2.HTTPError, TimeoutError):
            return False

    async def close(self) -> None:
        await self._http.aclose()

    def _key(self, name: str | None) -> str | None:
        """A server's key.

        Raises:
            ModelRefused: there is none where it should be.
        """
        if name is None:
            return None
        key = self._environ.get(name, "").strip()
        if not key:
            raise ModelRefused(f"the environment variable {name} holds no key for the model's server")
        return key

    def _refusal(self, request: ChatRequest, response: httpx2.Response) -> ModelError:
        """What an answer means that is none."""
        status, error = response.status_code, ServerError.read(response)
        if status not in _BUSY_STATUSES | _KEY_STATUSES and (refusal := _refusal_of_tools(request, error)):
            return refusal
        if status >= 500 or status in _BUSY_STATUSES:
            return ModelUnavailable(f"the server answered {status}", self._retry_after_s(response.headers))
        if status in _KEY_STATUSES:
            return ModelRefused(f"the server refused the key ({status})")  # its own words may quote the key
        if status < 400:
            return ModelRefused(f"the server answered {status}, and redirects are not followed")
        return error.refused()

    def _retry_after_s(self, headers: httpx2.Headers) -> float:
        value = headers.get("retry-after", "").strip()
        try:
            seconds = float(value)
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - self._clock()
            except ValueError:
                return DEFAULT_RETRY_AFTER_S
        # Written so that not-a-number ends at the default.
        return min(seconds, MAX_RETRY_AFTER_S) if seconds >= 0 else DEFAULT_RETRY_AFTER_S


class ServerError(NamedTuple):
    """What a server says went wrong, in the fields that most of them use."""

    words: str
    code: str | None
    type: str | None

    @classmethod
    def of(cls, error: object) -> ServerError:
        """Of the value of `error`, which nobody has checked."""
        words, code, error_type = (field_of(error, name) for name in ("message", "code", "type"))
        if not isinstance(words, str) or not words:
            try:
                words = str(error)
            except RecursionError:
                words = "an error too deep to be read"
        return cls(
            words[:_WORDS_LOOKED_AT_MAX],
            _plain(code) if isinstance(code, str) else None,
            _plain(error_type) if isinstance(error_type, str) else None,
        )

    @classmethod
    def read(cls, response: httpx2.Response) -> ServerError:
        """Of a response that was read: JSON with `error`, or any text."""
        try:
            body: object = response.json()
        except (ValueError, RecursionError):
            body = response.text
        return cls.of(field_of(body, "error") or body)

    @property
    def is_too_long(self) -> bool:
        return self.code in _CONTEXT_CODES or self.type in _CONTEXT_CODES

    def refused(self) -> ModelRefused:
        return ModelRefused(
            _plain(self.words), ModelRefused.CONTEXT_LENGTH if self.is_too_long else self.code or self.type
        )


class _Answer:
    """What one answer has shown so far: its pieces counted, its calls, its end and its usage when they have come."""

    def __init__(self, request: ChatRequest) -> None:
        said = [text for message in request.messages for text in _texts_of(message)]
        offered = [json.dumps(_tool(spec)) for spec in request.tools]
        self._input_chars = sum(len(text) for text in (*said, *offered))
        self._calls = ToolCallPieces(call.id for message in request.messages for call in message.tool_calls)
        self._must_call = request.tool_choice not in (None, "auto", "none")
        self._pieces = 0
        self._finish_reason: str | None = None
        self._usage: tuple[int, int] | None = None

    def take(self, chunk: object) -> str:
        # Any JSON: nobody has checked it.
        usage = field_of(chunk, "usage")
        input_tokens, output_tokens = (
            _count(field_of(usage, "prompt_tokens")),
            _count(field_of(usage, "completion_tokens")),
        )
        if input_tokens is not None and output_tokens is not None:
            self._usage = (input_tokens, output_tokens)
        choices = field_of(chunk, "choices")
        if not isinstance(choices, list) or not choices:
            return ""
        reason = field_of(choices[0], "finish_reason")
        if isinstance(reason, str) and reason:
            self._finish_reason = reason
        delta = field_of(choices[0], "delta")
        text = field_of(delta, "content")
        if not isinstance(text, str):
            text = ""
        if self._calls.take(field_of(delta, "tool_calls")) or text:
            self._pieces += 1
        return clean(text)

    def finished(self) -> tuple[Finished, list[ToolCall]]:
        if self._finish_reason is None:
            raise ModelUnavailable("the server's answer broke off", DEFAULT_RETRY_AFTER_S)
        calls = self._calls.whole(self._finish_reason)
        if self._must_call and not calls and self._finish_reason == "stop":
            raise ModelRefused("the server called no tool although it had to", ModelRefused.TOOLS)
        input_tokens, output_tokens = self._usage or (-(-self._input_chars // 4), self._pieces)
        finished = Finished(
            # Some servers say `stop` also where they want tools run.
            finish_reason="tool_calls" if calls and self._finish_reason == "stop" else self._finish_reason,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            estimated=self._usage is None,
        )
        return finished, calls


class _BoundedBody(httpx2.AsyncByteStream):
    """A response's body that ends in an error once it is longer than any answer may be."""

    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size_bytes = 0
        async for part in self._body:
            size_bytes += len(part)
            if size_bytes > ANSWER_BYTES_MAX:
                raise httpx2.ReadError(f"more than {ANSWER_BYTES_MAX} bytes")
            yield part

    async def aclose(self) -> None:
        await self._body.aclose()


async def _use_plain_connection_once(request: httpx2.Request) -> None:
    if request.url.scheme == "http":
        # llama.cpp's listener says that a connection may be used again, and closes one in eight when it is. Without TLS
        # a new one costs next to nothing.
        request.headers["connection"] = "close"


async def _read_to_the_end(events: AsyncIterator[httpx2.ServerSentEvent]) -> None:
    """Reads what is behind an answer, mostly nothing: a connection can be used again when its response was read."""
    # The answer is whole, whatever comes.
    with contextlib.suppress(TimeoutError, httpx2.HTTPError, ValueError):
        async with asyncio.timeout(END_WITHIN_S):
            async for _ in events:
                pass


@contextlib.contextmanager
def _our_errors(request: ChatRequest) -> Iterator[None]:
    # `from None`: the package's errors hold the request, and with it the key.
    try:
        yield
    except TimeoutError:
        raise ModelTimeout(request.timeout_s) from None
    except httpx2.HTTPError as error:
        raise ModelUnavailable(f"no connection ({type(error).__name__})", DEFAULT_RETRY_AFTER_S) from None
    except (ValueError, RecursionError):
        raise ModelUnavailable("the server sent something that is no answer", DEFAULT_RETRY_AFTER_S) from None


async def _bound_body(response: httpx2.Response) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx2.DecodingError("packed although asked not to: its size could not be bounded")
    response.stream = _BoundedBody(cast(httpx2.AsyncByteStream, response.stream))


def _body(request: ChatRequest, model: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(one) for one in request.messages],
        # Not `max_completion_tokens`: most compatible servers know only this name.
        "max_tokens": request.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **request.options.given(),
        **(_CONTINUING if request.continues else {}),
    }
    if request.tools:
        body["tools"] = [_tool(one) for one in request.tools]
    if request.tool_choice is not None:
        body["tool_choice"] = _tool_choice(request.tool_choice)
    if request.temperature is not None:
        body["temperature"] = request.temperature
    return body


def _message(message: ChatMessage) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        # Servers parse what a call's arguments were, and fail the whole request where those are no JSON object.
        shown["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": "{}" if arguments_of(call.arguments) is None else call.arguments,
                },
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    return shown


def _tool(spec: ToolSpec) -> dict[str, Any]:
    function = {"name": spec.name, "description": spec.description, "parameters": dict(spec.parameters)}
    return {"type": "function", "function": function}


def _tool_choice(choice: str) -> str | dict[str, Any]:
    return choice if choice in ("auto", "none", "required") else {"type": "function", "function": {"name": choice}}


def _count(value: object) -> int | None:
    """A number of tokens; None where it is none."""
    return value if type(value) is int and 0 <= value <= TOKENS_MAX else None


def _texts_of(message: ChatMessage) -> Iterator[str]:
    yield message.content
    for call in message.tool_calls:
        yield call.name
        yield call.arguments


def _refusal_of_tools(request: ChatRequest, error: ServerError) -> ModelRefused | None:
    """The error of a server that can't take tools, if it is that."""
    if not request.tools or not (_OF_TOOLS.search(error.words) and _NOT_TAKEN.search(error.words)):
        return None
    return ModelRefused(f"the server takes no tools: {_plain(error.words)}", ModelRefused.TOOLS)


def _from_event(request: ChatRequest, error: ServerError) -> ModelError:
    """An error that a server reports inside a stream it had begun with 200."""
    if refusal := _refusal_of_tools(request, error):
        return refusal
    if error.is_too_long or error.type == "invalid_request_error":
        return error.refused()
    return ModelUnavailable(_plain(error.words), DEFAULT_RETRY_AFTER_S)


def _plain(problem: str) -> str:
    """A server's words, made fit for one line of a log."""
    return "".join(c if c.isprintable() else " " for c in problem[:PROBLEM_CHARS_MAX])
