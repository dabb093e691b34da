from __future__ import annotations

import time

import pytest

from deployments.chunk import Chunk, Chunker
from deployments.headings import WINDOW_CHARS, first_heading, sections

PARAGRAPH = "The quick brown fox jumps over the lazy dog. Nobody had told it that dogs bite. " * 4


def _chunk_with(chunks: list[Chunk], words: str) -> Chunk:
    return next(chunk for chunk in chunks if words in chunk.text)


def test_a_chunk_knows_the_headings_above_it() -> None:
    text = f"# Guide\n\n{PARAGRAPH}\n\n## Install\n\n{PARAGRAPH}\n\n### **On** `Linux`\n\nApt. {PARAGRAPH}\n\n" + (
        f"Use\n===\n\nRun. {PARAGRAPH}\n"
    )
    chunks = Chunker(chars_max=400, chars_min=200, overlap_chars=0).chunk(text)
    assert _chunk_with(chunks, "Apt.").heading == "Guide > Install > On Linux"
    assert _chunk_with(chunks, "Run.").heading == "Use"


def test_a_heading_is_not_left_alone_when_its_section_is_cut() -> None:
    chunks = Chunker().chunk(f"# Title\n\n{PARAGRAPH * 4}\n\n## Next\n\n{PARAGRAPH * 4}")
    assert chunks[0].text.startswith("# Title\n\nThe quick")
    assert _chunk_with(chunks, "## Next").text.startswith("## Next\n\nThe quick")


def test_a_text_without_headings_has_none() -> None:
    assert [chunk.heading for chunk in Chunker().chunk("just text")] == [""]


@pytest.mark.parametrize(
    "text",
    [
        "```\n# not a heading\n```\n\nx",
        "> # quoted\n\nx",
        "- # listed\n\nx",
        "    # code\n\nx",
        "---\ntitle: x\n---\nx",
    ],
)
def test_what_only_looks_like_a_heading_is_none(text: str) -> None:
    assert first_heading(text) == ""


def test_a_code_block_longer_than_a_window_holds_no_headings_and_ends_where_it_ends() -> None:
    code = "# comment\nx = 1\n" * (3 * WINDOW_CHARS // 16)
    text = f"# Real\n\n```python\n{code}```\n\n## After\n\nend\n"
    assert [heading.title for section in sections(text) for heading in section.headings] == ["Real", "After"]
    assert Chunker().chunk(text)[-1].heading == "Real > After"


def test_sections_are_the_whole_text_in_order() -> None:
    text = "".join(f"# H{number}\n\n{PARAGRAPH}\n\n" for number in range(500))
    found = list(sections(text))
    assert "".join(text[section.start : section.end] for section in found) == text
    assert len(found) > 5
    assert all(text[section.start :].startswith("# H") for section in found)


def test_a_long_heading_is_cut() -> None:
    (chunk, *_) = Chunker().chunk("# " + "word " * 200)
    assert len(chunk.heading) <= 120


@pytest.mark.parametrize("text", ["", " ", "\n" * 5000, "\t \u2028 \x1c"])
def test_blank_text_has_no_chunks(text: str) -> None:
    assert Chunker().chunk(text) == []


def test_offsets_are_characters_and_not_bytes() -> None:
    text = "# \U0001d518\U0001d52b\n\n" + "日本語の文。😀 " * 400
    chunks = Chunker().chunk(text)
    assert len(chunks) > 3
    assert all(text[chunk.start : chunk.end] == chunk.text for chunk in chunks)
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))


def test_chunks_of_one_block_overlap() -> None:
    first, second, *_ = Chunker(chars_max=300, chars_min=200, overlap_chars=100).chunk(PARAGRAPH * 5)
    assert first.start < second.start < first.end


@pytest.mark.parametrize("unit", ["a", "\n", "a" + "\n" * 150, "- a\n", "# h\n\nx\n\n", "> > - ", "[a]: b\n", "👩‍👩‍👧"])
def test_time_does_not_grow_with_the_square_of_the_length(unit: str) -> None:
    text = (unit * 200_000)[:200_000]
    started = time.process_time()
    Chunker().chunk(text)
    # 0.05 to 1.5 s; cut at once, the splitter takes from 2 s (no spaces) to three quarters of an hour (empty lines).
    assert time.process_time() - started < 10


def test_the_version_names_every_parameter() -> None:
    versions = {
        Chunker().version,
        Chunker(chars_max=1001).version,
        Chunker(chars_min=401).version,
        Chunker(overlap_chars=101).version,
    }
    assert len(versions) == 4


@pytest.mark.parametrize(("chars_max", "chars_min", "overlap_chars"), [(10, 20, 0), (20, 10, 10), (20, 10, -1)])
def test_parameters_that_make_no_sense_are_refused(chars_max: int, chars_min: int, overlap_chars: int) -> None:
    with pytest.raises(ValueError, match="must hold"):
        Chunker(chars_max=chars_max, chars_min=chars_min, overlap_chars=overlap_chars)
