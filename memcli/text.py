"""Makes foreign text (file names, FFmpeg messages) safe to show or to store."""

from __future__ import annotations

import unicodedata

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    """`text` for a terminal or a log: one line, no control, bidi or undecodable characters.

    Whatever does not print becomes its backslash escape, so that a file name can neither move the
    cursor nor forge a line of output.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or _is_space(c) else _escaped(c) for c in text)


def _is_space(character: str) -> bool:
    """Spaces of other widths, as in Japanese names and the names of screen recordings."""
    return unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, carried by surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def decodable(text: str) -> str:
    """`text` with the bytes that are not UTF-8 as backslash escapes; all else as it is."""
    return "".join(_escaped(c) if "\ud800" <= c <= "\udfff" else c for c in text)


def unhyphenated(caption: str) -> str:
    """A caption whose words VideoMem's files join by hyphens; one with spaces stays as it is."""
    caption = caption.strip()
    return caption if " " in caption else caption.replace("-", " ")


def csv_cell(text: str) -> str:
    """`text` for a CSV cell: valid UTF-8, no terminal escapes, never a spreadsheet formula.

    Names stay what they are as far as possible: other spaces, joiners and line breaks (which the
    CSV writer quotes) are kept. A leading =, +, - or @ gets an apostrophe, which spreadsheets take
    as "this is text".
    """
    safe = "".join(_escaped(c) if _is_active(c) else c for c in text)
    return f"'{safe}" if safe.startswith(_FORMULA_STARTS) else safe


def _is_active(character: str) -> bool:
    """Whether a character does something to a terminal or reorders text, or is no character."""
    category = unicodedata.category(character)
    return (category == "Cc" and character != "\n") or category == "Cs" or character in _BIDI


def csv_path(path: str) -> str:
    """A path for a CSV cell; a relative path that looks like a formula gets `./` before it."""
    safe = f"./{path}" if path.startswith(_FORMULA_STARTS) else path
    return csv_cell(safe)


def plural(count: int, noun: str) -> str:
    """`1 video`, `2 videos`, `1,000 videos`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
