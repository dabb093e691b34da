"""What is the text of a PDF?

The promise: the text of all of its pages, or a `DocumentError` that says why not; never some of them in silence, though
the library would go on without what it can't unpack. Images are not looked at (no OCR), nothing is fetched, no other
program is run. Text that is there but not visible (white, or under a picture, as scanners put it) counts as text.

pypdf bounds what one stream may unpack to, but not time and memory of the whole: this is only ever called in a process
of its own, with limits (`extract_child`).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pypdf import PasswordType, PdfReader, overwrite_configuration
from pypdf.errors import LimitReachedError

from deployments.document_errors import DocumentTooLarge, UnreadableDocument

# Of one stream, unpacked. Only content, fonts and cross references are read here, never images: a page's content is
# some kilobytes, a font a few megabytes.
STREAM_SIZE_BYTES_MAX = 16 * 1024 * 1024


def read_pdf(name: str, data: bytes, *, pages_max: int, text_chars_max: int) -> tuple[str, str]:
    """The title from the metadata ("" if there is none) and the text, a blank line between pages."""
    overwrite_configuration(
        jbig2dec_binary=None,
        maximum_declared_stream_length=len(data),
        zlib_maximum_output_length=STREAM_SIZE_BYTES_MAX,
        lzw_maximum_output_length=STREAM_SIZE_BYTES_MAX,
        run_length_maximum_output_length=STREAM_SIZE_BYTES_MAX,
        array_based_stream_maximum_output_length=STREAM_SIZE_BYTES_MAX,
    )
    reader = PdfReader(io.BytesIO(data))
    # An empty password opens what anyone may read but not change.
    if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
        raise UnreadableDocument(name, "is encrypted and needs a password")
    try:
        pages_count = len(reader.pages)
    except LimitReachedError as error:
        raise DocumentTooLarge(name, f"has more than {pages_max} pages") from error
    if pages_count > pages_max:
        raise DocumentTooLarge(name, f"has {pages_count} pages; at most {pages_max} are read")
    pages: list[str] = []
    chars_count = 0
    with _losses() as losses:
        for number, page in enumerate(reader.pages, start=1):
            try:
                text = page.extract_text()
            except LimitReachedError as error:
                raise DocumentTooLarge(name, f"page {number} unpacks to more than a page may") from error
            if losses:
                raise UnreadableDocument(name, f"page {number} is damaged: {losses[0]}")
            chars_count += len(text)
            if chars_count > text_chars_max:
                raise DocumentTooLarge(name, f"holds more than {text_chars_max} characters of text")
            pages.append(text.strip())
    if not any(pages):
        raise UnreadableDocument(name, "holds no text (a scan? pictures of text are not read)")
    metadata = reader.metadata
    return (metadata.title if metadata else None) or "", "\n\n".join(page for page in pages if page)


class _Losses(logging.Handler):
    """Collects what pypdf only logs: that it left out a part that it could not unpack."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.name == "pypdf.filters" or message.startswith("Impossible to decode"):
            self.messages.append(message[:200])


@contextmanager
def _losses() -> Iterator[list[str]]:
    handler = _Losses()
    logger = logging.getLogger("pypdf")
    logger.addHandler(handler)
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)
