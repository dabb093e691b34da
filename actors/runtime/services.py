"""What does a host give to all its objects?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.runtime.alarms import AlarmIndex
from actors.runtime.clock import Clock
from actors.runtime.object import DurableObject
from actors.runtime.object_id import ObjectId
from actors.runtime.quarantine import Quarantine
from actors.runtime.storage import Storage
from actors.runtime.watch import Watch

if TYPE_CHECKING:
    from actors.runtime.activation import Activation


@dataclass(frozen=True, kw_only=True, slots=True)
class HostServices:
    """What a host gives to all its activations."""

    clock: Clock
    alarms: AlarmIndex
    watch: Watch
    quarantine: Quarantine
    #: Makes the instance; raises whatever the author's code does.
    open_object: Callable[[Activation, HostServices], DurableObject]
    #: Makes a transaction durable.
    commit: Callable[[ObjectId, Storage], None]
    #: Runs an activation's mailbox when something that kept it from running is over.
    resume: Callable[[Activation], None]
    #: From 0 to 1; spreads retries.
    chance: Callable[[], float]
    mailbox_age_max_s: float
    #: An object that has run for so long lets others run.
    slice_s: float
    block_timeout_s: float
    alarm_timeout_s: float
    #: Objects hibernate after each of their turns.
    always_evict: bool
