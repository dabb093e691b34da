"""Has a process ended, as far as others are concerned?

One that was killed holds its files and locks until the kernel has taken it apart, which takes seconds where it had much
memory. It does nothing any more meanwhile.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
# Of the kernel's `struct task_struct`.
_EXITING: Final = 0x4
_STATE, _FLAGS = 0, 6
_KILLED: Final = 1 << (signal.SIGKILL - 1)


def is_ending(pid: int, proc: Path = PROC) -> bool:
    """Whether the process is gone, or was killed and will be.

    Args:
        pid: of the process.
        proc: where the kernel tells of processes.
    """
    folder = proc / str(pid)
    try:
        # Behind the name, which may hold anything.
        stat = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        status = (folder / "status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return True
    if stat[_STATE] in "ZX" or int(stat[_FLAGS]) & _EXITING:
        return True
    pending = [line.split()[1] for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(int(signals, 16) & _KILLED for signals in pending)
