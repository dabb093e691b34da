"""Do objects on Ray follow a class that is renamed, and does a refused history reach whoever asks?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from actors.runtime import ClassesRefused, SlotOwned
from actors.runtime.backend_local import LocalBackend
from actors.runtime.backend_ray import NAMESPACE, connect, start
from actors.runtime.class_migration import ClassMigration
from actors.runtime.host_settings import HostSettings
from actors.runtime.placement import Cluster
from tests.objects import Notebook

BEGIN = ClassMigration(tag="v1", new=("Notebook",))
RENAMED = ClassMigration(tag="v2", renamed=(("Notebook", "Diary"),))


class Diary(Notebook):
    """What a notebook is called from the second release on."""


@pytest.fixture
def cluster(ray_cluster: None, tmp_path: Path) -> Iterator[Cluster]:
    yield Cluster(
        data_dir=tmp_path / "data",
        classes=(Notebook,),
        settings=HostSettings(slots=16),
        hosts=1,
        dedicated=frozenset({("solo", "Notebook"), ("solo", "Diary")}),
        history=(BEGIN,),
    )
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] in (NAMESPACE, "Notebook", "Diary"):
            ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]), no_restart=True)


async def test_a_renamed_class_brings_its_pooled_and_its_dedicated_objects_along(cluster: Cluster) -> None:
    first = start(cluster).namespace(Notebook)
    for tenant in ("acme", "solo"):
        assert await first.get(tenant, "n1").append("kept") == 1

    # Its hosts are still up, the dedicated one among them, with the files open.
    second = start(dataclasses.replace(cluster, classes=(Diary,), history=(BEGIN, RENAMED)))
    await second.ready()
    for tenant in ("acme", "solo"):
        assert await second.namespace(Diary).get(tenant, "n1").lines() == ["kept"]


async def test_a_refused_deployment_says_why_and_leaves_the_one_that_runs_alone(cluster: Cluster) -> None:
    running = start(cluster)
    await running.namespace(Notebook).get("acme", "n1").append("kept")

    refused = start(dataclasses.replace(cluster, classes=(Notebook, Diary)))
    with pytest.raises(ClassesRefused, match="tag 'v1': Diary: is in the code and not declared"):
        await refused.ready()
    for tenant in ("acme", "solo"):
        with pytest.raises(ClassesRefused, match="Diary"):
            await refused.namespace(Diary).get(tenant, "d1").append("lost")

    assert await running.namespace(Notebook).get("acme", "n1").lines() == ["kept"]
    assert await connect().namespace(Notebook).get("acme", "n1").lines() == ["kept"]


async def test_classes_move_as_soon_as_whoever_has_their_files_is_gone(cluster: Cluster) -> None:
    other = LocalBackend(cluster.data_dir, [Notebook], settings=cluster.settings, history=[BEGIN])
    await other.namespace(Notebook).get("acme", "n1").append("kept")
    waiting = start(dataclasses.replace(cluster, classes=(Diary,), history=(BEGIN, RENAMED)))
    with pytest.raises(SlotOwned, match="without Ray"):
        await waiting.ready()
    other.close()
    await waiting.ready()
    assert await waiting.namespace(Diary).get("acme", "n1").lines() == ["kept"]
