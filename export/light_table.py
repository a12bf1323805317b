"""Light files: bundles that leave out what a public encoder's checkpoint holds anyway.

A light `.memcli` file is a bundle's fp32 precision in which `light.json` and `fp32/model.bin.rest`
stand for `fp32/model.bin`: the table says which pieces of `model.bin` are tensors of which
encoder, and the rest is all other bytes in their order. `memcli.export.light` writes such files,
`memcli.export.light_fill` makes the bundle of them again, byte for byte. The encoder's repository
and revision are those of the bundle's spec.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from memcli.engines.bundle import DATA_FILE
from memcli.errors import ModelError

LIGHT_DATA = f"fp32/{DATA_FILE}"
LIGHT_REST = f"{LIGHT_DATA}.rest"
ITEM_BYTES = 4
"""Only float32 is left out."""

MAX_TABLE_BYTES = 16 << 20
_SCHEMA = 1
_MAX_DATA_BYTES = 64 << 30
_MAX_AXES = 8
_MAX_NAME = 500
_SHA256 = re.compile(r"[0-9a-f]{64}")

Tower = Literal["vision", "text"]


@dataclass(frozen=True)
class LeftOut:
    """A piece of `model.bin` that is a tensor of an encoder."""

    name: str
    """Of the graph's initialiser, for people."""
    offset: int
    length: int
    """Bytes."""
    tower: Tower
    """Of the encoder in the bundle's spec whose checkpoint has it."""
    tensor: str
    """Its name there."""
    shape: tuple[int, ...]
    """Its shape there."""
    transposed: bool
    """Whether `model.bin` holds it transposed."""
    sha256: str
    """Of the bytes in `model.bin`."""


@dataclass(frozen=True)
class LightTable:
    """What is left out of a `model.bin`: in order, without overlaps, inside the file."""

    size: int
    """Bytes of `model.bin`."""
    tensors: tuple[LeftOut, ...]

    @property
    def left_out(self) -> int:
        """Bytes that are left out."""
        return sum(one.length for one in self.tensors)

    def towers(self) -> tuple[Tower, ...]:
        """The towers whose encoders are needed."""
        return tuple(dict.fromkeys(one.tower for one in self.tensors))

    def to_json(self) -> str:
        """The text of `light.json`."""
        entry = {"schema": _SCHEMA, "size": self.size, "tensors": [*map(asdict, self.tensors)]}
        return json.dumps(entry, indent=1) + "\n"


def parse_table(content: bytes, where: str) -> LightTable:
    """The table of a light file that anybody may have written.

    Raises ModelError, one line with what is wrong, unless every field is of its type and every
    piece lies inside the file, in order, without overlaps, and is as long as its tensor.
    """
    try:
        if len(content) > MAX_TABLE_BYTES:
            raise ValueError("it is too large")
        entry = json.loads(content)
        if not isinstance(entry, dict):
            raise ValueError("it is no object")
        if entry.get("schema") != _SCHEMA:
            raise ModelError(
                f"light file of schema {entry.get('schema')!r}; this memcli reads schema {_SCHEMA}",
                where=where,
                next_step="Upgrade memcli, or pack the model again without --light.",
            )
        return _table(entry)
    except KeyError as error:
        raise _damaged(where, f"{error} is missing") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise _damaged(where, str(error)) from error


def _damaged(where: str, why: str) -> ModelError:
    return ModelError(
        f"the table of what was left out is damaged: {why}",
        where=where,
        next_step="Copy the file again, or pack the model again.",
    )


def _table(entry: dict[str, Any]) -> LightTable:
    size = _integer(entry["size"], "size", 1, _MAX_DATA_BYTES)
    if not isinstance(entry["tensors"], list) or not entry["tensors"]:
        raise ValueError("it lists no tensors")
    tensors = tuple(_left_out(one, size) for one in entry["tensors"])
    end = 0
    for one in tensors:
        if one.offset < end:
            raise ValueError(f"{one.name!r} overlaps the tensor before it, or is out of order")
        end = one.offset + one.length
    if end > size:
        raise ValueError(f"{tensors[-1].name!r} ends after the file")
    return LightTable(size, tensors)


def _left_out(entry: object, size: int) -> LeftOut:
    if not isinstance(entry, dict):
        raise ValueError("a tensor is no object")
    name, tensor = _name(entry["name"]), _name(entry["tensor"])
    if entry["tower"] not in ("vision", "text"):
        raise ValueError(f"{name!r} is of no tower")
    shape = entry["shape"]
    if not isinstance(shape, list) or len(shape) > _MAX_AXES:
        raise ValueError(f"{name!r} has no shape")
    sizes = tuple(_integer(one, f"an axis of {name!r}", 1, size) for one in shape)
    length = _integer(entry["length"], f"the length of {name!r}", 1, size)
    if length != ITEM_BYTES * math.prod(sizes):
        raise ValueError(f"{name!r} is not as long as its shape says")
    transposed = entry["transposed"]
    if not isinstance(transposed, bool) or (transposed and len(sizes) != 2):
        raise ValueError(f"{name!r} cannot be transposed")
    digest = entry["sha256"]
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError(f"{name!r} has no SHA-256")
    offset = _integer(entry["offset"], f"the offset of {name!r}", 0, size)
    return LeftOut(name, offset, length, entry["tower"], tensor, sizes, transposed, digest)


def _name(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME:
        raise ValueError("a tensor has no name")
    return value


def _integer(value: object, what: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what} is not a whole number from {least} to {most}")
    return value
