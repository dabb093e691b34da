"""Do documents, chunks and words stay one, whatever the texts, the queries and the metadata hold?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlite_utils.utils import sqlite3

from actors import DocumentIndex, InvalidArgument, LocalBackend
from actors.document_index import (
    COMMON_CHUNKS_MIN,
    MATCHES_MAX,
    PAGE_MAX,
    QUERY_WORDS_MAX,
    WHERE_FIELDS_MAX,
    NewChunk,
    Scalar,
)
from actors.runtime.clock import ManualClock
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from tests.unit.objects_fixtures import Hibernating


@pytest.fixture(params=[LocalBackend, Hibernating], ids=["resident", "hibernating"])
def index(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[Stub[DocumentIndex]]:
    backend = request.param(tmp_path, [DocumentIndex], settings=HostSettings(slots=4), clock=clock)
    yield backend.namespace(DocumentIndex).get("acme", "documents")
    backend.close()


def _chunks(document_id: str, texts: list[str], version: int = 1) -> list[NewChunk]:
    chunks: list[NewChunk] = []
    start = 0
    for number, text in enumerate(texts):
        end = start + len(text)
        chunk_id = f"{document_id}.{version}.{number}"
        chunks.append({"id": chunk_id, "heading": "", "text": text, "start": start, "end": end})
        start = end
    return chunks


async def _put(
    index: Stub[DocumentIndex],
    document_id: str,
    *texts: str,
    version: int = 1,
    metadata: Mapping[str, Scalar] | None = None,
) -> list[str]:
    replaced: list[str] = await index.put(
        document_id,
        title=f"Title of {document_id}",
        text="".join(texts),
        metadata=metadata or {},
        content_hash=f"hash {version}",
        chunks=_chunks(document_id, list(texts), version),
    )
    return replaced


async def test_a_document_comes_back_as_it_was_put(index: Stub[DocumentIndex], clock: ManualClock) -> None:
    metadata: dict[str, Scalar] = {"author": "Ada", "year": 1843, "score": 0.5, "draft": False}
    assert await _put(index, "d1", "Rays swim. ", "Mantas, too.", metadata=metadata) == []
    entry = {
        "id": "d1",
        "title": "Title of d1",
        "metadata": metadata,
        "content_hash": "hash 1",
        "chunk_count": 2,
        "chars": 23,
        "created_at": clock.now(),
        "updated_at": clock.now(),
    }
    assert await index.get("d1") == {**entry, "text": "Rays swim. Mantas, too."}
    assert await index.page() == {"documents": [entry], "has_more": False}


async def test_an_unknown_document_is_none(index: Stub[DocumentIndex]) -> None:
    assert await index.get("d1") is None
    assert await index.delete("d1") is None
    assert await index.page() == {"documents": [], "has_more": False}
    assert await index.content_hashes(["d1"]) == {}
    assert await index.passages(["d1.1.0"]) == []
    assert await index.match("rays") == []
    assert await index.revision() == 0


async def test_a_put_replaces_the_chunks_and_names_the_old_ones(index: Stub[DocumentIndex], clock: ManualClock) -> None:
    await _put(index, "d1", "rays ", "mantas ", "skates")
    await _put(index, "d2", "rays")
    created_at = clock.now()
    clock.advance(5)
    replaced = await _put(index, "d1", "sharks", version=2)
    assert sorted(replaced) == ["d1.1.0", "d1.1.1", "d1.1.2"]
    assert await index.passages(replaced) == []
    assert await index.match("rays mantas skates") == ["d2.1.0"]
    assert await index.match("sharks") == ["d1.2.0"]
    document = await index.get("d1")
    assert (document["created_at"], document["updated_at"]) == (created_at, clock.now())
    assert (document["text"], document["chunk_count"], document["chars"]) == ("sharks", 1, 6)
    assert document["content_hash"] == "hash 2"


async def test_a_chunk_that_is_put_again_is_not_named_as_replaced(index: Stub[DocumentIndex]) -> None:
    await _put(index, "d1", "rays ", "mantas")
    assert await _put(index, "d1", "skates") == ["d1.1.1"]
    assert [passage["text"] for passage in await index.passages(["d1.1.0", "d1.1.1"])] == ["skates"]
    assert await index.match("rays mantas") == []


async def test_a_document_without_chunks_is_listed_and_never_matches(index: Stub[DocumentIndex]) -> None:
    await _put(index, "d1", "rays")
    assert await _put(index, "d1") == ["d1.1.0"]
    assert await index.match("rays") == []
    assert (await index.get("d1"))["chunk_count"] == 0


async def test_delete_removes_the_document_its_chunks_and_their_words(index: Stub[DocumentIndex]) -> None:
    await _put(index, "d1", "rays ", "mantas")
    await _put(index, "d2", "rays")
    assert sorted(await index.delete("d1")) == ["d1.1.0", "d1.1.1"]
    assert await index.get("d1") is None
    assert await index.passages(["d1.1.0", "d1.1.1"]) == []
    assert await index.match("rays mantas") == ["d2.1.0"]
    assert await index.delete("d1") is None
    assert [document["id"] for document in (await index.page())["documents"]] == ["d2"]


class Careless(DocumentIndex):
    """Deletes a document and leaves its chunks to the database."""

    def delete_only_the_document(self, document_id: str) -> None:
        self.storage.sql("DELETE FROM document WHERE id = ?", document_id)

    def leftovers(self) -> tuple[int, int]:
        ((chunks,),) = self.storage.sql("SELECT count(*) FROM chunk")
        # Raises if the words are not exactly those of the chunks that are there.
        self.storage.sql("INSERT INTO chunk_words (chunk_words, rank) VALUES ('integrity-check', 1)")
        ((words,),) = self.storage.sql("SELECT count(*) FROM chunk_words WHERE chunk_words MATCH 'rays'")
        return chunks, words


async def test_chunks_and_words_go_with_their_document_however_it_goes(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path, [Careless], settings=HostSettings(slots=4))
    index = backend.namespace(Careless).get("acme", "documents")
    for version in range(1, 4):
        await index.put(
            "d1", title="", text="rays", metadata={}, content_hash="", chunks=_chunks("d1", ["rays", "x"], version)
        )
    await index.put("d2", title="", text="rays", metadata={}, content_hash="", chunks=_chunks("d2", ["rays"]))
    assert await index.leftovers() == (3, 2)
    await index.delete_only_the_document("d1")
    assert await index.leftovers() == (1, 1)
    await index.delete("d2")
    assert await index.leftovers() == (0, 0)
    backend.close()


async def test_a_chunk_id_of_another_document_is_refused_and_changes_nothing(index: Stub[DocumentIndex]) -> None:
    await _put(index, "d1", "rays")
    revision = await index.revision()
    with pytest.raises(sqlite3.IntegrityError):
        await index.put("d2", title="", text="sharks", metadata={}, content_hash="", chunks=_chunks("d1", ["sharks"]))
    assert await index.get("d2") is None
    assert await index.match("rays sharks") == ["d1.1.0"]
    assert await index.revision() == revision


async def test_the_revision_grows_with_every_change_and_with_nothing_else(index: Stub[DocumentIndex]) -> None:
    seen = [await index.revision()]
    for change in (_put(index, "d1", "a"), _put(index, "d2", "b"), _put(index, "d1", "a"), index.delete("d2")):
        await change
        seen.append(await index.revision())
    assert seen == sorted(set(seen))
    await index.delete("d2")
    await index.get("d1")
    await index.match("a")
    assert await index.revision() == seen[-1]


async def test_content_hashes_are_those_of_the_documents_that_are_here(index: Stub[DocumentIndex]) -> None:
    await _put(index, "d1", "a")
    await _put(index, "d2", "b", version=2)
    await _put(index, "n\0ul 🐟", "c", version=3)
    asked = ["d2", "d3", "n\0ul 🐟", "d2", "n", "\ud800"]
    assert await index.content_hashes(asked) == {"d2": "hash 2", "n\0ul 🐟": "hash 3"}
    assert await index.content_hashes([]) == {}


async def test_documents_are_paged_in_the_order_of_their_ids(index: Stub[DocumentIndex]) -> None:
    for document_id in ("d3", "d1", "d4", "d2"):
        await _put(index, document_id, "x")
    expected: dict[tuple[int, str | None], tuple[list[str], bool]] = {
        (2, None): (["d1", "d2"], True),
        (2, "d2"): (["d3", "d4"], False),
        (4, None): (["d1", "d2", "d3", "d4"], False),
        (2, "d2x"): (["d3", "d4"], False),
        (2, "d4"): ([], False),
        (10**9, None): (["d1", "d2", "d3", "d4"], False),
        # A limit that asks for nothing gives one document, never all.
        (0, None): (["d1"], True),
        (-1, None): (["d1"], True),
    }
    pages = {asked: await index.page(limit=asked[0], after=asked[1]) for asked in expected}
    found = {asked: ([entry["id"] for entry in page["documents"]], page["has_more"]) for asked, page in pages.items()}
    assert found == expected


async def test_a_page_has_at_most_a_hundred_documents(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path, [DocumentIndex], settings=HostSettings(slots=4))
    index = backend.namespace(DocumentIndex).get("acme", "documents")
    for number in range(PAGE_MAX + 1):
        await _put(index, f"d{number:03d}", "x")
    page = await index.page(limit=10**9)
    assert (len(page["documents"]), page["has_more"]) == (PAGE_MAX, True)
    backend.close()


async def test_passages_come_in_the_order_asked_for_without_those_that_are_unknown(
    index: Stub[DocumentIndex],
) -> None:
    await _put(index, "d1", "one ", "two ", "three", metadata={"year": 1843})
    await _put(index, "d2", "four")
    passages = await index.passages(["d2.1.0", "gone", "d1.1.2", "d1.1.0", "\ud800", ""])
    assert [passage["id"] for passage in passages] == ["d2.1.0", "d1.1.2", "d1.1.0"]
    assert passages[1] == {
        "id": "d1.1.2",
        "document_id": "d1",
        "title": "Title of d1",
        "metadata": {"year": 1843},
        "heading": "",
        "text": "three",
        "start": 8,
        "end": 13,
    }
    assert await index.passages([]) == []
    many = [f"d1.1.{number % 3}" for number in range(3000)]
    assert [passage["id"] for passage in await index.passages(many)] == many


@pytest.mark.parametrize("text", ["a\0b rays", "日本語 🐟 rays", "\u202e rays \r\n", ""])
async def test_any_text_comes_back_unchanged_and_is_counted_in_characters(
    index: Stub[DocumentIndex], text: str
) -> None:
    chunk: NewChunk = {"id": f"c{text}", "heading": text, "text": text, "start": 0, "end": len(text)}
    await index.put(f"d{text}", title=text, text=text, metadata={text: text}, content_hash=text, chunks=[chunk])
    document = await index.get(f"d{text}")
    assert (document["title"], document["text"], document["metadata"]) == (text, text, {text: text})
    assert document["chars"] == len(text)
    (passage,) = await index.passages([f"c{text}"])
    assert (passage["heading"], passage["text"]) == (text, text)
    assert await index.match("rays", where={text: text}) == ([f"c{text}"] if "rays" in text else [])


async def test_a_document_of_megabytes_comes_back_unchanged(index: Stub[DocumentIndex]) -> None:
    text = "Rays swim. 🐟 " * 100_000
    await _put(index, "d1", text)
    assert (await index.get("d1"))["text"] == text
    assert await index.match("swim") == ["d1.1.0"]


async def test_text_with_a_lone_surrogate_is_refused_and_changes_nothing(index: Stub[DocumentIndex]) -> None:
    await _put(index, "d1", "rays")
    with pytest.raises(InvalidArgument, match="surrogates"):
        await _put(index, "d1", "sharks ", "half \ud83d", version=2)
    assert await index.match("rays sharks") == ["d1.1.0"]
    assert await index.revision() == 1
    with pytest.raises(InvalidArgument, match="surrogates"):
        await index.get("\ud83d")


async def test_words_are_found_whatever_their_form_case_and_accents(index: Stub[DocumentIndex]) -> None:
    text = "A manta swims. Café résumé phở, well known; we don't say 日本語."
    chunk: NewChunk = {"id": "c1", "heading": "Fish > Deep water", "text": text, "start": 0, "end": len(text)}
    await index.put("d1", title="", text=text, metadata={}, content_hash="", chunks=[chunk])
    expected = {
        "swimming": True,
        "SWIM": True,
        "mantas": True,
        "nothing swims": True,
        "swi": False,
        "deep waters": True,
        "cafe": True,
        "CAFÉ": True,
        "cafe\u0301": True,
        "re\u0301sume\u0301": True,
        "pho": True,
        "pho\u031b\u0309": True,
        "well-known": True,
        "don't": True,
        "日本語": True,
        "": False,
        " \t\n": False,
        "?!… 🐟": False,
    }
    assert {query: await index.match(query) == ["c1"] for query in expected} == expected


async def test_the_best_match_comes_first(index: Stub[DocumentIndex]) -> None:
    await _put(index, "d1", "rays and many other fish that live in the sea")
    await _put(index, "d2", "rays rays rays")
    await _put(index, "d3", "rays mantas")
    await _put(index, "d4", "whales")
    assert (await index.match("mantas rays"))[0] == "d3.1.0"
    assert await index.match("rays") == ["d2.1.0", "d3.1.0", "d1.1.0"]
    assert await index.match("rays", limit=1) == ["d2.1.0"]
    assert await index.match("rays", limit=0) == ["d2.1.0"]


async def test_there_are_at_most_two_hundred_matches(index: Stub[DocumentIndex]) -> None:
    await _put(index, "d1", *["rays "] * (MATCHES_MAX + 1))
    assert len(await index.match("rays", limit=10**9)) == MATCHES_MAX


async def test_only_the_first_words_of_a_long_query_count(index: Stub[DocumentIndex]) -> None:
    await _put(index, "d1", "rays")
    filler = " ".join(["filler"] * (QUERY_WORDS_MAX - 1))
    assert await index.match(f"{filler} rays") == ["d1.1.0"]
    assert await index.match(f"{filler} filler rays") == []
    assert await index.match("rays " * 100_000) == ["d1.1.0"]


async def test_operators_and_quotes_in_a_query_are_harmless(index: Stub[DocumentIndex]) -> None:
    await _put(index, "d1", "rays")
    queries = [
        '"rays',
        "rays AND sharks",
        "NOT rays",
        "rays NOT rays",
        "NEAR(rays, 1)",
        "heading:rays",
        "-rays",
        "^rays",
        "rays*",
        "(rays",
        "rays' OR 1=1 --",
        "{heading text}: rays",
        "rays\0",
        "\ud800 rays",
        "_ rays",
        "\u0301 rays",
    ]
    assert {query: await index.match(query) for query in queries} == {query: ["d1.1.0"] for query in queries}


_QUERIES = (
    st.text()
    | st.text(alphabet=st.sampled_from("ab \"'()*^:+-{},_\0\u0301ANDORTE"))
    | st.text(alphabet=st.characters(categories=["Cs", "Mn", "Cf", "Lo", "Nl"]))
)


# The index is only read, so that examples can share one.
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=_QUERIES)
@example('"')
@example("\0")
@example("_" * 100_000)
async def test_no_query_raises(index: Stub[DocumentIndex], query: str) -> None:
    assert isinstance(await index.match(query), list)
    assert await index.revision() == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(word=st.text(st.characters(categories=["Ll", "Lo", "Nd"]), min_size=1, max_size=12))
async def test_a_word_of_letters_is_found_where_it_stands(index: Stub[DocumentIndex], word: str) -> None:
    await _put(index, "d1", f"before {word} after")
    assert await index.match(word) == ["d1.1.0"]


METADATA: dict[str, Mapping[str, Scalar]] = {
    "true": {"value": True},
    "false": {"value": False},
    "one": {"value": 1},
    "one point oh": {"value": 1.0},
    "text one": {"value": "1"},
    "text true": {"value": "true"},
    "zero": {"value": 0},
    "empty": {"value": ""},
    "half": {"value": 0.5},
    "absent": {"other": 1},
}


async def test_a_filter_tells_values_apart_by_type(index: Stub[DocumentIndex]) -> None:
    for document_id, metadata in METADATA.items():
        await _put(index, document_id, "rays", metadata=metadata)
    # A list, since to a dictionary True is 1.
    expected: list[tuple[Scalar, list[str]]] = [
        (True, ["true"]),
        (False, ["false"]),
        # JSON has one kind of number.
        (1, ["one", "one point oh"]),
        (1.0, ["one", "one point oh"]),
        ("1", ["text one"]),
        ("true", ["text true"]),
        (0, ["zero"]),
        ("", ["empty"]),
        (0.5, ["half"]),
        (2, []),
        ("%", []),
        (math.nan, []),
        (math.inf, []),
    ]
    for wanted, documents in expected:
        found = await index.match("rays", where={"value": wanted})
        assert sorted(found) == sorted(f"{document_id}.1.0" for document_id in documents), repr(wanted)


async def test_a_filter_must_hold_in_every_field(index: Stub[DocumentIndex]) -> None:
    await _put(index, "d1", "rays", metadata={"a": 1, "b": "x"})
    await _put(index, "d2", "rays", metadata={"a": 1, "b": "y"})
    await _put(index, "d3", "rays", metadata={"b": "x"})
    assert await index.match("rays", where={"a": 1, "b": "x"}) == ["d1.1.0"]
    assert await index.match("rays", where={"a": 1, "c": 1}) == []
    assert len(await index.match("rays", where={})) == 3
    assert len(await index.match("rays", where=None)) == 3


async def test_any_text_is_the_name_of_a_field(index: Stub[DocumentIndex]) -> None:
    keys = ["", "a.b", "$", '"', "[0]", "ключ", "a b", "%", "n\0ul", "'"]
    for key in keys:
        await _put(index, f"is {key}", "rays", metadata={key: key})
    await _put(index, "other", "rays", metadata={f"{key}x": f"{key}x" for key in keys})
    assert {key: await index.match("rays", where={key: key}) for key in keys} == {
        key: [f"is {key}.1.0"] for key in keys
    }


async def test_a_filter_takes_only_so_many_fields(index: Stub[DocumentIndex]) -> None:
    metadata: dict[str, Scalar] = {f"f{number}": number for number in range(WHERE_FIELDS_MAX)}
    await _put(index, "d1", "rays", metadata=metadata)
    assert await index.match("rays", where=metadata) == ["d1.1.0"]
    with pytest.raises(InvalidArgument) as raised:
        await index.match("rays", where={**metadata, "one": "more"})
    assert raised.value.field == "where"


async def test_metadata_holds_whole_numbers_that_no_filter_can_name(index: Stub[DocumentIndex]) -> None:
    metadata: dict[str, Scalar] = {"small": 2**63 - 1, "large": 2**63, "larger": 10**100}
    await _put(index, "d1", "rays", metadata=metadata)
    assert (await index.get("d1"))["metadata"] == metadata
    assert await index.match("rays", where={"small": 2**63 - 1}) == ["d1.1.0"]
    assert await index.match("rays", where={"small": 2**63 - 2}) == []
    for value in (2**63, -(2**63) - 1):
        with pytest.raises(InvalidArgument, match="64 bits"):
            await index.match("rays", where={"large": value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_metadata_that_json_can_not_hold_is_refused_and_changes_nothing(
    index: Stub[DocumentIndex], value: float
) -> None:
    await _put(index, "d1", "rays")
    with pytest.raises(InvalidArgument) as raised:
        await _put(index, "d1", "sharks", version=2, metadata={"score": value})
    assert raised.value.field == "metadata"
    assert await index.match("rays sharks") == ["d1.1.0"]


async def test_chunk_offsets_beyond_64_bits_are_refused_and_change_nothing(index: Stub[DocumentIndex]) -> None:
    chunk: NewChunk = {"id": "c1", "heading": "", "text": "rays", "start": 0, "end": 2**63}
    with pytest.raises(InvalidArgument, match="64 bits"):
        await index.put("d1", title="", text="rays", metadata={}, content_hash="", chunks=[chunk])
    assert await index.get("d1") is None


async def test_indexes_of_two_tenants_share_nothing(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path, [DocumentIndex], settings=HostSettings(slots=4))
    indexes = backend.namespace(DocumentIndex)
    acme, globex = indexes.get("acme", "documents"), indexes.get("globex", "documents")
    await _put(acme, "d1", "secret rays")
    calls: list[Any] = [
        await globex.get("d1"),
        await globex.delete("d1"),
        await globex.match("rays"),
        await globex.passages(["d1.1.0"]),
        await globex.content_hashes(["d1"]),
    ]
    assert calls == [None, None, [], [], {}]
    await _put(globex, "d1", "other")
    assert await acme.match("secret") == ["d1.1.0"]
    backend.close()


async def test_one_word_in_common_is_no_answer_to_a_question(index: Stub[DocumentIndex]) -> None:
    await _put(index, "d1", "It did give notice of its terms.")
    await _put(index, "d2", "The doctor will give the medicine.")
    assert await index.match("which medicine did the doctor give?") == ["d2.1.0"]


async def test_words_that_are_everywhere_tell_nothing_apart(index: Stub[DocumentIndex]) -> None:
    for number in range(COMMON_CHUNKS_MIN):
        await _put(index, f"d{number}", f"the terms of the contract {'with sharks' if number == 7 else 'at large'}")
    assert await index.match("what of the sharks?") == ["d7.1.0"]
    assert len(await index.match("the")) == COMMON_CHUNKS_MIN
