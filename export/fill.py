"""Weightless graph + named tensors -> ONNX model with external data. numpy and onnx only.

The counterpart of `memcli.export.onnx`: no torch, one tensor in memory at a time.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from memcli.errors import ModelError

MODEL_FILE = "model.onnx"
DATA_FILE = "model.bin"

GRAPHS = Path(__file__).parent / "graphs"
"""The weightless graphs of the registry."""

ALIGNMENT_BYTES = 64
"""Offset of every tensor in the data file: a cache line, enough for any vector instruction."""

IGNORABLE = re.compile(r"(^|\.)num_batches_tracked$")
"""Entries of a state dict that inference never reads: counters of batch normalisation."""

Tensors = Mapping[str, NDArray[Any]]


def fill_graph(
    graph_path: Path,
    tensors: Tensors,
    out_dir: Path,
    *,
    ignorable: re.Pattern[str] = IGNORABLE,
) -> Path:
    """Write `out_dir/model.onnx` and `out_dir/model.bin`; return the path of the former.

    `tensors` may load lazily: each is asked for once, in graph order. `out_dir` appears complete
    or not at all, and replaces a folder of that name.
    Raises ModelError, naming the tensors, if one is missing, has another shape or dtype, is not
    finite, or has no place in the graph (other than names that match `ignorable`).
    """
    with replacing_directory(out_dir) as staging:
        write_filled(graph_path, tensors, staging, ignorable=ignorable)
    return out_dir / MODEL_FILE


def write_filled(
    graph_path: Path,
    tensors: Tensors,
    directory: Path,
    *,
    ignorable: re.Pattern[str] = IGNORABLE,
) -> None:
    """Like `fill_graph`, into an existing `directory` and without its atomic replacement."""
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
    (directory / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """All tensors of a safetensors file, memory-mapped by its own library.

    Raises ModelError if the file is damaged or holds a dtype that numpy lacks.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, TypeError, ValueError, AttributeError, safetensors.SafetensorError) as error:
        raise ModelError(f"not a readable safetensors file: {error}", where=str(path)) from error


@contextmanager
def replacing_directory(target: Path) -> Iterator[Path]:
    """A fresh folder beside `target` that takes its place if the block ends without exception.

    A folder already at `target` is kept until then, and put back if the swap fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    tag = f"{os.getpid()}-{secrets.token_hex(4)}"
    staging = target.parent / f".{target.name}.{tag}.new"
    aside = target.parent / f".{target.name}.{tag}.old"
    staging.mkdir()
    try:
        yield staging
        if target.exists():
            target.rename(aside)
        staging.rename(target)
    except BaseException:
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


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
