"""A tenant's documents: an index of them in this process, the real vectors, and an embedding that knows words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import DocumentIndex, KeyValue
from actors.runtime.clock import ManualClock
from deployments.vector_store import VectorStore
from tests.unit.handles import FailingObjects, OwnVectors, WordEmbedder

#: All that any of these tests has.
TENANTS = ("acme", "demo", "fresh")


@pytest.fixture
def objects(tmp_path: Path, clock: ManualClock) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, clock, classes=[DocumentIndex, KeyValue])
    yield objects
    objects.close()


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorStore]:
    """One for all tests here, since opening it takes half a second; each test finds it empty."""
    store = VectorStore(tmp_path_factory.mktemp("vectors"))
    yield store
    store.close()


@pytest.fixture
def vectors(store: VectorStore) -> Iterator[OwnVectors]:
    yield OwnVectors(store)
    for tenant in TENANTS:
        store.delete_tenant(tenant)


@pytest.fixture
def embedder() -> WordEmbedder:
    return WordEmbedder()
