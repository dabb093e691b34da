"""Which objects does a host know, how many at most, and which of them leaves for a newcomer?

An object is known from its first call until it has hibernated and nothing of it runs or waits. The least recently used
of those that are idle leaves first; where none is idle, the newcomer is refused.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator

from actors.runtime.activation import Activation
from actors.runtime.clock import Clock
from actors.runtime.errors import ObjectOverloaded
from actors.runtime.object_id import ObjectId

#: Class, tenant and name.
Parts = tuple[str, str, str]


class Residents:
    """The activations of one host, least recently used first.

    Args:
        host_name: who it is, for those that are refused.
        objects_max: how many there may be.
        clock: tells the time.
        make: makes the activation of a newcomer, or refuses it.
        run: runs what waits for some of them.
    """

    def __init__(
        self,
        host_name: str,
        objects_max: int,
        clock: Clock,
        *,
        make: Callable[[ObjectId], Activation],
        run: Callable[[Iterable[Activation]], None],
    ) -> None:
        self._host_name = host_name
        self._objects_max = objects_max
        self._clock = clock
        self._make = make
        self._run = run
        self._activations: OrderedDict[ObjectId, Activation] = OrderedDict()
        self._ids: dict[Parts, ObjectId] = {}
        #: As many as there may be were busy when a newcomer asked, and nothing has run since.
        self._all_busy = False
        self._began_s = clock.monotonic()
        #: Those that had been idle for long enough when all were looked at last.
        self._leaving: deque[Activation] = deque()
        #: Those that had not been used for a while, and when they were looked for.
        self._tired: deque[Activation] = deque()
        self._tired_at_s = -math.inf

    def __len__(self) -> int:
        return len(self._activations)

    def __iter__(self) -> Iterator[Activation]:
        return iter(self._activations.values())

    def find(self, object_id: ObjectId) -> Activation | None:
        return self._activations.get(object_id)

    def take(self, parts: Parts, ready: dict[ObjectId, Activation]) -> Activation:
        """The object of this name, which is the most recently used one now.

        Args:
            parts: of its id.
            ready: those with calls of the same batch, which are run first if there has to be room, and then no more in
                it.

        Raises:
            NotOwner: it is not this host's.
            ObjectOverloaded: there is no room for it.
        """
        object_id = self._ids.get(parts)
        if object_id is not None:
            self._activations.move_to_end(object_id)
            return self._activations[object_id]
        object_id = ObjectId(*parts)
        activation = self._make(object_id)
        if len(self._activations) >= self._objects_max:
            self._make_room(object_id, ready)
        self._ids[parts] = object_id
        self._activations[object_id] = activation
        return activation

    def _make_room(self, object_id: ObjectId, ready: dict[ObjectId, Activation]) -> None:
        if ready:  # what waits in this very batch is not idle until it has run
            self._run(ready.values())
            ready.clear()
        # Not looked for with each of a thousand newcomers: to refuse one must cost less than to run it.
        if not self._all_busy:
            for activation in self:
                if activation.idle:
                    self.evict(activation)
                    return
            self._all_busy = True
        busy = f"all {len(self._activations)} objects of {self._host_name} are busy"
        raise ObjectOverloaded(str(object_id), busy, 1.0)

    def something_runs(self) -> None:
        """One that was busy may be idle when a newcomer asks next."""
        self._all_busy = False

    def evict(self, activation: Activation) -> None:
        """Lets an idle one hibernate, and forgets it."""
        activation.close()
        del self._activations[activation.id]
        del self._ids[(activation.id.class_name, activation.id.tenant, activation.id.name)]

    def evict_idle(self, idle_after_s: float, slice_s: float) -> int:
        """Lets those hibernate that were idle for long enough, until `slice_s` are over. Returns how many did.

        All are looked at only when those found before have left.
        """
        self._all_busy = False
        now_s = self._clock.monotonic()
        idle_since_s = now_s - idle_after_s
        if not self._leaving:
            self._leaving.extend(each for each in self if each.idle and each.last_used_s <= idle_since_s)
        left = 0
        while self._leaving:
            activation = self._leaving.popleft()
            # It may have been called, or have left, since it was found.
            if self.find(activation.id) is activation and activation.idle and activation.last_used_s <= idle_since_s:
                self.evict(activation)
                left += 1
                if self._clock.monotonic() - now_s >= slice_s:
                    break
        return left

    def rest_unused(self, rest_after_s: float, slice_s: float) -> bool:
        """Lets those rest that were not used for `rest_after_s`, until `slice_s` are over. False: all of them do.

        Twice as often at most, all are looked at.
        """
        now_s = self._clock.monotonic()
        unused_since_s = now_s - rest_after_s
        if not self._tired and now_s - self._tired_at_s >= rest_after_s / 2:
            self._tired_at_s = now_s
            self._tired.extend(each for each in self if each.may_rest(unused_since_s))
        while self._tired:
            activation = self._tired.popleft()
            if activation.may_rest(unused_since_s):  # else it was called, or has left, since it was found
                activation.rest()
                if self._clock.monotonic() - now_s >= slice_s:
                    break
        return bool(self._tired)

    @property
    def are_leaving(self) -> bool:
        """Some were found that are to hibernate, and have not yet."""
        return bool(self._leaving)

    @property
    def idle(self) -> bool:
        return all(activation.idle for activation in self)

    @property
    def idle_for_s(self) -> float:
        """Seconds since the last turn ended; 0 while there is one."""
        if not self.idle:
            return 0.0
        used_s = max((activation.last_used_s for activation in self), default=self._began_s)
        return self._clock.monotonic() - used_s

    def abandon(self, reason: str) -> None:
        """Closes them all, whatever they do."""
        for activation in self:
            activation.abandon(reason)
        self._leaving.clear()
        self._tired.clear()
        self._activations.clear()
        self._ids.clear()
