"""Pack a bundle without the weights that its public encoders' checkpoints hold.

What is left out is found by content, not by name: a float32 tensor of the checkpoint whose bytes,
as they are or transposed, are those of an initialiser of the fp32 graph. Any encoder works, nothing
has to be known about its architecture, and filling gives the same file byte for byte. numpy, onnx
and safetensors only.
"""

from __future__ import annotations

import hashlib
import mmap
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from memcli.engines.bundle import (
    FP32_GRAPH,
    LICENSE_FILE,
    LIGHT_FILE,
    MANIFEST,
    Bundle,
    manifest_text,
    verify_files,
)
from memcli.errors import UsageError
from memcli.export.encoder_weights import EncoderWeights
from memcli.export.light_table import (
    ITEM_BYTES,
    LIGHT_DATA,
    LIGHT_REST,
    LeftOut,
    LightTable,
    Tower,
)
from memcli.export.parity_table import PARITY_FILE, parity_table

_BLOCK_BYTES = 1 << 20
_LEAST_SHARE = 0.05
"""Of a checkpoint: one of which the model holds less is not worth fetching. Tensors of one value
do not count: zeros and ones are in every checkpoint, also in that of an encoder that was trained
further."""


@dataclass(frozen=True)
class _Span:
    """Where a float32 initialiser lies in `model.bin`."""

    name: str
    offset: int
    length: int


def find_left_out(bundle: Bundle, folders: Mapping[Tower, Path]) -> LightTable:
    """What of the bundle's fp32 `model.bin` the checkpoints in `folders` hold.

    Raises UsageError if that is not worth the trouble: the encoders were trained, or are others;
    ModelError if a checkpoint cannot be read or the bundle is damaged.
    """
    variant = bundle.variants.get("fp32")
    if variant is None or variant.graph != FP32_GRAPH or LIGHT_DATA not in variant.files:
        raise UsageError(f"{bundle.model} has no weights beside its fp32 graph to leave out")
    verify_files(bundle, variant)
    path = bundle.root / LIGHT_DATA
    size = path.stat().st_size
    if size == 0:  # nothing to map
        raise UsageError(f"{bundle.model} has no weights to leave out")
    found: list[LeftOut] = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        open_spans = _by_digest(_spans(bundle.root / FP32_GRAPH, size), data)
        lengths = {span.length for spans in open_spans.values() for span in spans}
        for tower, folder in folders.items():
            with EncoderWeights(folder) as weights:
                matches = list(_matches(tower, weights, open_spans, lengths))
                whole = sum(ITEM_BYTES * _count(one.shape) for one in weights.tensors.values())
                shared = sum(_varied(weights, name) for name in {one.tensor for one in matches})
            if shared and shared >= _LEAST_SHARE * whole:
                found += matches
                for one in matches:
                    open_spans.pop(one.sha256, None)
    if not found:
        raise UsageError(
            f"nothing of {bundle.model} can be left out: its weights are not those of the encoders"
            f" in {', '.join(map(str, dict.fromkeys(folders.values())))}",
            next_step="Encoders that were trained (fine-tuned or adapted) travel with the model: "
            "pack it without --light.",
        )
    return LightTable(size, tuple(sorted(found, key=lambda one: one.offset)))


def _spans(graph: Path, size: int) -> list[_Span]:
    """The graph's float32 initialisers in its data file, without those that overlap others."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    spans = []
    for tensor in model.graph.initializer:
        told = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.data_type != onnx.TensorProto.FLOAT or "length" not in told:
            continue
        span = _Span(tensor.name, int(told.get("offset", 0)), int(told["length"]))
        if told.get("location") == Path(LIGHT_DATA).name and span.length >= ITEM_BYTES:
            spans.append(span)
    apart, end = [], 0
    for span in sorted(spans, key=lambda one: one.offset):
        if span.offset >= end and span.offset + span.length <= size:
            apart.append(span)
            end = span.offset + span.length
    return apart


def _by_digest(spans: list[_Span], data: mmap.mmap) -> dict[str, list[_Span]]:
    """The spans by the SHA-256 of their bytes: equal ones, biases of zero above all, together."""
    found: dict[str, list[_Span]] = {}
    with memoryview(data) as view:
        for span in spans:
            with view[span.offset : span.offset + span.length] as piece:
                found.setdefault(hashlib.sha256(piece).hexdigest(), []).append(span)
    return found


def _matches(
    tower: Tower, weights: EncoderWeights, spans: Mapping[str, list[_Span]], lengths: set[int]
) -> Iterator[LeftOut]:
    """What the checkpoint holds of `spans`, each once."""
    seen: set[str] = set()
    for name, stored in weights.tensors.items():
        if not stored.is_float32 or ITEM_BYTES * _count(stored.shape) not in lengths:
            continue
        for transposed in (False, True) if len(stored.shape) == 2 else (False,):
            digest = hashlib.sha256(weights.read(name, transposed=transposed).data).hexdigest()
            if digest not in spans or digest in seen:
                continue
            seen.add(digest)
            for span in spans[digest]:
                yield LeftOut(
                    name=span.name,
                    offset=span.offset,
                    length=span.length,
                    tower=tower,
                    tensor=name,
                    shape=stored.shape,
                    transposed=transposed,
                    sha256=digest,
                )


def _varied(weights: EncoderWeights, name: str) -> int:
    """Bytes of a tensor; 0 if all its values are the same."""
    array = weights.read(name)
    return array.nbytes if (array != array.flat[0]).any() else 0


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def write_light(archive: zipfile.ZipFile, bundle: Bundle, table: LightTable) -> None:
    """Write the fp32 precision of a bundle without what `table` leaves out.

    Raises OSError.
    """
    variant = bundle.variants["fp32"]
    only = replace(bundle, variants={"fp32": variant})
    packed = zipfile.ZIP_DEFLATED
    archive.writestr(MANIFEST, manifest_text(only), packed)
    archive.writestr(LIGHT_FILE, table.to_json(), packed)
    archive.writestr(PARITY_FILE, parity_table(only), packed)
    for name in sorted({*variant.files, LICENSE_FILE} - {LIGHT_DATA}):
        if (bundle.root / name).is_file():
            archive.write(bundle.root / name, name, packed)
    info = zipfile.ZipInfo(LIGHT_REST)  # stored: weights do not compress
    with (
        (bundle.root / LIGHT_DATA).open("rb") as data,
        archive.open(info, "w", force_zip64=True) as rest,
    ):
        for one in table.tensors:
            _copy(data, rest, one.offset - data.tell())
            data.seek(one.offset + one.length)
        _copy(data, rest, table.size - data.tell())


def _copy(source: BinaryIO, target: IO[bytes], length: int) -> None:
    while length > 0:
        block = source.read(min(length, _BLOCK_BYTES))
        target.write(block)
        length -= len(block) or length
