"""How does a tenant's listing learn that a session was used?

Each message changes what the listing shows of its session. Telling the directory at once would make one object the
bottleneck of all of a tenant's sessions, so the news is gathered and told a few times a second. A crash loses news and
no data: the session itself is right, and its next message tells again.
"""

from __future__ import annotations

import asyncio
import logging

from actors import Directory, DurableError, Objects
from actors.directory import DIRECTORY_NAME, Activity
from actors.session_views import Shown

logger = logging.getLogger("mobula.activity")

TELL_EVERY_S = 0.2
#: Sessions of one tenant whose news may wait.
GATHERED_MAX = 1000


class ActivityLog:
    """Gathers what happened in sessions, and tells the directories."""

    def __init__(self, objects: Objects) -> None:
        self._directories = objects.namespace(Directory)
        self._news: dict[str, dict[str, Activity]] = {}
        self._telling: asyncio.Task[None] | None = None

    def note(self, tenant: str, session_id: str, shown: Shown) -> None:
        """Takes note of a message or an answer; returns at once."""
        news = self._news.setdefault(tenant, {})
        if len(news) >= GATHERED_MAX and session_id not in news:
            return  # the directory is not keeping up; each message of a session tells all of it anew
        held = news.get(session_id)
        if held is not None and held["last_active_at"] > shown["last_active_at"]:
            return  # a request that was repeated is answered as it was the first time
        news[session_id] = {
            "id": session_id,
            "last_active_at": shown["last_active_at"],
            "expires_at": shown["expires_at"],
            "message_count": shown["message_count"],
        }
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell_later())

    async def tell(self, tenant: str) -> None:
        """Tells one tenant's directory now, so that a listing shows what was just done here."""
        news = self._news.pop(tenant, None)
        if news:
            await self._directories.get(tenant, DIRECTORY_NAME).note_activity(list(news.values()))

    async def _tell_later(self) -> None:
        while self._news:
            await asyncio.sleep(TELL_EVERY_S)
            for tenant in list(self._news):
                try:
                    await self.tell(tenant)
                except DurableError as error:
                    logger.warning("tenant=%s listing lags behind: %s", tenant, error)
