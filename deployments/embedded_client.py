"""How is the embedded model asked, by whoever is on its node?

It is an OpenAI-compatible server as any other, whose address and key go to the parts of this service alone. It takes
whatever it is sent and has it wait, so those that ask bound what they send.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from deployments.chat_client import ChatClient
from deployments.chat_request import ChatRequest, ModelEvent
from deployments.errors import ModelUnavailable

BUSY_RETRY_AFTER_S = 5.0
HEALTH_TIMEOUT_S = 10.0
COUNT_TIMEOUT_S = 10.0
#: llama.cpp sees that nobody listens any more when it has something to say: with this, while it reads a long question.
_TOLD_OF_PROGRESS = {"return_progress": True}
#: Tokens that it reads well within a second on one core. To be told of that would only keep the first word back.
_READ_SOON_TOKENS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedAccess:
    """Where the embedded model is, and what it takes to be let in.

    Attributes:
        node_id: Ray's id of the node; the URLs hold there alone.
        places: Answers that one client may have under way or waiting.
    """

    node_id: str
    base_url: str
    tokenize_url: str
    health_url: str
    model: str
    api_key: str = field(repr=False)
    places: int


class EmbeddedClient:
    """Asks the embedded model. Holds one pool of connections, and no answer."""

    def __init__(self, access: EmbeddedAccess) -> None:
        self.access = access
        self._client = ChatClient(environ={}, trust_environment=False)
        self._taken = 0
        #: It did not answer when it was last asked.
        self.may_be_away = False

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yields the answer's pieces and then one `Finished`.

        Raises:
            ModelError: it gave no whole answer, or all places are taken.
        """
        if self._taken >= self.access.places:
            raise ModelUnavailable("too many answers are waiting for the embedded model", BUSY_RETRY_AFTER_S)
        self._taken += 1
        try:
            is_long = request.estimated_input_tokens() > _READ_SOON_TOKENS
            answer = self._client.stream(
                request,
                base_url=self.access.base_url,
                model=self.access.model,
                api_key=self.access.api_key,
                more=_TOLD_OF_PROGRESS if is_long else None,
            )
            # Closed here and not by the garbage collector: the generation must end when its listener goes.
            async with contextlib.aclosing(answer) as events:
                async for event in events:
                    yield event
        except ModelUnavailable:
            self.may_be_away = True
            raise
        finally:
            self._taken -= 1

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has.

        Raises:
            ModelUnavailable: the model does not answer.
        """
        try:
            return await self._client.count_tokens(
                texts, url=self.access.tokenize_url, api_key=self.access.api_key, timeout_s=COUNT_TIMEOUT_S
            )
        except ModelUnavailable:
            self.may_be_away = True
            raise

    async def is_well(self) -> bool:
        return await self._client.get_ok(self.access.health_url, timeout_s=HEALTH_TIMEOUT_S)
