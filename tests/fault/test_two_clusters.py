"""Two Ray clusters on one data directory: does one of them ever write beside the other?"""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import SlotOwned
from actors.runtime.backend_local import LocalBackend
from tests.fault.child import Child
from tests.fault.cluster_member import cluster_on
from tests.objects import Notebook

TIMEOUT_S = 240
#: A host waits 5 s for its slots when it starts; the rest is for starting it, on a machine that does much else.
TOLD_WITHIN_S = 60.0
#: Asked again, it says so at once.
TOLD_AGAIN_WITHIN_S = 5.0
TAKEN_OVER_WITHIN_S = 15.0
#: One object in the pool, one that has a host to itself.
TENANTS = ("acme", "solo")
OWNER = re.compile(r"is owned by (?:host-0|Notebook/solo:n) \(Ray session (session_\S+), actor [0-9a-f]+\)")


async def call(member: Child, tenant: str, method: str, *arguments: Any) -> Any:
    return await member.order({"tenant": tenant, "method": method, "arguments": arguments})


class Writer:
    """Appends to one object after the other until the cluster is gone, and remembers what was acknowledged."""

    def __init__(self, member: Child) -> None:
        self._member = member
        self._news = asyncio.Event()
        self.acknowledged: dict[str, list[str]] = {tenant: [] for tenant in TENANTS}

    async def run(self) -> None:
        while True:
            for tenant, texts in self.acknowledged.items():
                text = f"{tenant} {len(texts) + 1}"
                try:
                    answer = await call(self._member, tenant, "append", text)
                except (EOFError, ConnectionError):
                    return
                assert answer == {"value": len(texts) + 1}
                texts.append(text)
                self._news.set()

    async def goes_on(self) -> None:
        """Returns when each object has acknowledged more than it had."""
        before = {tenant: len(texts) for tenant, texts in self.acknowledged.items()}
        async with asyncio.timeout(TOLD_WITHIN_S):
            while any(len(texts) == before[tenant] for tenant, texts in self.acknowledged.items()):
                self._news.clear()
                await self._news.wait()


async def told_owner(member: Child, within_s: float) -> str:
    """The Ray session that the member is told of, whatever it wants."""
    began_s = time.monotonic()
    asked = [await member.order({})]
    for tenant in TENANTS:
        asked.append(await call(member, tenant, "append", "beside the owner"))
        asked.append(await call(member, tenant, "lines"))
    assert time.monotonic() - began_s < within_s
    assert {answer["error"] for answer in asked} == {"SlotOwned"}
    return session_of(*[answer["text"] for answer in asked])


def session_of(*told: str) -> str:
    (session,) = {found[1] for text in told if (found := OWNER.search(text))}
    assert all(OWNER.search(text) for text in told)
    return session


def session_told_without_ray(data_dir: Path) -> str:
    cluster = cluster_on(data_dir)
    with pytest.raises(SlotOwned) as owned:
        LocalBackend(data_dir, cluster.classes, settings=cluster.settings)
    return session_of(str(owned.value))


async def wait_until_it_owns(member: Child) -> None:
    async with asyncio.timeout(TAKEN_OVER_WITHIN_S):
        while await member.order({}) != {"value": None}:
            await asyncio.sleep(0.05)


@pytest.mark.timeout(TIMEOUT_S)
async def test_the_second_is_told_who_owns_the_objects_until_the_first_is_killed(data_dir: Path) -> None:
    cluster = cluster_on(data_dir)
    member = "tests.fault.cluster_member"
    async with Child(member, {}, str(data_dir)) as first:
        writer = Writer(first)
        writing = asyncio.ensure_future(writer.run())
        await writer.goes_on()
        async with Child(member, {}, str(data_dir)) as second:
            owner = await told_owner(second, TOLD_WITHIN_S)
            assert await told_owner(second, TOLD_AGAIN_WITHIN_S) == owner
            assert session_told_without_ray(data_dir) == owner
            await writer.goes_on()

            await first.kill()
            await writing
            await wait_until_it_owns(second)
            lines: dict[str, list[str]] = {}
            for tenant, acknowledged in writer.acknowledged.items():
                kept = (await call(second, tenant, "lines"))["value"]
                # One more may have been written, and its acknowledgement lost.
                assert kept in (acknowledged, [*acknowledged, f"{tenant} {len(acknowledged) + 1}"])
                assert await call(second, tenant, "append", "taken over") == {"value": len(kept) + 1}
                lines[tenant] = [*kept, "taken over"]
            assert session_told_without_ray(data_dir) != owner

    backend = LocalBackend(data_dir, cluster.classes, settings=cluster.settings)
    try:
        for tenant in TENANTS:
            notebook = backend.namespace(Notebook).get(tenant, "n")
            assert await notebook.lines() == lines[tenant]
            assert await notebook.pragma("integrity_check") == "ok"
    finally:
        backend.close()
