"""Which object is meant by a name, and what does it know of it?"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import AlarmInfo, InvalidArgument
from actors.runtime.host_settings import HostSettings
from actors.runtime.object_id import ObjectId
from actors.testing import Lab
from tests.conformance.classes import Desk, desk_with
from tests.conformance.support import Backend
from tests.objects import Notebook


class Naming:
    """Everywhere."""

    @pytest.mark.parametrize("name", ["plain", "with/slash", "ünï 💾", "a:b", "%41", "..", "x" * 100])
    async def test_an_object_knows_its_own_name(self, backend: Backend, name: str) -> None:
        assert await backend.namespace(Desk).get("acme", name).whoami() == ("Desk", "acme", name)

    async def test_two_stubs_of_one_name_are_one_object(self, backend: Backend) -> None:
        name = secrets.token_hex(6)
        await backend.namespace(Desk).get("acme", name).add("x")
        assert await backend.namespace(Desk).get("acme", name).lines() == ["x"]

    async def test_names_that_differ_a_little_are_objects_of_their_own(self, backend: Backend) -> None:
        base = secrets.token_hex(4)
        pairs = [
            ("acme", base),
            ("acme", base.upper() + "A"),
            ("acme", base + "a"),
            ("acme", base + " "),
            ("acme", base + "\0"),
            ("acme", base + "%"),
            ("acme", base + "%25"),
            ("acme", f"x:{base}"),
            ("acme:x", base),
            ("acme", base + "\u00e9"),
            ("acme", base + "e\u0301"),
        ]
        stubs = [backend.namespace(Notebook).get(*pair) for pair in pairs]
        await asyncio.gather(*[stub.add(str(number)) for number, stub in enumerate(stubs)])
        assert await asyncio.gather(*[stub.lines() for stub in stubs]) == [[str(n)] for n in range(len(stubs))]

    @pytest.mark.parametrize(("tenant", "name"), [("", "n"), ("t", ""), ("t" * 1000, "n"), ("t", "n" * 5000)])
    async def test_names_that_are_empty_or_too_long_are_refused_before_anything_is_sent(
        self, backend: Backend, tenant: str, name: str
    ) -> None:
        with pytest.raises(InvalidArgument):
            backend.namespace(Desk).get(tenant, name)


class TestNaming(Naming):
    """In process."""

    async def test_a_stub_touches_nothing_until_it_is_called(self, lab: Lab) -> None:
        desk = lab.get(Desk, "acme", "d")
        assert repr(desk) == "<Stub Desk/acme:d>"
        assert not lab.exists(desk)
        assert lab._running.host.resident_objects == 0

    async def test_a_name_that_was_only_asked_for_leaves_nothing_behind(self, lab: Lab) -> None:
        desk = lab.get(Desk, "acme", "d")
        assert await desk.lines() == []
        lab.evict(desk)
        assert not lab.exists(desk)

    async def test_an_object_knows_its_name_when_an_alarm_wakes_it(self, settings: dict[str, Any]) -> None:
        told: list[ObjectId] = []

        def alarm(self: Desk, info: AlarmInfo) -> None:
            told.append(self.id)

        desk_class = desk_with(alarm)
        async with Lab([desk_class], settings=HostSettings(**settings)) as lab:
            desk = lab.get(desk_class, "acme", "ünï/🐟")
            await desk.set_alarm_in(10)
            lab.crash()
            await lab.advance(10)
        assert told == [desk.id]

    async def test_no_name_leads_out_of_the_folder_of_objects(self, tmp_path: Path, settings: dict[str, Any]) -> None:
        names = ["../../../out", "/etc/passwd", "..", "a/../../b", "\0", "C:\\x", "a.sqlite", "a.a123", "x.trouble"]
        async with Lab([Desk], data_dir=tmp_path / "data", settings=HostSettings(**settings)) as lab:
            for name in names:
                desk = lab.get(Desk, "acme", name)
                await desk.add(name)
                await desk.set_alarm_in(100)
            lab.crash()
            assert [await lab.get(Desk, "acme", name).lines() for name in names] == [[name] for name in names]
            await lab.advance(100)
            assert [len(await lab.get(Desk, "acme", name).runs()) for name in names] == [1] * len(names)
        files = {path for path in tmp_path.rglob("*") if path.is_file()}
        objects_dir = tmp_path / "data" / "objects" / "Desk"
        assert len([path for path in files if path.suffix == ".sqlite"]) == len(names)
        assert all(path.is_relative_to(objects_dir) for path in files if "sqlite" in path.name)
