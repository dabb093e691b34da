"""What passes a host's door, in which order, and what is told to those who wait when it is shut on them?"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import stat
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from actors.runtime.backend_ray.door import REQUEST_BYTES_MAX, Door, Line, connect, door_of
from actors.runtime.call import RETURNED, Call, HostLost, HostRetired, Reply
from actors.runtime.errors import ObjectFailed
from actors.runtime.lane import BATCH_BYTES_MAX, CALL_BYTES_MAX
from tests.conformance.support import ticks


class Host:
    """Answers each call with its method's name, and a ticket when the test says so."""

    def __init__(self) -> None:
        self.refusal: Exception | None = None
        self.methods: list[list[str]] = []
        self.tickets: dict[str, asyncio.Future[Reply]] = {}

    def answer(self, calls: list[Call]) -> list[Reply]:
        if self.refusal is not None:
            raise self.refusal
        self.methods.append([call[3] for call in calls])
        return [(RETURNED, call[3] + str(len(call[4]))) for call in calls]

    async def wait(self, ticket: str) -> Reply:
        self.tickets[ticket] = asyncio.get_running_loop().create_future()
        return await self.tickets[ticket]


def call(method: str, size_bytes: int = 0) -> Call:
    return "Class", "tenant", "name", method, bytes(size_bytes), "", None


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # Longer than what a socket may be called.
    folder = tmp_path / ("long" * 30)
    (folder / "slots").mkdir(parents=True)
    return door_of(folder, "host-0")


@pytest.fixture
async def door(host: Host, path: Path) -> AsyncIterator[Door]:
    door = Door("host-0", host.answer, host.wait)
    assert door.open(path)
    yield door
    door.close()


@pytest.fixture
async def line(door: Door, path: Path) -> Line:
    line = await connect("host-0", path)
    assert line is not None
    return line


async def ask(line: Line, asked: list[Call] | str) -> object:
    return await line.ask(asked)


async def test_each_batch_gets_its_own_replies(line: Line) -> None:
    batches = [[call(f"{batch}-{number}") for number in range(3)] for batch in range(20)]

    answers = await asyncio.gather(*[ask(line, calls) for calls in batches])

    assert answers == [[(RETURNED, f"{batch}-{number}0") for number in range(3)] for batch in range(20)]


async def test_what_is_larger_than_a_socket_holds_arrives_whole(line: Line, host: Host) -> None:
    assert await ask(line, [call("large", 5_000_000)]) == [(RETURNED, "large5000000")]

    waiting = asyncio.ensure_future(ask(line, "ticket"))
    while not host.tickets:
        await asyncio.sleep(0)
    host.tickets["ticket"].set_result((RETURNED, bytes(20_000_000)))
    assert await waiting == (RETURNED, bytes(20_000_000))


async def test_what_waits_holds_up_no_other(line: Line, host: Host) -> None:
    waiting = asyncio.ensure_future(ask(line, "ticket"))

    assert await ask(line, [call("quick")]) == [(RETURNED, "quick0")]
    host.tickets["ticket"].set_result((RETURNED, "late"))

    assert await waiting == (RETURNED, "late")


async def test_what_the_host_raises_is_raised(line: Line, host: Host) -> None:
    host.refusal = HostRetired()

    with pytest.raises(HostRetired):
        await ask(line, [call("x")])


async def test_what_can_not_travel_arrives_as_an_error_all_the_same(line: Line, host: Host) -> None:
    class Local(Exception):
        pass

    host.refusal = Local("only here")

    with pytest.raises(ObjectFailed, match="only here"):
        await ask(line, [call("x")])


async def test_an_answer_that_nobody_waits_for_any_more_disturbs_nobody(line: Line) -> None:
    given_up = asyncio.ensure_future(ask(line, [call("given up")]))
    await ticks()
    given_up.cancel()

    assert await ask(line, [call("next")]) == [(RETURNED, "next0")]


async def test_a_small_batch_does_not_overtake_the_largest_that_there_can_be(line: Line, host: Host) -> None:
    largest = [call("a", BATCH_BYTES_MAX - 1), call("largest", CALL_BYTES_MAX)]

    first, second = line.ask(largest), line.ask([call("next")])

    assert await second == [(RETURNED, "next0")]
    assert await first == [(RETURNED, f"a{BATCH_BYTES_MAX - 1}"), (RETURNED, f"largest{CALL_BYTES_MAX}")]
    assert host.methods == [["a", "largest"], ["next"]]


async def test_a_stranger_who_announces_too_much_is_shown_out(door: Door, path: Path) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.setblocking(False)
        folder = os.open(path.parent, os.O_RDONLY)
        await loop.sock_connect(stranger, f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
        await loop.sock_sendall(stranger, struct.pack(">Q", REQUEST_BYTES_MAX + 1))

        assert await loop.sock_recv(stranger, 1) == b""


async def test_only_its_own_user_may_come_to_the_door(door: Door, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_door_that_a_killed_host_left_leads_nowhere_until_it_is_replaced(path: Path, host: Host) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    assert path.exists()
    assert await connect("host-0", path) is None

    door = Door("host-0", host.answer, host.wait)
    assert door.open(path)
    line = await connect("host-0", path)

    assert line is not None
    assert await ask(line, [call("x")]) == [(RETURNED, "x0")]
    door.close()


async def test_all_who_wait_on_a_line_that_breaks_are_told_so(door: Door, line: Line, host: Host) -> None:
    waiting = [asyncio.ensure_future(ask(line, ticket)) for ticket in ("a", "b")]
    while len(host.tickets) < 2:
        await asyncio.sleep(0)
    for wire in list(door._wires):
        wire.close()  # as the end of its process does

    for one in waiting:
        with pytest.raises(HostLost):
            await one
    assert not line.is_usable
    for ticket in host.tickets.values():
        ticket.cancel()


async def test_a_door_that_is_closed_admits_nobody_and_keeps_who_is_in(door: Door, line: Line, path: Path) -> None:
    door.close()

    assert await connect("host-0", path) is None
    assert await ask(line, [call("x")]) == [(RETURNED, "x0")]


async def test_who_can_not_be_admitted_is_told_so_and_nobody_else_is_asked_in(door: Door, path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    line = await connect("host-0", path)
    assert line is not None
    with socket.socket(socket.AF_UNIX) as highest:  # the last one that may be opened
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno() + 1, limits[1]))
        try:
            with pytest.raises(HostLost):
                await line.ask([call("hello")])
            assert not door.open(path)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not door.open(path)  # for a while: it calls by Ray
    assert await connect("host-0", path) is None


async def test_where_there_can_be_no_door_there_is_none(host: Host, tmp_path: Path) -> None:
    assert not Door("host-0", host.answer, host.wait).open(tmp_path / "no folder" / "host.door")


def test_a_line_is_of_the_loop_that_it_was_made_in(path: Path, host: Host) -> None:
    lines = []

    async def one() -> bool:
        door = Door("host-0", host.answer, host.wait)
        door.open(path)
        line = await connect("host-0", path)
        assert line is not None
        lines.append(line)
        await ask(line, [call("x")])
        door.close()
        return line.is_usable

    async def other() -> bool:
        return lines[0].is_usable

    assert asyncio.run(one())
    assert not asyncio.run(other())
