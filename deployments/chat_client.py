"""How does a request become an answer from any server that speaks the OpenAI chat-completions protocol?

Promise: `ChatClient.stream` yields the answer's text as it arrives, then the calls of tools, each when it is whole, and
ends with exactly one `Finished`, or raises a `ModelError`. It never waits longer than the request's `timeout_s`, never
reads more than `ANSWER_BYTES_MAX`, follows no redirect, and closes the connection when the caller stops listening, so
that the server stops generating too. Nothing that the `openai` package finds in environment variables of its own is
sent: one tenant's server never sees the key or the organisation meant for another's.

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
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, cast

import httpx2
import openai

from deployments.chat_request import ChatMessage, ChatRequest, Finished, ModelEvent, TextDelta, ToolCall, ToolSpec
from deployments.errors import ModelError, ModelRefused, ModelTimeout, ModelUnavailable
from deployments.tool_call_pieces import ToolCallPieces, arguments_of, clean, field_of

MAX_CLIENTS = 64  # (server, key) pairs remembered; one costs a few kilobytes, all share one pool of connections
MAX_CONNECTIONS = 256
ANSWER_BYTES_MAX = 32 * 1024 * 1024  # about 100,000 tokens as server-sent events, more than any model here is asked for
PROBLEM_CHARS_MAX = 300
DEFAULT_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 300.0
CONNECT_TIMEOUT_S = 5.0
NO_TOKEN = -1
#: For vLLM and its like. llama.cpp goes on from a last message of the assistant by itself, and takes these too.
_CONTINUING = {"add_generation_prompt": False, "continue_final_message": True}
_CONTEXT_CODES = frozenset({ModelRefused.CONTEXT_LENGTH, "exceed_context_size_error"})
# All else that the package would send tells of this machine, or comes from environment variables of its own.
_SENT_HEADERS = frozenset(
    {"accept", "authorization", "connection", "content-length", "content-type", "host", "user-agent"}
)
_BUSY_STATUSES = frozenset({408, 409, 425, 429})
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
            event_hooks={"request": [_only_known_headers], "response": [_bound_body]},
        )
        self._clients: OrderedDict[tuple[str, str | None, str | None], openai.AsyncOpenAI] = OrderedDict()

    async def stream(
        self, request: ChatRequest, *, base_url: str, model: str, api_key: str | None = None
    ) -> AsyncGenerator[ModelEvent, None]:
        """Asks and yields the answer.

        Args:
            request: What is asked; its `api_key_env` is looked up here, its `base_url` and `model` are not looked at.
            base_url: The server.
            model: The server's name for the model.
            api_key: The key itself, for a server that this process started; goes before `api_key_env`.
        """
        deadline = asyncio.get_running_loop().time() + request.timeout_s
        client = self._client(base_url, request.api_key_env, api_key)
        with self._our_errors(request):
            async with asyncio.timeout_at(deadline):
                # Not `chat.completions.create`: it looks at each field of the request and of each piece of the answer
                # as the package describes them, which no server has to keep to, and takes most of a piece's time.
                chunks = await client.post(
                    "/chat/completions",
                    body=_body(request, model),
                    cast_to=object,
                    stream=True,
                    stream_cls=openai.AsyncStream[object],
                )
        answer = _Answer(request)
        try:
            while True:
                with self._our_errors(request):
                    async with asyncio.timeout_at(deadline):
                        chunk = await anext(chunks, None)
                if chunk is None:
                    break
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
            await chunks.close()

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

    def _client(self, base_url: str, api_key_env: str | None, api_key: str | None) -> openai.AsyncOpenAI:
        cache_key = (base_url, api_key_env, api_key)
        client = self._clients.get(cache_key)
        if client is None:
            if api_key is None and api_key_env is not None:
                api_key = self._environ.get(api_key_env, "").strip()
                if not api_key:
                    raise ModelRefused(f"the environment variable {api_key_env} holds no key for the model's server")
            client = openai.AsyncOpenAI(
                base_url=base_url,
                # A key is always given, and twice: else the package would send what OPENAI_API_KEY or
                # OPENAI_CUSTOM_HEADERS hold to whatever server this is.
                api_key=api_key or "none",
                default_headers={"Authorization": f"Bearer {api_key or 'none'}"},
                max_retries=0,
                http_client=self._http,
            )
            self._clients[cache_key] = client
            if len(self._clients) > MAX_CLIENTS:
                self._clients.popitem(last=False)  # it owns no connection: those are in the shared pool
        self._clients.move_to_end(cache_key)
        return client

    @contextlib.contextmanager
    def _our_errors(self, request: ChatRequest) -> Iterator[None]:
        # `from None`: the package's errors hold the request, and with it the key.
        try:
            yield
        except (TimeoutError, openai.APITimeoutError):
            raise ModelTimeout(request.timeout_s) from None
        except openai.APIConnectionError as error:
            raise ModelUnavailable(f"no connection ({_cause(error)})", DEFAULT_RETRY_AFTER_S) from None
        except openai.APIError as error:
            if request.tools and (refusal := _refusal_of_tools(error)):
                raise refusal from None
            if isinstance(error, openai.APIStatusError):
                raise self._from_status(error) from None
            raise _from_event(error) from None
        except httpx2.HTTPError as error:
            raise ModelUnavailable(f"no connection ({type(error).__name__})", DEFAULT_RETRY_AFTER_S) from None
        except (ValueError, TypeError, AttributeError):
            # What the package raises, from deep inside, for a stream that is not JSON or not of the protocol's shape.
            raise ModelUnavailable("the server sent something that is no answer", DEFAULT_RETRY_AFTER_S) from None

    def _from_status(self, error: openai.APIStatusError) -> ModelError:
        status = error.status_code
        if status >= 500 or status in _BUSY_STATUSES:
            return ModelUnavailable(f"the server answered {status}", self._retry_after_s(error.response.headers))
        if status in (401, 403):
            return ModelRefused(f"the server refused the key ({status})")  # its own words may quote the key
        if status < 400:
            return ModelRefused(f"the server answered {status}, and redirects are not followed")
        return _refused(error)

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
        counts = (field_of(usage, "prompt_tokens"), field_of(usage, "completion_tokens"))
        if isinstance(counts[0], int) and isinstance(counts[1], int):
            self._usage = (counts[0], counts[1])
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


async def _only_known_headers(request: httpx2.Request) -> None:
    for name in request.headers.keys() - _SENT_HEADERS:
        del request.headers[name]
    request.headers["accept-encoding"] = "identity"
    if request.url.scheme == "http":
        # llama.cpp's listener says that a connection may be used again, and closes one in eight when it is. Without TLS
        # a new one costs next to nothing.
        request.headers["connection"] = "close"


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


def _texts_of(message: ChatMessage) -> Iterator[str]:
    yield message.content
    for call in message.tool_calls:
        yield call.name
        yield call.arguments


def _refusal_of_tools(error: openai.APIError) -> ModelRefused | None:
    """The error of a server that can't take tools, if it is that."""
    if isinstance(error, openai.APIStatusError) and error.status_code in (_BUSY_STATUSES | {401, 403}):
        return None
    words = error.message[:2_000]
    if not (_OF_TOOLS.search(words) and _NOT_TAKEN.search(words)):
        return None
    return ModelRefused(f"the server takes no tools: {_words_of(error)}", ModelRefused.TOOLS)


def _from_event(error: openai.APIError) -> ModelError:
    """An error that a server reports inside a stream it had begun with 200."""
    if error.code in _CONTEXT_CODES or error.type in _CONTEXT_CODES or error.type == "invalid_request_error":
        return _refused(error)
    return ModelUnavailable(_plain(error.message), DEFAULT_RETRY_AFTER_S)


def _refused(error: openai.APIError) -> ModelRefused:
    too_long = error.code in _CONTEXT_CODES or error.type in _CONTEXT_CODES
    return ModelRefused(_words_of(error), ModelRefused.CONTEXT_LENGTH if too_long else error.code or error.type)


def _words_of(error: openai.APIError) -> str:
    return _plain(re.sub(r"^Error code: \d+ - ", "", error.message))


def _cause(error: openai.APIConnectionError) -> str:
    return type(error.__cause__ or error).__name__


def _plain(problem: str) -> str:
    """A server's words, made fit for one line of a log."""
    return "".join(c if c.isprintable() else " " for c in problem)[:PROBLEM_CHARS_MAX]
