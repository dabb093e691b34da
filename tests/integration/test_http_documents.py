"""Are documents stored, found, replaced and removed as the interface says, one by one and whatever they hold?"""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.integration.calls import found_by, ingest, ok, pdf, problem, unique, upload
from tests.integration.conftest import Service


def results_of(client: httpx.Client, query: str, **more: Any) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = ok(client.post("/search", json={"query": query, **more}))["results"]
    return results


def is_cached(client: httpx.Client, query: str, **more: Any) -> bool:
    return bool(ok(client.post("/search", json={"query": query, **more}))["cached"])


def test_files_of_every_kind_are_stored_and_found(demo: httpx.Client) -> None:
    tag = unique("kinds")
    stored = upload(
        demo,
        (f"{tag}.pdf", pdf(f"The {tag} observatory on Mount Vela was opened by Ilse Brandt."), "application/pdf"),
        (f"{tag}.md", f"# Moles\n\nMoles of {tag} dig tunnels under gardens.\n".encode(), "text/markdown"),
        (
            f"{tag}.html",
            f"<html><head><title>Bees</title><script>var {tag.replace('-', '')}secret</script></head>"
            f"<body><h1>Bees</h1><p>Bees of {tag} make honey.</p></body></html>".encode(),
            "text/html",
        ),
        (f"{tag}.txt", f"Glaciers of {tag} carve valleys: naïve, Žižek, 氷河.".encode(), "text/plain"),
    )
    names = {f"{tag}.{ending}" for ending in ("pdf", "md", "html", "txt")}
    assert set(stored) == names
    assert all(one["status"] == "stored" and one["chunks"] == 1 and one["error"] is None for one in stored.values())

    for query, name, passage in [
        (f"who opened the {tag} observatory?", f"{tag}.pdf", "Ilse Brandt"),
        (f"what digs tunnels in {tag}?", f"{tag}.md", "Moles of"),
        (f"{tag} honey", f"{tag}.html", "make honey"),
        (f"{tag} 氷河", f"{tag}.txt", "naïve, Žižek, 氷河"),
    ]:
        best = results_of(demo, query, top_k=1)[0]
        assert best["document_id"] == name
        assert passage in best["text"]
        document = ok(demo.get(f"/documents/{name}"))
        assert document["text"][best["start"] : best["end"]] == best["text"]
        assert "secret" not in document["text"]
        assert (document["chunk_count"], document["chars"]) == (1, len(document["text"]))
    assert {ok(demo.get(f"/documents/{tag}.{ending}"))["title"] for ending in ("md", "html")} == {"Moles", "Bees"}
    for name in names:
        assert demo.delete(f"/documents/{name}").status_code == 204


def test_a_passage_is_found_by_its_meaning_without_any_of_its_words(demo: httpx.Client) -> None:
    document_id = unique("meaning")
    ingest(demo, {"id": document_id, "text": "The physician prescribed antibiotics for the infection."})
    assert document_id in found_by(demo, "which medicine did a doctor give?", top_k=5)
    assert demo.delete(f"/documents/{document_id}").status_code == 204


def test_a_long_document_is_cut_into_passages_that_are_where_they_say(demo: httpx.Client) -> None:
    document_id = unique("long")
    text = "\n\n".join(
        f"## Part {number}\n\n" + f"Sentence about subject {number} of {document_id}. " * 40 for number in range(10)
    )
    (stored,) = ingest(demo, {"id": document_id, "text": text})
    assert stored["chunks"] > 10
    document = ok(demo.get(f"/documents/{document_id}"))
    results = [one for one in results_of(demo, f"subject 7 of {document_id}", top_k=50) if one["title"] == document_id]
    assert len(results) > 10
    for result in results:
        assert document["text"][result["start"] : result["end"]] == result["text"]
    assert demo.delete(f"/documents/{document_id}").status_code == 204


def test_what_is_sent_again_is_not_done_again(demo: httpx.Client) -> None:
    tag = unique("again")
    file = (f"{tag}.pdf", pdf(f"A report on {tag}."), "application/pdf")
    document = {"id": tag, "title": "T", "text": f"Text of {tag}.", "metadata": {"year": 1857}}
    assert upload(demo, file)[file[0]]["status"] == "stored"
    assert ingest(demo, document)[0]["status"] == "stored"
    before = ok(demo.get(f"/documents/{tag}"))
    assert upload(demo, file)[file[0]] == {"document_id": file[0], "chunks": 1, "status": "unchanged", "error": None}
    assert ingest(demo, document)[0]["status"] == "unchanged"
    assert ok(demo.get(f"/documents/{tag}")) == before
    assert ingest(demo, {**document, "metadata": {"year": 1858}})[0]["status"] == "stored"
    for name in (tag, file[0]):
        assert demo.delete(f"/documents/{name}").status_code == 204


def test_a_document_without_an_id_gets_one_that_is_its_contents(demo: httpx.Client) -> None:
    document = {"text": f"Nameless {unique('text')}."}
    (first,), (second,) = ingest(demo, document), ingest(demo, document)
    assert (first["status"], second["status"]) == ("stored", "unchanged")
    assert first["document_id"] == second["document_id"]
    assert demo.delete(f"/documents/{first['document_id']}").status_code == 204


def test_of_a_document_that_changed_nothing_old_is_found(demo: httpx.Client) -> None:
    tag = unique("changed")
    ingest(demo, {"id": tag, "text": f"The {tag} ferry leaves from the old harbour.", "metadata": {"edition": 1}})
    assert tag in found_by(demo, f"{tag} old harbour", filter={"edition": 1})
    ingest(demo, {"id": tag, "text": f"The {tag} ferry leaves from the northern pier.", "metadata": {"edition": 2}})
    assert found_by(demo, f"{tag} old harbour", filter={"edition": 1}) == []
    texts = [result["text"] for result in results_of(demo, f"{tag} ferry", top_k=50) if result["document_id"] == tag]
    assert texts == [f"The {tag} ferry leaves from the northern pier."]
    assert demo.delete(f"/documents/{tag}").status_code == 204


def test_a_file_that_can_not_be_read_says_so_and_spoils_no_other(demo: httpx.Client) -> None:
    tag = unique("broken")
    whole_pdf = pdf(f"A whole document about {tag}.")
    png = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    answers = upload(
        demo,
        (f"{tag}-cut.pdf", whole_pdf[: len(whole_pdf) // 2], "application/pdf"),
        (f"{tag}-none.pdf", b"this is no PDF", "application/pdf"),
        (f"{tag}.png", png, "image/png"),
        (f"{tag}-disguised.txt", png, "text/plain"),
        (f"{tag}.docx", b"PK\x03\x04" + bytes(100), "application/octet-stream"),
        (f"{tag}-empty.txt", b"", "text/plain"),
        (f"{tag}-blank.pdf", pdf(), "application/pdf"),
        (f"{tag}-good.pdf", whole_pdf, "application/pdf"),
        (f"{tag}-good.txt", f"A good text about {tag}.".encode(), "text/plain"),
    )
    assert len(answers) == 9
    for name, answer in answers.items():
        if name.startswith(f"{tag}-good"):
            assert (answer["status"], answer["error"]) == ("stored", None)
            assert demo.delete(f"/documents/{name}").status_code == 204
        else:
            assert (answer["status"], answer["chunks"]) == ("failed", 0)
            assert answer["error"]
            assert not re.search(r"(^|\s)/\w|\.py|Traceback", answer["error"]), "of the service's own"
            problem(demo.get(f"/documents/{name}"), 404)


def test_a_document_that_fails_leaves_its_earlier_version(demo: httpx.Client) -> None:
    name = f"{unique('earlier')}.txt"
    upload(demo, (name, b"The earlier version.", "text/plain"))
    assert upload(demo, (name, b"\x00\x01\x02\x03", "text/plain"))[name]["status"] == "failed"
    assert ok(demo.get(f"/documents/{name}"))["text"] == "The earlier version."
    assert demo.delete(f"/documents/{name}").status_code == 204


def test_a_text_of_nothing_but_space_fails_by_itself(demo: httpx.Client) -> None:
    tag = unique("blank")
    good, blank = ingest(demo, {"id": tag, "text": "words"}, {"id": f"{tag}-blank", "text": " \n\t "})
    assert (good["status"], blank["status"]) == ("stored", "failed")
    assert demo.delete(f"/documents/{tag}").status_code == 204


def test_a_deleted_document_is_found_no_more_from_that_moment(demo: httpx.Client) -> None:
    tag = unique("deleted")
    ingest(demo, {"id": tag, "text": f"The meteorite of {tag} fell in a pond."})
    query = f"where did the meteorite of {tag} fall?"
    assert tag in found_by(demo, query)
    assert is_cached(demo, query)
    assert demo.delete(f"/documents/{tag}").status_code == 204
    assert tag not in found_by(demo, query, top_k=50)
    assert tag not in found_by(demo, query)
    problem(demo.get(f"/documents/{tag}"), 404)
    problem(demo.delete(f"/documents/{tag}"), 404)


@pytest.mark.parametrize(
    "document_id", ["a/b/c", "../../etc/passwd", "a b", "ünïcödé-氷河", "100%", "?q#f", "a:b:c", "'--", "x" * 256]
)
def test_a_document_may_have_any_name(demo: httpx.Client, document_id: str) -> None:
    assert ingest(demo, {"id": document_id, "text": "Named strangely."})[0]["status"] == "stored"
    url = httpx.URL("/documents/").join("/documents/" + _quoted(document_id))
    assert ok(demo.get(url))["id"] == document_id
    assert demo.delete(url).status_code == 204
    problem(demo.get(url), 404)


def _quoted(document_id: str) -> str:
    return "".join(f"%{byte:02X}" for byte in document_id.encode())


def test_documents_are_listed_by_id_in_pages(service: Service) -> None:
    with service.client("sk-small") as small:
        small.headers["x-client"] = unique("pages")
        names = sorted(f"page-{number}" for number in range(5))
        ingest(small, *[{"id": name, "text": f"Text of {name}."} for name in names])
        listed: list[str] = []
        more = True
        while more:
            query: dict[str, Any] = {"limit": 2} | ({"after": listed[-1]} if listed else {})
            page = ok(small.get("/documents", params=query))
            listed += [document["id"] for document in page["documents"]]
            assert all("text" not in document for document in page["documents"])
            more = page["has_more"]
        assert listed == names


def test_a_search_finds_only_what_its_filter_allows(demo: httpx.Client) -> None:
    tag = unique("filter")
    kinds: dict[str, dict[str, Any]] = {
        "number": {"tag": tag, "year": 1857, "final": True},
        "other": {"tag": tag, "year": 1999, "final": False},
        "text": {"tag": tag, "year": "1857", "final": "true"},
        "bare": {},
    }
    ingest(
        demo,
        *[{"id": f"{tag}-{kind}", "text": f"{tag} storm", "metadata": data} for kind, data in kinds.items()],
    )

    def found(where: dict[str, Any] | None) -> set[str]:
        ids = found_by(demo, f"{tag} storm", top_k=50, filter=where)
        return {one.removeprefix(f"{tag}-") for one in ids if one.startswith(tag)}

    assert found(None) == found({}) == {"number", "other", "text", "bare"}
    assert found({"tag": tag}) == {"number", "other", "text"}
    assert found({"tag": tag, "year": 1857}) == {"number"}
    assert found({"tag": tag, "year": 1857.0}) == {"number"}
    assert found({"tag": tag, "year": "1857"}) == {"text"}
    assert found({"tag": tag, "final": True}) == {"number"}
    assert found({"tag": tag, "final": False}) == {"other"}
    assert found({"tag": tag, "final": 1}) == set()
    assert found({"tag": "' OR 1=1 --"}) == set()
    assert found({"nothing": "here"}) == set()
    assert results_of(demo, tag, filter={"tag": tag, "year": 1857})[0]["metadata"] == kinds["number"]
    for kind in kinds:
        assert demo.delete(f"/documents/{tag}-{kind}").status_code == 204


def test_a_search_is_cached_until_any_document_changes(demo: httpx.Client) -> None:
    tag = unique("cache")
    ingest(demo, {"id": tag, "text": f"The comet of {tag} returns."})
    query = f"comet {tag}"
    assert [is_cached(demo, query) for _ in range(3)] == [False, True, True]
    assert not is_cached(demo, query, top_k=7)
    assert not is_cached(demo, query, filter={"tag": tag})
    assert not is_cached(demo, f"{query} ")
    ingest(demo, {"id": tag, "text": f"The comet of {tag} is gone."})
    assert results_of(demo, query)[0]["text"] == f"The comet of {tag} is gone."
    assert is_cached(demo, query)
    assert demo.delete(f"/documents/{tag}").status_code == 204
    assert not is_cached(demo, query)


@pytest.mark.parametrize(
    "query", ['"', "* OR NEAR(a b)", "a AND", "'; DROP TABLE document; --", "(", "\x00", "🦈" * 400]
)
def test_no_query_is_a_command(demo: httpx.Client, query: str) -> None:
    assert len(results_of(demo, query, top_k=3)) <= 3


def test_many_documents_in_one_request_are_all_stored(demo: httpx.Client) -> None:
    tag = unique("many")
    answers = ingest(demo, *[{"id": f"{tag}-{number}", "text": f"{tag} number {number}"} for number in range(40)])
    assert [answer["document_id"] for answer in answers] == [f"{tag}-{number}" for number in range(40)]
    assert {answer["status"] for answer in answers} == {"stored"}
    assert found_by(demo, f"{tag} number 23", top_k=1) == [f"{tag}-23"]
    for number in range(40):
        assert demo.delete(f"/documents/{tag}-{number}").status_code == 204


def test_the_same_document_twice_in_one_request_ends_as_one_of_them(demo: httpx.Client) -> None:
    tag = unique("twice")
    ingest(demo, {"id": tag, "text": f"{tag} first"}, {"id": tag, "text": f"{tag} second"})
    text = ok(demo.get(f"/documents/{tag}"))["text"]
    assert text in (f"{tag} first", f"{tag} second")
    found = [result["text"] for result in results_of(demo, tag, top_k=50) if result["document_id"] == tag]
    assert found == [text]
    assert demo.delete(f"/documents/{tag}").status_code == 204
