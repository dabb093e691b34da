"""How does an object become resident?

Its file is opened, made or brought up to date, and its class makes the instance. What that writes is one transaction.
Constructors and migrations are the author's code: whatever they do ends the activation, and not the host.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from actors.runtime import sqlite
from actors.runtime.alarm_turn import commit_with_alarm
from actors.runtime.call import failed
from actors.runtime.object import ClassSpec, DurableObject, ObjectContext
from actors.runtime.schema import Schema
from actors.runtime.services import HostServices
from actors.runtime.spares import Spares
from actors.runtime.storage import Storage

if TYPE_CHECKING:
    from actors.runtime.activation import Activation
    from actors.runtime.namespace import Objects

logger = logging.getLogger("mobula.objects")


class Opener:
    """Opens the objects of one host.

    Args:
        objects_dir: where their files are.
        slots: how many partitions there are.
        database_bytes_max: what one database may grow to.
        classes: by their names.
        schemas: of the same.
        objects: gives all objects, for those that call others.
        spares: files for those that are made.
    """

    def __init__(
        self,
        objects_dir: Path,
        slots: int,
        *,
        database_bytes_max: int,
        classes: Mapping[str, ClassSpec],
        schemas: Mapping[str, Schema],
        objects: Callable[[], Objects],
        spares: Spares | None,
    ) -> None:
        self._objects_dir = objects_dir
        self._slots = slots
        self._database_bytes_max = database_bytes_max
        self._classes = classes
        self._schemas = schemas
        self._objects = objects
        self._spares = spares

    def open(self, activation: Activation, services: HostServices) -> DurableObject:
        """
        Raises:
            ObjectQuarantined: it may not be loaded.
            Exception: whatever the author's code raises; it is counted.
        """
        quarantine = services.quarantine
        quarantine.admit(activation.id)
        try:
            return self._make(activation, services)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the author's code
            # One that would end the process ends the activation, not the host with all its objects.
            failure = error if isinstance(error, Exception) else failed(str(activation.id), error)
            quarantine.activation_failed(activation.id, failure)
            if failure is error:
                raise
            raise failure from error

    def _make(self, activation: Activation, services: HostServices) -> DurableObject:
        object_id = activation.id
        spec = self._classes[object_id.class_name]
        storage = Storage(
            str(object_id),
            object_id.path(self._objects_dir, self._slots),
            self._schemas[object_id.class_name],
            database_bytes_max=self._database_bytes_max,
            takes_alarms=spec.takes_alarms,
            create=sqlite.create if self._spares is None else functools.partial(self._spares.create, spec.name),
        )
        context = ObjectContext(
            id=object_id,
            storage=storage,
            clock=services.clock,
            logger=logging.LoggerAdapter(logger, {"object": str(object_id)}),
            objects=self._objects,
            run_alone=functools.partial(activation.run_alone, storage),
        )
        try:
            instance = _start(spec, context, services)
            if spec.starts_async:
                activation.run_alone(storage, instance.start)
            elif services.quarantine.is_suspect(object_id):
                services.quarantine.activated(object_id)
            return instance
        except BaseException:
            storage.close()
            raise


def _start(spec: ClassSpec, context: ObjectContext, services: HostServices) -> DurableObject:
    storage = context.storage
    storage.begin()
    before = storage.rows_changed
    instance = spec.durable_class(context)
    if getattr(instance, "storage", None) is not storage:
        raise TypeError(f"{spec.name}.__init__ must call super().__init__(context)")
    if not spec.starts_async:
        instance.start()
    storage.require_kept()
    if storage.rows_changed == before:
        storage.end_unchanged()
    else:
        commit_with_alarm(context.id, storage, services)
    return instance
