"""Any str and any bytes, to and fro, without loss.

Programs print what no encoding can hold: lone surrogates through ``sys.stdout``,
bytes that are no UTF-8 through descriptor 1. Both are kept: a lone surrogate
travels as the three bytes that UTF-8 would give it (``surrogatepass``), and a
byte that fits nowhere becomes a lone surrogate on arrival (``surrogateescape``).
"""

from __future__ import annotations

import re
from functools import cache

_LEAD = "\udced"
"""The first byte of a lone surrogate, escaped; it can be no other byte of one."""
_SURROGATE = re.compile(f"{_LEAD}[\udca0-\udcbf][\udc80-\udcbf]")
_BLOCK = 1 << 16

# Colours, which stay; other escape sequences; control characters but for \b \t \n \r.
_ESCAPES = re.compile(
    r"(\x1b\[[0-9;:]*m)"
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"
    r"|\x1b\[[0-?]*[ -/]*[@-~]?|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]"
)


@cache
def _surrogate(escaped: str) -> str:
    return escaped.encode("utf-8", "surrogateescape").decode("utf-8", "surrogatepass")


def to_bytes(text: str) -> bytes:
    """Encode any str as UTF-8, lone surrogates included."""
    return text.encode("utf-8", "surrogatepass")


def to_text(raw: bytes) -> str:
    """Decode any bytes; the inverse of `to_bytes` for whatever that gives."""
    # An error handler of our own would be called for each byte: 2 s for a MB of them.
    text = raw.decode("utf-8", "surrogateescape")
    if _LEAD not in text:
        return text
    pieces = []
    at = 0
    while at < len(text):
        # In blocks, since replacing takes a hundred times the memory of what is replaced.
        end = text.find(_LEAD, at + _BLOCK)
        end = end if end > 0 else len(text)
        pieces.append(_SURROGATE.sub(lambda found: _surrogate(found[0]), text[at:end]))
        at = end
    return "".join(pieces)


def printable(text: str) -> str:
    """The text with lone surrogates written as ``\\udcff``, as Python does in tracebacks."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def for_terminal(text: str) -> str:
    """The text without what would steer the terminal; colours stay."""
    return _ESCAPES.sub(lambda found: found[1] or "", text)


def whole_characters(raw: bytes) -> int:
    """How many of these bytes end on the border of a character (at most 3 are left over)."""
    end = len(raw)
    for back in range(1, min(4, end + 1)):
        byte = raw[end - back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF8 else 1
            return end if back >= length else end - back
    return end


def first_character(raw: bytes) -> int:
    """Where the first whole character of these bytes begins (at most 3 bytes in)."""
    start = 0
    while start < min(3, len(raw)) and raw[start] & 0xC0 == 0x80:
        start += 1
    return start
