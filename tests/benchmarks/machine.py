"""On what was it measured?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import psutil

PACKAGES = ("ray", "xllamacpp", "torch", "chromadb")


def description() -> str:
    """One paragraph: processor, memory, system and the packages that matter."""
    memory_gib = psutil.virtual_memory().total / 1024**3
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory_gib:.0f} GiB of memory;"
        f" {platform.system()} {platform.release()}; Python {platform.python_version()}, {versions}."
        f" Load before it began: {os.getloadavg()[0]:.2f}."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
