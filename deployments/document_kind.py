"""Is a document plain text, Markdown, HTML or PDF?

Content wins over the declared type, and that over the file name's extension, except that a declared `text/plain` says
little and lets the extension decide. What none of the readers is for is refused by `UnsupportedDocument`. Nothing is
parsed here: a document of a kind may still turn out to be broken.
"""

from __future__ import annotations

import enum
import re
from pathlib import PurePosixPath

from deployments.document_errors import UnreadableDocument, UnsupportedDocument


class Kind(enum.Enum):
    TEXT = "text"
    MARKDOWN = "markdown"
    HTML = "html"
    PDF = "pdf"


_BY_EXTENSION = {
    ".txt": Kind.TEXT,
    ".text": Kind.TEXT,
    ".log": Kind.TEXT,
    ".rst": Kind.TEXT,
    ".md": Kind.MARKDOWN,
    ".markdown": Kind.MARKDOWN,
    ".mdown": Kind.MARKDOWN,
    ".html": Kind.HTML,
    ".htm": Kind.HTML,
    ".xhtml": Kind.HTML,
    ".pdf": Kind.PDF,
}
_BY_TYPE = {
    "text/markdown": Kind.MARKDOWN,
    "text/x-markdown": Kind.MARKDOWN,
    "text/html": Kind.HTML,
    "application/xhtml+xml": Kind.HTML,
    "application/pdf": Kind.PDF,
    "application/x-pdf": Kind.PDF,
}
# What clients send when they don't know the type: it declares nothing.
_UNDECLARED = ("", "application/octet-stream", "binary/octet-stream")

# Formats whose bytes can pass for text, at least in part.
_FOREIGN = (
    (b"PK\x03\x04", "a ZIP archive or Office file"),
    (b"\xd0\xcf\x11\xe0", "an old Office file"),
    (b"{\\rtf", "an RTF file"),
    (b"%!PS", "a PostScript file"),
)
_SNIFF_BYTES = 1024
_HTML_START = re.compile(rb"(?:<\?xml[^>]{0,200}>\s*)?(?:<!doctype\s+html|<html[\s>])", re.IGNORECASE)
_CHARSET = re.compile(r"""charset\s*=\s*["']?([\w.:-]{1,40})""", re.IGNORECASE)
_META_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?([\w.:-]{1,40})""", re.IGNORECASE)


def kind_of(name: str, content_type: str | None, data: bytes) -> Kind:
    """Decides by content, declared type and extension; raises a `DocumentError` where no reader fits."""
    head = data[:_SNIFF_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise UnsupportedDocument(name, f"is {what}; text, Markdown, HTML and PDF can be read")
    if head.startswith(b"%PDF-"):
        return Kind.PDF
    if _HTML_START.match(head):
        return Kind.HTML
    kind = _declared(name, content_type)
    if kind is Kind.PDF and b"%PDF-" not in head:
        raise UnreadableDocument(name, "was sent as a PDF and is none: its header is missing")
    return kind


def charset_of(content_type: str | None, kind: Kind, data: bytes) -> str | None:
    """The charset that the declared type names, else that an HTML document names in its own head."""
    if found := _CHARSET.search(content_type or ""):
        return found[1]
    if kind is Kind.HTML and (meta := _META_CHARSET.search(data[:_SNIFF_BYTES])):
        # What could be read as ASCII thus far can't be UTF-16, whatever it says: as browsers do.
        label = meta[1].decode("ascii")
        return "utf-8" if label.lower().startswith("utf-16") else label
    return None


def _declared(name: str, content_type: str | None) -> Kind:
    declared = (content_type or "").partition(";")[0].strip().lower()
    by_extension = _BY_EXTENSION.get(PurePosixPath(name.lower()).suffix)
    if declared in _BY_TYPE:
        return _BY_TYPE[declared]
    if by_extension is not None:
        return by_extension
    if declared in _UNDECLARED or declared.startswith("text/"):
        return Kind.TEXT
    raise UnsupportedDocument(name, f"is declared as {declared[:80]}; text, Markdown, HTML and PDF can be read")
