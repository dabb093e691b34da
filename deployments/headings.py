"""Where are the headings of a Markdown text, and where can it be cut without cutting a block?

The promise: time and memory grow with the text and no faster, whatever it holds, because the CommonMark parser only
ever sees a window of it; windows end between blocks where they can. Offsets are in characters. Headings inside quotes
and lists are not the document's, and not counted; nor is what a code block holds.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token

# What the parser sees at a time: more than any usual section, and its tokens still fit in some megabytes.
WINDOW_CHARS = 20_000
HEADING_CHARS_MAX = 120
PATH_CHARS_MAX = 300

_LINE_END = re.compile(r"\r\n?|\n")  # as the parser counts lines
_FRONT_MATTER = re.compile(r"---\n.{0,4000}?\n---\n", re.DOTALL)
_MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[*`]+")


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A heading, from its first character to the end of its last line."""

    level: int
    title: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Section:
    """A stretch of the text of at most `WINDOW_CHARS`. All of them, in order, are the text."""

    start: int
    end: int
    headings: tuple[Heading, ...]


def sections(text: str) -> Iterator[Section]:
    """The text in stretches that end between blocks, before a heading if possible."""
    parser = MarkdownIt("commonmark").disable(["inline", "text_join", "balance_pairs", "fragments_join"], True)
    start = 0
    if front_matter := _FRONT_MATTER.match(text):
        # It is metadata, and a CommonMark parser would take its last line for a heading.
        yield Section(start=0, end=front_matter.end(), headings=())
        start = front_matter.end()
    while start < len(text):
        window = text[start : start + WINDOW_CHARS]
        at_end = start + len(window) == len(text)
        tokens = parser.parse(window)
        # Where each line of the window begins; the parser speaks of lines.
        lines = [0, *(found.end() for found in _LINE_END.finditer(window)), len(window)]
        headings = list(_headings(tokens, lines, start))
        blocks = [token for token in tokens if token.level == 0 and token.map and token.nesting >= 0]
        end = len(text) if at_end else start + _cut(window, lines, blocks, headings, start)
        yield Section(start=start, end=end, headings=tuple(heading for heading in headings if heading.start < end))
        if not at_end and _is_unclosed_code(blocks, lines):
            # A code block longer than a window: what follows must not be parsed as if it were not in it.
            closing = re.compile(rf"^ {{0,3}}{re.escape(blocks[0].markup)}+[ \t]*$", re.MULTILINE).search(text, end)
            code_end = closing.end() if closing else len(text)
            for piece_start in range(end, code_end, WINDOW_CHARS):
                end = min(piece_start + WINDOW_CHARS, code_end)
                yield Section(start=piece_start, end=end, headings=())
        start = end


def heading_paths(headings: list[Heading], offsets: Iterable[int]) -> Iterator[str]:
    """For each offset, ascending: the titles of the headings above it, outermost first, joined by " > "."""
    path: list[Heading] = []
    ahead = iter(headings)
    heading = next(ahead, None)
    for offset in offsets:
        while heading and heading.start <= offset:
            while path and path[-1].level >= heading.level:
                path.pop()
            path.append(heading)
            heading = next(ahead, None)
        yield " > ".join(above.title for above in path if above.title)[:PATH_CHARS_MAX].rstrip()


def first_heading(text: str) -> str:
    """The title of the first heading near the text's beginning, or ""."""
    for section in itertools.islice(sections(text), 2):
        for heading in section.headings:
            if heading.title:
                return heading.title
    return ""


def _headings(tokens: list[Token], lines: list[int], window_start: int) -> Iterator[Heading]:
    for token, content in itertools.pairwise(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map:
            # Of a heading, only so much is looked at: a heading may be as long as the window.
            title = " ".join(
                _MARKUP.sub(lambda found: found[1] or "", content.content[: 4 * HEADING_CHARS_MAX]).split()
            )
            yield Heading(
                level=int(token.tag[1:]),
                title=title[:HEADING_CHARS_MAX].rstrip(),
                start=window_start + lines[token.map[0]],
                end=window_start + lines[token.map[1]],
            )


def _cut(window: str, lines: list[int], blocks: list[Token], headings: list[Heading], window_start: int) -> int:
    """How much of a window is a section: up to a late heading, the last block, the last line, or all of it."""
    if headings and headings[-1].start - window_start > len(window) // 2:
        return headings[-1].start - window_start
    # The last block may go on behind the window, so it is left to the next one.
    if blocks and blocks[-1].map and (last_block := lines[blocks[-1].map[0]]) > 0:
        return last_block
    for separator in ("\n", " "):
        if (found := window.rfind(separator)) > len(window) // 2:
            return found + 1
    return len(window)


def _is_unclosed_code(blocks: list[Token], lines: list[int]) -> bool:
    """Whether the window is one fenced code block that goes on behind it."""
    code = blocks[0] if len(blocks) == 1 and blocks[0].type == "fence" else None
    return code is not None and code.map is not None and code.map[0] == 0 and lines[code.map[1]] == lines[-1]
