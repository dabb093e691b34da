"""How does a request become an answer from any server that speaks the OpenAI chat-completions protocol?

Promise: `ChatClient.stream` yields the answer's text as it arrives and ends with exactly one `Finished`, or raises a
`ModelError`. It never waits longer than the request's `timeout_s`, never reads more than `ANSWER_BYTES_MAX`, follows no
redirect, and closes the connection when the caller stops listening, so that the server stops generating too. Nothing
that the `openai` package finds in environment variables of its own is sent: one tenant's server never sees the key or
the organisation meant for another's.

Nothing is retried here: who retries decides that by the error's `retryable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, cast

import httpx2
import openai
from openai.types.chat import ChatCompletionChunk

from deployments.chat_request import ChatRequest, Finished, ModelEvent, TextDelta
from deployments.errors import ModelError, ModelRefused, ModelTimeout, ModelUnavailable

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

MAX_CLIENTS = 64  # (server, key) pairs remembered; one costs a few kilobytes, all share one pool of connections
MAX_CONNECTIONS = 256
ANSWER_BYTES_MAX = 32 * 1024 * 1024  # about 100,000 tokens as server-sent events, more than any model here is asked for
PROBLEM_CHARS_MAX = 300
DEFAULT_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 300.0
CONNECT_TIMEOUT_S = 5.0
_CONTEXT_CODES = frozenset({ModelRefused.CONTEXT_LENGTH, "exceed_context_size_error"})
# All else that the package would send tells of this machine, or comes from environment variables of its own.
_SENT_HEADERS = frozenset(
    {"accept", "authorization", "connection", "content-length", "content-type", "host", "user-agent"}
)
_BUSY_STATUSES = frozenset({408, 409, 425, 429})


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
        with self._our_errors(request.timeout_s):
            async with asyncio.timeout_at(deadline):
                chunks = await client.chat.completions.create(
                    model=model,
                    messages=cast(
                        "list[ChatCompletionMessageParam]",
                        [{"role": message.role, "content": message.content} for message in request.messages],
                    ),
                    # Not `max_completion_tokens`: most compatible servers know only this name.
                    max_tokens=request.max_tokens,
                    temperature=openai.omit if request.temperature is None else request.temperature,
                    stream=True,
                    stream_options={"include_usage": True},
                )
        answer = _Answer(request)
        try:
            while True:
                with self._our_errors(request.timeout_s):
                    async with asyncio.timeout_at(deadline):
                        chunk = await anext(chunks, None)
                if chunk is None:
                    break
                text = answer.take(chunk)
                if text:
                    yield TextDelta(text=text)
            yield answer.finished()
        finally:
            # Reached as well when the caller closes this generator or is cancelled: closing the response is what
            # tells the server to stop.
            await chunks.close()

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
    def _our_errors(self, timeout_s: float) -> Iterator[None]:
        # `from None`: the package's errors hold the request, and with it the key.
        try:
            yield
        except (TimeoutError, openai.APITimeoutError):
            raise ModelTimeout(timeout_s) from None
        except openai.APIConnectionError as error:
            raise ModelUnavailable(f"no connection ({_cause(error)})", DEFAULT_RETRY_AFTER_S) from None
        except openai.APIStatusError as error:
            raise self._from_status(error) from None
        except openai.APIError as error:
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
    """What one answer has shown so far: its pieces counted, its end and its usage when they have come."""

    def __init__(self, request: ChatRequest) -> None:
        self._input_chars = sum(len(message.content) for message in request.messages)
        self._pieces = 0
        self._finish_reason: str | None = None
        self._usage: tuple[int, int] | None = None

    def take(self, chunk: ChatCompletionChunk) -> str:
        # The package builds chunks without checking them, so each field may hold anything.
        usage = getattr(chunk, "usage", None)
        counts = (getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None))
        if isinstance(counts[0], int) and isinstance(counts[1], int):
            self._usage = (counts[0], counts[1])
        choices = getattr(chunk, "choices", None)
        if not isinstance(choices, list) or not choices:
            return ""
        reason = getattr(choices[0], "finish_reason", None)
        if isinstance(reason, str) and reason:
            self._finish_reason = reason
        text = getattr(getattr(choices[0], "delta", None), "content", None)
        if not isinstance(text, str) or not text:
            return ""
        self._pieces += 1
        return text

    def finished(self) -> Finished:
        if self._finish_reason is None:
            raise ModelUnavailable("the server's answer broke off", DEFAULT_RETRY_AFTER_S)
        input_tokens, output_tokens = self._usage or (-(-self._input_chars // 4), self._pieces)
        return Finished(
            finish_reason=self._finish_reason,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            estimated=self._usage is None,
        )


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


def _from_event(error: openai.APIError) -> ModelError:
    """An error that a server reports inside a stream it had begun with 200."""
    if error.code in _CONTEXT_CODES or error.type in _CONTEXT_CODES or error.type == "invalid_request_error":
        return _refused(error)
    return ModelUnavailable(_plain(error.message), DEFAULT_RETRY_AFTER_S)


def _refused(error: openai.APIError) -> ModelRefused:
    too_long = error.code in _CONTEXT_CODES or error.type in _CONTEXT_CODES
    problem = re.sub(r"^Error code: \d+ - ", "", error.message)
    return ModelRefused(_plain(problem), ModelRefused.CONTEXT_LENGTH if too_long else error.code or error.type)


def _cause(error: openai.APIConnectionError) -> str:
    return type(error.__cause__ or error).__name__


def _plain(problem: str) -> str:
    """A server's words, made fit for one line of a log."""
    return "".join(c if c.isprintable() else " " for c in problem)[:PROBLEM_CHARS_MAX]
