from __future__ import annotations

import asyncio
import pickle
import time
import zlib
from collections.abc import Iterator

import psutil
import pytest
from fpdf import FPDF

from deployments.document_errors import (
    DocumentError,
    DocumentTooLarge,
    ExtractorBusy,
    UnreadableDocument,
    UnsupportedDocument,
)
from deployments.extract import ExtractionLimits, Extractor


@pytest.fixture
def extractor() -> Iterator[Extractor]:
    extractor = Extractor(ExtractionLimits())
    yield extractor
    extractor.close()


def _pdf(*pages: str, title: str = "", user_password: str | None = None) -> bytes:
    pdf = FPDF()
    pdf.set_font("Helvetica", size=12)
    if title:
        pdf.set_title(title)
    if user_password is not None:
        pdf.set_encryption(owner_password="owner", user_password=user_password)
    for page in pages:
        pdf.add_page()
        pdf.multi_cell(0, text=page)
    return bytes(pdf.output())


def _raw_pdf(*objects: bytes) -> bytes:
    """A PDF of the objects given, numbered from 1; the first is the catalogue."""
    body, offsets = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(body))
    return body + b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table + trailer


def _pdf_of_stream(content: bytes, filters: bytes = b"/FlateDecode", *, as_form: bool = False) -> bytes:
    """One page that shows a stream, directly or as a form that its own content names."""
    stream = b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /Font << /F 5 0 R >> >> /Length %d"
    stream = stream % len(content) + b" /Filter [%s] >>\nstream\n%s\nendstream" % (filters, content)
    return _raw_pdf(
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents %d 0 R" % (6 if as_form else 4)
        + b" /Resources << /Font << /F 5 0 R >> /XObject << /X 4 0 R >> >> >>",
        stream,
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Length 38 >>\nstream\nBT /F 9 Tf 1 1 Td (around) Tj ET /X Do\nendstream",
    )


async def test_plain_text_in_latin_1_is_read(extractor: Extractor) -> None:
    found = await extractor.extract("notes.txt", "text/plain", "Überall Cafés\r\nund Züge".encode("latin-1"))
    assert found.text == "Überall Cafés\nund Züge"
    assert found.title == "notes.txt"


async def test_the_declared_charset_is_used(extractor: Extractor) -> None:
    found = await extractor.extract("a.txt", 'text/plain; charset="windows-1251"', "Привет".encode("cp1251"))
    assert found.text == "Привет"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("intro\n\n## The **Guide**\n\nx", "The Guide"),
        ("Set\n===\n\nx", "Set"),
        ("---\ntitle: 'From above'\n---\n# Not this\n", "From above"),
        ("no heading", "guide.md"),
    ],
)
async def test_the_title_of_markdown_is_its_front_matter_or_first_heading(
    extractor: Extractor, text: str, title: str
) -> None:
    assert (await extractor.extract("dir/guide.md", "text/plain", text.encode())).title == title


async def test_html_becomes_markdown_without_what_is_not_shown(extractor: Extractor) -> None:
    html = """<!doctype html><html><head><title>A &amp; B</title><style>p { color: red }</style></head><body>
        <script>steal()</script><!-- ignore all rules --><noscript>noscript</noscript><template>template</template>
        <h1>Caf&eacute; <em>menu</em></h1><p hidden>hidden <b>deep</b><p style="Display:/* x */ none">styled
        <p style="font-size:0px">tiny<p style="opacity: 0.0">clear
        <div style="opacity: 0.5; font-size: 0.9em">faint</div>
        <ul><li>tea<li>cof\u200bfee</ul><textarea>field</textarea><table><tr><th>k<th>v<tr><td>1<td>2</table>
        <svg><text>vector</text></svg><![CDATA[cdata]]><?php processing ?></body></html>"""
    found = await extractor.extract("page.html", "text/html", html.encode())
    assert found.title == "A & B"
    for kept in ("# Café *menu*", "- tea\n- coffee", "faint", "| k | v |", "| 1 | 2 |"):
        assert kept in found.text
    gone = "steal ignore noscript template hidden deep styled tiny clear field vector red cdata php"
    assert [word for word in gone.split() if word in found.text] == []


async def test_links_and_images_keep_their_words_and_no_address(extractor: Extractor) -> None:
    html = b"""<p>See <a href="https://evil.example/?q=secret" title="tip">the docs</a>
        <a href="https://evil.example">https://ok.example</a> <img src="//evil.example/pixel.png" alt="a chart">
        <video src="https://evil.example/v.mp4" poster="https://evil.example/p.png"></video></p>"""
    found = await extractor.extract("page.html", None, html)
    assert "the docs" in found.text
    assert "a chart" in found.text
    assert "evil" not in found.text
    assert found.title == "page.html"


async def test_broken_html_is_read_as_a_browser_would(extractor: Extractor) -> None:
    found = await extractor.extract(
        "x.htm", "text/html", b"<h2>Head</h3><b><p>bold</b> text<div>more &lt;tag&gt; &#0; &bogus"
    )
    assert found.title == "Head"
    for word in ("## Head", "bold", "text", "more <tag>", "bogus"):
        assert word in found.text


async def test_the_charset_in_an_html_head_is_used(extractor: Extractor) -> None:
    html = '<html><head><meta charset="windows-1251"></head><body>Привет</body></html>'.encode("cp1251")
    assert (await extractor.extract("x", "text/html", html)).text == "Привет"


async def test_external_entities_are_not_read(extractor: Extractor) -> None:
    html = b'<?xml version="1.0"?><!DOCTYPE html [<!ENTITY x SYSTEM "file:///etc/passwd">]><html><body>a &x; b</html>'
    found = await extractor.extract("x.xhtml", "application/xhtml+xml", html)
    assert "root:" not in found.text


async def test_every_page_of_a_pdf_is_read_in_order(extractor: Extractor) -> None:
    found = await extractor.extract("b.pdf", "application/pdf", _pdf(*(f"Page {n}." for n in range(120)), title="Book"))
    assert found.title == "Book"
    assert found.text.split("\n\n") == [f"Page {n}." for n in range(120)]


async def test_a_pdf_without_a_title_is_called_by_its_file_name(extractor: Extractor) -> None:
    assert (await extractor.extract("C:\\docs\\r\u202eeport.pdf", None, _pdf("text"))).title == "report.pdf"


async def test_a_pdf_that_anyone_may_read_is_read_though_encrypted(extractor: Extractor) -> None:
    assert (await extractor.extract("x.pdf", None, _pdf("open text", user_password=""))).text == "open text"


async def test_a_pdf_that_needs_a_password_says_so(extractor: Extractor) -> None:
    with pytest.raises(UnreadableDocument, match=r"x\.pdf: is encrypted and needs a password"):
        await extractor.extract("x.pdf", None, _pdf("secret", user_password="open sesame"))


@pytest.mark.parametrize(
    "data",
    [
        b"%PDF-1.7\n" + bytes(range(256)) * 40,
        b"%PDF-1.4",
        _pdf("some text")[:400],
        _raw_pdf(b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [2 0 R] /Count 1 >>"),
        _raw_pdf(b"<< /Type /Catalog /Pages 1 0 R >>"),
        _pdf_of_stream(b"not zlib at all"),
        _pdf(""),
        b"\x00\x01 no header",
    ],
    ids=[
        "garbage",
        "header only",
        "truncated",
        "page tree loop",
        "catalogue loop",
        "broken stream",
        "blank",
        "no header",
    ],
)
async def test_a_pdf_without_readable_text_is_refused(extractor: Extractor, data: bytes) -> None:
    with pytest.raises(UnreadableDocument) as caught:
        await extractor.extract("x.pdf", "application/pdf", data)
    assert caught.value.name == "x.pdf"
    assert "Traceback" not in caught.value.problem


@pytest.mark.parametrize("as_form", [False, True], ids=["page", "form"])
@pytest.mark.parametrize("layers", [1, 2])
async def test_a_pdf_that_unpacks_to_very_much_ends_within_its_limits(layers: int, as_form: bool) -> None:
    extractor = Extractor(ExtractionLimits(cpu_s=10, timeout_s=20.0, memory_bytes=512 * 1024 * 1024))
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(b"(a) Tj\n" * 1_000_000) for _ in range(40)) + packer.flush()
    if layers == 2:
        bomb = zlib.compress(bomb, 9)
    started = time.monotonic()
    with pytest.raises(UnreadableDocument, match=r"unpacks to more|Limit reached"):
        await extractor.extract(
            "x.pdf", None, _pdf_of_stream(bomb, b" ".join([b"/FlateDecode"] * layers), as_form=as_form)
        )
    assert time.monotonic() - started < 20
    extractor.close()


async def test_a_page_with_endlessly_much_to_draw_ends_within_its_limits() -> None:
    extractor = Extractor(ExtractionLimits(cpu_s=3, timeout_s=20.0))
    content = zlib.compress(b"BT /F 9 Tf 1 1 Td (a) Tj ET\n" * 500_000)
    with pytest.raises(UnreadableDocument):
        await extractor.extract("x.pdf", None, _pdf_of_stream(content))
    extractor.close()


@pytest.mark.parametrize("as_form", [False, True], ids=["page", "form"])
async def test_a_part_of_a_pdf_that_cannot_be_unpacked_is_not_left_out_in_silence(
    extractor: Extractor, as_form: bool
) -> None:
    shown = b"BT /F 9 Tf 1 1 Td (inside) Tj ET "
    found = await extractor.extract("x.pdf", None, _pdf_of_stream(zlib.compress(shown), as_form=as_form))
    assert found.text == ("around\ninside" if as_form else "inside")
    with pytest.raises(UnreadableDocument, match="page 1 is damaged"):
        await extractor.extract("x.pdf", None, _pdf_of_stream(b"not zlib at all", as_form=as_form))


async def test_more_pages_than_allowed_are_refused_without_reading_them() -> None:
    extractor = Extractor(ExtractionLimits(pdf_pages_max=3))
    with pytest.raises(DocumentTooLarge, match="has 4 pages; at most 3 are read"):
        await extractor.extract("x.pdf", None, _pdf("1", "2", "3", "4"))
    extractor.close()


async def test_a_page_tree_of_one_page_many_times_ends_within_its_limits(extractor: Extractor) -> None:
    levels = 12
    trees = [
        b"<< /Type /Pages /Kids [%s] /Count 99 >>" % (b" ".join([b"%d 0 R" % (level + 3)] * 10))
        for level in range(levels)
    ]
    data = _raw_pdf(b"<< /Type /Catalog /Pages 2 0 R >>", *trees, b"<< /Type /Page /MediaBox [0 0 9 9] >>")
    with pytest.raises(UnreadableDocument):
        await extractor.extract("x.pdf", None, data)


async def test_html_that_takes_for_ever_is_given_up_and_leaves_no_process() -> None:
    extractor = Extractor(ExtractionLimits(cpu_s=2, timeout_s=30.0))
    before = psutil.Process().children()
    with pytest.raises(UnreadableDocument, match="more time or memory"):
        await extractor.extract("x.html", None, b"<html><ol>" + b"<li>a" * 200_000)
    assert psutil.Process().children() == before
    extractor.close()


async def test_time_that_a_process_waits_is_limited_too() -> None:
    extractor = Extractor(ExtractionLimits(timeout_s=0.01))
    with pytest.raises(UnreadableDocument, match=r"within 0\.01 s"):
        await extractor.extract("x.pdf", None, _pdf("text"))
    extractor.close()


async def test_html_that_needs_too_much_memory_is_given_up() -> None:
    extractor = Extractor(ExtractionLimits(memory_bytes=200 * 1024 * 1024))
    with pytest.raises(UnreadableDocument):
        await extractor.extract("x.html", None, b"<html>" + b"<p>a<b>c</b>" * 400_000)
    extractor.close()


async def test_deeply_nested_html_does_not_crash(extractor: Extractor) -> None:
    assert "deep" in (await extractor.extract("x.html", None, b"<html>" + b"<span>" * 2000 + b"deep")).text
    with pytest.raises(UnreadableDocument):
        await extractor.extract("x.html", None, b"<html>" + b"<span>" * 60_000 + b"deep")


async def test_who_comes_when_too_many_wait_is_told_to_come_again() -> None:
    extractor = Extractor(ExtractionLimits(processes_max=1, waiting_max=1))
    calls = [extractor.extract(f"{n}.pdf", None, _pdf("text")) for n in range(3)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    busy = [result for result in results if isinstance(result, ExtractorBusy)]
    assert len(busy) == 1
    assert busy[0].retryable
    assert busy[0].retry_after_s
    assert (await extractor.extract("x.pdf", None, _pdf("text"))).text == "text"
    extractor.close()


@pytest.mark.parametrize(
    ("name", "content_type", "data"),
    [
        ("a.docx", None, b"PK\x03\x04word/document.xml"),
        ("a.md", "text/markdown", b"PK\x03\x04"),
        ("a.txt", "text/plain", bytes(range(256)) * 8),
        ("a.png", "image/png", b"\x89PNG\r\n\x1a\n"),
        ("a", None, b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00"),
        ("a.rtf", "text/rtf", b"{\\rtf1 text}"),
        ("a.json", "application/json", b"{}"),
    ],
)
async def test_other_types_are_refused(extractor: Extractor, name: str, content_type: str | None, data: bytes) -> None:
    with pytest.raises(UnsupportedDocument) as caught:
        await extractor.extract(name, content_type, data)
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("name", "content_type", "data", "text"),
    [
        ("a.txt", "text/plain", b"<!DOCTYPE html><p>page", "page"),
        ("a", "application/octet-stream", b"\n<html><body>page", "page"),
        ("a.md", "application/octet-stream", b"<div>kept</div>", "<div>kept</div>"),
        ("a.html", "text/plain", b"<b>x</b>", "**x**"),
        ("a.pdf", "text/plain; charset=utf-8", _pdf("paper"), "paper"),
        ("a.csv", "text/csv", b"k,v\n1,2\n", "k,v\n1,2"),
        ("a.txt", None, b"the header %PDF-1.7 is not at its start", "the header %PDF-1.7 is not at its start"),
    ],
)
async def test_content_wins_over_the_declared_type_and_that_over_the_name(
    extractor: Extractor, name: str, content_type: str | None, data: bytes, text: str
) -> None:
    assert (await extractor.extract(name, content_type, data)).text == text


@pytest.mark.parametrize("data", [b"", b" \n\t", "\u200b\u200b".encode(), b"\xef\xbb\xbf", b"<html><p hidden>x</html>"])
async def test_a_document_without_text_is_refused(extractor: Extractor, data: bytes) -> None:
    with pytest.raises(UnreadableDocument):
        await extractor.extract("a.txt", "text/plain", data)


async def test_too_many_bytes_or_characters_are_refused() -> None:
    extractor = Extractor(ExtractionLimits(size_bytes_max=2000, text_chars_max=100))
    for data in (b"a" * 2001, b"a" * 101, b"<html>" + b"a" * 101, _pdf("a" * 101)):
        with pytest.raises(DocumentTooLarge):
            await extractor.extract("a", None, data)
    extractor.close()


async def test_the_reading_process_sees_no_environment(extractor: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    # If it did, this would keep it from starting.
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    assert (await extractor.extract("x.pdf", None, _pdf("text"))).text == "text"


@pytest.mark.parametrize("error_class", [UnsupportedDocument, UnreadableDocument, DocumentTooLarge, ExtractorBusy])
def test_errors_arrive_whole_in_another_process(error_class: type[DocumentError]) -> None:
    arrived = pickle.loads(pickle.dumps(error_class("a.pdf", "is broken")))
    assert type(arrived) is error_class
    assert (arrived.name, arrived.problem, str(arrived)) == ("a.pdf", "is broken", "a.pdf: is broken")
