"""Bundles: a model as a folder that holds its graphs and says what they are.

    resmem/
      manifest.json        schema, spec, weights and licence, one entry per precision
      LICENSE.weights.txt
      fp32/model.onnx      the graph
      fp32/model.bin       its weights (ONNX external data)
      fp32/tokenizer.json  of models that read captions
      int8/model.onnx ...

Each precision is a *variant*: a graph, the precision in which a runtime executes it, the runtimes
it may run on, and the reference it is verified against. The hash of every file is in the manifest
and is checked before a variant is used. A bundle may come from anywhere: nothing in it is believed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import posixpath
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from memcli.engines.base import ENGINES, EngineName
from memcli.engines.files import sha256_file
from memcli.engines.loading import graph_facts
from memcli.errors import EngineError, ModelError
from memcli.spec import PRECISIONS, FramePrep, ModelSpec, Precision

SCHEMA = 1
MANIFEST = "manifest.json"
LICENSE_FILE = "LICENSE.weights.txt"
LIGHT_FILE = "light.json"
"""In a packed bundle: which weights were left out. `memcli.export.light_table` says more."""
GRAPH_FILE = "model.onnx"
DATA_FILE = "model.bin"
FP32_GRAPH = f"fp32/{GRAPH_FILE}"
_MAX_MANIFEST_BYTES = 16 << 20
MAX_TRAINING_BYTES = 1 << 20
"""Of what a manifest tells of the training, as JSON."""
_DIGEST_LENGTH = 12


@dataclass(frozen=True)
class Variant:
    """One precision of a bundle."""

    precision: Precision
    graph: str
    """Path of the ONNX file inside the bundle."""
    engines: tuple[EngineName, ...]
    """Runtimes that may execute it."""
    files: dict[str, str]
    """SHA-256 of each file of this variant, by its path inside the bundle."""
    reference: dict[str, Any]
    """What a runtime must reproduce: see `memcli.engines.verify.Reference`."""
    parity: list[dict[str, Any]] = field(default_factory=list)
    """Reports of the parity gate at export."""
    made_by: dict[str, str] = field(default_factory=dict)
    """Versions of what made it."""
    graphs: dict[EngineName, str] = field(default_factory=dict)
    """The graph of a runtime that executes another one than `graph`, by its path."""
    references: dict[EngineName, dict[str, Any]] = field(default_factory=dict)
    """What such a runtime must reproduce, where that is not `reference`."""

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """Names the content: changes with any file and with the precision."""
        content: list[object] = [self.precision, self.graph, sorted(self.files.items())]
        content += [sorted(self.graphs.items())] if self.graphs else []
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:_DIGEST_LENGTH]

    def graph_of(self, engine: EngineName | None = None) -> str:
        """The graph that a runtime executes, or the variant's own."""
        return self.graph if engine is None else self.graphs.get(engine, self.graph)

    def reference_of(self, engine: EngineName | None = None) -> dict[str, Any]:
        """What a runtime must reproduce, or what the variant's own graph gives."""
        return self.reference if engine is None else self.references.get(engine, self.reference)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON; what only some variants have is left out of the others."""
        entry = asdict(self)
        for name in ("graphs", "references"):
            if not entry[name]:
                del entry[name]
        return entry


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `read_bundle` makes it; nothing in it is changed in place."""

    root: Path
    spec: ModelSpec
    variants: dict[Precision, Variant]
    training: dict[str, Any] = field(default_factory=dict)
    """How the model was trained and what it reached, as the training run wrote it: JSON values."""

    @property
    def model(self) -> str:
        """The model's name."""
        return self.spec.name

    @property
    def prep(self) -> FramePrep | None:
        """How frames are prepared for its graphs; None if it does not look at frames."""
        return self.spec.prep

    @property
    def weights(self) -> dict[str, Any] | None:
        """Package, version, SHA-256, `license` and `license_note` of published weights."""
        return None if self.spec.weights is None else asdict(self.spec.weights)

    def graph_path(self, variant: Variant, engine: EngineName | None = None) -> Path:
        """The ONNX file of a variant that `engine` executes."""
        return self.root / variant.graph_of(engine)

    def tokenizer_path(self, variant: Variant) -> Path | None:
        """The tokenizer beside the graph of a variant; None if the model reads no captions."""
        if self.spec.text is None:
            return None
        return self.graph_path(variant).with_name(self.spec.text.tokenizer)

    def label(self, variant: Variant) -> str:
        """Names model and content in a row, e.g. `resmem@1f2e3d4c5b6a`."""
        return f"{self.model}@{variant.digest}"

    @property
    def license(self) -> str:
        """The weights' licence in a few words."""
        return self.spec.license

    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())

    def manifest(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "spec": self.spec.to_dict(),
            "weights": self.weights,
            "training": self.training,
            "variants": {name: variant.to_dict() for name, variant in self.variants.items()},
        }


def hash_files(root: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 by name of files inside `root`."""
    return {name: sha256_file(root / name) for name in names}


_AGAIN = "Install the model again: memcli models pull NAME (or memcli models add FILE)"


def _damaged(path: Path, what: str, next_step: str = _AGAIN) -> ModelError:
    return ModelError(what, where=str(path), next_step=next_step)


def _how_to_repair(bundle: Bundle, name: str) -> str:
    """What makes a damaged file of a bundle again."""
    precision = name.partition("/")[0].partition("-")[0]
    if precision in PRECISIONS and precision != "fp32":
        more = " --calibration DIR" if precision in ("int8", "fp8") else ""
        return f"Make it again: memcli export {bundle.model} --{precision}{more}"
    if bundle.spec.weights is not None:
        return f"Install it again: memcli models pull {bundle.model}"
    return (
        f"Export its training run again: memcli export {bundle.model}\n"
        "Or install its file again:    memcli models add FILE.memcli"
    )


def _inside(root: Path, name: str) -> Path:
    """A file named by the manifest; a name that leaves the bundle is an attack or damage."""
    path = root / name
    try:
        stays = _is_plain(name) and path.resolve() == root.resolve() / name
    except (OSError, RuntimeError, ValueError):  # links in a circle, a zero byte
        stays = False
    if not stays:
        raise _damaged(root / MANIFEST, f"the manifest names a file outside the bundle: {name!r}")
    return path


def _is_plain(name: str) -> bool:
    """Whether a path inside the bundle is spelled in the one way that we spell it."""
    return posixpath.normpath(name) == name and not name.startswith(("/", "../")) and name != "."


def _variant(name: str, entry: dict[str, Any]) -> Variant:
    variant = Variant(
        precision=entry["precision"],
        graph=str(entry["graph"]),
        engines=tuple(entry["engines"]),
        files={str(file): str(digest) for file, digest in entry["files"].items()},
        reference=dict(entry["reference"]),
        parity=[_parity(report) for report in entry["parity"]],
        made_by={str(key): str(value) for key, value in entry["made_by"].items()},
        graphs={engine: str(graph) for engine, graph in entry.get("graphs", {}).items()},
        references={engine: dict(one) for engine, one in entry.get("references", {}).items()},
    )
    if variant.precision != name or name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}")
    if not set(variant.engines) <= set(ENGINES):
        raise ValueError(f"unknown engine in {variant.engines}")
    if not set(variant.graphs) <= set(variant.engines):
        raise ValueError(f"a graph for an engine that is not in {variant.engines}")
    if not set(variant.references) <= set(variant.engines):
        raise ValueError(f"a reference for an engine that is not in {variant.engines}")
    for graph in (variant.graph, *variant.graphs.values()):
        if graph not in variant.files:
            raise ValueError(f"no hash for {graph}")
    for file in variant.files:
        if not _is_plain(file):
            raise ValueError(f"a file outside the bundle: {file!r}")
    return variant


def _parity(report: dict[str, Any]) -> dict[str, Any]:
    """A report of the gate whose numbers are numbers."""
    numbers = [report["max_abs"], report["mean_abs"]]
    numbers += [report["srcc"]] if report.get("srcc") is not None else []
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ValueError("a parity report without numbers")
    return dict(report)


def read_bundle(root: Path) -> Bundle:
    """Open a bundle folder.

    Raises ModelError if it is none, or its manifest is damaged or of a newer schema. Hashes are
    checked by `verify_files`, for the variant that is going to be used.
    """
    path = root / MANIFEST
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_MANIFEST_BYTES + 1)
        if len(content) > _MAX_MANIFEST_BYTES:
            raise ValueError("it is too large")
        entry = json.loads(content)
    except FileNotFoundError:
        raise ModelError(f"not a bundle: it has no {MANIFEST}", where=str(root)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"the manifest cannot be read: {error}") from error
    schema = entry.get("schema") if isinstance(entry, dict) else None
    if schema != SCHEMA:
        raise ModelError(
            f"bundle of schema {schema!r}; this memcli reads schema {SCHEMA}",
            where=str(path),
            next_step="Upgrade memcli, or install the model again.",
        )
    try:
        variants = {name: _variant(name, value) for name, value in entry["variants"].items()}
        # Manifests older than `frame_scores` are of models that have them.
        spec = ModelSpec.from_dict({"frame_scores": True, **entry["spec"]})
        if entry["model"] != spec.name or entry["weights"] != entry["spec"].get("weights"):
            raise ValueError("it says two things about its model or weights")
        training = _training(entry.get("training", {}))
        for variant in variants.values():
            _check_tokenizer(spec, variant)
    except KeyError as error:
        raise _damaged(path, f"the manifest is damaged: {error} is missing") from error
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise _damaged(path, f"the manifest is damaged: {error}") from error
    return Bundle(root, spec, cast("dict[Precision, Variant]", variants), training)


def _training(entry: object) -> dict[str, Any]:
    """What the manifest says of the training: any JSON object of a reasonable size."""
    if not isinstance(entry, dict):
        raise ValueError("training is no object")
    if len(json.dumps(entry, allow_nan=False)) > MAX_TRAINING_BYTES:
        raise ValueError("training is too large")
    return entry


def _check_tokenizer(spec: ModelSpec, variant: Variant) -> None:
    if spec.text is None:
        return
    name = posixpath.join(posixpath.dirname(variant.graph), spec.text.tokenizer)
    if name not in variant.files:
        raise ValueError(f"no hash for {name}, which the model reads captions with")


def verify_files(bundle: Bundle, variant: Variant) -> None:
    """Check every file of a variant against its hash, and that its graph reads no other files.

    Raises ModelError naming the first file that is missing, differs or has no hash.
    """
    for name, expected in variant.files.items():
        path = _inside(bundle.root, name)
        if not path.is_file():
            raise _damaged(path, "a file of the bundle is missing", _how_to_repair(bundle, name))
        if sha256_file(path) != expected:
            what = "a file of the bundle was changed or damaged (SHA-256 differs)"
            raise _damaged(path, what, _how_to_repair(bundle, name))
    for graph in dict.fromkeys((variant.graph, *variant.graphs.values())):
        _check_external(bundle, variant, graph)


def _check_external(bundle: Bundle, variant: Variant, graph: str) -> None:
    path = bundle.root / graph
    try:
        external = graph_facts(path).external_files
    except EngineError as error:
        raise _damaged(path, error.what) from error
    for name in sorted(external):
        file = posixpath.normpath(posixpath.join(posixpath.dirname(graph), name))
        if file not in variant.files:
            raise _damaged(path, f"the graph reads a file without a hash: {name!r}")


def manifest_text(bundle: Bundle) -> str:
    """The text of `manifest.json`."""
    return json.dumps(bundle.manifest(), indent=2, sort_keys=True) + "\n"


def write_manifest(bundle: Bundle) -> None:
    """Write `manifest.json` atomically: a crash leaves the old or the new one."""
    temporary = bundle.root / f".{MANIFEST}.{os.getpid()}"
    temporary.write_text(manifest_text(bundle), encoding="utf-8")
    temporary.replace(bundle.root / MANIFEST)
