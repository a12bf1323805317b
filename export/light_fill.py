"""A light file's content to a whole bundle: `model.bin` is put together again, byte for byte.

No torch: numpy and safetensors read the encoders, one tensor in memory at a time. Nothing in the
file is believed: the table names no paths, every piece has its SHA-256, and the files that result
have those of the manifest, which `memcli.store.add` checks next.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from memcli.engines.bundle import FP32_GRAPH, LIGHT_FILE, Bundle, read_bundle
from memcli.errors import ModelError, OutputError
from memcli.export.encoder_weights import EncoderWeights
from memcli.export.light_encoders import described, find_given, given_or_hub
from memcli.export.light_table import (
    LIGHT_DATA,
    LIGHT_REST,
    MAX_TABLE_BYTES,
    LeftOut,
    LightTable,
    Tower,
    parse_table,
)
from memcli.spec import EncoderSpec

_BLOCK_BYTES = 1 << 20


def fill(
    content: Path,
    encoders: Sequence[str] = (),
    *,
    where: str,
    offline: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Make the bundle of the light file `where`, which was unpacked into the folder `content`.

    The encoders come from the hub by the revision of the spec, or from `encoders`: folders, each
    `DIR` or `REPOSITORY=DIR`. Raises ModelError if the file is damaged, an encoder cannot be had,
    or is not the one with which the model was made; UsageError for an encoder that is not asked
    for; OutputError if the disk is too small; OSError of the disk.
    """
    bundle = read_bundle(content)
    table = _read_table(content, bundle, where)
    needed = _needed(bundle, table, where)
    with ExitStack() as stack:
        weights: dict[Tower, EncoderWeights] = {}
        given = find_given(encoders, bundle.spec.encoders)
        for tower, folder in given_or_hub(needed, given, table, offline, report).items():
            weights[tower] = stack.enter_context(EncoderWeights(folder))
        for one in table.tensors:
            _check_tensor(bundle, one, weights[one.tower])
        told = " and ".join(dict.fromkeys(described(one) for one in needed.values()))
        report(f"filling in {len(table.tensors)} tensors of {told}")
        rest = stack.enter_context((content / LIGHT_REST).open("rb"))
        data = stack.enter_context((content / LIGHT_DATA).open("xb"))
        _write(bundle, table, weights, rest, data)
    (content / LIGHT_REST).unlink()
    (content / LIGHT_FILE).unlink()


def _read_table(content: Path, bundle: Bundle, where: str) -> LightTable:
    """The table, if the other files are those that it goes with."""
    path = content / LIGHT_FILE
    with path.open("rb") as file:
        table = parse_table(file.read(MAX_TABLE_BYTES + 1), where)
    variant = bundle.variants.get("fp32")
    rest = content / LIGHT_REST
    left = rest.stat().st_size if rest.is_file() else -1
    why = None
    if len(bundle.variants) != 1 or variant is None or variant.graph != FP32_GRAPH:
        why = "it does not hold the fp32 precision alone"
    elif LIGHT_DATA not in variant.files or (content / LIGHT_DATA).exists():
        why = f"{LIGHT_DATA} is not what is missing"
    elif left != table.size - table.left_out:
        why = f"{LIGHT_REST} has not the size that the table says"
    if why is not None:
        raise ModelError(f"this light file contradicts itself: {why}", where=where)
    if table.size > shutil.disk_usage(content).free:
        raise OutputError("not enough disk space to fill in the encoders", where=str(content))
    return table


def _needed(bundle: Bundle, table: LightTable, where: str) -> dict[Tower, EncoderSpec]:
    needed: dict[Tower, EncoderSpec] = {}
    for tower in table.towers():
        spec = bundle.spec.encoder(tower)
        if spec is None:
            raise ModelError(
                f"this light file contradicts itself: it has no {tower} encoder", where=where
            )
        needed[tower] = spec
    return needed


def _other(bundle: Bundle, one: LeftOut, weights: EncoderWeights, why: str) -> ModelError:
    spec = bundle.spec.encoder(one.tower)
    made = "another" if spec is None else described(spec)
    return ModelError(
        f"this is not the encoder that {bundle.model} was made with: {why}",
        where=str(weights.folder),
        next_step=f"It was made with {made}: name that one (--encoder DIR), or fetch it anew.",
    )


def _check_tensor(bundle: Bundle, one: LeftOut, weights: EncoderWeights) -> None:
    stored = weights.tensors.get(one.tensor)
    if stored is None:
        raise _other(bundle, one, weights, f"it has no tensor {one.tensor!r}")
    if stored.shape != one.shape or not stored.is_float32:
        kind = "float32" if stored.is_float32 else "another type"
        raise _other(
            bundle,
            one,
            weights,
            f"its tensor {one.tensor!r} is {kind} of shape {list(stored.shape)}, not float32 of"
            f" shape {list(one.shape)}",
        )


def _write(
    bundle: Bundle,
    table: LightTable,
    weights: Mapping[Tower, EncoderWeights],
    rest: BinaryIO,
    data: BinaryIO,
) -> None:
    for one in table.tensors:
        _copy(rest, data, one.offset - data.tell())
        array = weights[one.tower].read(one.tensor, transposed=one.transposed)
        digest = hashlib.sha256(array.data).hexdigest()
        if digest != one.sha256:
            raise _other(
                bundle,
                one,
                weights[one.tower],
                f"the SHA-256 of its tensor {one.tensor!r} is {digest[:12]}..., that of the"
                f" model's is {one.sha256[:12]}...",
            )
        data.write(array.data)
    _copy(rest, data, table.size - data.tell())


def _copy(source: BinaryIO, target: BinaryIO, length: int) -> None:
    while length > 0:
        block = source.read(min(length, _BLOCK_BYTES))
        if not block:
            raise ModelError("the file ends too early", where=LIGHT_REST)
        target.write(block)
        length -= len(block)
