"""How long may a request's body be?

A body is refused at the limit, by what it declares before it is read and by what it is while it is read, so that none
fills the memory.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import BodyTooLarge
from deployments.ingress.problem import Telling, as_it_is, problem_of


class BodyLimit:
    """ASGI middleware that answers 413 to a body of more than `size_bytes_max`, or what `of_path` says of its path."""

    def __init__(
        self,
        app: ASGIApp,
        size_bytes_max: int,
        of_path: Callable[[str], int | None] = lambda _: None,
        told: Telling = as_it_is,
    ) -> None:
        self._app = app
        self._size_bytes_max = size_bytes_max
        self._of_path = of_path
        self._told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size_bytes_max = self._of_path(scope["path"]) or self._size_bytes_max
        if declares_more(scope, size_bytes_max):
            await self._too_large(size_bytes_max, scope, receive, send)
            return
        body = CountedBody(receive, size_bytes_max)
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            if body.is_too_large and not started:
                return  # FastAPI answers 400 to whatever goes wrong while it reads a body
            started = True
            await send(message)

        try:
            await self._app(scope, body, noted)
        except BodyTooLarge:
            if started:
                raise
        if body.is_too_large and not started:
            await self._too_large(size_bytes_max, scope, receive, send)

    async def _too_large(self, size_bytes_max: int, scope: Scope, receive: Receive, send: Send) -> None:
        await self._told(scope["path"], problem_of(BodyTooLarge(size_bytes_max)))(scope, receive, send)


class CountedBody:
    """ASGI's `receive`, which gives no more of a body than that."""

    def __init__(self, receive: Receive, size_bytes_max: int) -> None:
        self._receive = receive
        self._left_bytes = size_bytes_max
        self._size_bytes_max = size_bytes_max

    @property
    def is_too_large(self) -> bool:
        return self._left_bytes < 0

    async def __call__(self) -> Message:
        """
        Raises:
            BodyTooLarge: there is more.
        """
        message = await self._receive()
        if message["type"] == "http.request":
            self._left_bytes -= len(message.get("body", b""))
            if self.is_too_large:
                raise BodyTooLarge(self._size_bytes_max)
        return message


def declares_more(scope: Scope, size_bytes_max: int) -> bool:
    """What the request says of its body."""
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return declared.isdigit() and int(declared[:20]) > size_bytes_max
