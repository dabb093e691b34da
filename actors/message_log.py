"""What was said in a session, in which order, and what of it is hidden while it is answered anew?

Messages are numbered from 1, and no number is given twice. Of more than the session may have the oldest leave. Those
that have given way to a turn are there for nobody, and count for nothing, until it has ended: then they go, or come
back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

from actors.message import Message, NewMessage, instructions_in
from actors.runtime import Storage
from actors.session_views import History, Transcript
from actors.turn import Older

HISTORY_PAGE_MAX = 1000
#: A page of a transcript ends with the message that makes it longer than this.
TRANSCRIPT_PAGE_CHARS = 1_000_000
TRANSCRIPT_PAGE_MAX = 200
#: Above the number of every message.
_END = 2**62

_COLUMNS = "id, role, content, tokens, data, created_at"
# One bound: of two SQLite would go as far as the first says, which may be through all that was ever said.
_IS_INSTRUCTION = (
    "role = 'system' AND replaced_by IS NULL AND id < min(?, ifnull("
    "(SELECT id FROM message WHERE role = 'user' AND replaced_by IS NULL ORDER BY id LIMIT 1), 1 << 62))"
)


class MessageLog:
    """The messages of one session."""

    def __init__(self, storage: Storage) -> None:
        self._sql = storage.sql
        self._sql_many = storage.sql_many

    # -- adding and removing

    def add(
        self,
        role: str,
        content: str,
        now: float,
        *,
        tokens: int | None = None,
        data: dict[str, Any] | None = None,
        turn_id: str | None = None,
    ) -> int:
        """Returns its number."""
        ((message_id,),) = self._sql(
            "INSERT INTO message (role, content, tokens, data, created_at, turn) VALUES (?, ?, ?, ?, ?, ?)"
            " RETURNING id",
            role,
            content,
            tokens,
            None if data is None else json.dumps(data),
            now,
            turn_id,
        )
        return int(message_id)

    def extend(self, messages: Iterable[NewMessage], now: float, *, turn_id: str | None = None) -> list[Message]:
        of_turn = {} if turn_id is None else {"turn_id": turn_id}
        added: list[Message] = []
        for message in messages:
            data = {**of_turn, **message.get("data", {})} or None
            number = self.add(message["role"], message["content"], now, data=data, turn_id=turn_id)
            added.append(
                {
                    "id": number,
                    "role": message["role"],
                    "content": message["content"],
                    "tokens": None,
                    "data": data,
                    "created_at": now,
                }
            )
        return added

    def copy(self, messages: Iterable[Message]) -> None:
        """Takes messages of another session, numbered anew."""
        self._sql_many(
            "INSERT INTO message (role, content, tokens, data, created_at) VALUES (?, ?, ?, ?, ?)",
            [
                (
                    message["role"],
                    message["content"],
                    message["tokens"],
                    None if message["data"] is None else json.dumps(message["data"]),
                    message["created_at"],
                )
                for message in messages
            ],
        )

    def remove(self, message_id: int) -> bool:
        """Removes one message, and with an answer that called tools their results. False: it has gone already."""
        rows = self._sql("DELETE FROM message WHERE id = ? RETURNING data", message_id)
        if not rows:
            return False
        data = json.loads(rows[0][0] or "{}")
        for call in data.get("tool_calls", ()):
            # They stand right behind it; those of a client's tools are of another turn.
            self._sql(
                "DELETE FROM message WHERE role = 'tool' AND json_extract(data, '$.tool_call_id') = ?1 AND id > ?2"
                " AND id < ifnull((SELECT min(id) FROM message WHERE id > ?2 AND role <> 'tool'), ?3)",
                call["id"],
                message_id,
                _END,
            )
        return True

    def drop_results(self, call_ids: Sequence[str]) -> None:
        """What came of calls of a client's tools, where no answer follows yet: others take their place."""
        self._sql(
            "DELETE FROM message WHERE role = 'tool' AND replaced_by IS NULL"
            " AND json_extract(data, '$.for_client') AND id > (SELECT ifnull(max(id), 0) FROM message"
            " WHERE role = 'assistant' AND replaced_by IS NULL)"
            " AND json_extract(data, '$.tool_call_id') IN (SELECT value FROM json_each(?))",
            json.dumps(call_ids),
        )

    def drop_oldest(self, count: int) -> None:
        # Not by number alone: a cleared session starts at a high one.
        self._sql(
            "DELETE FROM message WHERE id IN (SELECT id FROM message WHERE replaced_by IS NULL ORDER BY id LIMIT ?)",
            count,
        )

    def clear(self) -> None:
        self._sql("DELETE FROM message")

    # -- reading

    def count(self) -> int:
        # Without looking into messages, which may be long.
        ((count,),) = self._sql(
            "SELECT (SELECT count(*) FROM message) - (SELECT count(*) FROM message WHERE replaced_by IS NOT NULL)"
        )
        return int(count)

    def newest(self) -> int:
        """The number of the newest message, 0 if there is none."""
        ((newest,),) = self._sql("SELECT ifnull(max(id), 0) FROM message")
        return int(newest)

    def is_result(self, message_id: int) -> bool:
        """It is what came of a call that the service has run."""
        return bool(
            self._sql(
                "SELECT 1 FROM message WHERE id = ? AND role = 'tool' AND json_extract(data, '$.for_client') IS NULL",
                message_id,
            )
        )

    def is_question(self, message_id: int) -> bool:
        """It is the user's. One that has given way may come back, and is one too."""
        return bool(self._sql("SELECT 1 FROM message WHERE id = ? AND role = 'user'", message_id))

    def question(self, message_id: int | None = None) -> tuple[int, str] | None:
        """A message of the user with its number; the last one, if None."""
        rows = self._sql(
            "SELECT id, content FROM message WHERE role = 'user' AND replaced_by IS NULL AND (?1 IS NULL OR id = ?1)"
            " ORDER BY id DESC LIMIT 1",
            message_id,
        )
        return cast("tuple[int, str]", rows[0]) if rows else None

    def of_turn(self, turn_id: str) -> list[Message]:
        rows = self._sql(
            f"SELECT {_COLUMNS} FROM message WHERE turn = ? AND replaced_by IS NULL ORDER BY id",  # noqa: S608  constants
            turn_id,
        )
        return list(map(_message_of, rows))

    def before(self, message_id: int | None, limit: int) -> History:
        """The newest messages older than one of them, oldest first."""
        page = self.page(limit, message_id, newest_first=True)
        page["messages"].reverse()
        return page

    def count_since_question(self, message_id: int) -> int:
        """How many messages there are from the user's last up to one of them, which does not count."""
        ((count,),) = self._sql(
            "SELECT count(*) FROM message WHERE id < ?1 AND replaced_by IS NULL"
            " AND id >= (SELECT max(id) FROM message WHERE id <= ?1 AND role = 'user' AND replaced_by IS NULL)",
            message_id,
        )
        return int(count)

    def instructions(self, leading: Sequence[NewMessage] = (), *, before: int = _END) -> list[str]:
        """What the system says before the user says anything, oldest first.

        Args:
            leading: messages that are to be added; what is so among them counts as well.
            before: of messages older than this one.
        """
        rows = self._sql(
            f"SELECT content FROM message WHERE {_IS_INSTRUCTION} ORDER BY id",  # noqa: S608  constants
            before,
        )
        return [*(content for (content,) in rows), *self._instructions_in(leading)]

    def instructions_size_bytes(self, leading: Sequence[NewMessage] = ()) -> int:
        """The same, in bytes."""
        ((size_bytes,),) = self._sql(
            f"SELECT ifnull(sum(octet_length(content)), 0) FROM message WHERE {_IS_INSTRUCTION}",  # noqa: S608  constants
            _END,
        )
        return int(size_bytes) + sum(len(text.encode()) for text in self._instructions_in(leading))

    def _instructions_in(self, leading: Sequence[NewMessage]) -> list[str]:
        return instructions_in(leading) if leading and self.question() is None else []

    def older(self, before: int) -> Older:
        """What was said before one message, as far as a claim tells of it."""
        ((messages, turns, size_bytes),) = self._sql(
            "SELECT count(*), count(*) FILTER (WHERE role = 'user'), ifnull(sum(octet_length(content)), 0)"
            " FROM message WHERE id < ? AND replaced_by IS NULL",
            before,
        )
        instructions = self.instructions(before=before)
        return {
            "instructions": instructions,
            "turns": turns,
            "messages": messages - len(instructions),
            "size_bytes": size_bytes - sum(len(text.encode()) for text in instructions),
        }

    def page(self, limit: int, after: int | None, *, newest_first: bool) -> History:
        """Messages behind one of them, in the order of their numbers or in the other one."""
        limit = max(1, min(limit, HISTORY_PAGE_MAX))
        bound, order = ("<", "DESC") if newest_first else (">", "ASC")
        rows = self._sql(
            f"SELECT {_COLUMNS} FROM message"  # noqa: S608  constants
            # SQLite prepares a statement anew with each value for a `LIMIT ?`, which takes longer than to run it.
            f" WHERE id {bound} ? AND replaced_by IS NULL ORDER BY id {order} LIMIT ? + 0",
            (_END if newest_first else 0) if after is None else after,
            limit + 1,
        )
        return {"messages": list(map(_message_of, rows[:limit])), "has_more": len(rows) > limit}

    def transcript(self, after: int, before: int | None) -> Transcript:
        """The first messages behind message `after`, oldest first: as many as make a page."""
        rows = self._sql(
            f"SELECT {_COLUMNS} FROM message"  # noqa: S608  constants
            " WHERE id > ? AND id < ? AND replaced_by IS NULL ORDER BY id LIMIT ?",
            after,
            _END if before is None else before,
            TRANSCRIPT_PAGE_MAX + 1,
        )
        messages: list[Message] = []
        chars = 0
        for row in rows[:TRANSCRIPT_PAGE_MAX]:
            if chars > TRANSCRIPT_PAGE_CHARS:
                break
            messages.append(_message_of(row))
            chars += len(row[2]) + len(row[4] or "")
        return {"messages": messages, "has_more": len(messages) < len(rows)}

    # -- giving way

    def give_way(self, first: int, turn_id: str) -> None:
        """Hides message `first` and all that follow it, until the turn has ended."""
        self._sql("UPDATE message SET replaced_by = ? WHERE id >= ? AND replaced_by IS NULL", turn_id, first)

    def drop_replaced(self, turn_id: str) -> None:
        self._sql("DELETE FROM message WHERE replaced_by = ?", turn_id)

    def bring_back(self, turn_id: str, *, instead: bool) -> None:
        """Shows again what gave way to the turn; with `instead` in place of the turn's own messages."""
        if instead:
            self._sql("DELETE FROM message WHERE turn = ?", turn_id)
        self._sql("UPDATE message SET replaced_by = NULL WHERE replaced_by = ?", turn_id)


def _message_of(row: Iterable[Any]) -> Message:
    message_id, role, content, tokens, data, created_at = row
    return {
        "id": message_id,
        "role": role,
        "content": content,
        "tokens": tokens,
        "data": None if data is None else json.loads(data),
        "created_at": created_at,
    }
