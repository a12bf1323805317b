"""Why a file is not a comma-separated UTF-8 table with the columns that are needed."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memcli.train.datasets.types import shown

_START_BYTES = 1 << 16
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: its mark begins like that of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHERS = {";": ";", "\t": "tabs", "|": "|"}
"""What else separates columns, and how it is called."""


@dataclass(frozen=True)
class Form:
    """How a table begins."""

    columns: tuple[str, ...]
    """Of its first line, divided at commas: without spaces around them, in small letters."""
    fault: str | None = None
    """Why it cannot be read as it is, and what to do; None if there is nothing."""
    would_do: bool = False
    """Whether, saved as it should be, it has the columns."""


def encoding_fault(data: bytes) -> str | None:
    """Why bytes are no UTF-8 text as a whole, and what to do; None if they may be."""
    name = _wide(data)
    if name is not None:
        return f"{name.upper()[:6]}, not UTF-8: save it as UTF-8"
    return "not text: it holds NUL bytes" if b"\0" in data else None


def columns_of(names: Sequence[str]) -> tuple[str, ...]:
    """The names of columns as they are compared: without spaces around, in small letters."""
    return tuple(name.strip().lower() for name in names)


def columns_fault(columns: Sequence[str], required: Sequence[str]) -> str | None:
    """Why a table with these columns is not one with the `required` ones; None if it is."""
    if required and not any(columns):
        return f"it is empty; needed: a first line with the columns {', '.join(required)}"
    lacking = [name for name in required if name not in columns]
    if not lacking:
        return None
    other = _separator(columns, required)
    if other is not None:
        return f"separated by {_OTHERS[other]} not by commas: save it with commas between columns"
    has = shown(", ".join(columns))
    return f"no column {', '.join(lacking)}: it has {has}; needed: {', '.join(required)}"


def form_of(path: Path, required: Sequence[str]) -> Form:
    """How a file begins, and why it is no table with the `required` columns. Raises nothing."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_START_BYTES)
    except OSError as error:
        return Form((), f"this file cannot be read: {error.strerror}")
    fault = encoding_fault(data)
    columns = _first_columns(data.decode(_wide(data) or "utf-8-sig", "replace"))
    lacking = columns_fault(columns, required)
    other = _separator(columns, required) if lacking else None
    would_do = set(required) <= set(columns if other is None else _divided(columns, other))
    if fault is None:
        return Form(columns, lacking, would_do)
    if other is not None:
        fault = f"{fault.partition(':')[0]}, and {lacking}, as UTF-8"
    return Form((), fault, would_do)


def _wide(data: bytes) -> str | None:
    """The codec of a text of two or four bytes per character, told by its mark or by its NULs."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    odd, even = data[1:64:2], data[0:64:2]
    if len(odd) > 1 and not any(odd) and all(even):
        return "utf-16-le"
    if len(odd) > 1 and not any(even) and all(odd):
        return "utf-16-be"
    return None


def _first_columns(text: str) -> tuple[str, ...]:
    try:
        return columns_of(next(csv.reader(io.StringIO(text, newline="")), []))
    except csv.Error:
        return ()


def _separator(columns: Sequence[str], required: Sequence[str]) -> str | None:
    """What seems to separate the columns of a first line that was divided at commas."""
    for other in _OTHERS:
        divided = _divided(columns, other)
        if set(required) <= set(divided) or (len(columns) == 1 and len(divided) > 1):
            return other
    return None


def _divided(columns: Sequence[str], other: str) -> tuple[str, ...]:
    """The columns of a first line divided at `other`; what commas divided is put together."""
    return columns_of([name.strip().strip('"') for name in ",".join(columns).split(other)])
