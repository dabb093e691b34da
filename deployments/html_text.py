"""What does an HTML document say to the person who looks at it?

The promise: the answer is Markdown made of what a browser would show. Scripts, styles, comments, forms' controls and
elements hidden by attribute or inline style are gone; links and images leave their words and no address, so that an
answer that quotes the document can't carry data away. Nothing is fetched. Rules of style sheets are not evaluated: text
that only a class hides stays.

It takes as long as the document wants, and on hostile input that is very long: it is only ever called in a process of
its own, with limits (`extract_child`).
"""

from __future__ import annotations

import re

from bs4 import BeautifulSoup, Tag
from bs4.element import PreformattedString
from markdownify import MarkdownConverter

_NEVER_SHOWN = frozenset(
    "head script style template noscript iframe frame frameset object embed applet svg canvas audio video input select "  # noqa: SIM905 - one a line, a list of these is a page
    "textarea button datalist".split()
)
_CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_ZERO = r"0*\.?0*(?:px|r?em|pt|%)?\s*(?:!|;|$)"
_HIDING_STYLE = re.compile(
    rf"display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)|opacity\s*:\s*{_ZERO}|font-size\s*:\s*{_ZERO}"
)
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n){2,}")
_HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]


class _WordsOnly(MarkdownConverter):
    """Markdown without addresses."""

    def convert_a(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return text

    def convert_img(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return str(el.get("alt") or "")


def read_html(html: str) -> tuple[str, str]:
    """The title (`<title>`, else the first heading, else "") and the text as Markdown."""
    # lxml and not Python's own parser, which nests items and cells whose end tags were left out, as HTML allows.
    soup = BeautifulSoup(html, "lxml")
    title = soup.title.get_text() if soup.title else ""
    for comment in soup.find_all(string=lambda text: isinstance(text, PreformattedString)):
        comment.extract()
    for element in soup.find_all(_is_hidden):
        # An element may be inside one that went before it.
        if not element.decomposed:
            element.decompose()
    if not title.strip() and (heading := soup.find(_HEADINGS)):
        title = heading.get_text(" ")
    # Nothing is escaped: the text is for search and for models, and never rendered as it is.
    converter = _WordsOnly(heading_style="atx", bullets="-", escape_asterisks=False, escape_underscores=False)
    return title, _BLANK_LINES.sub("\n\n", converter.convert_soup(soup)).strip()


def _is_hidden(element: Tag) -> bool:
    if element.name in _NEVER_SHOWN or element.has_attr("hidden"):
        return True
    style = element.get("style")
    return isinstance(style, str) and bool(_HIDING_STYLE.search(_CSS_COMMENT.sub("", style.lower())))
