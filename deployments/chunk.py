"""How is a text cut into the pieces that are embedded, searched and shown as sources?

The promise: `text[chunk.start:chunk.end] == chunk.text`, in characters, for any text; no chunk is blank or longer than
`chars_max`; everything that is not white space is in some chunk; the same text and `version` give the same chunks. A
chunk keeps to what Markdown marks as belonging together as far as its length allows, and knows the headings that it
stands under. Time grows with the length of the text and no faster.

It does not normalise (`plain_text`), count tokens, or know of documents. Prose takes a tenth of a second a million
characters, many small blocks several seconds: call it in a thread.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from semantic_text_splitter import MarkdownSplitter

from deployments.headings import Heading, Section, heading_paths, sections

# Raised when these rules, and not only the numbers, give other chunks than before.
_RULES_VERSION = 1

# No text means anything by more white space than this in one place.
WHITE_SPACE_CHARS_MAX = 200

_WHITE_SPACE = re.compile(r"\s+")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of a text. `heading` is the path of the headings above its first character, "A > B"; "" if none."""

    ordinal: int
    text: str
    start: int
    end: int
    heading: str


@dataclass(frozen=True, kw_only=True)
class Chunker:
    """Cuts texts by Markdown structure.

    Args:
        chars_max: no chunk is longer.
        chars_min: a chunk that has reached this length takes in nothing more, so that most are a little longer.
        overlap_chars: how much of a chunk's end the next one may repeat, where a block had to be cut.
    """

    chars_max: int = 1000
    chars_min: int = 400
    overlap_chars: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.overlap_chars < self.chars_min <= self.chars_max:
            raise ValueError(f"overlap_chars < chars_min <= chars_max must hold: {self}")

    @property
    def version(self) -> str:
        """Names all that decides how a text is cut, for the hash that tells whether a document must be done again.

        The splitter's own version is left out: old chunks stay as good as they were, and a new release of it shall not
        make every document be embedded anew.
        """
        return f"markdown-{_RULES_VERSION}-{self.chars_max}-{self.chars_min}-{self.overlap_chars}"

    def chunk(self, text: str) -> list[Chunk]:
        splitter = MarkdownSplitter((self.chars_min, self.chars_max), self.overlap_chars)
        # The splitter takes UTF-8, which has no lone surrogates; one character for one keeps the offsets.
        encodable = _SURROGATE.sub("\ufffd", text)
        headings: list[Heading] = []
        pieces: list[tuple[int, int]] = []
        # By sections, since the splitter's time grows with the square of the length: 35 s for a million characters.
        for section in sections(encodable):
            headings.extend(section.headings)
            for part_start, part_end in _parts(encodable, section):
                for offset, piece in splitter.chunk_indices(encodable[part_start:part_end]):
                    if piece.strip():
                        pieces.append((part_start + offset, part_start + offset + len(piece)))
        pieces = self._with_headings(encodable, pieces, headings)
        paths = heading_paths(headings, (start for start, _ in pieces))
        return [
            Chunk(ordinal=ordinal, text=text[start:end], start=start, end=end, heading=heading)
            for ordinal, ((start, end), heading) in enumerate(zip(pieces, paths, strict=True))
        ]

    def _with_headings(
        self, text: str, pieces: list[tuple[int, int]], headings: list[Heading]
    ) -> list[tuple[int, int]]:
        """Joins a short piece that ends in a heading to what the heading is for.

        The splitter leaves a heading alone when its whole section is too long for one chunk. Alone it would win
        searches for its words and tell nothing.
        """
        joined: list[tuple[int, int]] = []
        for start, end in pieces:
            if joined:
                last_start, last_end = joined[-1]
                is_short = last_end - last_start < self.chars_min and end - last_start <= self.chars_max
                if is_short and _ends_in_heading(text, last_start, last_end, headings):
                    joined[-1] = (last_start, end)
                    continue
            joined.append((start, end))
        return joined


def _parts(text: str, section: Section) -> Iterator[tuple[int, int]]:
    """A section without its long runs of white space: 20,000 empty lines alone take the splitter 26 s."""
    start = section.start
    for blank in _WHITE_SPACE.finditer(text, section.start, section.end):
        if blank.end() - blank.start() > WHITE_SPACE_CHARS_MAX:
            yield start, blank.start()
            start = blank.end()
    yield start, section.end


def _ends_in_heading(text: str, start: int, end: int, headings: list[Heading]) -> bool:
    before = bisect.bisect_left(headings, end, key=lambda heading: heading.start)
    if not before or headings[before - 1].start < start:
        return False
    return not text[headings[before - 1].end : end].strip()
