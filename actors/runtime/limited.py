"""A program: takes limits on itself and becomes another program, which can hang, crash or be killed alone.

    python -I -S actors/runtime/limited.py '{"program": ..., "parent": ..., "limits": ..., "folders": ...}' <asked

Before a byte of what is asked is read, CPU time, memory, the size of files and core dumps are limited, and it is sure
not to outlive the thread that started it. The program reads stdin and writes to stdout: a line when what may take long
begins, and one with its answer. This one imports nothing of the package: that takes longer than most of what is asked.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: str) -> None:
    asked = json.loads(arguments)
    _die_with(asked["parent"])
    for name, value in {**asked["limits"], "RLIMIT_CORE": 0}.items():
        limit = getattr(resource, name)
        # What somebody else has limited further stays so: to raise a limit is not everybody's to do.
        _, most = resource.getrlimit(limit)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(limit, (value, value))
    # Last: nothing there comes before the standard library.
    sys.path.extend(asked["folders"])
    runpy.run_path(asked["program"], run_name="__main__")


def _die_with(parent: int) -> None:
    """A host that is killed leaves nobody behind who reads a file that is the next host's."""
    if sys.platform == "linux":
        # The kernel looks at the thread that started this process. It is the one that waits for the answer.
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
        if os.getppid() != parent:
            os._exit(1)  # it had gone before, and nobody would have been told


if __name__ == "__main__":
    main(sys.argv[1])
