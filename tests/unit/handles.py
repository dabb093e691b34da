"""What stands in for the other parts of the service where a test runs only one?

`Handle` behaves as Serve's handle does where the service relies on it: arguments travel as copies, and an error arrives
as a mixture of Ray's class and its own. Behind it are a model that says what it is told to, an embedding that knows
words and no meaning, and the real vector store.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import inspect
import itertools
import pickle
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ray.exceptions import RayTaskError
from ray.serve.exceptions import RequestCancelledError

from actors import (
    ChatSession,
    Directory,
    DocumentIndex,
    DurableObject,
    KeyValue,
    LimitNews,
    LocalBackend,
    TokenBucket,
    TokenUsage,
    TurnQueue,
)
from actors.runtime.call import Call, Reply
from actors.runtime.clock import ManualClock
from actors.runtime.host_settings import HostSettings
from actors.runtime.object_id import ObjectId
from configs.budgets import BudgetConfig, ConcurrencyConfig
from configs.limits import TenantLimits
from configs.service import ServiceConfig
from configs.tenant import (
    KeyConfig,
    ModelConfig,
    RetrievalConfig,
    Scope,
    SessionsConfig,
    TenantConfig,
    ToolsConfig,
    TurnsConfig,
)
from deployments.activity import ActivityLog
from deployments.chat_request import Accepted, ChatRequest, Finished, ModelEvent, TextDelta
from deployments.chat_way import ChatWay
from deployments.ingress.services import Services
from deployments.leases import Leases
from deployments.sessions import Sessions
from deployments.token_count import estimate
from deployments.vector_store import TOP_K_MAX, VectorStore
from deployments.vectors import Vectors

CLASSES = (ChatSession, Directory, DocumentIndex, KeyValue, LimitNews, TokenBucket, TokenUsage, TurnQueue)
SCOPES: frozenset[Scope] = frozenset({"chat", "ingest", "search", "kv", "admin"})
DIMENSIONS = 64


class Handle:
    """A handle to an object of this process. What `errors` names by method is raised instead of calling it."""

    def __init__(self, target: object, errors: Mapping[str, Exception] | None = None) -> None:
        self._target = target
        self.errors: dict[str, Exception] = dict(errors or {})

    def options(self, *, stream: bool = False) -> Handle:
        return self

    def __getattr__(self, name: str) -> HandleMethod:
        return HandleMethod(getattr(self._target, name), lambda: self.errors.get(name))


class HandleMethod:
    """One method behind a handle."""

    def __init__(self, method: Callable[..., Any], error: Callable[[], Exception | None]) -> None:
        self._method = method
        self._error = error

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = pickle.loads(pickle.dumps((args, kwargs)))
        if inspect.isasyncgenfunction(self._method):
            return HandleStream(self._stream(args, kwargs))
        return self._call(args, kwargs)

    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        error = self._error()
        if error is not None:
            raise error
        try:
            return await self._method(*args, **kwargs)
        except Exception as raised:  # as Ray does with whatever a deployment raises
            raise as_ray_raises(raised) from None

    async def _stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncGenerator[Any, None]:
        error = self._error()
        if error is not None:
            raise error
        try:
            async for value in self._method(*args, **kwargs):
                yield value
        except Exception as raised:  # as Ray does with whatever a deployment raises
            raise as_ray_raises(raised) from None


def way_to(chat: object) -> ChatWay:
    """As an ingress has, without a door."""
    handle: Any = Handle(chat)
    return ChatWay(handle, time.monotonic)


class HandleStream:
    """What a method yields, which runs whether or not anybody listens. Cancelled, the method ends where it waits."""

    def __init__(self, values: AsyncGenerator[Any, None]) -> None:
        self._came: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        # In a context of its own, as in another process.
        self._task = asyncio.get_running_loop().create_task(self._run(values), context=contextvars.Context())

    async def _run(self, values: AsyncGenerator[Any, None]) -> None:
        try:
            async with contextlib.aclosing(values):
                async for value in values:
                    self._came.put_nowait(("value", value))
            self._came.put_nowait(("end", None))
        except asyncio.CancelledError:
            self._came.put_nowait(("error", RequestCancelledError("request")))
            raise
        except Exception as error:  # for whoever listens
            self._came.put_nowait(("error", error))

    def __aiter__(self) -> HandleStream:
        return self

    async def __anext__(self) -> Any:
        kind, value = await self._came.get()
        if kind == "end":
            raise StopAsyncIteration
        if kind == "error":
            raise value
        return value

    def cancel(self) -> None:
        self._task.cancel()


def as_ray_raises(error: Exception) -> Exception:
    """What a caller in another process gets of an error."""
    raised: Exception = RayTaskError("remote", "Traceback of /the/other/process.py", error).as_instanceof_cause()
    return raised


class EchoModel:
    """Answers with `pieces`, then ends, or raises `failure`. Waits for `may_go_on` before the piece `stalls_at`.

    Of `failures` each answer takes one, which it raises at once, as long as there are any. With `accepts` it says
    before all that it has taken the request, as a server does.
    """

    def __init__(self, *pieces: str, failure: Exception | None = None, stalls_at: int | None = None) -> None:
        self.pieces = pieces
        self.failure = failure
        self.failures: list[Exception] = []
        self.stalls_at = stalls_at
        self.stalled = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.finishes = True
        self.accepts = False
        self.requests: list[ChatRequest] = []
        #: Answers that were made no further because nobody wanted them.
        self.stopped = 0

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ModelEvent, None]:
        self.requests.append(request)
        if self.accepts:
            yield Accepted()
        if self.failures:
            raise self.failures.pop(0)
        try:
            for number, piece in enumerate(self.pieces):
                if number == self.stalls_at:
                    self.stalled.set()
                    await self.may_go_on.wait()
                yield TextDelta(text=piece)
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped += 1
            raise
        if self.failure is not None:
            raise self.failure
        if self.finishes:
            yield Finished(finish_reason="stop", input_tokens=11, output_tokens=len(self.pieces), estimated=False)

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [estimate(text) for text in texts]

    async def ready(self) -> bool:
        return True


class WordEmbedder:
    """Unit vectors of hashed words: texts that share words are near each other."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.batches: list[int] = []

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.texts += texts
        self.batches.append(len(texts))
        return np.stack([_vector(text) for text in texts])

    async def model_id(self) -> str:
        return "words-1"


def _vector(text: str) -> npt.NDArray[np.float32]:
    vector = np.full(DIMENSIONS, 0.01, dtype=np.float32)
    for word in re.findall(r"\w+", text.lower()):
        vector[hashlib.sha256(word.encode("utf-8", "replace")).digest()[0] % DIMENSIONS] += 1
    normal: npt.NDArray[np.float32] = vector / np.linalg.norm(vector)
    return normal


class OwnVectors(Vectors):
    """The client of a store in this process. Raises what `failing` names by method."""

    def __init__(self, store: VectorStore) -> None:
        super().__init__(path="in this process")
        self.store = store
        self.failing: dict[str, Exception] = {}

    async def ready(self) -> bool:
        return True

    async def ids(self, tenant: str) -> list[str]:
        """Of all chunks that the tenant has."""
        everything = await self.query(tenant, np.ones(DIMENSIONS, dtype=np.float32), TOP_K_MAX)
        return sorted(everything)

    async def _call(self, method: str, *arguments: Any) -> Any:
        if method in self.failing:
            raise self.failing[method]
        return await asyncio.to_thread(getattr(self.store, method), *arguments)


class FailingObjects(LocalBackend):
    """Objects in this process. Raises `failing[(class, method)]` for a call of the method, before or after it ran."""

    def __init__(
        self, data_dir: Path, clock: ManualClock | None = None, *, classes: Iterable[type[DurableObject]] = CLASSES
    ) -> None:
        self.clock = clock or ManualClock()
        super().__init__(data_dir, classes, settings=HostSettings(slots=4), clock=self.clock)
        self.failing: dict[tuple[str, str], list[Exception]] = {}
        self.failing_after: dict[tuple[str, str], list[Exception]] = {}
        self.calls: list[tuple[str, str]] = []

    async def send(self, object_id: ObjectId, call: Call) -> Reply:
        called = (object_id.class_name, str(call[3]))
        self.calls.append(called)
        _raise_next(self.failing.get(called))
        reply = await super().send(object_id, call)
        _raise_next(self.failing_after.get(called))
        return reply


def new_leases(clock: ManualClock, holder: str = "") -> Leases:
    """Those of one process, which has the name of none other."""
    numbers = itertools.count()
    return Leases(clock.monotonic, new_id=lambda: f"{holder}-{next(numbers)}")


def _raise_next(errors: list[Exception] | None) -> None:
    if errors:
        raise errors.pop(0)


def tenant(
    name: str = "acme",
    *,
    keys: Iterable[KeyConfig] | None = None,
    limits: TenantLimits | None = None,
    sessions: SessionsConfig | None = None,
    model: ModelConfig | None = None,
    retrieval: RetrievalConfig | None = None,
    tools: ToolsConfig | None = None,
    turns: TurnsConfig | None = None,
    budgets: tuple[BudgetConfig, ...] = (),
    concurrency: ConcurrencyConfig | None = None,
) -> TenantConfig:
    """A tenant whose key is `sk-<name>`, with the defaults of the product."""
    own = KeyConfig.model_validate({"id": "all", "plain": f"sk-{name}", "scopes": list(SCOPES)})
    return TenantConfig(
        tenant=name,
        keys=tuple(keys or [own]),
        limits=limits or TenantLimits(),
        sessions=sessions or SessionsConfig(),
        model=model or ModelConfig(),
        retrieval=retrieval or RetrievalConfig(),
        tools=tools or ToolsConfig(),
        turns=turns or TurnsConfig(),
        budgets=budgets,
        concurrency=concurrency or ConcurrencyConfig(),
    )


def services_over(
    objects: LocalBackend,
    clock: ManualClock,
    tenants: Mapping[str, TenantConfig],
    *,
    config: ServiceConfig | None = None,
    peer_header: str | None = None,
    **handles: Any,
) -> Services:
    """What an ingress replica has, in front of these handles. Nothing goes on beside its requests."""
    nobody = Handle(object())
    parts = ("chat", "model", "embedding", "ingest", "search")
    return Services.over(
        objects,
        config=config or ServiceConfig(),
        tenants=tenants,
        now=clock.now,
        monotonic=clock.monotonic,
        count=lambda *_: None,
        peer_header=peer_header,
        **{part: handles.get(part, nobody) for part in parts},
    )


def sessions_of(objects: FailingObjects, clock: ManualClock) -> Sessions:
    """Of three tenants: those of `brief` live a minute, and keep four messages."""
    tenants = {
        "acme": tenant("acme"),
        "demo": tenant("demo"),
        "brief": tenant("brief", sessions=SessionsConfig(ttl_s=60, messages_max=4)),
    }
    return Sessions(objects, tenants, ActivityLog(objects), clock.now)
