"""How does a program learn that there is no cluster where it was told to look?"""

from __future__ import annotations

import io
import socket
import time

import pytest

from actors.cli.commands import main

WITHIN_S = 15.0


@pytest.fixture
def nowhere() -> str:
    """An address that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("by", ["option", "environment"])
def test_an_address_where_nobody_listens_is_told_in_one_line_and_soon(
    nowhere: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if by == "environment":
        monkeypatch.setenv("RAY_ADDRESS", nowhere)
    out, err = io.StringIO(), io.StringIO()
    began_s = time.monotonic()
    assert main(["list", *(["--address", nowhere] if by == "option" else [])], out, err) == 1
    assert time.monotonic() - began_s < WITHIN_S
    assert out.getvalue() == ""
    (line,) = err.getvalue().splitlines()
    assert f"no Ray cluster answers at {nowhere}" in line


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "nobody.invalid:6379"])
def test_an_address_that_can_be_nobodys_is_told_as_well(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    out, err = io.StringIO(), io.StringIO()
    assert main(["list", "--address", address], out, err) == 1
    assert address in err.getvalue()
