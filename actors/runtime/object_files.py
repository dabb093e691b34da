"""What lies in the folders of a host's objects?

Databases (`<stem>.sqlite`, with their logs), alarms (`<stem>.a<milliseconds>`) and records of trouble
(`<stem>.trouble`). Names are all that is looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def files_in(objects_dir: Path, classes: Iterable[str], slots: Iterable[int]) -> Iterator[Path]:
    """Every file in those slots of those classes, in no order. Files may come and go meanwhile."""
    wanted = {f"{slot:03d}" for slot in slots}
    for class_name in classes:
        folder = objects_dir / class_name
        for slot in _names(folder):
            if slot in wanted:
                for name in _names(folder / slot):
                    yield folder / slot / name


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
