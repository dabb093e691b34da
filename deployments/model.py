"""Where in the cluster are language models talked to?

Promise: one Serve deployment through which every answer passes, whichever server gives it. Keys of named servers are
read from this process's environment alone. A caller that stops listening stops the generation.

It keeps nothing of a conversation, and retries nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from ray import serve

from deployments.chat_client import ChatClient
from deployments.chat_request import ChatRequest, ModelEvent
from deployments.embedded_model import EmbeddedServer, EmbeddedSettings
from deployments.errors import ModelRefused, ModelUnavailable

# An open answer holds one of these for as long as it runs; Serve's own default is 5.
MAX_ONGOING_REQUESTS = 256
BUSY_RETRY_AFTER_S = 5.0
HEALTH_TIMEOUT_S = 10.0
COUNT_TIMEOUT_S = 10.0


class Model:
    """Answers chat requests from the server that each names, or from the embedded model.

    Args:
        embedded: How the embedded model runs; `None` does without it, where every tenant names a server.
    """

    def __init__(self, *, embedded: EmbeddedSettings | None) -> None:
        self._client = ChatClient(environ=os.environ)
        self._local_client = ChatClient(environ={}, trust_environment=False)
        self._settings = embedded
        self._server = None if embedded is None else EmbeddedServer(embedded)
        self._embedded_requests = 0

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yields the answer's pieces and then one `Finished`, or raises a `ModelError`."""
        with self._answering(request) as answer:
            # Closed here and not by the garbage collector: the generation must end when its listener goes.
            async with contextlib.aclosing(answer) as events:
                async for event in events:
                    yield event

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens of the embedded model each text has.

        Raises:
            ModelError: there is no embedded model, or it does not answer.
        """
        if self._server is None:
            raise ModelRefused("this service runs without the embedded model")
        return await self._local_client.count_tokens(
            texts, url=self._server.tokenize_url, api_key=self._server.api_key, timeout_s=COUNT_TIMEOUT_S
        )

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica that fails it three times."""
        if self._server is not None and not await self._local_client.get_ok(
            self._server.health_url, timeout_s=HEALTH_TIMEOUT_S
        ):
            raise ModelUnavailable("the embedded model does not answer", BUSY_RETRY_AFTER_S)

    def ready(self) -> bool:
        """Answers once the model is loaded: a replica takes calls only then."""
        return True

    @contextlib.contextmanager
    def _answering(self, request: ChatRequest) -> Iterator[AsyncGenerator[ModelEvent, None]]:
        if request.base_url is not None:
            if request.model is None:
                raise ModelRefused(f"the server {request.base_url} needs the name of a model")
            yield self._client.stream(request, base_url=request.base_url, model=request.model)
            return
        server, settings = self._server, self._settings
        if server is None or settings is None:
            raise ModelRefused("no model: this service runs without the embedded one, and none is named")
        if self._embedded_requests >= settings.parallel + settings.waiting_max:
            raise ModelUnavailable("too many answers are waiting for the embedded model", BUSY_RETRY_AFTER_S)
        self._embedded_requests += 1
        try:
            yield self._local_client.stream(
                request, base_url=server.base_url, model=server.model, api_key=server.api_key
            )
        finally:
            self._embedded_requests -= 1


# Not a decorator of the class: type checkers take a decorated class for the class itself, which has no `bind`.
ModelDeployment: Any = serve.deployment(
    num_replicas=1,
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    max_queued_requests=MAX_ONGOING_REQUESTS,
    ray_actor_options={"num_cpus": 0.5},
    health_check_timeout_s=30,
    # Longer than a chat replica, stopped at the same time, lets its turns go on.
    graceful_shutdown_timeout_s=40,
)(Model)
