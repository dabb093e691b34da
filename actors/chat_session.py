"""What was said in one conversation?

A session is made by `create`; until then, and after `delete` or expiry, every method raises `ObjectNotFound`. Messages
are numbered from 1 in the order in which they were acknowledged; of more than `messages_max` the oldest leave.

A session with a time to live ends by itself when it was not used for so long, and its entry in the directory with it.

Questions are answered in turns, which callers find in `SessionTurns`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from actors.directory import DIRECTORY_NAME, Directory, SessionMetadata
from actors.message import Message, NewMessage
from actors.runtime import (
    AlarmInfo,
    DurableError,
    InvalidArgument,
    ObjectOverloaded,
    exactly_once,
    idempotent,
    read,
)
from actors.session_copy import CopyProgress, Origin, SessionCopy
from actors.session_row import LISTED_WITHIN_S, Settings
from actors.session_turns import SessionTurns
from actors.session_views import (
    Appended,
    Extended,
    History,
    Opened,
    SessionUsage,
    Shown,
    Transcript,
)
from actors.token_usage import USAGE_NAME, TokenUsage
from actors.turn import NewTurn
from actors.turn_queue import QUEUE_NAME, QUEUE_TENANT, TurnQueue
from actors.usage_outbox import AGAIN_AFTER_S, Used

MESSAGES_MAX_DEFAULT = 1000
#: Turns that one alarm looks after; the next one comes at once.
LOOKED_AFTER_MAX = 100
DIRECTORY_TIMEOUT_S = 2.0


class ChatSession(SessionTurns):
    def start(self) -> None:
        super().start()
        self._copy = SessionCopy(self.id, self.storage, self.clock, self._messages)

    # -- the session

    @idempotent
    def create(
        self,
        *,
        user_id: str | None = None,
        title: str | None = None,
        metadata: dict[str, str] | None = None,
        ttl_s: float | None = None,
        messages_max: int = MESSAGES_MAX_DEFAULT,
        is_listed: bool = True,
    ) -> SessionMetadata:
        """Makes the session; one that exists is left as it is and returned, and one that expired gives way.

        Args:
            user_id: whose it is; the client's own name for the user.
            title: shown in listings.
            metadata: the client's own.
            ttl_s: how long it lasts without being used.
            messages_max: of more, the oldest leave.
            is_listed: its entry is in the directory. Else it makes one after a while, unless `finish` says that there
                is one: for a caller who enters it afterwards, and may be lost before.

        Raises:
            InvalidArgument: the time to live or the number of messages is not above 0.
        """
        if ttl_s is not None and not 0 < ttl_s < math.inf:
            raise InvalidArgument("ttl_s", ttl_s, "must be a number of seconds above 0")
        if messages_max < 1:
            raise InvalidArgument("messages_max", messages_max, "must be at least 1")
        if self._row.is_over():
            self._turns.end_all()
            # Not `delete_all`: that would take what is written below along, and what was used.
            self._messages.clear()
            self._row.remove()
            self._turns.forget()
        settings = Settings(user_id, title, metadata or {}, ttl_s, messages_max)
        self._row.make(settings, is_listed=is_listed)
        self._plan()
        return self.metadata()

    @idempotent
    def open(self, new: NewTurn, runner: str, **settings: Any) -> Opened:
        """Makes the session, as `create` does with `settings`, with a turn that `begin` enters: one commit for both.

        The caller enters it into the directory when it is made: nobody is to wait for an answer longer than it takes.
        """
        made = self.create(**settings, is_listed=False)
        return {"session": made, "begun": self.begin(new, runner)}

    @read
    def metadata(self) -> SessionMetadata:
        self._row.require()
        return self._row.metadata()

    @read
    def usage(self) -> SessionUsage:
        self._row.require()
        return self._row.usage()

    @idempotent
    def update(self, changes: dict[str, Any]) -> SessionMetadata:
        """Changes `title` and `metadata` where `changes` names them; None clears."""
        self._row.require()
        self._row.update(changes)
        return self._row.metadata()

    @idempotent
    async def delete(self) -> bool:
        """Removes the session and its file. False if there was none.

        Raises:
            ObjectOverloaded: what its turns have used could not be counted. They have ended, and all else is there.
        """
        existed = self._row.exists()
        if existed:
            self._turns.end_all()
            if not await self._tell_usage():
                raise ObjectOverloaded(str(self.id), "the tokens that it used can't be counted now", 1.0)
        self._remove()
        return existed

    # -- messages

    @exactly_once
    def append(
        self, role: str, content: str, *, tokens: int | None = None, data: dict[str, Any] | None = None
    ) -> Appended:
        """Adds one message; the oldest leave where there are too many."""
        self._row.require()
        now = self.clock.now()
        message_id = self._messages.add(role, content, now, tokens=tokens, data=data)
        self._row.count_one(now)
        self._plan()
        return {"id": message_id, "created_at": now, **self._row.shown()}

    @exactly_once
    def extend(self, messages: Sequence[NewMessage]) -> Extended:
        """Adds messages, all or none."""
        self._row.require()
        now = self.clock.now()
        added = self._messages.extend(messages, now)
        self._row.recount()
        self._row.touch()
        self._plan()
        return {"messages": added, **self._row.shown()}

    @idempotent
    def remove(self, message_id: int) -> Shown:
        """Removes one message, and with an answer that called tools their results. One that has gone stays away."""
        self._row.require()
        if self._messages.remove(message_id):
            self._row.recount()
            self._row.touch()
        return self._row.shown()

    @read
    def listed(self, limit: int, after: int | None = None, *, newest_first: bool = False) -> History:
        """Up to `limit` messages behind message `after`, in the order of their numbers or in the other one."""
        self._row.require()
        return self._messages.page(limit, after, newest_first=newest_first)

    @read
    def history(self, limit: int = 50, before: int | None = None) -> History:
        """The newest `limit` messages older than message `before`, oldest first."""
        self._row.require()
        return self._messages.before(before, limit)

    @read
    def transcript(self, after: int = 0, before: int | None = None) -> Transcript:
        """The first messages behind message `after`, oldest first: as many as make a page."""
        self._row.require()
        return self._messages.transcript(after, before)

    @idempotent
    def clear(self) -> SessionMetadata:
        """Removes all messages and keeps the session. Turns that wait or run end, and leave none."""
        self._row.require()
        self._turns.clear()
        return self._row.metadata()

    # -- copies

    @read
    def origin(self, before: int | None = None) -> Origin:
        """What a copy of the session up to message `before` begins with; of all of it that there is now, if None.

        Raises:
            InvalidArgument: a tool's call would be in the copy without what came of it.
        """
        self._row.require()
        if before is not None and self._messages.is_result(before):
            raise InvalidArgument("before", before, "must not be the result of a tool, which belongs to its call")
        settings, end = self._row.settings(), self._messages.newest() + 1
        return {
            "session_id": self.id.name,
            "before": end if before is None else min(before, end),
            "user_id": settings.user_id,
            "title": settings.title,
            "metadata": settings.metadata,
            "ttl_s": settings.ttl_s,
            "messages_max": settings.messages_max,
        }

    @idempotent
    def begin_copy(self, origin: Origin) -> CopyProgress | None:
        """Begins to be a copy, or says how far it is. None: it is whole."""
        progress = self._copy.begin(origin)
        self._plan()
        return progress

    @idempotent
    def add_copies(self, after: int, messages: Sequence[Message]) -> None:
        """Takes the messages that follow message `after` of the original, numbered anew."""
        self._copy.add(after, messages)

    @idempotent
    def end_copy(self) -> SessionMetadata:
        """The copy is whole."""
        self._copy.end()
        self._plan()
        return self.metadata()

    # -- time

    async def alarm(self, info: AlarmInfo) -> None:
        """Ends the session if it has expired; else does what is due for its turns."""
        if not self._row.exists():
            return
        if self._row.is_over():
            self._turns.end_all()
            if not await self._tell_usage():
                self.storage.set_alarm(self.clock.now() + AGAIN_AFTER_S)
                return
            # The entry goes first: with the session gone, there would be no alarm to try it again.
            await self._directory().remove(self.id.name)
            self._remove()
            return
        if self._copy.is_under_way():
            self._plan()
            return
        before = self._row.metadata()
        for _ in range(LOOKED_AFTER_MAX):
            # Asked again each time: while this waits for others, a runner may have claimed a turn, or renewed.
            due = self._turns.recovery.next_due()
            if due is None:
                break
            if self._turns.recovery.look_after(*due):
                await self._offer(due[0])
        await self._tell_usage()
        was_listed = self._row.is_listed()
        if not was_listed:
            await self._enlist()
        self._plan()
        # Alarms that come for turns alone are many.
        is_news = before["expires_at"] is not None or self._row.metadata() != before
        if was_listed and is_news and not self._row.is_over():
            await self._directory().put(self._row.metadata())

    def _directory(self) -> Any:
        # All that is called of this session waits meanwhile.
        return self.objects.namespace(Directory).get(self.id.tenant, DIRECTORY_NAME, timeout_s=DIRECTORY_TIMEOUT_S)

    async def _enlist(self) -> None:
        """Makes the entry in the directory, where whoever made the session may have been lost before that."""
        if any(status == "in_progress" for _, status in self._turns.rows.open()):
            # Who runs the turn must not wait for it, and says at the end whether the entry was made.
            self._row.enlist_at(self.clock.now() + LISTED_WITHIN_S)
            return
        try:
            await self._directory().put(self._row.metadata())
        except DurableError as error:
            # Turns must not wait for it.
            self.logger.warning("the session could not be listed: %s", error)
            self._row.enlist_at(self.clock.now() + AGAIN_AFTER_S)
        else:
            self._row.enlist_at(None)

    async def _offer(self, turn_id: str) -> None:
        queue = self.objects.namespace(TurnQueue).get(QUEUE_TENANT, QUEUE_NAME)
        try:
            await queue.offer(self.id.tenant, self.id.name, turn_id)
        except DurableError as error:
            # It is offered again when its time has come again, and other turns are due as well.
            self.logger.warning("turn=%s could not be offered: %s", turn_id, error)

    async def _tell_usage(self) -> bool:
        """Has the tenant's count know what turns have used. False: not all, now; it is tried again later."""

        async def tell(used: Used) -> None:
            count = self.objects.namespace(TokenUsage).get(self.id.tenant, USAGE_NAME)
            await count.add.once(used.turn_id)(used.at, used.model, used.input_tokens, used.output_tokens, used.turn_id)

        try:
            return await self._outbox.empty(tell)
        except DurableError as error:
            # Turns must not wait for it.
            self.logger.warning("what turns have used could not be told: %s", error)
            self._outbox.put_off()
            return False
