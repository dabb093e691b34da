"""How is an alarm's handler run, and what becomes of the alarm then?

A handler that returns has used the alarm up, unless it has set another. One that raises is tried again, and given up
after `RETRIES_MAX` times. What fails and is not the handler's doing, such as the disk, counts for nothing: then the
alarm stays as it is, and is fired again later.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable

from actors.runtime import sqlite
from actors.runtime.alarm import RETRIES_MAX, AlarmInfo, retry_after_s
from actors.runtime.alarms import key_of
from actors.runtime.errors import DurableError
from actors.runtime.object import DurableObject
from actors.runtime.object_id import ObjectId
from actors.runtime.services import HostServices
from actors.runtime.storage import Storage

logger = logging.getLogger("mobula.objects")


class AlarmTurn:
    """One time that an object's alarm is due, or that somebody says so (`forced`)."""

    def __init__(self, object_id: ObjectId, instance: DurableObject, services: HostServices, *, forced: bool) -> None:
        self._id = object_id
        self._instance = instance
        self._storage = instance.storage
        self._services = services
        self._forced = forced
        self._before: tuple[float, float, int] | None = None

    async def handle(self) -> bool:
        """Runs the handler. False: there is no alarm, or its time has not come."""
        alarm = self._storage.alarm
        self._before = before = alarm.row
        if before is None or (before[0] > self._services.clock.now() and not self._forced):
            return False
        self._storage.alarm_is_in_flight()
        handled = self._instance.alarm(AlarmInfo(scheduled_at=before[1], retry_count=before[2]))
        if inspect.isawaitable(handled):
            await handled
        if not self._is_settled():
            alarm.delete()
        return True

    def _is_settled(self) -> bool:
        """Whether another was set, perhaps for the same time, or it was deleted. The author may have undone either."""
        alarm = self._storage.alarm
        return not alarm.in_flight and (alarm.row != self._before or alarm.last_set == alarm.at)

    def try_again(self, error: Exception, commit: Callable[[Storage], None]) -> DurableError | None:
        """The handler raised: puts the alarm off, or gives it up.

        Returns:
            What to reset the object with if that was not possible.
        """
        storage, services = self._storage, self._services
        if storage.deleted:
            return None  # and its alarm with it
        try:
            is_settled = self._before is None or self._is_settled()
            storage.alarm.in_flight = False
            storage.begin()
            if self._before is not None and not is_settled:
                retries = self._before[2]
                if retries < RETRIES_MAX:
                    pause_s = retry_after_s(retries + 1, services.chance())
                    logger.warning("object=%s alarm failed, again in %.1f s: %s", self._id, pause_s, error)
                    storage.alarm.retry(services.clock.now() + pause_s)
                else:
                    logger.error("object=%s alarm given up after %d retries: %s", self._id, retries, error)
                    storage.alarm.delete()
            commit(storage)
        except (DurableError, sqlite.Error) as lost:
            meaning = lost if isinstance(lost, DurableError) else storage.explain(lost, "put the alarm off")
            defer_alarm(self._id, services, meaning)
            return meaning
        self.index_follows()
        return None

    def index_follows(self) -> None:
        """Puts the index right, and has it fire the alarm that there is now."""
        try:
            self._services.alarms.set(self._id, self._storage.alarm.at)
        except (OSError, sqlite.Error) as error:
            _lags_behind(self._id, error)


def defer_alarm(object_id: ObjectId, services: HostServices, error: Exception) -> None:
    """Has the alarm fired again later. Nothing is written: what failed may be the disk."""
    pause_s = retry_after_s(services.alarms.failed(object_id), services.chance())
    logger.warning("object=%s alarm was not possible, again in %.1f s: %s", object_id, pause_s, error)
    services.alarms.defer(object_id, services.clock.now() + pause_s)


def commit_with_alarm(object_id: ObjectId, storage: Storage, services: HostServices) -> None:
    """Makes a transaction durable, with the index of alarms before it or after it, so that none is ever lost.

    Raises:
        ObjectReset, StorageFull: nothing of the transaction was kept, and this storage can't be used any more.
    """
    alarm, alarms = storage.alarm, services.alarms
    if not alarm.changed and not storage.delete_requested:
        services.commit(object_id, storage)
        return
    key = key_of(object_id)
    try:
        at = None if storage.delete_requested else alarm.at
        if alarms.is_too_late(key, at):
            alarms.set(object_id, at)
            storage.folder_was_synced()
    except (OSError, sqlite.Error) as error:
        raise storage.explain(error, "set the alarm") from error
    services.commit(object_id, storage)
    alarm.changed = False
    if alarms.differs(key, at):
        try:
            alarms.set(object_id, at)
        except OSError as error:
            _lags_behind(object_id, error)


def _lags_behind(object_id: ObjectId, error: Exception) -> None:
    # The entry comes too soon, and is put right when it does.
    logger.warning("object=%s alarm index lags behind: %s", object_id, error)
