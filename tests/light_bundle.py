"""A bundle with weights of an encoder in it, and that encoder: numpy only.

The score is that of `tiny`; what counts here are the bytes of `model.bin`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from tiny_bundle import make_tiny_bundle

from memcli import store
from memcli.engines.bundle import Bundle, hash_files, read_bundle, write_manifest
from memcli.export.light import find_left_out, write_light
from memcli.spec import EncoderSpec

REVISION = "a" * 40
REPOSITORY = "someone/encoder"
_PADDING = 60


def encoder_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors like those of a checkpoint, of several ranks; some equal ones of zeros."""
    generator = np.random.default_rng(seed)
    shapes = {"patch.weight": (4, 3, 2, 2), "dense.weight": (24, 16), "norm.weight": (24,)}
    drawn = {
        name: generator.standard_normal(shape, np.float32)
        for name, shape in (*shapes.items(), ("unused.weight", (5, 7)))
    }
    zeros = {name: np.zeros(24, np.float32) for name in ("dense.bias", "norm.bias")}
    return drawn | {"scale.weight": np.ones((20, 30), np.float32)} | zeros


def write_encoder(folder: Path, tensors: Mapping[str, np.ndarray], *, shards: int = 1) -> Path:
    """A checkpoint folder of the hub's format, in one file or in several."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "preprocessor_config.json").write_text("{}")
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    index = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[shard::shards]}
        save_file(part, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def make_encoder_bundle(
    home: Path, tensors: Mapping[str, np.ndarray], encoder: EncoderSpec | None = None
) -> Bundle:
    """The bundle `tiny` with `tensors` (`dense.weight` transposed) and a head in `model.bin`."""
    bundle = make_tiny_bundle(home)
    graph = bundle.root / "fp32/model.onnx"
    model = onnx.load(str(graph))
    data = bytearray()
    head = np.random.default_rng(9).standard_normal((3, 24), np.float32)
    kept = {name: tensors[name] for name in tensors if name != "unused.weight"}
    for name, array in {"head.first": head, **kept, "head.last": head + 1}.items():
        stored = np.ascontiguousarray(array.T) if name == "dense.weight" else array
        told = {"location": "model.bin", "offset": len(data), "length": stored.nbytes}
        tensor = numpy_helper.from_array(stored, name)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in told.items():
            tensor.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(tensor)
        data += stored.tobytes() + bytes(_PADDING)
    graph.write_bytes(model.SerializeToString())
    graph.with_name("model.bin").write_bytes(data)
    (bundle.root / "LICENSE.weights.txt").write_text("terms\n")
    files = hash_files(bundle.root, ["fp32/model.onnx", "fp32/model.bin"])
    variant = replace(bundle.variants["fp32"], files=files)
    encoder = encoder or EncoderSpec("vision", REPOSITORY, REVISION, 24, "MIT")
    spec = replace(bundle.spec, encoders=(encoder,))
    write_manifest(replace(bundle, spec=spec, variants={"fp32": variant}))
    return read_bundle(bundle.root)


def pack(bundle: Bundle, target: Path, folder: Path) -> Path:
    """The bundle as a light file, its vision encoder being that of `folder`."""
    table = find_left_out(bundle, {"vision": folder})
    with store.new_archive(target) as archive:
        write_light(archive, bundle, table)
    return target


def rewritten(packed: Path, target: Path, changes: Mapping[str, bytes | None]) -> Path:
    """A copy of an archive with some members changed, added, or (None) left out."""
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(target, "w") as new:
        members: dict[str, Any] = {name: old.read(name) for name in old.namelist()}
        for name, content in (members | dict(changes)).items():
            if content is not None:
                new.writestr(name, content)
    return target


def cached(folder: Path, cache: Path, repository: str = REPOSITORY) -> Path:
    """Put a checkpoint into a hub cache, as a download leaves it; gives the cache."""
    snapshots = cache / f"models--{repository.replace('/', '--')}" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / REVISION).symlink_to(folder)
    return cache


def halved(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same in half precision."""
    return {name: array.astype(np.float16) for name, array in tensors.items()}


def nothing_installed(memcli_home: Path) -> bool:
    """Whether nothing was left of a refused model."""
    return not list((memcli_home / "bundles").iterdir())
