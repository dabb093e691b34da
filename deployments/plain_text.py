"""Which characters of a text may enter the service, and how are bytes turned into them?

The promise: what `normalise` returns encodes as UTF-8, breaks lines with \\n only, and holds nothing that a reader
can't see but a model can: no control characters, no zero-width or bidirectional controls, no tag characters, no
variation selectors, no lone surrogates. Normalising twice is normalising once. `decode` never raises.

The price is known and paid on purpose: without joiners a family emoji falls apart into its members and some Persian and
Indic words lose a ligature, which search forgives; a document that shows one thing to people and another to the model
is not forgiven. Look-alike letters and text in the colour of its background are not found.
"""

from __future__ import annotations

import codecs
import re
import unicodedata

# Line and paragraph separators, vertical tab, form feed and NEL all end a line somewhere; here only \n does.
_NEWLINES = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")

# Controls but \t and \n; surrogates; what Unicode calls default ignorable (nothing is drawn for it), with the
# interlinear annotation marks; and noncharacters.
_UNSEEN = re.compile(
    "["
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"
    "\ud800-\udfff"
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\ufdd0-\ufdef"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)

# Spaces that only differ from a space in how a line may break at them.
_SPACES = str.maketrans({"\u00a0": " ", "\u202f": " "})

# What no text editor writes, U+FFFD standing for bytes that were no text. Escape (terminal colours) and backspace
# (formatted manual pages) are found in real text files.
_NOT_TEXT = re.compile("[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f\ufffd]")

# A charset label comes from outside, and Python has codecs that are no character sets (zip) or take quadratic time
# (idna, punycode): only these, by their Python names, are looked at.
_CHARSETS = frozenset(
    "utf-8 utf-16 utf-16-le utf-16-be utf-32 cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 cp866 "  # noqa: SIM905 - one a line, a list of these is a page
    "iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 iso8859-7 iso8859-8 iso8859-10 iso8859-13 iso8859-14 iso8859-15 "
    "iso8859-16 koi8-r koi8-u mac-roman mac-cyrillic big5 big5hkscs gbk gb2312 gb18030 shift_jis cp932 euc_jp "
    "iso2022_jp euc_kr cp949 cp874".split()
)

# The longer mark first: UTF-32's little-endian one begins with UTF-16's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def normalise(text: str) -> str:
    """The text as the service keeps it: composed (NFC), lines ended by \\n, nothing in it that can't be seen."""
    text = _NEWLINES.sub("\n", text)
    text = _UNSEEN.sub("", text).translate(_SPACES)
    # Last, since taking a joiner out can bring a letter and its accent together.
    return unicodedata.normalize("NFC", text)


def one_line(text: str, chars_max: int) -> str:
    """The text as a title: normalised, on one line, single spaces, cut to a length."""
    # Cut twice: first so that a title of megabytes costs nothing, then to the length.
    return " ".join(normalise(text[: 8 * chars_max]).split())[:chars_max].rstrip()


def decode(data: bytes, charset: str | None = None) -> str:
    """Bytes as text: by byte order mark, declared charset, UTF-8, else Windows-1252. Never raises."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    declared = _known_charset(charset)
    for encoding in (declared, "utf-8") if declared else ("utf-8",):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    # One broken byte in a UTF-8 file shall not turn every accent of it into two letters. Text of another charset hardly
    # ever holds a valid UTF-8 sequence, so the two are told apart by what is more frequent.
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    whole = len(text) - len(text.encode("ascii", "ignore")) - broken
    return text if whole >= broken else data.decode("cp1252", "replace")


def looks_binary(text: str) -> bool:
    """Whether decoded bytes were no text: more than 2 % of it is what no text editor writes."""
    return len(text) - len(_NOT_TEXT.sub("", text)) > 1 + len(text) // 50


def _known_charset(label: str | None) -> str | None:
    if label is None:
        return None
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):  # ValueError: a NUL in the label
        return None
    if name in ("ascii", "iso8859-1"):
        # As browsers do: who declares Latin-1 nearly always sends its superset.
        return "cp1252"
    return name if name in _CHARSETS else None
