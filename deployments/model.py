"""Where in the cluster does the embedded model run?

Promise: one Serve deployment that runs it. Those on its node ask the model itself, once they know where it is; those on
other nodes have their answers pass through here. A caller that stops listening stops the generation.

It keeps nothing of a conversation, and retries nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import ray
from ray import serve

from deployments.chat_request import ChatRequest, ModelEvent
from deployments.embedded_client import BUSY_RETRY_AFTER_S, EmbeddedAccess, EmbeddedClient
from deployments.embedded_model import EmbeddedServer, EmbeddedSettings
from deployments.errors import ModelRefused, ModelUnavailable

# An open answer holds one of these for as long as it runs; Serve's own default is 5.
MAX_ONGOING_REQUESTS = 256


class Model:
    """Runs the embedded model.

    Args:
        embedded: How it runs; `None` does without it, where every tenant names a server.
    """

    def __init__(self, *, embedded: EmbeddedSettings | None) -> None:
        self._client: EmbeddedClient | None = None
        if embedded is not None:
            self._server = server = EmbeddedServer(embedded)
            self._client = EmbeddedClient(
                EmbeddedAccess(
                    node_id=ray.get_runtime_context().get_node_id(),
                    base_url=server.base_url,
                    tokenize_url=server.tokenize_url,
                    health_url=server.health_url,
                    model=server.model,
                    api_key=server.api_key,
                    places=embedded.parallel + embedded.waiting_max,
                )
            )

    async def access(self) -> EmbeddedAccess:
        """How those on its node ask the model itself.

        Raises:
            ModelRefused: there is no embedded model.
        """
        return self._embedded.access

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yields the answer's pieces and then one `Finished`, or raises a `ModelError`."""
        async with contextlib.aclosing(self._embedded.stream(request)) as events:
            async for event in events:
                yield event

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens of the embedded model each text has.

        Raises:
            ModelError: there is no embedded model, or it does not answer.
        """
        return await self._embedded.count_tokens(texts)

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica that fails it three times."""
        if self._client is not None and not await self._client.is_well():
            raise ModelUnavailable("the embedded model does not answer", BUSY_RETRY_AFTER_S)

    def ready(self) -> bool:
        """Answers once the model is loaded: a replica takes calls only then."""
        return True

    @property
    def _embedded(self) -> EmbeddedClient:
        if self._client is None:
            raise ModelRefused("no model: this service runs without the embedded one, and none is named")
        return self._client


# Not a decorator of the class: type checkers take a decorated class for the class itself, which has no `bind`.
ModelDeployment: Any = serve.deployment(
    num_replicas=1,
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    max_queued_requests=MAX_ONGOING_REQUESTS,
    ray_actor_options={"num_cpus": 0.5},
    health_check_timeout_s=30,
    # Longer than a chat replica, stopped as well, lets its turns go on. Serve stops those that ask first.
    graceful_shutdown_timeout_s=40,
)(Model)
