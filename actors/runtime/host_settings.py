"""What may a host take, and how long may things take in it?"""

from __future__ import annotations

from dataclasses import dataclass

from actors.runtime import sqlite


@dataclass(frozen=True, kw_only=True, slots=True)
class HostSettings:
    """Limits of one host."""

    #: How many partitions all objects of the data directory are divided into. Recorded there for ever.
    slots: int = 256
    #: An object that had no turn for so long hibernates.
    idle_after_s: float = 10.0
    #: One that had none for so long gives back memory before. Who is used again and again is not to pay for that.
    rest_after_s: float = 5.0
    #: Objects open at once; each takes two file descriptors and about 100 kB, or 60 kB while it is at rest. The least
    #: recently used leave first.
    resident_objects_max: int = 1000
    #: Calls waiting for one object, in number, in bytes of their arguments, and in age.
    mailbox_calls_max: int = 1000
    mailbox_bytes_max: int = 32 * 1024 * 1024
    mailbox_age_max_s: float = 30.0
    #: What one object's database may grow to. A write beyond is refused with `StorageFull`.
    database_bytes_max: int = sqlite.DATABASE_BYTES_MAX
    #: A turn that holds the host's loop for longer is logged.
    slow_turn_ms: float = 100.0
    #: An object that has run turns for so long lets its neighbours run.
    slice_ms: float = 20.0
    #: `block_concurrency_while` that takes longer resets the object.
    block_timeout_s: float = 30.0
    #: An alarm's handler that takes longer is ended at an `await`, and tried again as one that raised.
    alarm_timeout_s: float = 900.0
