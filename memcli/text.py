"""Makes foreign text (file names, FFmpeg messages) safe to show or to store."""

from __future__ import annotations

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    """`text` for a terminal or a log: one line, no control, bidi or undecodable characters.

    Whatever does not print becomes its backslash escape, so that a file name can neither move the
    cursor nor forge a line of output.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, carried by surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def csv_cell(text: str) -> str:
    """`text` for a CSV cell: valid UTF-8, no terminal escapes, never a spreadsheet formula.

    Line breaks stay (the CSV writer quotes them). A leading =, +, - or @ gets an apostrophe, which
    spreadsheets take as "this is text".
    """
    safe = "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)
    return f"'{safe}" if safe.startswith(_FORMULA_STARTS) else safe


def csv_path(path: str) -> str:
    """A path for a CSV cell; a relative path that looks like a formula gets `./` before it."""
    safe = f"./{path}" if path.startswith(_FORMULA_STARTS) else path
    return csv_cell(safe)


def plural(count: int, noun: str) -> str:
    """`1 video`, `2 videos`, `1,000 videos`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
