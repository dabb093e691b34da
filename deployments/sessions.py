"""How are chat sessions created, copied, listed, read, changed and deleted?

A session is a `ChatSession` object, and an entry in its tenant's `Directory`. The entry is made before the session and
removed after it, so that a crash between the two leaves an entry that can be deleted, and never data that no one sees.
One that begins with a question is made first, and makes the entry itself if a crash kept it from being made. One that
expires removes both by itself.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from actors import ChatSession, Directory, ObjectNotFound, Objects
from actors.directory import DIRECTORY_NAME, SearchPage, SessionMetadata, SessionPage
from actors.message import Message, NewMessage
from actors.runtime.namespace import Stub
from actors.session_copy import FINISHED_WITHIN_S, CopyProgress, Origin
from actors.session_views import Appended, Extended, History, Opened, SessionUsage, Shown, Transcript
from actors.turn import NewTurn
from configs.tenant import TenantConfig
from deployments.activity import ActivityLog

#: Milliseconds since 1970, so that ids sort by age, then 80 bits that nobody can guess.
_SESSION_ID = re.compile(r"s[0-9a-f]{32}")


def is_session_id(text: str) -> bool:
    """Whether a session could have this id."""
    return _SESSION_ID.fullmatch(text) is not None


class Sessions:
    """The sessions of all tenants."""

    def __init__(
        self,
        objects: Objects,
        tenants: Mapping[str, TenantConfig],
        activity: ActivityLog,
        now: Callable[[], float],
    ) -> None:
        self._sessions = objects.namespace(ChatSession)
        self._directories = objects.namespace(Directory)
        self._settings = {name: tenant.sessions for name, tenant in tenants.items()}
        self._activity = activity
        self._now = now

    def new_id(self) -> str:
        return f"s{round(self._now() * 1000):012x}{secrets.token_hex(10)}"

    async def create(
        self,
        tenant: str,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        title: str | None = None,
        metadata: dict[str, str] | None = None,
        ttl_s: float | None = None,
    ) -> SessionMetadata:
        """Makes a session. Where `session_id` exists already, an earlier attempt has made it: it is left as it is."""
        settings = self._new(tenant, user_id=user_id, title=title, metadata=metadata, ttl_s=ttl_s)
        session = await self._enter(tenant, session_id or self.new_id(), settings)
        created: SessionMetadata = await session.create(**settings)
        await self.enlist(tenant, created)
        return created

    async def open(
        self, tenant: str, new: NewTurn, runner: str, *, session_id: str | None, user_id: str | None
    ) -> Opened:
        """The same for a session that begins with a question. It is listed only when `enlist` is called with it, or by
        itself after a while, unless who runs its turn has told it by then that `enlist` was."""
        session = self._sessions.get(tenant, session_id or self.new_id())
        opened: Opened = await session.open(new, runner, **self._new(tenant, user_id=user_id))
        return opened

    def _new(
        self,
        tenant: str,
        *,
        user_id: str | None,
        title: str | None = None,
        metadata: dict[str, str] | None = None,
        ttl_s: float | None = None,
    ) -> dict[str, Any]:
        """What a session is made with."""
        of_tenant = self._settings[tenant]
        return {
            "user_id": user_id,
            "title": title,
            "metadata": metadata,
            "ttl_s": of_tenant.ttl_s if ttl_s is None else ttl_s,
            "messages_max": of_tenant.messages_max,
        }

    async def _enter(self, tenant: str, session_id: str, settings: Mapping[str, Any]) -> Stub[ChatSession]:
        """Puts an entry of a session that is about to be made into the listing."""
        now, ttl_s = self._now(), settings["ttl_s"]
        await self._directory(tenant).put(
            {
                "id": session_id,
                "tenant": tenant,
                "user_id": settings["user_id"],
                "title": settings["title"],
                "metadata": settings["metadata"] or {},
                "created_at": now,
                "last_active_at": now,
                "expires_at": None if ttl_s is None else now + ttl_s,
                "message_count": 0,
            }
        )
        return self._sessions.get(tenant, session_id)

    async def enlist(self, tenant: str, created: SessionMetadata) -> None:
        """Has the listing agree with a session that was just made: the session's own clock counts."""
        await self._directory(tenant).put(created)

    async def fork(
        self, tenant: str, session_id: str, *, before: int | None, new_session_id: str | None = None
    ) -> SessionMetadata:
        """Makes a session that begins as another did: with its messages whose ids are below `before`, or with all.

        Where `new_session_id` exists already, an earlier attempt has begun it, and this one finishes it. Turns are not
        copied: they are of the session in which they ran.

        Raises:
            ObjectNotFound: there is no such session.
            InvalidArgument: the copy would end between a tool's call and its result.
        """
        source = self.get(tenant, session_id)
        fork = self.get(tenant, new_session_id or self.new_id())
        origin: Origin = await source.origin(before)
        progress: CopyProgress | None = await fork.begin_copy(origin)
        if progress is not None:
            await self._copy(source, fork, progress)
            now = self._now()
            # Before it is whole: then there is an entry, and what has none goes by itself.
            await self._directory(tenant).put(
                {
                    "id": fork.id.name,
                    "tenant": tenant,
                    "user_id": origin["user_id"],
                    "title": origin["title"],
                    "metadata": origin["metadata"],
                    "created_at": now,
                    "last_active_at": now,
                    "expires_at": now + FINISHED_WITHIN_S,
                    "message_count": 0,
                }
            )
        made: SessionMetadata = await fork.end_copy()
        await self._directory(tenant).put(made)
        return made

    async def _copy(self, source: Stub[ChatSession], fork: Stub[ChatSession], progress: CopyProgress) -> None:
        after, has_more = progress["copied_to"], True
        while has_more:
            page: Transcript = await source.transcript(after, progress["before"])
            await fork.add_copies(after, page["messages"])
            has_more = page["has_more"]
            after = page["messages"][-1]["id"] if page["messages"] else after

    async def transcript(self, tenant: str, session_id: str) -> AsyncIterator[list[Message]]:
        """All messages, oldest first, in pages. Those that come meanwhile are among them.

        Raises:
            ObjectNotFound: there is no such session, or it was deleted meanwhile.
        """
        session = self.get(tenant, session_id)
        after, has_more = 0, True
        while has_more:
            page: Transcript = await session.transcript(after)
            if page["messages"]:
                yield page["messages"]
                after = page["messages"][-1]["id"]
            has_more = page["has_more"]

    async def page(
        self, tenant: str, *, limit: int, after: str | None, user_id: str | None, text: str | None = None
    ) -> SessionPage:
        """Sessions that have not expired, newest first; those alone whose title holds `text`, if it is given."""
        await self._activity.tell(tenant)
        directory = self._directory(tenant)
        if text is None:
            page: SessionPage = await directory.page(limit=limit, after=after, user_id=user_id)
            return page
        found: list[SessionMetadata] = []
        # One more than is asked for, which says whether there are more.
        while len(found) <= limit:
            # A call looks at a part of the entries only, and so lets others in between.
            part: SearchPage = await directory.search(text, limit=limit + 1 - len(found), after=after, user_id=user_id)
            found += part["sessions"]
            after = found[-1]["id"] if part["has_more"] else part["searched_to"]
            if after is None:
                break
        return {"sessions": found[:limit], "has_more": len(found) > limit}

    async def metadata(self, tenant: str, session_id: str) -> SessionMetadata:
        metadata: SessionMetadata = await self.get(tenant, session_id).metadata()
        return metadata

    async def update(self, tenant: str, session_id: str, changes: dict[str, Any]) -> SessionMetadata:
        changed: SessionMetadata = await self.get(tenant, session_id).update(changes)
        await self._directory(tenant).put(changed)
        return changed

    async def delete(self, tenant: str, session_id: str) -> None:
        """
        Raises:
            ObjectNotFound: there is neither such a session nor an entry of it.
        """
        existed = await self.get(tenant, session_id).delete()
        listed = await self._directory(tenant).remove(session_id)
        if not (existed or listed):
            raise ObjectNotFound(f"ChatSession/{tenant}:{session_id}")

    async def append(
        self, tenant: str, session_id: str, role: str, content: str, *, request_id: str | None = None
    ) -> Appended:
        """
        Raises:
            RequestReused: another message was appended with this request id.
        """
        append = self.get(tenant, session_id).append
        appended: Appended = await (append if request_id is None else append.once(request_id))(role, content)
        self._activity.note(tenant, session_id, appended)
        return appended

    async def extend(
        self,
        tenant: str,
        session_id: str,
        messages: Sequence[NewMessage],
        *,
        request_id: str | None = None,
    ) -> list[Message]:
        """Appends several messages, all or none.

        Raises:
            RequestReused: others were appended with this request id.
        """
        extend = self.get(tenant, session_id).extend
        extended: Extended = await (extend if request_id is None else extend.once(request_id))(messages)
        self._activity.note(tenant, session_id, extended)
        return extended["messages"]

    async def remove(self, tenant: str, session_id: str, message_id: int) -> None:
        """Removes a message, and with an answer the results of its tools."""
        shown: Shown = await self.get(tenant, session_id).remove(message_id)
        self._activity.note(tenant, session_id, shown)

    async def listed(
        self, tenant: str, session_id: str, *, limit: int, after: int | None, newest_first: bool
    ) -> History:
        """Messages behind one of them, in either order."""
        listed: History = await self.get(tenant, session_id).listed(limit, after, newest_first=newest_first)
        return listed

    async def history(self, tenant: str, session_id: str, *, limit: int, before: int | None) -> History:
        history: History = await self.get(tenant, session_id).history(limit=limit, before=before)
        return history

    async def usage(self, tenant: str, session_id: str) -> SessionUsage:
        """The tokens of all its turns."""
        usage: SessionUsage = await self.get(tenant, session_id).usage()
        return usage

    def get(self, tenant: str, session_id: str) -> Stub[ChatSession]:
        """
        Raises:
            ObjectNotFound: no session can have this id; nothing was asked.
        """
        if not is_session_id(session_id):
            raise ObjectNotFound(f"ChatSession/{tenant}:?")
        return self._sessions.get(tenant, session_id)

    def _directory(self, tenant: str) -> Stub[Directory]:
        return self._directories.get(tenant, DIRECTORY_NAME)
