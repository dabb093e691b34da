"""Which calls wait for an object, in which order, and for how long?

A `Mailbox` keeps the turns of one object that have not begun, in order of arrival; those of `@interleaved` methods may
overtake others while one is under way. A turn that has waited for too long is told so and never run. How many may wait
is for the host to say, which is asked to put them there.
"""

from __future__ import annotations

from collections import deque

from actors.runtime.errors import DurableError, ObjectOverloaded
from actors.runtime.turn import Turn


class Mailbox:
    """The turns that wait for one object.

    Args:
        object_key: of the object.
        age_max_s: how long a turn waits at most.
    """

    __slots__ = ("_age_max_s", "_interleaved", "_object_key", "_turns", "size_bytes")

    def __init__(self, object_key: str, age_max_s: float) -> None:
        self._object_key = object_key
        self._age_max_s = age_max_s
        # An empty deque takes as much as one of 64, and most objects wait for calls, and not calls for them.
        self._turns: deque[Turn] | tuple[()] = ()
        #: How many of them are of `@interleaved` methods.
        self._interleaved = 0
        #: Of their arguments.
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._turns)

    def put(self, turn: Turn) -> None:
        if isinstance(self._turns, tuple):
            self._turns = deque()
        self._turns.append(turn)
        self.size_bytes += len(turn.arguments)
        self._interleaved += turn.method.interleaved

    def take(self, turn: Turn) -> None:
        assert isinstance(self._turns, deque)
        if self._turns[0] is turn:
            self._turns.popleft()
        else:
            self._turns.remove(turn)
        self.size_bytes -= len(turn.arguments)
        self._interleaved -= turn.method.interleaved

    def next(self, *, beside_another: bool) -> Turn | None:
        """The turn that may run now; `beside_another` that is under way, only an interleaved one."""
        if not self._turns:
            return None
        if not beside_another:
            return self._turns[0]
        if not self._interleaved:
            return None
        return next(turn for turn in self._turns if turn.method.interleaved)

    def has_next(self, *, beside_another: bool) -> bool:
        return bool(self._interleaved if beside_another else self._turns)

    @property
    def has_alarm(self) -> bool:
        return any(turn.is_alarm for turn in self._turns)

    def take_all(self) -> list[Turn]:
        turns = list(self._turns)
        self._turns = ()
        self.size_bytes = self._interleaved = 0
        return turns

    def rest(self) -> None:
        """Gives back the memory that the next turn takes again, while none waits."""
        if not self._turns:
            self._turns = ()

    def take_late(self, now_s: float) -> list[tuple[Turn, DurableError]]:
        """Those that have waited for too long, each with what to tell it."""
        late = [(turn, refusal) for turn in self._turns if (refusal := self.too_late(turn, now_s)) is not None]
        for turn, _ in late:
            self.take(turn)
        return late

    def too_late(self, turn: Turn, now_s: float) -> DurableError | None:
        """What to tell a turn that has waited for too long. An alarm never has."""
        if turn.is_alarm:
            return None
        if now_s - turn.arrived_s > self._age_max_s:
            waited = f"the call waited longer than {self._age_max_s:g} s"
            return ObjectOverloaded(self._object_key, waited, 1.0)
        if turn.trail is not None and now_s >= turn.deadline_s:
            return ObjectOverloaded(self._object_key, "the call waited until its deadline had passed", 1.0)
        return None
