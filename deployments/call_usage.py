"""What has one call of a model used, however it ended?

What the model's server says when the answer is whole. Before that it is an estimate, from when the server has taken the
request: it reads the prompt, whether or not anybody waits for what comes of it. One that was refused used nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from deployments.chat_request import Accepted, ChatRequest, Finished, ModelEvent
from deployments.errors import ModelRefused


class Tokens(NamedTuple):
    input_tokens: int
    output_tokens: int
    estimated: bool


class CallUsage:
    """Of one call, as its events come."""

    def __init__(self, request: ChatRequest) -> None:
        self._input_tokens = request.estimated_input_tokens()
        self._pieces = 0
        #: None where nothing was used.
        self.tokens: Tokens | None = None

    def take(self, event: ModelEvent) -> None:
        if isinstance(event, Finished):
            self.tokens = Tokens(event.input_tokens, event.output_tokens, event.estimated)
            return
        self._pieces += not isinstance(event, Accepted)
        self.tokens = Tokens(self._input_tokens, self._pieces, estimated=True)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Around what gives the events: a server may refuse a request that it seemed to have taken."""
        try:
            yield
        except ModelRefused:
            if not self._pieces:
                self.tokens = None
            raise
