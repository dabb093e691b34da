"""What do these tests open objects with?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.runtime.backend_local import LocalBackend
from actors.runtime.clock import ManualClock
from actors.runtime.host_settings import HostSettings
from tests.objects import Ledger, Notebook

SETTINGS = HostSettings(
    slots=4,
    idle_after_s=10.0,
    rest_after_s=1.0,
    resident_objects_max=8,
    mailbox_calls_max=1000,
    mailbox_bytes_max=4_000_000,
)


@contextmanager
def opened(data_dir: Path, clock: ManualClock | None = None, **changes: Any) -> Iterator[LocalBackend]:
    """A backend on `data_dir`, closed at the end whatever happens."""
    backend = LocalBackend(data_dir, [Notebook, Ledger], settings=replace(SETTINGS, **changes), clock=clock)
    try:
        yield backend
    finally:
        backend.close()
