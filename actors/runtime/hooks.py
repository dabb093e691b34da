"""What must other parts of the runtime tell those who look after objects?

Alarms and quarantine have keepers of their own. An `Inspector` asks them through these, and where there are none it
goes by what stands beside an object's database.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from actors.runtime.connection import ObjectConnection
from actors.runtime.object_files import ObjectFiles
from actors.runtime.object_id import ObjectId


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """What other parts of the runtime know of an object."""

    #: Runs the object's alarm now. False: it has none.
    fire_alarm: Callable[[ObjectId], Awaitable[bool]]
    #: Whether an object with a record of trouble is kept from running.
    quarantined: Callable[[ObjectId], bool]
    #: Lets it run again. False: nothing kept it from that.
    release: Callable[[ObjectId], bool]
    #: When the alarm that a database holds is due.
    read_alarm: Callable[[ObjectConnection], float | None]


def hooks_of_files(files: ObjectFiles) -> Hooks:
    """What the files alone tell."""

    async def no_alarm(_: ObjectId) -> bool:
        return False

    def release(object_id: ObjectId) -> bool:
        path = files.trouble(object_id)
        released = path.exists()
        path.unlink(missing_ok=True)
        return released

    return Hooks(
        fire_alarm=no_alarm,
        quarantined=lambda object_id: files.trouble(object_id).exists(),
        release=release,
        read_alarm=lambda _: None,
    )
