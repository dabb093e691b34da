"""Which session is it that a client calls by a name of its own?

Some clients, such as the AI SDK's `useChat`, make up an id for a conversation and know no other. It is mapped to a
session when it is used first, and to a new one when that session has gone. An id that is a session's is that session.
Of several who use an id for the first time at once, all get the same session.

A mapping that nobody used for `KEPT_S` is forgotten; its session stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypedDict

from actors import KeyValue, ObjectNotFound, Objects
from actors.runtime.namespace import Stub
from deployments.sessions import Sessions, is_session_id

#: The tenant's object that holds the mappings; no route leads to it.
STORE_NAME = "chats"
KEPT_S = 400 * 86_400.0
#: Written again no more often than this, so that most requests only read.
REFRESHED_AFTER_S = 30 * 86_400.0


class Mapping(TypedDict):
    session_id: str


class Chats:
    """The conversations of all tenants, by their clients' ids."""

    def __init__(self, objects: Objects, sessions: Sessions, now: Callable[[], float]) -> None:
        self._stores = objects.namespace(KeyValue)
        self._sessions = sessions
        self._now = now

    async def find(self, tenant: str, chat_id: str) -> str | None:
        """The id of the chat's session, which may have gone; None if it has none yet."""
        if is_session_id(chat_id):
            return chat_id
        item = await self._store(tenant).get(_key(chat_id))
        if item is None:
            return None
        mapping: Mapping = item["value"]
        if item["updated_at"] < self._now() - REFRESHED_AFTER_S:
            await self._store(tenant).swap(_key(chat_id), mapping, mapping, ttl_s=KEPT_S)
        return mapping["session_id"]

    async def make(self, tenant: str, chat_id: str, *, user_id: str | None, instead_of: str | None = None) -> str:
        """Makes a session for a chat that has none, or whose session `instead_of` has gone. Returns its id.

        Raises:
            ObjectNotFound: the chat's id is that of a session which has gone, or is another tenant's.
        """
        if is_session_id(chat_id):
            raise ObjectNotFound(f"ChatSession/{tenant}:{chat_id}")
        made = await self._sessions.create(tenant, user_id=user_id)
        expected: Mapping | None = None if instead_of is None else {"session_id": instead_of}
        mapping: Mapping = {"session_id": made["id"]}
        item = await self._store(tenant).swap(_key(chat_id), expected, mapping, ttl_s=KEPT_S)
        if item is not None and item["value"] == mapping:
            return made["id"]
        # Another was quicker, and the chat is where it has put it.
        await self._sessions.delete(tenant, made["id"])
        if item is None:
            return await self.make(tenant, chat_id, user_id=user_id)  # the mapping was forgotten just now
        found: Mapping = item["value"]
        return found["session_id"]

    def _store(self, tenant: str) -> Stub[KeyValue]:
        return self._stores.get(tenant, STORE_NAME)


def _key(chat_id: str) -> str:
    # Of bounded length, and of no use to who reads it.
    return hashlib.sha256(chat_id.encode()).hexdigest()
