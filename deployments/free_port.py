"""Which port can a server that starts a little later have to itself?

Not one that the kernel chooses: it chooses among those that it also gives to connections and to the servers of Ray,
and there are hundreds of both between the choice and the start. These are below its range, and outside those of Serve
and of Ray's own (https://docs.ray.io/en/latest/ray-core/configure.html#ports-configurations).
"""

from __future__ import annotations

import random
import socket
from typing import Final

FIRST: Final = 20_000
LAST: Final = 29_999
TRIES_MAX: Final = 100


def free_port(*, chance: random.Random | None = None) -> int:
    """A port on which nothing listens on loopback at present.

    Args:
        chance: What chooses; by default the system's randomness, so that two processes choose differently.

    Raises:
        OSError: `TRIES_MAX` ports were tried, and each was taken.
    """
    chance = chance or random.SystemRandom()
    for _ in range(TRIES_MAX):
        port = chance.randint(FIRST, LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError(f"no free port found between {FIRST} and {LAST} in {TRIES_MAX} tries")
