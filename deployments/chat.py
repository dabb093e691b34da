"""How is a question answered?

The user's message is stored, documents are searched, the model is asked, and its answer is stored with its sources. All
of it runs as a task of its own, which no client's going away can end: whoever asked only listens to its events. The
answer is in the session's history whether or not anybody listened.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from actors import ChatSession, DurableError, ObjectNotFound, Objects
from actors.chat_session import Appended, History, Message
from actors.document_index import Passage
from actors.runtime.namespace import Stub
from configs.tenant import TenantConfig
from deployments import prompt, token_count
from deployments.activity import ActivityLog
from deployments.chat_request import ChatRequest, Finished, TextDelta
from deployments.documents import source_of
from deployments.errors import ModelError, ModelUnavailable, ServiceError
from deployments.prompt import Prompt
from deployments.question import Question, TurnEvent, TurnEventType
from deployments.sessions import Sessions

logger = logging.getLogger("mobula.chat")

#: Answers under way in one replica, listened to or not.
TURNS_AT_ONCE_MAX = 256
BUSY_RETRY_AFTER_S = 1.0
HISTORY_MESSAGES_MAX = 100


class Turn:
    """The events of one answer, from the first, for any number of listeners that come at any time."""

    def __init__(self) -> None:
        self._events: list[TurnEvent] = []
        self._ended = False
        self._refusal: Exception | None = None
        self._news = asyncio.Event()

    def add(self, event_type: TurnEventType, data: dict[str, Any]) -> None:
        self._events.append(TurnEvent(len(self._events) + 1, event_type, data))
        self._wake()

    def end(self, refusal: Exception | None = None) -> None:
        """No event will follow. A refusal says that nothing was done, and is raised to the listeners."""
        self._ended = True
        self._refusal = refusal
        self._wake()

    async def events(self) -> AsyncIterator[TurnEvent]:
        seen = 0
        while True:
            while seen < len(self._events):
                seen += 1
                yield self._events[seen - 1]
            if self._ended:
                if self._refusal is not None:
                    raise self._refusal
                return
            await self._news.wait()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    @property
    def is_created(self) -> bool:
        return bool(self._events)


class Chat:
    """Answers questions within sessions."""

    def __init__(
        self,
        *,
        connect: Callable[[], Objects],
        tenants: Mapping[str, TenantConfig],
        model: DeploymentHandle,
        search: DeploymentHandle,
        now: Callable[[], float] = time.time,
    ) -> None:
        objects = connect()
        self._activity = ActivityLog(objects)
        self._sessions = Sessions(objects, tenants, self._activity, now)
        self._tenants = tenants
        self._counters = token_count.counters_of(tenants, model)
        self._model = model.options(stream=True)
        self._model_calls = model
        self._search = search
        self._turns: set[asyncio.Task[None]] = set()

    async def answer(self, question: Question) -> AsyncGenerator[TurnEvent, None]:
        """Starts a turn and yields its events. Who stops listening does not stop the turn.

        Raises:
            DurableError, ServiceError: before the first event, and nothing was stored.
        """
        if len(self._turns) >= TURNS_AT_ONCE_MAX:
            # Serve counts the listeners; a turn that lost its listener goes on.
            raise ModelUnavailable("too many answers are under way", BUSY_RETRY_AFTER_S)
        turn = Turn()
        # In a context of its own: Serve ends every call made in a request's context when its client goes away.
        task = asyncio.get_running_loop().create_task(self._run(question, turn), context=contextvars.Context())
        self._turns.add(task)
        task.add_done_callback(self._turns.discard)
        async for event in turn.events():
            yield event

    async def ready(self) -> bool:
        """Raises what keeps the model from being asked."""
        return bool(await self._model_calls.ready.remote())

    async def _run(self, question: Question, turn: Turn) -> None:
        try:
            await self._answer(question, turn)
            turn.end()
        except Exception as error:  # the last one who can tell the listeners
            if not isinstance(error, DurableError | ServiceError):
                logger.exception("tenant=%s turn failed", question.tenant)
            if not turn.is_created:
                turn.end(refusal=_known(error))
                return
            turn.add("error", _as_event(_known(error)))
            turn.end()

    async def _answer(self, question: Question, turn: Turn) -> None:
        tenant = self._tenants[question.tenant]
        turn_id = f"t{secrets.token_hex(12)}"
        session_id = question.session_id
        if session_id is None:
            # Checked before a session is made for it; with a history, the history gives way.
            await self._prompt(question, [], [])
            session_id = (await self._sessions.create(question.tenant, user_id=question.user_id))["id"]
        session = self._sessions.get(question.tenant, session_id)
        history: History = await session.history(limit=HISTORY_MESSAGES_MAX)
        await self._prompt(question, history["messages"], [])
        asked = await self._append(session, "user", question.message, data={"turn_id": turn_id})
        turn.add("turn.created", {"turn_id": turn_id, "session_id": session_id, "message_id": asked["id"]})

        passages: list[Passage] = []
        if question.retrieve:
            found = await self._search.find.remote(question.tenant, question.message, top_k=question.top_k)
            passages = found.passages
        made = await self._prompt(question, history["messages"], passages)
        sources = [source_of(passage) for passage in made.passages]
        turn.add("sources", {"sources": sources})

        request = ChatRequest(
            messages=made.messages,
            max_tokens=self._max_tokens(question),
            temperature=tenant.model.temperature if question.temperature is None else question.temperature,
            timeout_s=tenant.model.timeout_s,
            base_url=tenant.model.base_url,
            model=tenant.model.model,
            api_key_env=tenant.model.api_key_env,
        )
        await self._generate(session, turn, turn_id, request, sources)

    async def _generate(
        self,
        session: Stub[ChatSession],
        turn: Turn,
        turn_id: str,
        request: ChatRequest,
        sources: list[dict[str, Any]],
    ) -> None:
        text: list[str] = []
        finished: Finished | None = None
        try:
            async for event in self._model.stream.remote(request):
                if isinstance(event, TextDelta):
                    text.append(event.text)
                    turn.add("text.delta", {"text": event.text})
                elif isinstance(event, Finished):
                    finished = event
            if finished is None:
                raise ModelUnavailable("the answer broke off", 1.0)
        except Exception:
            if text:  # what was shown is kept
                partial = {"turn_id": turn_id, "sources": sources, "finish_reason": "incomplete"}
                await self._append(session, "assistant", "".join(text), data=partial)
            raise
        usage = {
            "input_tokens": finished.input_tokens,
            "output_tokens": finished.output_tokens,
            "total_tokens": finished.input_tokens + finished.output_tokens,
            "estimated": finished.estimated,
        }
        data: dict[str, Any] = {"turn_id": turn_id, "sources": sources}
        data |= {"finish_reason": finished.finish_reason, "usage": usage}
        answer = await self._append(session, "assistant", "".join(text), tokens=finished.output_tokens, data=data)
        turn.add(
            "turn.completed",
            {
                "turn_id": turn_id,
                "session_id": session.id.name,
                "message_id": answer["id"],
                "finish_reason": finished.finish_reason,
                "usage": usage,
            },
        )

    async def _append(
        self,
        session: Stub[ChatSession],
        role: str,
        content: str,
        *,
        tokens: int | None = None,
        data: dict[str, Any],
    ) -> Appended:
        appended: Appended = await session.append(role, content, tokens=tokens, data=data)
        self._activity.note(session.id.tenant, session.id.name, appended)
        return appended

    async def _prompt(self, question: Question, history: Sequence[Message], passages: Sequence[Passage]) -> Prompt:
        tenant = self._tenants[question.tenant]
        return await prompt.build(
            system=tenant.model.system_prompt,
            history=history,
            question=question.message,
            passages=passages,
            fence=f"<<{secrets.token_hex(8)}>>",
            passages_chars_max=tenant.retrieval.context_chars_max,
            context_tokens=tenant.model.context_tokens,
            max_tokens=self._max_tokens(question),
            counter=self._counters[question.tenant],
        )

    def _max_tokens(self, question: Question) -> int:
        """What the client asks for, and no more than the tenant may."""
        tenant_max = self._tenants[question.tenant].model.max_tokens
        return min(question.max_tokens or tenant_max, tenant_max)


def _known(error: Exception) -> Exception:
    """The error as one of ours: Ray raises mixtures, and its own where a part of the service was lost."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, DurableError | ServiceError):
        return cause
    if isinstance(error, DurableError | ServiceError):
        return error
    if isinstance(error, RayError):
        return ModelUnavailable("a part of the service was lost", 1.0)
    return ModelUnavailable("the turn failed", 1.0)


def _as_event(error: Exception) -> dict[str, Any]:
    """An error for a client: nothing of paths, processes or objects, which other errors' texts name."""
    retryable = bool(getattr(error, "retryable", False))
    match error:
        case ModelError():
            message = str(error)
        case ObjectNotFound():
            message = "the session was deleted or has expired"
        case _ if retryable:
            message = "a part of the service is busy or restarting"
        case _:
            message = "the turn failed"
    return {
        "code": type(error).__name__,
        "message": message,
        "retryable": retryable,
        "retry_after_s": getattr(error, "retry_after_s", None),
    }


# Not a decorator of the class: type checkers take a decorated class for the class itself, which has no `bind`.
ChatDeployment: Any = serve.deployment(
    num_replicas=1,
    max_ongoing_requests=TURNS_AT_ONCE_MAX,
    max_queued_requests=TURNS_AT_ONCE_MAX,
    ray_actor_options={"num_cpus": 0.2},
    graceful_shutdown_timeout_s=30,
)(Chat)
