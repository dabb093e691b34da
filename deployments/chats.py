"""Which session is it that a client calls by a name of its own?

Some clients, such as the AI SDK's `useChat`, make up an id for a conversation and know no other. It is mapped to a
session when it is used first, and to a new one when that session has gone. An id that is a session's is that session.
Of several who use an id for the first time at once, all get the same session.

The session itself is made with its first question, by who lets that question in: where none is let in there is none,
and the id that was kept for it is forgotten soon. So is, much later, a mapping that nobody used for `KEPT_S`; its
session stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NotRequired

from typing_extensions import TypedDict

from actors import KeyValue, ObjectNotFound, Objects
from actors.runtime.namespace import Stub
from deployments.sessions import is_session_id

#: The tenant's object that holds the mappings; no route leads to it.
STORE_NAME = "chats"
KEPT_S = 400 * 86_400.0
#: Where nobody said that there is a session now.
RESERVED_S = 86_400.0
#: Written again no more often than this, so that most requests only read.
REFRESHED_AFTER_S = 30 * 86_400.0


class Mapping(TypedDict):
    session_id: str
    reserved: NotRequired[bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a chat is. Without `is_made` there may be no session yet: it is made as if there was none."""

    session_id: str
    is_made: bool

    @property
    def mapping(self) -> Mapping:
        if self.is_made:
            return {"session_id": self.session_id}
        return {"session_id": self.session_id, "reserved": True}


class Chats:
    """The conversations of all tenants, by their clients' ids."""

    def __init__(self, objects: Objects, new_id: Callable[[], str], now: Callable[[], float]) -> None:
        self._stores = objects.namespace(KeyValue)
        self._new_id = new_id
        self._now = now

    async def find(self, tenant: str, chat_id: str) -> Place | None:
        """Where the chat is, or was before its session has gone; None if it has none yet."""
        if is_session_id(chat_id):
            return Place(session_id=chat_id, is_made=True)
        item = await self._store(tenant).get(_key(chat_id))
        if item is None:
            return None
        place = _place(item["value"])
        if place.is_made and item["updated_at"] < self._now() - REFRESHED_AFTER_S:
            await self._store(tenant).swap(_key(chat_id), place.mapping, place.mapping, ttl_s=KEPT_S)
        return place

    async def reserve(self, tenant: str, chat_id: str, *, instead_of: Place | None = None) -> Place:
        """Keeps an id for the session of a chat that has none, or whose session `instead_of` has gone.

        Raises:
            ObjectNotFound: the chat's id is that of a session which has gone, or is another tenant's.
        """
        if is_session_id(chat_id):
            raise ObjectNotFound(f"ChatSession/{tenant}:{chat_id}")
        while True:
            new = Place(session_id=self._new_id(), is_made=False)
            expected = None if instead_of is None else instead_of.mapping
            item = await self._store(tenant).swap(_key(chat_id), expected, new.mapping, ttl_s=RESERVED_S)
            if item is not None:
                # What it is now, or where another has put it who was quicker.
                return _place(item["value"])
            instead_of = None  # the mapping was forgotten just now

    async def made(self, tenant: str, chat_id: str, place: Place) -> None:
        """The chat's session is there."""
        there = Place(session_id=place.session_id, is_made=True)
        await self._store(tenant).swap(_key(chat_id), place.mapping, there.mapping, ttl_s=KEPT_S)

    def _store(self, tenant: str) -> Stub[KeyValue]:
        return self._stores.get(tenant, STORE_NAME)


def _key(chat_id: str) -> str:
    # Of bounded length, and of no use to who reads it.
    return hashlib.sha256(chat_id.encode()).hexdigest()


def _place(mapping: Mapping) -> Place:
    return Place(session_id=mapping["session_id"], is_made=not mapping.get("reserved", False))
