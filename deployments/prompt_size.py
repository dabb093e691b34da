"""How many tokens does a call of a model read, at most?

Said from the bytes at once, or counted in the model's own tokens where somebody can count those. A prompt that is not
made yet takes no more than is left of the context beside the answer, since that is what prompts are made to fit into.
"""

from __future__ import annotations

from collections.abc import Sequence

from deployments.chat_request import ChatMessage, ToolSpec
from deployments.prompt import PromptTokens, shown_tools, texts_in
from deployments.token_count import BYTES_PER_TOKEN, Estimated, TokenCounter


class PromptSize:
    """Of one prompt.

    Args:
        messages: What of it is known.
        tools: What the model is offered.
        counter: Of the model's tokens. One that estimates is not asked: what it says may be too little.
        room: Tokens of the context that are left beside the answer.
        is_whole: The prompt is known as a whole; else there may be more in it, as far as it fits.
    """

    def __init__(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[ToolSpec] = (),
        *,
        counter: TokenCounter,
        room: int,
        is_whole: bool = True,
    ) -> None:
        self._messages = messages
        self._offered = shown_tools(tools)
        self._tokens = PromptTokens(counter)
        self._counts = not isinstance(counter, Estimated)
        self._room = room
        self._is_whole = is_whole

    @property
    def is_exact(self) -> bool:
        """Nobody can say more of it than its bytes do."""
        return self._is_whole and not self._counts

    def at_most(self) -> int:
        # What was made to fit by an estimate has so many bytes at most.
        room = self._room if self._counts else self._room * BYTES_PER_TOKEN
        if not self._is_whole:
            return room
        return min(self._known(), room) if self._counts else self._known()

    async def counted(self) -> int:
        """Of what is known of the prompt.

        Raises:
            ModelError: the counter had to be asked, and did not answer.
        """
        if self._counts:
            await self._tokens.count(
                [*(text for message in self._messages for text in texts_in(message)), *self._offered]
            )
        return self._known()

    def _known(self) -> int:
        return sum(map(self._tokens.of_message, self._messages)) + self._tokens.of_tools(self._offered)
