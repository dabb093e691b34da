"""Does a search find what is there, for its own tenant only, and is a remembered result never an old one?"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from actors import DocumentIndex
from actors.document_index import NewChunk, Scalar
from actors.key_value import VALUE_BYTES_MAX
from actors.runtime.clock import ManualClock
from configs.tenant import RetrievalConfig
from deployments.documents import INDEX_NAME, Found
from deployments.errors import VectorsUnavailable
from deployments.search import Search
from deployments.vector_store import TOP_K_MAX, VectorItem
from tests.unit.handles import FailingObjects, Handle, OwnVectors, WordEmbedder

RETRIEVAL = {
    "acme": RetrievalConfig(top_k=3, candidates=10, cache_ttl_s=60),
    "demo": RetrievalConfig(top_k=3, candidates=10, cache_ttl_s=60),
    "fresh": RetrievalConfig(top_k=1, candidates=500, cache_ttl_s=0),
}


@pytest.fixture
def search(objects: FailingObjects, vectors: OwnVectors, embedder: WordEmbedder) -> Search:
    return Search(connect=lambda: objects, retrieval=RETRIEVAL, embedding=Handle(embedder), vectors=vectors)


class Library:
    """Puts documents of one chunk each where they belong, or into one of the two indexes alone."""

    def __init__(self, objects: FailingObjects, vectors: OwnVectors) -> None:
        self._objects = objects
        self._vectors = vectors

    async def put(
        self,
        document_id: str,
        text: str,
        *,
        tenant: str = "acme",
        metadata: Mapping[str, Scalar] | None = None,
        words: bool = True,
        meaning: bool = True,
    ) -> None:
        chunk: NewChunk = {"id": f"{document_id}:1:0", "heading": "", "text": text, "start": 0, "end": len(text)}
        if words:
            await (
                self._objects.namespace(DocumentIndex)
                .get(tenant, INDEX_NAME)
                .put(
                    document_id, title=document_id, text=text, metadata=metadata or {}, content_hash="h", chunks=[chunk]
                )
            )
        if meaning:
            (vector,) = await WordEmbedder().embed([text])
            item = VectorItem(
                chunk_id=chunk["id"], document_id=document_id, embedding=vector, metadata=dict(metadata or {})
            )
            await self._vectors.upsert(tenant, [item])


@pytest.fixture
def library(objects: FailingObjects, vectors: OwnVectors) -> Library:
    return Library(objects, vectors)


def _ids(found: Found) -> list[str]:
    return [passage["document_id"] for passage in found.passages]


async def test_a_tenant_without_documents_finds_nothing_and_embeds_nothing(
    search: Search, embedder: WordEmbedder
) -> None:
    assert await search.find("acme", "fish") == Found([], cached=False)
    assert embedder.texts == []


async def test_what_both_rankings_have_comes_first_and_what_one_has_comes_too(search: Search, library: Library) -> None:
    await library.put("words", "a shark is a fish", meaning=False)
    await library.put("both", "fish fish fish")
    found = await search.find("acme", "fish")
    assert _ids(found) == ["both", "words"]
    assert found.passages[0]["text"] == "fish fish fish"
    assert found.passages[0]["id"] == "both:1:0"


async def test_a_chunk_that_only_the_vectors_know_is_left_out(search: Search, library: Library) -> None:
    await library.put("here", "fish")
    await library.put("deleted", "fish", words=False)
    assert _ids(await search.find("acme", "fish")) == ["here"]


async def test_chunks_of_no_document_take_no_places_of_others(search: Search, library: Library) -> None:
    for number in range(5):
        await library.put(f"ghost{number}", "fish", words=False)
    for number in range(4):
        await library.put(f"real{number}", "fish and chips")
    assert len(_ids(await search.find("acme", "fish", top_k=4))) == 4


async def test_as_many_as_asked_for_are_found_and_the_tenants_number_otherwise(
    search: Search, library: Library
) -> None:
    for number in range(8):
        await library.put(f"d{number}", f"fish number{number}")
    assert len((await search.find("acme", "fish")).passages) == 3
    assert len((await search.find("acme", "fish", top_k=1)).passages) == 1
    assert len((await search.find("acme", "fish", top_k=50)).passages) == 8


async def test_more_candidates_than_the_indexes_give_are_as_many_as_they_give(search: Search, library: Library) -> None:
    assert RETRIEVAL["fresh"].candidates > TOP_K_MAX
    await library.put("d", "fish", tenant="fresh")
    assert _ids(await search.find("fresh", "fish")) == ["d"]


async def test_a_filter_holds_for_words_and_for_meaning(search: Search, library: Library) -> None:
    await library.put("words-de", "fish", metadata={"lang": "de"}, meaning=False)
    await library.put("both-en", "fish", metadata={"lang": "en"})
    await library.put("both-de", "fish", metadata={"lang": "de"})
    assert sorted(_ids(await search.find("acme", "fish", where={"lang": "de"}))) == ["both-de", "words-de"]
    assert _ids(await search.find("acme", "fish", where={"lang": "en"})) == ["both-en"]
    assert _ids(await search.find("acme", "fish", where={"lang": "fr"})) == []
    # Words that no document holds leave meaning alone to answer.
    assert _ids(await search.find("acme", "nothing", where={"lang": "en"})) == ["both-en"]


async def test_a_tenant_finds_its_own_documents_alone(search: Search, library: Library) -> None:
    await library.put("same", "our fish", tenant="acme")
    await library.put("same", "their fish", tenant="demo")
    for name, text in (("acme", "our fish"), ("demo", "their fish"), ("acme", "our fish")):
        assert [passage["text"] for passage in (await search.find(name, "fish")).passages] == [text]


async def test_the_same_search_again_is_answered_from_the_first(
    search: Search, library: Library, embedder: WordEmbedder
) -> None:
    await library.put("d", "fish")
    first = await search.find("acme", "fish", where={"a": 1})
    again = await search.find("acme", "fish", where={"a": 1})
    assert (first.cached, again.cached) == (False, True)
    assert again.passages == first.passages
    assert embedder.texts == ["fish"]


async def test_any_difference_makes_another_search(search: Search, library: Library) -> None:
    await library.put("d", "fish", metadata={"a": 1})
    await search.find("acme", "fish")
    different = [
        await search.find("acme", "Fish"),
        await search.find("acme", "fish", top_k=2),
        await search.find("acme", "fish", where={"a": 1}),
        await search.find("acme", "fish", where={"a": True}),
        await search.find("acme", "fish", where={"a": "1"}),
        await search.find("demo", "fish"),
    ]
    assert [found.cached for found in different] == [False] * 6
    assert (await search.find("acme", "fish", top_k=3)).cached  # which is the default


async def test_a_result_is_forgotten_when_the_documents_change(
    search: Search, library: Library, objects: FailingObjects
) -> None:
    await library.put("old", "fish")
    await search.find("acme", "fish")
    await library.put("new", "fish fish")
    found = await search.find("acme", "fish")
    assert (sorted(_ids(found)), found.cached) == (["new", "old"], False)
    await objects.namespace(DocumentIndex).get("acme", INDEX_NAME).delete("old")
    found = await search.find("acme", "fish")
    assert (_ids(found), found.cached) == (["new"], False)


async def test_a_result_is_forgotten_after_its_time(search: Search, library: Library, clock: ManualClock) -> None:
    await library.put("d", "fish")
    await search.find("acme", "fish")
    clock.advance(59)
    assert (await search.find("acme", "fish")).cached
    clock.advance(1)
    assert not (await search.find("acme", "fish")).cached


async def test_a_tenant_that_wants_no_results_kept_has_none_kept(
    search: Search, library: Library, objects: FailingObjects
) -> None:
    await library.put("d", "fish", tenant="fresh")
    for _ in range(2):
        assert not (await search.find("fresh", "fish")).cached
    assert all(class_name != "KeyValue" for class_name, _ in objects.calls)


async def test_a_result_too_large_to_keep_is_still_given(search: Search, library: Library) -> None:
    await library.put("d", "fish " * (VALUE_BYTES_MAX // 5))
    for _ in range(2):
        found = await search.find("acme", "fish")
        assert (_ids(found), found.cached) == (["d"], False)


@pytest.mark.parametrize("query", ["", " ", '"', "fish* OR (", "NEAR(fish, 2)", "a:b", "\0", "\ud83d", "🐟" * 500])
async def test_any_text_is_a_query(search: Search, library: Library, query: str) -> None:
    await library.put("d", "fish")
    await search.find("acme", query)


async def test_vectors_that_do_not_answer_fail_the_search_and_keep_nothing(
    search: Search, library: Library, vectors: OwnVectors
) -> None:
    await library.put("d", "fish")
    vectors.failing["query"] = VectorsUnavailable("starting", 1.0)
    with pytest.raises(VectorsUnavailable):
        await search.find("acme", "fish")
    del vectors.failing["query"]
    found = await search.find("acme", "fish")
    assert (_ids(found), found.cached) == (["d"], False)


async def test_readiness_is_that_of_the_vectors(search: Search) -> None:
    assert await search.ready()
