"""Can objects on Ray be looked at and looked after, wherever they live?"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import ray

from actors import ObjectConflict, ObjectId, ObjectNotFound, Operator
from actors.cli.commands import main
from actors.runtime import StatementRefused
from actors.runtime.backend_ray import NAMESPACE, RayBackend, start
from actors.runtime.host_settings import HostSettings
from actors.runtime.operations import Inspectable
from actors.runtime.placement import Cluster, Placement
from tests.objects import Ledger, Notebook

SLOTS = 16
CLASSES = (Notebook, Ledger)
#: A hibernation that tests wait for comes when they say so, and not before.
IDLE_AFTER_S = 600.0
TURN_S = 30.0


@pytest.fixture(scope="module")
def cluster(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return Cluster(
        data_dir=tmp_path_factory.mktemp("inspected") / "data",
        classes=CLASSES,
        settings=HostSettings(slots=SLOTS, idle_after_s=IDLE_AFTER_S),
        hosts=2,
        dedicated=frozenset({("solo", "Notebook")}),
        dedicated_max=2,
    )


@pytest.fixture
def backend(cluster: Cluster) -> RayBackend:
    return start(cluster)


@pytest.fixture
def operator(backend: RayBackend) -> Operator:
    return Operator(backend)


def notebook(name: str, tenant: str) -> ObjectId:
    return ObjectId("Notebook", tenant, name)


async def bytes_of(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def exported(operator: Operator, object_id: ObjectId) -> bytes:
    async with operator.export(object_id) as (_, pieces):
        return b"".join([piece async for piece in pieces])


def lives(object_id: ObjectId) -> bool:
    try:
        ray.get_actor(object_id.key, namespace=object_id.class_name)
    except ValueError:
        return False
    return True


async def test_a_page_is_put_together_from_all_hosts_and_wakes_no_object(
    backend: RayBackend, operator: Operator, cluster: Cluster
) -> None:
    names = [f"n{number:02d}" for number in range(12)]
    stubs = backend.namespace(Notebook)
    await asyncio.gather(*[stubs.get("pages", name).add("a line") for name in names])
    placement = Placement(cluster)
    assert {placement.pool_host(notebook(name, "pages")) for name in names} == {0, 1}
    for name in names[:6]:
        assert await operator.evict(notebook(name, "pages"))
    first = await operator.list("Notebook", tenant="pages", limit=7)
    rest = await operator.list("Notebook", tenant="pages", limit=7, after=first.next)
    assert [info.id.name for info in (*first.objects, *rest.objects)] == names
    assert rest.next is None
    assert [info.resident for info in (*first.objects, *rest.objects)] == [False] * 6 + [True] * 6
    assert {info.schema_version for info in first.objects} == {"create_tables"}


async def test_a_dedicated_object_is_listed_and_described_without_starting_its_actor(
    backend: RayBackend, operator: Operator, cluster: Cluster
) -> None:
    solo = notebook("asleep", "solo")
    assert await backend.namespace(Notebook).get("solo", "asleep").add("a line") == 1
    awake = await operator.describe(solo)
    (listed,) = (await operator.list(tenant="solo", prefix="asleep")).objects
    assert (awake.resident, listed.resident) == (True, True)
    assert awake.schema_version == "create_tables"
    assert listed.schema_version == "create_tables"  # its own process has the file open, and was asked
    handle = ray.get_actor(solo.key, namespace="Notebook")
    ray.kill(handle, no_restart=True)
    async with asyncio.timeout(TURN_S):
        while (await operator.list(tenant="solo", prefix="asleep")).objects[0].resident:
            await asyncio.sleep(0.05)
    asleep = await operator.describe(solo)
    assert (asleep.resident, asleep.schema_version) == (False, "create_tables")
    assert (await operator.list(tenant="solo", prefix="asleep")).objects == (asleep,)
    assert [progress async for progress in operator.migrate("Notebook")][-1].failures == 0
    assert not lives(solo)


@pytest.mark.parametrize("tenant", ["pooled", "solo"])
async def test_an_object_is_queried_exported_imported_and_deleted_where_it_lives(
    backend: RayBackend, operator: Operator, tenant: str
) -> None:
    one, two = notebook("one", tenant), notebook("two", tenant)
    await backend.namespace(Notebook).get(tenant, "one").add("a line")
    assert (await operator.query(one, "SELECT text FROM line")).rows == (("a line",),)
    with pytest.raises(StatementRefused):
        await operator.query(one, "DELETE FROM line")
    data = await exported(operator, one)
    await operator.import_(two, bytes_of(data))
    with pytest.raises(ObjectConflict):
        await operator.import_(two, bytes_of(data))
    assert await backend.namespace(Notebook).get(tenant, "two").lines() == ["a line"]
    await operator.delete(one)
    with pytest.raises(ObjectNotFound):
        await operator.describe(one)
    assert await backend.namespace(Notebook).get(tenant, "two").lines() == ["a line"]


async def test_an_object_of_a_host_that_was_killed_is_described_by_the_next(
    backend: RayBackend, operator: Operator, cluster: Cluster
) -> None:
    one = notebook("survivor", "killed")
    stub = backend.namespace(Notebook).get("killed", "survivor")
    await stub.add("a line")
    os.kill(await stub.pid(), signal.SIGKILL)
    assert (await operator.query(one, "SELECT text FROM line")).rows == (("a line",),)
    assert not (await operator.describe(one)).resident


def test_the_command_line_reaches_a_running_cluster(backend: RayBackend, cluster: Cluster) -> None:
    ray.get(backend.namespace(Ledger).get("typed", "one").add.remote("a line"))
    out, err = io.StringIO(), io.StringIO()
    assert main(["list", "Ledger", "--tenant", "typed", "--json"], out, err) == 0
    assert (json.loads(out.getvalue())["object"], err.getvalue()) == ("Ledger/typed:one", "")
    # Its hosts own the data: nobody else opens it.
    beside = ["list", "--data-dir", str(cluster.data_dir), "--app", f"{__name__}:CLASSES"]
    assert main(beside, out, err) == 1
    assert "is owned by host-" in err.getvalue()


async def test_both_backends_can_be_looked_into(backend: RayBackend, cluster: Cluster) -> None:
    inspectable: Inspectable = backend
    assert inspectable.hosts == cluster.hosts
    assert ray.get_actor("host-1", namespace=NAMESPACE) is not None
    assert not list(Path(cluster.data_dir / "exports").iterdir())
