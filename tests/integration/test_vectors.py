"""Are vectors found again, tenants kept apart, one owner enforced, and nothing lost with a killed owner?"""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import ray

from deployments.errors import VectorStoreOwned, VectorsUnavailable
from deployments.vector_store import ITEMS_PER_BATCH, Scalar, VectorItem, VectorStore
from deployments.vectors import ACTOR_NAME, NAMESPACE, Vectors

DIMENSIONS = 384


def direction(number: int) -> npt.NDArray[np.float32]:
    """A unit vector that is nearest to those of the neighbouring numbers."""
    vector = np.zeros(DIMENSIONS, dtype=np.float32)
    vector[0], vector[1] = np.cos(number / 1000), np.sin(number / 1000)
    return vector


def item(number: int, *, document: str = "d", **metadata: Scalar) -> VectorItem:
    return VectorItem(chunk_id=f"c{number}", document_id=document, embedding=direction(number), metadata=metadata)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    store = VectorStore(tmp_path)
    yield store
    store.close()


def test_the_nearest_chunks_come_first(store: VectorStore) -> None:
    store.upsert("acme", [item(number) for number in (40, 10, 30, 20)])

    assert store.query("acme", direction(12), 3) == ["c10", "c20", "c30"]


def test_fewer_chunks_than_asked_for_are_all_of_them(store: VectorStore) -> None:
    store.upsert("acme", [item(1), item(2)])

    assert store.query("acme", direction(1), 50) == ["c1", "c2"]


def test_a_filter_compares_every_key_it_names(store: VectorStore) -> None:
    store.upsert("acme", [item(1, lang="de", year=2024), item(2, lang="en", year=2024), item(3, lang="en", year=2025)])

    assert store.query("acme", direction(1), 9, {"lang": "en"}) == ["c2", "c3"]
    assert store.query("acme", direction(1), 9, {"lang": "en", "year": 2025}) == ["c3"]
    assert store.query("acme", direction(1), 9, {"lang": "fr"}) == []
    assert store.query("acme", direction(1), 9, {}) == ["c1", "c2", "c3"]


def test_metadata_named_like_a_field_of_ours_stays_metadata(store: VectorStore) -> None:
    store.upsert("acme", [item(1, document="a", document_id="b"), item(2, document="b", document_id="a")])

    store.delete_document("acme", "a")

    assert store.query("acme", direction(1), 9, {"document_id": "a"}) == ["c2"]


def test_a_chunk_stored_again_is_replaced_with_all_its_metadata(store: VectorStore) -> None:
    store.upsert("acme", [item(1, old="yes", both=1)])
    store.upsert("acme", [item(1, new="yes", both=2)])

    assert store.count("acme") == 1
    assert store.query("acme", direction(1), 9, {"old": "yes"}) == []
    assert store.query("acme", direction(1), 9, {"new": "yes", "both": 2}) == ["c1"]


def test_of_one_chunk_twice_in_a_call_the_last_counts(store: VectorStore) -> None:
    store.upsert("acme", [item(1, v=1), item(1, v=2)])

    assert store.query("acme", direction(1), 9, {"v": 2}) == ["c1"]


def test_more_than_a_batch_is_stored_and_deleted_whole(store: VectorStore) -> None:
    items = [item(number) for number in range(2 * ITEMS_PER_BATCH + 1)]
    store.upsert("acme", items)
    assert store.count("acme") == len(items)

    store.delete("acme", [one.chunk_id for one in items[1:]])

    assert store.query("acme", direction(0), 9) == ["c0"]


def test_tenants_with_the_same_chunk_ids_never_see_each_other(store: VectorStore) -> None:
    store.upsert("acme", [item(1, document="d", of="acme"), item(2)])
    store.upsert("demo", [item(1, document="d", of="demo")])

    assert store.query("demo", direction(1), 9) == ["c1"]
    assert store.query("demo", direction(1), 9, {"of": "acme"}) == []
    store.delete_document("demo", "d")
    assert store.count("demo") == 0
    assert store.count("acme") == 2
    store.delete_tenant("acme")
    assert store.count("acme") == 0


def test_a_tenant_that_stored_nothing_has_nothing(store: VectorStore) -> None:
    assert store.query("nobody", direction(1), 3) == []
    assert store.count("nobody") == 0
    store.delete("nobody", ["c1"])
    store.delete_document("nobody", "d")
    store.delete_tenant("nobody")


def test_what_is_not_there_is_deleted_without_complaint(store: VectorStore) -> None:
    store.upsert("acme", [item(1)])
    store.delete("acme", ["c7"])
    store.delete("acme", [])
    store.delete_document("acme", "other")

    assert store.count("acme") == 1


@pytest.mark.parametrize("tenant", ["", "ab", "Acme", "../acme", "a/b", "acme\n", "-acme", "a" * 64, "acmé"])
def test_a_name_that_is_no_tenants_is_refused(store: VectorStore, tenant: str) -> None:
    with pytest.raises(ValueError, match="tenant"):
        store.upsert(tenant, [item(1)])
    with pytest.raises(ValueError, match="tenant"):
        store.query(tenant, direction(1), 1)


def test_a_deleted_tenants_files_leave_the_disk_and_it_may_begin_anew(store: VectorStore, tmp_path: Path) -> None:
    store.upsert("acme", [item(number) for number in range(1_100)])  # past the point where Chroma writes index files
    store.upsert("demo", [item(number) for number in range(1_100)])
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}

    store.delete_tenant("acme")

    assert len({path.name for path in tmp_path.iterdir() if path.is_dir()}) == len(folders) - 1
    assert store.count("demo") == 1_100
    assert store.query("demo", direction(5), 1) == ["c5"]
    store.upsert("acme", [item(9)])
    assert store.query("acme", direction(1), 9) == ["c9"]


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    first = VectorStore(tmp_path)
    first.upsert("acme", [item(number) for number in range(20)])
    first.close()

    second = VectorStore(tmp_path)

    assert second.count("acme") == 20
    assert second.query("acme", direction(7), 1) == ["c7"]
    second.close()


def test_a_second_owner_is_refused_and_told_who_the_first_is(store: VectorStore, tmp_path: Path) -> None:
    clock = itertools.count(0, 1)
    slept: list[float] = []

    with pytest.raises(VectorStoreOwned) as caught:
        VectorStore(tmp_path, monotonic=lambda: float(next(clock)), sleep=slept.append)

    assert caught.value.path == str(tmp_path)
    assert caught.value.owner == f"process {os.getpid()}"
    assert caught.value.retryable
    assert 1 < len(slept) < 10
    store.upsert("acme", [item(1)])
    assert store.count("acme") == 1


def test_an_owner_that_lets_go_in_time_is_succeeded(tmp_path: Path) -> None:
    first = VectorStore(tmp_path)

    second = VectorStore(tmp_path, sleep=lambda _: first.close())

    assert second.count("acme") == 0
    second.close()


async def test_many_threads_may_write_and_read_at_once(store: VectorStore) -> None:
    async def work(number: int) -> None:
        tenant = f"tenant{number % 3}"
        await asyncio.to_thread(store.upsert, tenant, [item(10 * number + n) for n in range(10)])
        assert await asyncio.to_thread(store.query, tenant, direction(10 * number), 1) == [f"c{10 * number}"]

    await asyncio.gather(*(work(number) for number in range(24)))

    assert [store.count(f"tenant{n}") for n in range(3)] == [80, 80, 80]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, resources={"data": 1}, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def vectors(cluster: None, tmp_path: Path) -> Iterator[Vectors]:
    yield Vectors(path=str(tmp_path), host_resource="data", timeout_s=60)
    ray.kill(ray.get_actor(ACTOR_NAME, namespace=NAMESPACE))


def owner_process(path: Path) -> psutil.Process:
    return psutil.Process(int((path / "owner.lock").read_text().split()[1]))


async def test_the_actor_does_what_the_store_does(vectors: Vectors) -> None:
    await vectors.upsert("acme", [item(1, lang="de"), item(2, lang="en"), item(3, document="e", lang="en")])

    assert await vectors.ready()
    assert await vectors.query("acme", direction(1), 2) == ["c1", "c2"]
    assert await vectors.query("acme", direction(1), 2, {"lang": "en"}) == ["c2", "c3"]
    await vectors.delete("acme", ["c1"])
    await vectors.delete_document("acme", "e")
    assert await vectors.count("acme") == 1
    await vectors.delete_tenant("acme")
    assert await vectors.count("acme") == 0


async def test_nothing_acknowledged_is_lost_with_a_killed_owner(vectors: Vectors, tmp_path: Path) -> None:
    for number in range(5):
        await vectors.upsert("acme", [item(number)])
        owner_process(tmp_path).send_signal(signal.SIGKILL)

        assert await vectors.query("acme", direction(number), 1) == [f"c{number}"]

    assert await vectors.count("acme") == 5


async def test_calls_under_way_when_the_owner_is_killed_are_answered(vectors: Vectors, tmp_path: Path) -> None:
    await vectors.upsert("acme", [item(0)])
    calls = [asyncio.ensure_future(vectors.upsert("acme", [item(number)])) for number in range(1, 60)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    owner_process(tmp_path).send_signal(signal.SIGKILL)

    await asyncio.gather(*calls)

    assert await vectors.count("acme") == 60


async def test_an_owner_ended_for_good_is_made_anew(vectors: Vectors) -> None:
    await vectors.upsert("acme", [item(1)])
    ray.kill(ray.get_actor(ACTOR_NAME, namespace=NAMESPACE))

    assert await vectors.query("acme", direction(1), 1) == ["c1"]


async def test_every_client_reaches_the_same_owner(vectors: Vectors) -> None:
    copy = pickle.loads(pickle.dumps(vectors))
    await vectors.upsert("acme", [item(1)])

    assert await copy.count("acme") == 1


async def test_a_directory_owned_by_another_process_is_said_to_be(vectors: Vectors, tmp_path: Path) -> None:
    other = VectorStore(tmp_path)
    other.upsert("acme", [item(1)])

    with pytest.raises(VectorStoreOwned) as caught:
        await vectors.count("acme")

    assert caught.value.owner == f"process {os.getpid()}"
    assert caught.value.retry_after_s > 0
    other.close()
    assert await vectors.count("acme") == 1


async def test_an_owner_that_does_not_answer_in_time_is_unavailable(vectors: Vectors, tmp_path: Path) -> None:
    await vectors.upsert("acme", [item(1)])
    owner = owner_process(tmp_path)
    owner.suspend()
    try:
        with pytest.raises(VectorsUnavailable) as caught:
            await Vectors(path=str(tmp_path), timeout_s=0.5).count("acme")
    finally:
        owner.resume()

    assert caught.value.retryable
    assert await vectors.count("acme") == 1
