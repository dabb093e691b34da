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
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared[:20]) > size_bytes_max:
            await self._too_large(size_bytes_max, scope, receive, send)
            return
        received_bytes = 0
        started = False

        async def counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            if message["type"] == "http.request":
                received_bytes += len(message.get("body", b""))
                if received_bytes > size_bytes_max:
                    raise BodyTooLarge(size_bytes_max)
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            if received_bytes > size_bytes_max and not started:
                return  # FastAPI answers 400 to whatever goes wrong while it reads a body
            started = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except BodyTooLarge:
            if started:
                raise
        if received_bytes > size_bytes_max and not started:
            await self._too_large(size_bytes_max, scope, receive, send)

    async def _too_large(self, size_bytes_max: int, scope: Scope, receive: Receive, send: Send) -> None:
        await self._told(scope["path"], problem_of(BodyTooLarge(size_bytes_max)))(scope, receive, send)
