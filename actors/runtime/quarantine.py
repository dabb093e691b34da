"""Which objects may not be loaded, because they would take their host down once more?

A host counts what its objects did to it: a method that ended the process, an activation that failed. What did so time
after time with no success in between is quarantined: refused before its file is opened, so that its neighbours go on.
That is recorded beside the object's database, holds across restarts, and ends when somebody releases the object or when
a host with other code loads it: until then the record stays, for the old code may come back. What was done by chance,
such as running while somebody killed the host, is struck out by the next success of the same method.

A method that ends the process for some arguments only, and returns for others in between, is never quarantined; nor is
one that breaks something which ends the process later, in another's turn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from actors.runtime import trouble
from actors.runtime.clock import Clock
from actors.runtime.errors import DurableError, InvalidArgument, ObjectQuarantined, SchemaTooNew
from actors.runtime.object_id import ObjectId
from actors.runtime.running import ACTIVATION, bounded_method
from actors.runtime.trouble import Strikes, Trouble, bounded

logger = logging.getLogger("mobula.objects")

#: Crashes of one method in a row. The host is down for a second or two with each, so there are few.
CRASHES_MAX = 3
#: Activations that failed in a row. They cost nobody else anything.
FAILURES_MAX = 5
#: Strikes older than this are forgotten: what happens once a month is no row.
STRIKES_KEPT_S = 86_400.0
#: Objects that one host keeps count of, each with a file and about 1 kB of memory. Broken code may make trouble in all
#: objects there are; above this the ones that did least and longest ago are forgotten, and may begin again.
TROUBLED_MAX = 10_000
_ENDINGS = (f".{trouble.ENDING}", f".{trouble.UNFINISHED_ENDING}")


class Quarantine:
    """What one host holds against its objects. Only the owner of the objects may have one; belongs to one event loop.

    Where the disk takes no record it is kept in memory alone, and the log says so.

    Args:
        objects_dir: where the classes' folders are.
        slots: the data directory's number of slots.
        code: names the code that this host runs. What other code did is forgotten when the object is loaded.
        clock: for when something happened.
        troubled_max: of how many objects to keep count.
        judges: forgets and records. Else it holds against an object whatever any code has recorded, and changes nothing
            but what somebody releases: for who looks after objects, with whatever code that may be.
    """

    def __init__(
        self,
        objects_dir: Path,
        slots: int,
        *,
        code: str,
        clock: Clock,
        troubled_max: int = TROUBLED_MAX,
        judges: bool = True,
    ) -> None:
        self._objects_dir = objects_dir
        self._slots = slots
        self._code = bounded(code)
        self._clock = clock
        self._troubled_max = troubled_max
        self._judges = judges
        self._troubled: dict[ObjectId, Trouble] = {}
        #: Whose record is other code's, and still there.
        self._outdated: set[ObjectId] = set()

    # -- at start

    def load(self, paths: Iterable[Path], owns: Callable[[ObjectId], bool]) -> None:
        """Learns what earlier hosts recorded.

        Args:
            paths: the files in the folders of the host's slots; those that are no records are passed over. They may be
                removed meanwhile.
            owns: whether an object is the host's. In its slots are others as well, and their records are not its to
                touch.
        """
        for path in paths:
            if path.suffix not in _ENDINGS or (object_id := self._id_of(path)) is None or not owns(object_id):
                continue
            if path.suffix == _ENDINGS[0]:
                self.known(object_id)
            elif self._judges:
                self._remove_file(path, durable=False)

    def known(self, object_id: ObjectId) -> Trouble | None:
        """What is held against the object, read from its file if this host has not met it yet. None: nothing.

        A record that can't be read counts for nothing, and makes the object a suspect whose next success removes it.
        """
        if object_id in self._troubled:
            return self._troubled[object_id]
        path, now = self._path(object_id), self._clock.now()
        try:
            recorded = trouble.read(path, object_id)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.error("object=%s its record of troubles is damaged: %s", object_id, bounded(str(error)))
            if not self._judges:
                return None
            recorded = Trouble(id=object_id, code=self._code, first_at=now, last_at=now)
            self._keep(recorded)
            return recorded
        if self._judges and recorded.code != self._code:
            logger.info("object=%s its troubles were with other code: %s", object_id, recorded.reason or "few")
            self._outdated.add(object_id)
            return None
        found = self._still_held(recorded, now)
        if found is None:
            self._remove_file(path, durable=False)
        else:
            self._keep(found)
        return found

    # -- what happens to objects

    def admit(self, object_id: ObjectId) -> None:
        """The object is about to be loaded: what other code has recorded of it is over.

        Raises:
            ObjectQuarantined: it may not be.
        """
        if (refusal := self.refusal(object_id)) is not None:
            raise refusal
        if object_id in self._outdated:
            self._forget(object_id, durable=True)

    def crashed(self, object_id: ObjectId, method: str) -> Trouble:
        """A host died while it ran this method of the object; `ACTIVATION` stands for making it resident.

        Tell it before the mark that says so is cleared.
        """
        now, method = self._clock.now(), bounded_method(method)
        before = self._count_from(object_id, now)
        others = [strikes for strikes in before.strikes if strikes.method != method]
        crashes = 1 + sum(strikes.crashes for strikes in before.strikes if strikes.method == method)
        strikes = (*others, Strikes(method=method, crashes=crashes, last_at=now))[-trouble.METHODS_MAX :]
        after = replace(before, strikes=strikes, method=method, last_at=now)
        logger.error("object=%s method=%s ended its host, time %d of %d", object_id, method, crashes, CRASHES_MAX)
        if crashes >= CRASHES_MAX:
            after = self._quarantined(after, f"its {method} ended the host's process {crashes} times in a row", now)
        # Durable whatever comes of it: the next crash may be the machine's.
        return self._record(after, durable=True)

    def activation_failed(self, object_id: ObjectId, error: Exception) -> Trouble | None:
        """The object could not be made resident. None: it was not the object's fault, and is not held against it."""
        if isinstance(error, SchemaTooNew) or (isinstance(error, DurableError) and error.retryable):
            return None  # the disk's, a rival's or the runtime's own, or that of newer code
        now = self._clock.now()
        before = self._count_from(object_id, now)
        failures = before.failures + 1
        after = replace(before, failures=failures, failed_at=now, last_at=now, error=_told(error))
        if failures >= FAILURES_MAX:
            after = self._quarantined(after, f"its activation failed {failures} times in a row: {after.error}", now)
        # With broken code there is one of these per call. A count that a power cut takes back does no harm.
        return self._record(after, durable=after.quarantined_at is not None)

    def succeeded(self, object_id: ObjectId, method: str) -> None:
        """The method returned or raised, and the host lives: a whole turn, not one step between two awaits."""
        found = self._troubled.get(object_id)
        if found is not None:
            method = bounded_method(method)
            left = tuple(strikes for strikes in found.strikes if strikes.method != method)
            self._settle(found, replace(found, strikes=left))

    def activated(self, object_id: ObjectId) -> None:
        """The object is resident."""
        found = self._troubled.get(object_id)
        if found is not None:
            left = tuple(strikes for strikes in found.strikes if strikes.method != ACTIVATION)
            self._settle(found, replace(found, strikes=left, failures=0))

    # -- what follows

    def is_suspect(self, object_id: ObjectId) -> bool:
        """Whether `succeeded` and `activated` want to know of it. Asked for every turn, and nearly always no."""
        return bool(self._troubled) and object_id in self._troubled

    def refusal(self, object_id: ObjectId) -> ObjectQuarantined | None:
        """Why the object may not be loaded. Reads nothing from disk."""
        found = self._troubled.get(object_id) if self._troubled else None
        if found is None or found.quarantined_at is None:
            return None
        return ObjectQuarantined(str(object_id), found.reason, found.quarantined_at)

    def quarantined(self) -> list[Trouble]:
        """Those that are refused, the longest first."""
        found = [(held.quarantined_at, held) for held in self._troubled.values() if held.quarantined_at is not None]
        return [held for _, held in sorted(found, key=lambda pair: pair[0])]

    def release(self, object_id: ObjectId) -> bool:
        """Forgets all that is held against the object, as also when it is deleted. Says whether it was quarantined."""
        found = self.known(object_id)
        if found is None:
            if object_id in self._outdated:
                self._forget(object_id, durable=True)
            return False
        was_quarantined = found.quarantined_at is not None
        if was_quarantined:
            logger.info("object=%s released from quarantine: %s", object_id, found.reason)
        self._forget(object_id, durable=was_quarantined)
        return was_quarantined

    # -- inside

    def _count_from(self, object_id: ObjectId, now: float) -> Trouble:
        """What to add to: without what is too old to count."""
        found = self.known(object_id)
        held = self._still_held(found, now) if found else None
        return held or Trouble(id=object_id, code=self._code, first_at=now, last_at=now)

    def _still_held(self, found: Trouble, now: float) -> Trouble | None:
        if found.quarantined_at is not None or not self._judges:
            return found
        # In the future lies what a wrong clock recorded, and it would never grow old.
        recent = tuple(strikes for strikes in found.strikes if abs(now - strikes.last_at) <= STRIKES_KEPT_S)
        failures = found.failures if abs(now - found.failed_at) <= STRIKES_KEPT_S else 0
        left = replace(found, strikes=recent, failures=failures)
        return None if left.empty else left

    def _quarantined(self, after: Trouble, reason: str, now: float) -> Trouble:
        if after.quarantined_at is not None:
            return after  # by an earlier reason: what fails now had been let in before
        reason = bounded(reason)
        logger.error("object=%s quarantined: %s", after.id, reason)
        return replace(after, quarantined_at=now, reason=reason)

    def _settle(self, before: Trouble, after: Trouble) -> None:
        if not self._judges:
            return
        if after.empty:
            self._forget(after.id, durable=False)
        elif after != before:
            self._record(after, durable=False)

    def _record(self, after: Trouble, *, durable: bool) -> Trouble:
        if not self._judges:
            return after
        self._outdated.discard(after.id)
        self._keep(after)
        try:
            trouble.write(self._path(after.id), after, durable=durable)
        except OSError as error:
            logger.error("object=%s its troubles are known to this process alone: %s", after.id, error)
        return after

    def _keep(self, found: Trouble) -> None:
        if self._judges and found.id not in self._troubled and len(self._troubled) >= self._troubled_max:
            # Some at once: to look for one among all takes as long.
            going = sorted(self._troubled.values(), key=_weight)[: max(1, self._troubled_max // 16)]
            logger.error("objects=%d make trouble; forgetting %d", len(self._troubled), len(going))
            for lesser in going:
                self._forget(lesser.id, durable=False)
        self._troubled[found.id] = found

    def _forget(self, object_id: ObjectId, *, durable: bool) -> None:
        self._troubled.pop(object_id, None)
        self._outdated.discard(object_id)
        self._remove_file(self._path(object_id), durable=durable)

    def _remove_file(self, path: Path, *, durable: bool) -> None:
        try:
            trouble.remove(path, durable=durable)
        except OSError as error:
            logger.error("path=%s can't be removed, and will be found again: %s", path, error)

    def _path(self, object_id: ObjectId) -> Path:
        return trouble.path_of(object_id, self._objects_dir, self._slots)

    @staticmethod
    def _id_of(path: Path) -> ObjectId | None:
        """Whose record it is, by its place alone. One in the wrong slot is not looked at: the object's own place is."""
        try:
            return ObjectId.from_key(path.parent.parent.name, path.stem)
        except InvalidArgument:
            logger.warning("path=%s is the record of no object", path)
            return None


def _weight(found: Trouble) -> tuple[bool, bool, float]:
    """The least first: what was done to a host weighs more than what an object did to itself."""
    quarantined = found.quarantined_at is not None
    return quarantined and bool(found.strikes), quarantined, found.last_at


def _told(error: Exception) -> str:
    try:
        message = str(error)
    except Exception:  # the error's own code, which may raise anything
        message = "an error that can't be shown"
    told = bounded(f"{type(error).__name__}: {message}")
    return told.encode(errors="backslashreplace").decode()  # lone surrogates, which not everything can show
