"""Is a document searchable as a whole or as it was before, whatever fails, and are index and vectors of one mind?"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from actors import DocumentIndex, ObjectOverloaded
from configs.tenant import RetrievalConfig
from deployments.chunk import Chunker
from deployments.documents import INDEX_NAME, Ingested, NewDocument
from deployments.encoder import TEXTS_MAX
from deployments.errors import VectorsUnavailable
from deployments.extract import ExtractionLimits
from deployments.ingest import DOCUMENTS_AT_ONCE, Ingest
from deployments.search import Search
from tests.unit.handles import FailingObjects, Handle, OwnVectors, WordEmbedder

TENANTS = ("acme", "demo")
LIMITS = ExtractionLimits(text_chars_max=100_000, size_bytes_max=100_000)
DOWN = VectorsUnavailable("starting", 1.0)


@pytest.fixture
def embedding(embedder: WordEmbedder) -> Handle:
    return Handle(embedder)


def _versions() -> Callable[[], str]:
    numbers = itertools.count(1)
    return lambda: f"v{next(numbers)}"


@pytest.fixture
def ingest(objects: FailingObjects, vectors: OwnVectors, embedding: Handle) -> Ingest:
    return Ingest(connect=lambda: objects, limits=LIMITS, embedding=embedding, vectors=vectors, new_version=_versions())


@pytest.fixture
def search(objects: FailingObjects, vectors: OwnVectors, embedding: Handle) -> Search:
    retrieval = {name: RetrievalConfig() for name in TENANTS}
    return Search(connect=lambda: objects, retrieval=retrieval, embedding=embedding, vectors=vectors)


async def _found(search: Search, query: str, tenant: str = "acme") -> list[str]:
    return [passage["text"] for passage in (await search.find(tenant, query)).passages]


async def _chunk_ids(objects: FailingObjects) -> list[str]:
    """Of what the index has, found by the word that all texts here hold."""
    index = objects.namespace(DocumentIndex).get("acme", INDEX_NAME)
    return sorted(await index.match("fish", limit=200))


async def test_a_text_is_stored_and_found(ingest: Ingest, search: Search) -> None:
    assert await ingest.store("acme", [NewDocument(id="d", text="# Sea\n\nA shark is a fish.")]) == [
        Ingested("d", 1, "stored")
    ]
    assert await _found(search, "shark") == ["# Sea\n\nA shark is a fish."]


async def test_chunks_name_their_document_version_and_place(
    ingest: Ingest, objects: FailingObjects, vectors: OwnVectors
) -> None:
    await ingest.store("acme", [NewDocument(id="a:b", text="fish")])
    assert await _chunk_ids(objects) == ["a:b:v1:0"]
    assert await vectors.ids("acme") == ["a:b:v1:0"]


async def test_title_and_headings_are_embedded_with_each_passage(ingest: Ingest, embedder: WordEmbedder) -> None:
    await ingest.store("acme", [NewDocument(id="d", title="Atlas", text="# Sea\n\nA shark.")])
    assert embedder.texts == ["Atlas\nSea\n# Sea\n\nA shark."]
    deep = "# Sea\n\n" + "water " * 300 + "\n\n" + "salt " * 300
    await ingest.store("acme", [NewDocument(id="deep", title="Atlas", text=deep)])
    assert all(text.startswith("Atlas\n") for text in embedder.texts)
    assert embedder.texts[-1].startswith("Atlas\nSea\n")


async def test_a_document_without_an_id_gets_one_by_what_it_holds(ingest: Ingest) -> None:
    (first,), (same,), (other,) = [
        await ingest.store("acme", [NewDocument(text=text)]) for text in ("fish", "fish", "bird")
    ]
    assert first.document_id == same.document_id != other.document_id
    assert (first.status, same.status, other.status) == ("stored", "unchanged", "stored")


async def test_a_file_is_known_by_its_name(ingest: Ingest, search: Search) -> None:
    documents = [
        NewDocument(filename="notes.md", content_type="text/markdown", data=b"# Notes\n\nA shark is a fish."),
        NewDocument(filename="plain.txt", content_type="text/plain", data="Caf\u00e9 fish".encode()),
    ]
    ingested = await ingest.store("acme", documents)
    assert [(one.document_id, one.status) for one in ingested] == [("notes.md", "stored"), ("plain.txt", "stored")]
    assert "Café fish" in await _found(search, "cafe")


async def test_an_unchanged_document_is_not_embedded_again(ingest: Ingest, embedder: WordEmbedder) -> None:
    document = NewDocument(id="d", title="T", text="fish", metadata={"a": 1})
    await ingest.store("acme", [document])
    embedded = len(embedder.texts)
    assert await ingest.store("acme", [document]) == [Ingested("d", 1, "unchanged")]
    assert len(embedder.texts) == embedded


@pytest.mark.parametrize(
    "changes",
    [{"text": "fishes"}, {"title": "Other"}, {"metadata": {"a": 2}}, {"metadata": {"a": True}}, {"metadata": {}}],
)
async def test_any_change_of_a_document_stores_it_anew(ingest: Ingest, changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"id": "d", "title": "T", "text": "fish", "metadata": {"a": 1}}
    await ingest.store("acme", [NewDocument(**fields)])
    assert (await ingest.store("acme", [NewDocument(**{**fields, **changes})]))[0].status == "stored"


async def test_another_chunker_or_another_model_stores_documents_anew(
    objects: FailingObjects, vectors: OwnVectors, embedder: WordEmbedder
) -> None:
    class OtherModel(WordEmbedder):
        async def model_id(self) -> str:
            return "words-2"

    def made(model: WordEmbedder, chunker: Chunker) -> Ingest:
        return Ingest(connect=lambda: objects, limits=LIMITS, embedding=Handle(model), vectors=vectors, chunker=chunker)

    document = [NewDocument(id="d", text="fish")]
    statuses = [
        (await made(model, chunker).store("acme", document))[0].status
        for model, chunker in [
            (embedder, Chunker()),
            (embedder, Chunker()),
            (OtherModel(), Chunker()),
            (OtherModel(), Chunker(chars_max=999)),
        ]
    ]
    assert statuses == ["stored", "unchanged", "stored", "stored"]


async def test_a_changed_document_replaces_what_was_there_in_index_and_vectors(
    ingest: Ingest, search: Search, objects: FailingObjects, vectors: OwnVectors
) -> None:
    await ingest.store("acme", [NewDocument(id="d", text="old fish " * 300)])
    assert len(await vectors.ids("acme")) > 1
    await ingest.store("acme", [NewDocument(id="d", text="new fish")])
    assert await _found(search, "fish") == ["new fish"]
    assert await vectors.ids("acme") == await _chunk_ids(objects) == ["d:v2:0"]


def _break_embedding(embedding: Handle, vectors: OwnVectors, objects: FailingObjects) -> None:
    embedding.errors["embed"] = RayActorError()


def _crowd_embedding(embedding: Handle, vectors: OwnVectors, objects: FailingObjects) -> None:
    embedding.errors["embed"] = BackPressureError(num_queued_requests=256, max_queued_requests=256)


def _break_vectors(embedding: Handle, vectors: OwnVectors, objects: FailingObjects) -> None:
    vectors.failing["upsert"] = DOWN


def _break_index(embedding: Handle, vectors: OwnVectors, objects: FailingObjects) -> None:
    objects.failing["DocumentIndex", "put"] = [ObjectOverloaded("DocumentIndex/acme:documents", "full", 1.0)]


@pytest.mark.parametrize("broken", [_break_embedding, _crowd_embedding, _break_vectors, _break_index])
async def test_a_failure_before_the_index_changes_leaves_the_old_version_searchable(
    broken: Callable[[Handle, OwnVectors, FailingObjects], None],
    ingest: Ingest,
    search: Search,
    embedding: Handle,
    vectors: OwnVectors,
    objects: FailingObjects,
) -> None:
    await ingest.store("acme", [NewDocument(id="d", text="old fish")])
    broken(embedding, vectors, objects)
    failed = await ingest.store("acme", [NewDocument(id="d", text="new fish")])
    assert failed == [Ingested("d", 0, "failed", "could not be stored; send it again later", retryable=True)]
    embedding.errors.clear()
    vectors.failing.clear()
    assert await _found(search, "fish") == ["old fish"]

    assert (await ingest.store("acme", [NewDocument(id="d", text="new fish")]))[0].status == "stored"
    assert await _found(search, "fish") == ["new fish"]


async def test_replaced_vectors_that_could_not_be_removed_make_no_failure_and_are_not_found(
    ingest: Ingest, search: Search, vectors: OwnVectors, caplog: pytest.LogCaptureFixture
) -> None:
    await ingest.store("acme", [NewDocument(id="d", text="old fish")])
    vectors.failing["delete"] = DOWN
    assert await ingest.store("acme", [NewDocument(id="d", text="new fish")]) == [Ingested("d", 1, "stored")]
    assert await _found(search, "old fish") == ["new fish"]
    assert "left over" in caplog.text


async def test_concurrent_versions_of_one_document_end_with_index_and_vectors_of_one_mind(
    ingest: Ingest, objects: FailingObjects, vectors: OwnVectors
) -> None:
    texts = [f"fish number {number} " * (1 + 40 * number) for number in range(8)]
    results = await asyncio.gather(*[ingest.store("acme", [NewDocument(id="d", text=text)]) for text in texts])
    assert [one.status for (one,) in results] == ["stored"] * 8
    assert await vectors.ids("acme") == await _chunk_ids(objects)
    index = objects.namespace(DocumentIndex).get("acme", INDEX_NAME)
    document = await index.get("d")
    assert document["text"] in [text.strip() for text in texts] + texts
    assert document["chunk_count"] == len(await vectors.ids("acme"))


async def test_storing_and_removing_at_once_end_with_index_and_vectors_of_one_mind(
    ingest: Ingest, objects: FailingObjects, vectors: OwnVectors
) -> None:
    for number in range(4):
        await asyncio.gather(
            ingest.store("acme", [NewDocument(id="d", text=f"fish {number}")]),
            ingest.remove("acme", "d"),
            ingest.store("acme", [NewDocument(id="d", text=f"other fish {number}")]),
            ingest.remove("acme", "d"),
        )
        assert await vectors.ids("acme") == await _chunk_ids(objects)


async def test_a_document_of_more_chunks_than_are_embedded_at_once_is_stored_whole(
    objects: FailingObjects, vectors: OwnVectors, embedder: WordEmbedder
) -> None:
    ingest = Ingest(
        connect=lambda: objects,
        limits=LIMITS,
        embedding=Handle(embedder),
        vectors=vectors,
        chunker=Chunker(chars_max=60, chars_min=40, overlap_chars=0),
    )
    text = "\n\n".join(f"Paragraph {number} is about the fish number {number}." for number in range(2 * TEXTS_MAX + 10))
    (one,) = await ingest.store("acme", [NewDocument(id="long", text=text)])
    assert one.status == "stored"
    assert one.chunks > 2 * TEXTS_MAX
    assert sum(embedder.batches) == one.chunks == vectors.store.count("acme")
    assert max(embedder.batches) == TEXTS_MAX


async def test_what_is_wrong_with_a_document_is_said_of_it_alone(ingest: Ingest) -> None:
    ingested = await ingest.store(
        "acme",
        [
            NewDocument(id="good", text="fish"),
            NewDocument(id="blank", text=" \n\u200b"),
            NewDocument(id="long", text="x" * 100_001),
            NewDocument(filename="photo.jpg", content_type="image/jpeg", data=b"\xff\xd8\xff\xe0\x00\x10JFIF" * 20),
            NewDocument(filename="empty.txt", data=b""),
            NewDocument(filename="huge.txt", data=b"x" * 100_001),
            NewDocument(filename="fine.txt", data=b"more fish"),
        ],
    )
    assert [(one.document_id, one.status) for one in ingested] == [
        ("good", "stored"),
        ("blank", "failed"),
        ("long", "failed"),
        ("photo.jpg", "failed"),
        ("empty.txt", "failed"),
        ("huge.txt", "failed"),
        ("fine.txt", "stored"),
    ]
    errors = {one.document_id: one.error or "" for one in ingested}
    assert errors["good"] == errors["fine.txt"] == ""
    assert "holds no text" in errors["blank"]
    assert "100000 characters" in errors["long"]
    assert "empty" in errors["empty.txt"]
    assert "100000" in errors["huge.txt"]
    assert all(one.chunks == 0 for one in ingested if one.status == "failed")


async def test_only_a_few_documents_are_worked_on_at_once(objects: FailingObjects, vectors: OwnVectors) -> None:
    full = asyncio.Barrier(DOCUMENTS_AT_ONCE)

    class Crowded(WordEmbedder):
        at_once = 0
        most_at_once = 0

        async def embed(self, texts: Any) -> Any:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            # Goes on when as many have come as may: fewer would wait for ever, more would be counted.
            await full.wait()
            self.at_once -= 1
            return await super().embed(texts)

    embedder = Crowded()
    ingest = Ingest(connect=lambda: objects, limits=LIMITS, embedding=Handle(embedder), vectors=vectors)
    documents = [NewDocument(text=f"fish {number}") for number in range(4 * DOCUMENTS_AT_ONCE)]
    async with asyncio.timeout(20):
        await ingest.store("acme", documents)
    assert embedder.most_at_once == DOCUMENTS_AT_ONCE


async def test_a_removed_document_is_gone_from_index_and_vectors(
    ingest: Ingest, search: Search, vectors: OwnVectors
) -> None:
    await ingest.store("acme", [NewDocument(id="gone", text="fish"), NewDocument(id="kept", text="fish too")])
    assert await ingest.remove("acme", "gone") is True
    assert await _found(search, "fish") == ["fish too"]
    assert vectors.store.count("acme") == 1
    assert await ingest.remove("acme", "gone") is False


async def test_tenants_with_the_same_document_ids_do_not_meet(ingest: Ingest, search: Search) -> None:
    await ingest.store("acme", [NewDocument(id="d", text="our fish")])
    await ingest.store("demo", [NewDocument(id="d", text="their fish")])
    assert await ingest.remove("acme", "d") is True
    assert await _found(search, "fish", "acme") == []
    assert await _found(search, "fish", "demo") == ["their fish"]


async def test_a_model_that_cannot_be_asked_for_its_name_fails_the_request_before_any_document(
    ingest: Ingest, embedding: Handle, embedder: WordEmbedder
) -> None:
    embedding.errors["model_id"] = RayActorError()
    with pytest.raises(RayActorError):
        await ingest.store("acme", [NewDocument(text="fish")])
    with pytest.raises(RayActorError):
        await ingest.ready()
    assert embedder.texts == []
    embedding.errors.clear()
    assert await ingest.ready()
