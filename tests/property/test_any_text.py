from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deployments.chunk import Chunker
from deployments.headings import sections
from deployments.plain_text import decode, normalise

# Any characters, lone surrogates too, mixed with what Markdown and the splitter look at, in amounts that make chunks.
_PARTS = st.one_of(
    st.text(st.characters(), max_size=40),
    st.sampled_from(
        [
            "\n",
            "\n\n",
            "# ",
            "## h\n",
            "```\n",
            "~~~\n",
            "- ",
            "> ",
            "---\n",
            "===\n",
            "| a | b |\n|-|-|\n",
            "\r\n",
            "\r",
            "\x1c",
        ]
    ),
    st.sampled_from(["😀", "👩‍👩‍👧", "e\u0301", "\u2028", "\ufeff", "\U0001d518", "word ", "A sentence. "]),
    st.builds(lambda part, times: part * times, st.sampled_from(["a", "\n", " ", "😀", "x y. "]), st.integers(1, 500)),
)
_TEXTS = st.lists(_PARTS, max_size=60).map("".join)
_CHUNKERS = st.builds(
    lambda overlap, more, most: Chunker(
        chars_max=overlap + more + most, chars_min=overlap + more, overlap_chars=overlap
    ),
    st.integers(0, 40),
    st.integers(1, 100),
    st.integers(0, 200),
)


@given(_CHUNKERS, _TEXTS)
def test_chunks_are_slices_of_the_text_and_leave_out_only_white_space(chunker: Chunker, text: str) -> None:
    chunks = chunker.chunk(text)
    covered = bytearray(len(text))
    for ordinal, chunk in enumerate(chunks):
        assert chunk.ordinal == ordinal
        assert text[chunk.start : chunk.end] == chunk.text
        assert chunk.text.strip()
        assert len(chunk.text) <= chunker.chars_max
        covered[chunk.start : chunk.end] = b"\x01" * (chunk.end - chunk.start)
    assert not "".join(letter for letter, is_in in zip(text, covered, strict=True) if not is_in).strip()
    assert [chunk.start for chunk in chunks] == sorted(chunk.start for chunk in chunks)
    assert chunker.chunk(text) == chunks


@given(_TEXTS.map(lambda text: text * 30))
def test_sections_are_the_whole_text(text: str) -> None:
    assert "".join(text[section.start : section.end] for section in sections(text)) == text


@given(_TEXTS)
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    once.encode()


@given(st.binary(max_size=300), st.sampled_from([None, "utf-8", "utf-16", "gb18030", "shift_jis", "euc_kr", "idna"]))
def test_decoding_never_raises(data: bytes, charset: str | None) -> None:
    normalise(decode(data, charset)).encode()
