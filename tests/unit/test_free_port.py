"""Is a port that is said to be free really free, and out of everybody's way?"""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from deployments import free_port as module
from deployments.free_port import FIRST, LAST, free_port


def test_a_port_that_is_taken_is_not_chosen() -> None:
    first = free_port(chance=random.Random(7))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        assert free_port(chance=random.Random(7)) != first
    assert free_port(chance=random.Random(7)) == first


def test_the_kernel_gives_none_of_these_ports_to_a_connection() -> None:
    given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    if int(given[0]) <= LAST:
        pytest.skip(f"this machine gives connections ports from {given[0]} on")
    assert all(FIRST <= free_port() <= LAST for _ in range(20))


def test_when_every_port_is_taken_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        monkeypatch.setattr(module, "FIRST", port)
        monkeypatch.setattr(module, "LAST", port)
        with pytest.raises(OSError, match="no free port"):
            free_port()
