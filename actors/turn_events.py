"""What has happened in a session's turns, in which order?

Events of a turn are numbered from 1 without a gap, over all attempts, and are never changed. What a reader was given
was written down first. They go some time after the turn's end; its row still knows how many there were.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from actors.message import whole
from actors.runtime import InvalidArgument, Storage
from actors.turn import CONTENT, FINAL, EventPage, EventType, NewEvent, TurnEvent, require_recordable
from actors.turn_rows import TurnRows

#: Of a turn's events, as JSON. A model that writes for ever is stopped there.
TURN_CHARS_MAX = 4_000_000
EVENT_PAGE_MAX = 500
EVENT_PAGE_CHARS_MAX = 1_000_000


class TurnEvents:
    """The events of one session's turns.

    Args:
        told: called when a turn has a new event.
    """

    def __init__(self, storage: Storage, rows: TurnRows, *, told: Callable[[], None]) -> None:
        self._storage = storage
        self._sql = storage.sql
        self._rows = rows
        self._told = told

    # -- telling

    def add(self, turn_id: str, event_type: EventType, data: dict[str, Any]) -> None:
        """Adds one of the ledger's own."""
        ((number,),) = self._sql(
            "UPDATE turn SET last_event = last_event + 1 WHERE id = ? RETURNING last_event", turn_id
        )
        self._sql("INSERT INTO turn_event VALUES (?, ?, ?, ?)", turn_id, number, event_type, json.dumps(data))
        self._told()

    def append(self, turn_id: str, after: int, events: Sequence[NewEvent]) -> None:
        """Adds what a runner tells behind event `after`; what is there already is left.

        Raises:
            InvalidArgument: something is missing before the events, or they are none that a runner tells.
        """
        (last_event,) = self._rows.get(turn_id, "last_event")
        if not 0 <= after <= last_event:
            raise InvalidArgument("after", after, f"must be from 0 to {last_event}, the number of the last event")
        new = events[last_event - after :]
        for event in new:
            require_recordable(event)
        if not new:
            return
        rows = [
            (turn_id, number, event["type"], json.dumps(event["data"]))
            for number, event in enumerate(new, start=last_event + 1)
        ]
        self._storage.sql_many("INSERT INTO turn_event (turn, number, type, data) VALUES (?, ?, ?, ?)", rows)
        self._sql(
            "UPDATE turn SET last_event = ?, chars = chars + ? WHERE id = ?",
            last_event + len(new),
            sum(len(row[3]) for row in rows),
            turn_id,
        )
        self._told()

    # -- reading

    def is_full(self, turn_id: str) -> bool:
        """Nothing more is taken in."""
        (chars,) = self._rows.get(turn_id, "chars")
        return bool(chars > TURN_CHARS_MAX)

    def has_content(self, turn_id: str) -> bool:
        """Something of the answer was told."""
        return any(self.has(turn_id, event_type) for event_type in CONTENT)

    def has(self, turn_id: str, event_type: EventType) -> bool:
        return bool(self._sql("SELECT 1 FROM turn_event WHERE turn = ? AND type = ? LIMIT 1", turn_id, event_type))

    def has_begun(self, turn_id: str) -> bool:
        """Something was told but that the turn waits."""
        return bool(
            self._sql("SELECT 1 FROM turn_event WHERE turn = ? AND type <> 'turn.queued' LIMIT 1", turn_id),
        )

    def content(self, turn_id: str) -> Iterator[tuple[EventType, dict[str, Any]]]:
        """What the answer consists of."""
        return self._of(turn_id, *CONTENT)

    def text(self, turn_id: str) -> str:
        """What was told of the answer, where it is nothing but text."""
        return whole("".join(data["text"] for _, data in self._of(turn_id, "text.delta")))

    def sources(self, turn_id: str) -> list[dict[str, Any]] | None:
        """What the answer was made from; None where that was not told."""
        sources = None
        for event_type, data in self._of(turn_id, "sources", "turn.retrying"):
            if event_type == "sources":
                sources = data["sources"]
            elif not data.get("continues"):
                sources = None  # of an attempt that came to nothing
        return sources

    def _of(self, turn_id: str, *types: EventType) -> Iterator[tuple[EventType, dict[str, Any]]]:
        rows = self._sql(
            "SELECT type, data FROM turn_event WHERE turn = ? AND type IN (SELECT value FROM json_each(?))"
            " ORDER BY number",
            turn_id,
            json.dumps(types),
        )
        return ((event_type, json.loads(data)) for event_type, data in rows)

    def page(self, turn_id: str, after: int) -> EventPage:
        """What was written down of a turn. Of one whose events are no longer kept, nothing."""
        status, last_event = self._rows.get(turn_id, "status, last_event")
        events: list[TurnEvent] = []
        chars = 0
        for number, event_type, data in self._sql(
            "SELECT number, type, data FROM turn_event WHERE turn = ? AND number > ? ORDER BY number LIMIT ?",
            turn_id,
            after,
            EVENT_PAGE_MAX,
        ):
            chars += len(data)
            if events and chars > EVENT_PAGE_CHARS_MAX:
                break
            events.append({"number": number, "type": event_type, "data": json.loads(data)})
        read_to = events[-1]["number"] if events else after
        is_over = status in FINAL and (not events or read_to >= last_event)
        return {"events": events, "is_over": is_over}

    def has_news(self, turn_id: str, after: int) -> bool:
        """There are events behind `after`, or will be none."""
        status, last_event = self._rows.get(turn_id, "status, last_event")
        return status in FINAL or last_event > after

    # -- forgetting

    def forget(self, turn_id: str) -> None:
        self._sql("DELETE FROM turn_event WHERE turn = ?", turn_id)

    def forget_ended(self) -> None:
        """Of all turns that have ended, but for those that were taken back: their readers are to hear of it."""
        self._sql(
            "DELETE FROM turn_event WHERE turn IN (SELECT id FROM turn WHERE ended_at IS NOT NULL AND rolled_back = 0)"
        )

    def clear(self) -> None:
        self._sql("DELETE FROM turn_event")
        self._told()
