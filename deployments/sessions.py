"""How are chat sessions created, listed, read, changed and deleted?

A session is a `ChatSession` object, and an entry in its tenant's `Directory`. The entry is made before the session and
removed after it, so that a crash between the two leaves an entry that can be deleted, and never data that no one sees.
One that expires removes both by itself.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from actors import ChatSession, Directory, ObjectNotFound, Objects
from actors.chat_session import Appended, History
from actors.directory import DIRECTORY_NAME, SessionMetadata, SessionPage
from actors.runtime.namespace import Stub
from configs.tenant import TenantConfig
from deployments.activity import ActivityLog

#: Milliseconds since 1970, so that ids sort by age, then 80 bits that nobody can guess.
_SESSION_ID = re.compile(r"s[0-9a-f]{32}")


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
        created = await self.make(
            tenant, session_id=session_id, user_id=user_id, title=title, metadata=metadata, ttl_s=ttl_s
        )
        await self.enlist(tenant, created)
        return created

    async def make(
        self,
        tenant: str,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        title: str | None = None,
        metadata: dict[str, str] | None = None,
        ttl_s: float | None = None,
    ) -> SessionMetadata:
        """The same, with no more than its entry in the listing; `enlist` has the listing show it as it is."""
        now = self._now()
        session_id = session_id or self.new_id()
        settings = self._settings[tenant]
        ttl_s = settings.ttl_s if ttl_s is None else ttl_s
        entry: SessionMetadata = {
            "id": session_id,
            "tenant": tenant,
            "user_id": user_id,
            "title": title,
            "metadata": metadata or {},
            "created_at": now,
            "last_active_at": now,
            "expires_at": None if ttl_s is None else now + ttl_s,
            "message_count": 0,
        }
        await self._directory(tenant).put(entry)
        created: SessionMetadata = await self._sessions.get(tenant, session_id).create(
            user_id=user_id,
            title=title,
            metadata=metadata,
            ttl_s=ttl_s,
            messages_max=settings.messages_max,
        )
        return created

    async def enlist(self, tenant: str, created: SessionMetadata) -> None:
        """Has the listing agree with a session that was just made: the session's own clock counts."""
        await self._directory(tenant).put(created)

    async def page(self, tenant: str, *, limit: int, after: str | None, user_id: str | None) -> SessionPage:
        """Sessions that have not expired, newest first."""
        await self._activity.tell(tenant)
        page: SessionPage = await self._directory(tenant).page(limit=limit, after=after, user_id=user_id)
        return page

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

    async def history(self, tenant: str, session_id: str, *, limit: int, before: int | None) -> History:
        history: History = await self.get(tenant, session_id).history(limit=limit, before=before)
        return history

    def get(self, tenant: str, session_id: str) -> Stub[ChatSession]:
        """
        Raises:
            ObjectNotFound: no session can have this id; nothing was asked.
        """
        if not _SESSION_ID.fullmatch(session_id):
            raise ObjectNotFound(f"ChatSession/{tenant}:?")
        return self._sessions.get(tenant, session_id)

    def _directory(self, tenant: str) -> Stub[Directory]:
        return self._directories.get(tenant, DIRECTORY_NAME)
