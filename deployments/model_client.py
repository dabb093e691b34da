"""How is the model that a request names asked?

A named server is asked from this process, which reads the server's key from its own environment. So is the embedded
model where it runs on the same node; where it does not, its deployment passes the answer on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

import ray
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from deployments.chat_client import ChatClient
from deployments.chat_request import ChatRequest, ModelEvent
from deployments.embedded_client import EmbeddedClient
from deployments.errors import ModelError, ModelRefused, ModelUnavailable

LOST_RETRY_AFTER_S = 1.0


class Models(Protocol):
    """What asks models; see `ModelClient`."""

    def stream(self, request: ChatRequest) -> AsyncGenerator[ModelEvent, None]: ...

    async def count_tokens(self, texts: Sequence[str]) -> list[int]: ...

    async def ready(self) -> bool: ...


class ModelClient:
    """Asks models. Holds no answer.

    Args:
        model: The deployment of the embedded model.
        node_id: Ray's id of the node that this process is on.
        environ: Where the keys of named servers are read.
    """

    def __init__(self, model: DeploymentHandle, *, node_id: str, environ: Mapping[str, str]) -> None:
        self._model = model
        # Made once: a handle with other options has a router of its own.
        self._far = model.options(stream=True)
        self._node_id = node_id
        self._named = ChatClient(environ=environ)
        self._near: EmbeddedClient | None = None

    @classmethod
    def here(cls, model: DeploymentHandle) -> ModelClient:
        """One for this process."""
        return cls(model, node_id=ray.get_runtime_context().get_node_id(), environ=os.environ)

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yields the answer's pieces and then one `Finished`, or raises a `ModelError`. Closing it stops the model."""
        async with contextlib.aclosing(await self._answer(request)) as events:
            async for event in events:
                yield event

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens of the embedded model each text has.

        Raises:
            ModelError: there is no embedded model, or it does not answer.
        """
        near = await self._embedded()
        if near is not None:
            return await near.count_tokens(texts)
        counts: list[int] = await self._model.count_tokens.remote(list(texts))
        return counts

    async def ready(self) -> bool:
        """Raises what keeps the embedded model from being asked."""
        return bool(await self._model.ready.remote())

    async def _answer(self, request: ChatRequest) -> AsyncGenerator[ModelEvent, None]:
        if request.base_url is not None:
            if request.model is None:
                raise ModelRefused(f"the server {request.base_url} needs the name of a model")
            return self._named.stream(request, base_url=request.base_url, model=request.model)
        near = await self._embedded()
        return self._from_far(request) if near is None else near.stream(request)

    async def _from_far(self, request: ChatRequest) -> AsyncGenerator[ModelEvent, None]:
        answer = self._far.stream.remote(request)
        try:
            async for event in answer:
                yield event
        finally:
            answer.cancel()  # nobody else tells the model's replica that its listener has gone

    async def _embedded(self) -> EmbeddedClient | None:
        """None if it is on another node."""
        if self._near is None or self._near.may_be_away:
            try:
                access = await self._model.access.remote()
            except ModelError:
                raise  # what the deployment says, which Ray makes an error of its own class too
            except RayError as lost:
                problem = f"the embedded model is away ({type(lost).__name__})"
                raise ModelUnavailable(problem, LOST_RETRY_AFTER_S) from None
            if access.node_id != self._node_id:
                return None
            # All that ask are to share one, which counts them.
            if self._near is None or self._near.access != access:
                self._near = EmbeddedClient(access)
            self._near.may_be_away = False
        return self._near
