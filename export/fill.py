"""Weightless graph + named tensors -> ONNX model with external data. numpy and onnx only.

The counterpart of `memcli.export.onnx`: no torch, one tensor in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from memcli.engines.bundle import DATA_FILE, GRAPH_FILE
from memcli.errors import ModelError

GRAPHS = Path(__file__).parent / "graphs"
"""The weightless graphs of the registry."""

ALIGNMENT_BYTES = 64
"""Offset of every tensor in the data file: a cache line, enough for any vector instruction."""

IGNORABLE = re.compile(r"(^|\.)num_batches_tracked$")
"""Entries of a state dict that inference never reads: counters of batch normalisation."""

Tensors = Mapping[str, NDArray[Any]]


def write_filled(
    graph_path: Path,
    tensors: Tensors,
    directory: Path,
    *,
    ignorable: re.Pattern[str] = IGNORABLE,
) -> None:
    """Write the graph and its tensors into an existing `directory`, as GRAPH_FILE and DATA_FILE.

    `tensors` may load lazily: each is asked for once, in graph order.
    Raises ModelError, naming the tensors, if one is missing, has another shape or dtype, is not
    finite, or has no place in the graph (other than names that match `ignorable`). A half-written
    file may then be left in `directory`.
    """
    try:
        model = onnx.load(graph_path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError shares no public base with OSError
        raise ModelError(f"not a readable ONNX graph: {error}", where=str(graph_path)) from error
    placeholders = [
        initialiser
        for initialiser in model.graph.initializer
        if initialiser.data_location == onnx.TensorProto.EXTERNAL
    ]
    _check_names({placeholder.name for placeholder in placeholders}, tensors, ignorable)
    with (directory / DATA_FILE).open("wb") as data:
        for placeholder in placeholders:
            array = _checked(placeholder, tensors[placeholder.name])
            offset = _write_aligned(data, array)
            del placeholder.external_data[:]
            for key, value in (
                ("location", DATA_FILE),
                ("offset", offset),
                ("length", array.nbytes),
            ):
                placeholder.external_data.add(key=key, value=str(value))
    (directory / GRAPH_FILE).write_bytes(model.SerializeToString(deterministic=True))


def _check_names(wanted: set[str], tensors: Tensors, ignorable: re.Pattern[str]) -> None:
    missing = wanted.difference(tensors)
    if missing:
        raise ModelError(f"the weights lack {_listed(missing)}", next_step=_OTHER_WEIGHTS)
    surplus = {name for name in tensors if name not in wanted and not ignorable.search(name)}
    if surplus:
        raise ModelError(f"the graph has no place for {_listed(surplus)}", next_step=_OTHER_WEIGHTS)


def _checked(placeholder: onnx.TensorProto, array: NDArray[Any]) -> NDArray[Any]:
    """`array`, contiguous and little-endian, if it is what the graph asks for."""
    name, shape = placeholder.name, tuple(placeholder.dims)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(placeholder.data_type))
    if array.shape != shape:
        raise ModelError(
            f"{name} has shape {array.shape}, the graph needs {shape}", next_step=_OTHER_WEIGHTS
        )
    if array.dtype != dtype:
        raise ModelError(
            f"{name} is {array.dtype}, the graph needs {dtype}", next_step=_OTHER_WEIGHTS
        )
    # numpy files bfloat16 under kind "V"; its isfinite works all the same.
    if dtype.kind in "fV" and not np.isfinite(array).all():
        raise ModelError(f"{name} holds values that are not finite", next_step=_OTHER_WEIGHTS)
    little = dtype.newbyteorder("<") if dtype.kind != "V" else dtype
    return np.ascontiguousarray(array, dtype=little).reshape(shape)


def _write_aligned(data: BinaryIO, array: NDArray[Any]) -> int:
    """Append the bytes of `array`; return their offset."""
    data.write(bytes(-data.tell() % ALIGNMENT_BYTES))
    offset = data.tell()
    data.write(array.reshape(-1).view(np.uint8).data)
    return offset


def _listed(names: Iterable[str], most: int = 5) -> str:
    """`3 tensors: a, b, c`, cut after `most` names."""
    ordered = sorted(names)
    shown = ", ".join(ordered[:most]) + (", ..." if len(ordered) > most else "")
    return f"{len(ordered)} tensor{'s' if len(ordered) > 1 else ''}: {shown}"


_OTHER_WEIGHTS = "These weights belong to another model or version; pull or name the right file."
