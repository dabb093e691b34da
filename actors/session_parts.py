"""What do those share who keep one session's turns?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actors.message_log import MessageLog
from actors.runtime import Clock, ObjectId, Storage
from actors.session_row import SessionRow
from actors.turn_events import TurnEvents
from actors.turn_rows import TurnRows
from actors.usage_outbox import UsageOutbox


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionParts:
    """The parts of one session.

    Attributes:
        outbox: Where what a turn has used goes.
        moved: Called when it may be another turn's time, or one is to stop.
        plan: Called when something is to be done for a turn at a time that may come before all others.
    """

    object_id: ObjectId
    storage: Storage
    clock: Clock
    row: SessionRow
    messages: MessageLog
    turns: TurnRows
    events: TurnEvents
    outbox: UsageOutbox
    moved: Callable[[], None]
    plan: Callable[[], None]
