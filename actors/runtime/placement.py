"""Where does an object live?

`pooled`: with many others in one of the pool's hosts, chosen by its slot. `dedicated`: in a Ray actor of its own, named
by its key. Which of the two is a matter of class and tenant. The object's file is the same either way.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from actors.runtime.class_migration import ClassMigration
from actors.runtime.host_settings import HostSettings
from actors.runtime.object import ClassSpec, DurableObject
from actors.runtime.object_id import ObjectId
from actors.runtime.slot import host_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """All that hosts and stubs of one data directory must agree on."""

    data_dir: Path
    classes: tuple[type[DurableObject], ...]
    settings: HostSettings = field(default_factory=HostSettings)
    #: Pool hosts; about one a core.
    hosts: int = 2
    #: (tenant, class name) of the objects that get an actor each.
    dedicated: frozenset[tuple[str, str]] = frozenset()
    #: Dedicated actors alive at once on each node that may hold them; each takes about 50 MB.
    dedicated_max: int = 16
    #: A custom Ray resource that a node must have to run hosts: there, the data directory is mounted.
    host_resource: str | None = None
    #: How the classes came to be what they are. None takes them as they come and records nothing, for trials.
    history: tuple[ClassMigration, ...] | None = None

    @property
    def specs(self) -> list[ClassSpec]:
        return [ClassSpec(durable_class) for durable_class in self.classes]

    @property
    def fingerprint(self) -> str:
        """Tells clusters apart that differ in settings or code, so that hosts of an older deployment are replaced."""
        digest = hashlib.blake2b(digest_size=8)
        classes = [f"{durable_class.__module__}.{durable_class.__qualname__}" for durable_class in self.classes]
        plain = (self.data_dir, self.settings, self.hosts, sorted(self.dedicated), self.dedicated_max, sorted(classes))
        digest.update(repr((plain, self.host_resource, self.history)).encode())
        digest.update(code_of(self.classes).encode())
        return digest.hexdigest()


def code_of(classes: Iterable[type[DurableObject]]) -> str:
    """Names the code that decides how objects behave."""
    digest = hashlib.blake2b(digest_size=8)
    for source in _sources(classes):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _sources(classes: Iterable[type[DurableObject]]) -> list[Path]:
    """The files that decide how objects behave: the classes' own, and the runtime's."""
    modules = {sys.modules[durable_class.__module__] for durable_class in classes}
    # A class that was typed into an interpreter is in no file.
    own = {Path(file) for module in modules if (file := getattr(module, "__file__", None))}
    return sorted(own | set(Path(__file__).parent.rglob("*.py")))


class Placement:
    """The pure part: which host an object's calls go to."""

    def __init__(self, cluster: Cluster) -> None:
        self._slots = cluster.settings.slots
        self._host_of_slot = [host_of(slot, cluster.hosts) for slot in range(self._slots)]
        self._dedicated = cluster.dedicated

    def is_dedicated(self, object_id: ObjectId) -> bool:
        return (object_id.tenant, object_id.class_name) in self._dedicated

    def pool_host(self, object_id: ObjectId) -> int:
        return self._host_of_slot[object_id.slot(self._slots)]
