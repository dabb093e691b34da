"""Does an object keep its promises on Ray, where its host can be killed?"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.state import list_actors

from actors.runtime import ObjectOverloaded, ObjectReset, SlotOwned
from actors.runtime.backend_local import LocalBackend
from actors.runtime.backend_ray import NAMESPACE, RayBackend, connect, start
from actors.runtime.call import HostRetired, NotOwner
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Namespace, Stub
from actors.runtime.placement import Cluster, Placement
from actors.runtime.sqlite import wal_of
from tests.conformance.support import call_of
from tests.conftest import REPOSITORY
from tests.objects import AlarmClock, Ledger, Notebook, Refusal, gate_in

WAIT_S = 20.0
#: A killed host is back within 3 s on a quiet machine; this one may be running much else.
RECOVERY_S = 10.0


async def eventually(holds: Callable[[], Awaitable[bool]], timeout_s: float = WAIT_S) -> None:
    """Returns when `holds` does; other processes take their time, and nothing tells us."""
    async with asyncio.timeout(timeout_s):
        while not await holds():
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def cluster(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return Cluster(
        data_dir=tmp_path_factory.mktemp("cluster") / "data",
        classes=(Notebook, Ledger, AlarmClock),
        settings=HostSettings(slots=16, idle_after_s=1.0),
        hosts=2,
        dedicated=frozenset({("solo", "Notebook"), ("solo", "AlarmClock")}),
        dedicated_max=2,
        host_resource="mobula_data",
    )


@pytest.fixture
def backend(cluster: Cluster) -> RayBackend:
    return start(cluster)


@pytest.fixture
def notebooks(backend: RayBackend) -> Namespace[Notebook]:
    return backend.namespace(Notebook)


@pytest.fixture
def notebook(notebooks: Namespace[Notebook]) -> Stub[Notebook]:
    return notebooks.get("acme", f"n-{secrets.token_hex(6)}")


@pytest.fixture
def solo(notebooks: Namespace[Notebook]) -> Stub[Notebook]:
    return notebooks.get("solo", f"s-{secrets.token_hex(4)}")


def actor_is_there(stub: Stub[Any]) -> bool:
    try:
        ray.get_actor(stub.id.key, namespace=stub.id.class_name)
    except ValueError:
        return False
    return True


def actors_named(name: str) -> list[Any]:
    # Other clusters may run on the machine.
    address = ray.get_runtime_context().gcs_address
    return list(list_actors(address=address, filters=[("name", "=", name)]))


class TestDedicatedObject:
    """An actor of its own."""

    async def test_it_is_found_by_name(self, solo: Stub[Notebook]) -> None:
        await solo.add("x")
        handle = ray.get_actor(f"solo:{solo.id.name}", namespace="Notebook")
        assert await handle.ready.remote() == str(solo.id)
        (state,) = actors_named(f"solo:{solo.id.name}")
        assert (state.class_name, state.ray_namespace, state.state) == ("ObjectHost", "Notebook", "ALIVE")
        assert state.pid == await solo.pid()

    async def test_its_calls_run_in_order_and_its_errors_arrive(self, solo: Stub[Notebook]) -> None:
        numbers = await asyncio.gather(*[solo.add(str(number)) for number in range(300)])
        assert numbers == list(range(1, 301))
        with pytest.raises(Refusal):
            await solo.add_and_raise("x", Refusal("no", 1))

    async def test_an_idle_one_ends_and_comes_back_with_what_it_had(self, solo: Stub[Notebook]) -> None:
        await solo.add("kept")
        pid = await solo.pid()

        async def gone() -> bool:
            return not actor_is_there(solo)

        await eventually(gone)
        assert await solo.lines() == ["kept"]
        assert await solo.pid() != pid

    async def test_calls_around_its_end_all_succeed(self, notebooks: Namespace[Notebook]) -> None:
        # Plain calls, which no stub repeats unless they surely did not run; each newcomer ends an idle one.
        stubs = [notebooks.get("solo", f"r-{secrets.token_hex(4)}") for _ in range(3)]
        for turn in range(2):
            for stub in stubs:
                assert await stub.add("x") == turn + 1

    async def test_no_more_live_than_may_and_the_least_recently_used_ends_first(
        self, notebooks: Namespace[Notebook], tmp_path: Path
    ) -> None:
        gate, open_gate = gate_in(tmp_path)
        first, second, third = [notebooks.get("solo", f"l-{secrets.token_hex(4)}") for _ in range(3)]
        await first.add("x")
        busy = asyncio.ensure_future(second.add_around_gate("x", gate))

        async def second_is_busy() -> bool:
            return actor_is_there(second)

        await eventually(second_is_busy)
        await third.add("x")
        assert not actor_is_there(first)
        assert actor_is_there(second)
        other = asyncio.ensure_future(third.add_around_gate("y", gate))

        async def third_is_busy() -> bool:
            handle = ray.get_actor(third.id.key, namespace="Notebook")
            return bool(await handle.idleness_s.remote() == 0.0)

        await eventually(third_is_busy)
        with pytest.raises(ObjectOverloaded, match="2 dedicated objects are busy"):
            await first.lines()
        open_gate()
        assert await busy == "x"
        assert await other == "y"
        assert await first.lines() == ["x"]

    async def test_a_pool_host_refuses_it(self, cluster: Cluster, backend: RayBackend, solo: Stub[Notebook]) -> None:
        number = Placement(cluster).pool_host(solo.id)
        host = ray.get_actor(f"host-{number}", namespace=NAMESPACE)
        with pytest.raises(NotOwner, match=f"host-{number} does not own it"):
            await host.call.remote(call_of(solo, "add", "x"))

    async def test_a_killed_one_comes_back_with_what_it_had(self, solo: Stub[Notebook]) -> None:
        assert await solo.append("kept") == 1
        os.kill(await solo.pid(), signal.SIGKILL)
        assert await solo.append("more") == 2
        assert await solo.lines() == ["kept", "more"]

    async def test_one_that_somebody_ended_comes_back(self, solo: Stub[Notebook]) -> None:
        await solo.add("kept")
        ray.kill(ray.get_actor(solo.id.key, namespace="Notebook"), no_restart=True)
        assert await solo.lines() == ["kept"]


class TestAlarm:
    """Nobody calls, and the alarm comes all the same."""

    async def test_it_comes_after_its_host_was_killed(self, backend: RayBackend, tmp_path: Path) -> None:
        clock, bell = backend.namespace(AlarmClock).get("acme", secrets.token_hex(4)), tmp_path / "bell"
        pid = await clock.pid()
        await clock.ring_at(time.time() + 1.0, bell)
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: asyncio.to_thread(bell.exists))
        assert await clock.pid() != pid

    async def test_it_starts_a_dedicated_object_that_had_ended(self, backend: RayBackend, tmp_path: Path) -> None:
        clock, bell = backend.namespace(AlarmClock).get("solo", secrets.token_hex(4)), tmp_path / "bell"
        await clock.ring_at(time.time() + 5.0, bell)

        async def gone() -> bool:
            return not actor_is_there(clock)

        await eventually(gone)
        assert not bell.exists()
        await eventually(lambda: asyncio.to_thread(bell.exists))

    async def test_objects_call_each_other_across_hosts(self, cluster: Cluster, backend: RayBackend) -> None:
        clocks, placement = backend.namespace(AlarmClock), Placement(cluster)
        first, second = [
            next(
                stub
                for number in range(50)
                if placement.pool_host((stub := clocks.get("acme", f"c{number}")).id) == host
            )
            for host in (0, 1)
        ]
        assert await first.ask(second.id.name) == await second.pid() != await first.pid()
        solo = clocks.get("solo", secrets.token_hex(4))
        assert await solo.ask(solo.id.name + "x") == await clocks.get("solo", solo.id.name + "x").pid()


class TestObjectRef:
    """Calls as Ray users make them."""

    async def test_remote_gives_an_object_ref(self, notebook: Stub[Notebook], solo: Stub[Notebook]) -> None:
        for stub in (notebook, solo):
            reference = stub.append.remote("x")
            assert isinstance(reference, ray.ObjectRef)
            assert await reference == 1
            assert await stub.lines.remote() == ["x"]

    async def test_an_error_arrives_as_its_own_class(self, notebook: Stub[Notebook]) -> None:
        with pytest.raises(Refusal) as refusal:
            await notebook.add_and_raise.remote("x", Refusal("no", 3))
        assert refusal.value.code == 3


class TestKilledHost:
    """`kill -9` of a pool host."""

    async def test_what_was_acknowledged_is_there_and_calls_go_on(self, notebook: Stub[Notebook]) -> None:
        for number in range(10):
            assert await notebook.add(str(number)) == number + 1
        await notebook.put("k", "v")
        pid = await notebook.pid()
        os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        assert await notebook.lines() == [str(number) for number in range(10)]
        took_s = time.monotonic() - killed_s
        assert await notebook.pid() != pid
        assert await notebook.get("k") == "v"
        assert took_s < RECOVERY_S, f"recovery took {took_s:.1f} s"

    async def test_calls_that_are_safe_to_repeat_succeed(self, notebook: Stub[Notebook]) -> None:
        os.kill(await notebook.pid(), signal.SIGKILL)
        number, _, lines = await asyncio.gather(notebook.append("x"), notebook.put("k", "v"), notebook.notes())
        assert number == 1
        assert lines in ({}, {"k": "v"})
        assert await notebook.lines() == ["x"]

    async def test_a_plain_call_under_way_is_left_to_its_caller(
        self, cluster: Cluster, notebook: Stub[Notebook], tmp_path: Path
    ) -> None:
        gate, open_gate = gate_in(tmp_path)
        pid = await notebook.pid()
        plain = asyncio.ensure_future(notebook.add_around_gate("x", gate))
        behind = asyncio.ensure_future(notebook.append("once"))
        wal = wal_of(notebook.id.path(cluster.data_dir / "objects", cluster.settings.slots))

        async def begun() -> bool:
            return wal.exists() and wal.stat().st_size > 0

        await eventually(begun)
        os.kill(pid, signal.SIGKILL)
        open_gate()
        with pytest.raises(ObjectReset):
            await plain
        await behind
        assert await notebook.lines() == ["x before", "once"]

    async def test_its_stubs_live_on_through_many_kills(self, notebook: Stub[Notebook]) -> None:
        for number in range(3):
            assert await notebook.append(str(number)) == number + 1
            os.kill(await notebook.pid(), signal.SIGKILL)
        assert await notebook.lines() == ["0", "1", "2"]


class TestOwnership:
    """One owner of the files, whoever comes."""

    async def test_a_program_without_ray_is_refused_and_told_who_owns_them(
        self, cluster: Cluster, backend: RayBackend
    ) -> None:
        await backend.ready()
        with pytest.raises(SlotOwned, match=r"host-[01] \(Ray session session_.*, actor [0-9a-f]+\)"):
            LocalBackend(cluster.data_dir, cluster.classes, settings=cluster.settings)

    async def test_hosts_wait_for_a_program_without_ray_and_say_so(
        self, ray_cluster: None, cluster: Cluster, tmp_path: Path
    ) -> None:
        settings = HostSettings(slots=2)
        elsewhere = dataclasses.replace(cluster, data_dir=tmp_path / "data", settings=settings, hosts=1)
        owner = LocalBackend(elsewhere.data_dir, elsewhere.classes, settings=settings)
        await owner.namespace(Notebook).get("acme", "n").add("x")
        backend = start(elsewhere)
        with pytest.raises(SlotOwned, match=f"process {os.getpid()}, without Ray"):
            await backend.ready()
        with pytest.raises(SlotOwned):
            await backend.namespace(Notebook).get("acme", "n").lines()
        owner.close()
        await backend.ready()
        assert await backend.namespace(Notebook).get("acme", "n").lines() == ["x"]

    async def test_hosts_wait_for_a_disk_that_fails(self, ray_cluster: None, cluster: Cluster, tmp_path: Path) -> None:
        settings = HostSettings(slots=2)
        elsewhere = dataclasses.replace(cluster, data_dir=tmp_path / "data", settings=settings, hosts=1)
        in_the_way = elsewhere.data_dir / "slots" / "001.lock"
        in_the_way.mkdir(parents=True)  # can't be opened as a file
        backend = start(elsewhere)
        with pytest.raises(HostRetired, match=r"host-0 can't take its slots: .*Is a directory"):
            await backend.ready()
        notebook = backend.namespace(Notebook).get("acme", "n")
        in_the_way.rmdir()
        assert await notebook.append("kept") == 1

    async def test_a_changed_cluster_replaces_the_hosts_and_keeps_the_objects(
        self, cluster: Cluster, notebook: Stub[Notebook], solo: Stub[Notebook]
    ) -> None:
        await notebook.add("pooled")
        await solo.add("dedicated")
        pids = {await notebook.pid(), await solo.pid()}
        changed = dataclasses.replace(cluster, dedicated=frozenset({("acme", "Notebook")}), hosts=1)
        notebooks = start(changed).namespace(Notebook)
        pooled_now, dedicated_now = notebooks.get("solo", solo.id.name), notebooks.get("acme", notebook.id.name)
        assert await pooled_now.lines() == ["dedicated"]
        assert await dedicated_now.lines() == ["pooled"]
        assert not pids & {await pooled_now.pid(), await dedicated_now.pid()}
        assert actor_is_there(dedicated_now)
        back = start(cluster)
        assert await back.namespace(Notebook).get("acme", notebook.id.name).lines() == ["pooled"]
        await back.ready()

    async def test_hosts_start_only_where_the_files_are(
        self, ray_cluster: None, cluster: Cluster, tmp_path: Path
    ) -> None:
        elsewhere = dataclasses.replace(cluster, data_dir=tmp_path / "data", host_resource="no_such_disk")
        backend = start(elsewhere)
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2.0):
                    await backend.ready()
            (control,) = actors_named(f"control-{elsewhere.fingerprint}")
            assert control.state == "PENDING_CREATION"
            assert not elsewhere.data_dir.exists()
        finally:
            ray.kill(ray.get_actor(f"control-{elsewhere.fingerprint}", namespace=NAMESPACE))


CALLER = """
import asyncio, sys
from actors.runtime.backend_ray import connect
from tests.objects import Notebook

async def main():
    notebook = connect(sys.argv[1]).namespace(Notebook).get("acme", sys.argv[2])
    print(await notebook.append("from another process"), await notebook.lines())

asyncio.run(main())
"""


class TestConnect:
    """Callers in other processes."""

    async def test_another_process_reaches_the_objects(self, notebook: Stub[Notebook]) -> None:
        await notebook.add("from here")
        address = ray.get_runtime_context().gcs_address
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CALLER, address, notebook.id.name, stdout=subprocess.PIPE, cwd=REPOSITORY
        )
        output, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
        assert output.decode().strip() == "2 ['from here', 'from another process']"

    async def test_this_process_finds_its_own_cluster(self, backend: RayBackend, notebook: Stub[Notebook]) -> None:
        await notebook.add("x")
        assert await connect().namespace(Notebook).get("acme", notebook.id.name).lines() == ["x"]

    async def test_many_callers_may_start_the_same_cluster(self, cluster: Cluster, notebook: Stub[Notebook]) -> None:
        backends = [start(cluster) for _ in range(5)]
        stubs = [backend.namespace(Notebook).get("acme", notebook.id.name) for backend in backends]
        assert sorted(await asyncio.gather(*[stub.append("x") for stub in stubs])) == [1, 2, 3, 4, 5]

    async def test_a_class_that_the_cluster_does_not_know_is_refused(self, backend: RayBackend) -> None:
        class Stranger(Notebook):
            pass

        with pytest.raises(KeyError):
            backend.namespace(Stranger)
