"""Bundles: a model as a folder that holds its graphs and says what they are.

    resmem/
      manifest.json        schema, spec, weights and licence, one entry per precision
      LICENSE.weights.txt
      fp32/model.onnx      the graph
      fp32/model.bin       its weights (ONNX external data)
      int8/model.onnx ...

Each precision is a *variant*: a graph, the precision in which a runtime executes it, the runtimes
it may run on, and the reference it is verified against. The hash of every file is in the manifest
and is checked when a bundle is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from memcli.engines.base import ENGINES, EngineName
from memcli.errors import ModelError
from memcli.spec import PRECISIONS, FramePrep, Precision

SCHEMA = 1
MANIFEST = "manifest.json"
LICENSE_FILE = "LICENSE.weights.txt"
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

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """Names the content: changes with any file and with the precision."""
        content = json.dumps([self.precision, self.graph, sorted(self.files.items())])
        return hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_LENGTH]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `read_bundle` makes it; nothing in it is changed in place."""

    root: Path
    model: str
    prep: FramePrep
    spec: dict[str, Any]
    weights: dict[str, Any]
    """Package, version, SHA-256, `license` and `license_note`."""
    variants: dict[Precision, Variant]

    def graph_path(self, variant: Variant) -> Path:
        """The ONNX file of a variant."""
        return self.root / variant.graph

    def label(self, variant: Variant) -> str:
        """Names model and content in a row, e.g. `resmem@1f2e3d4c5b6a`."""
        return f"{self.model}@{variant.digest}"

    @property
    def license(self) -> str:
        """The weights' licence in a few words."""
        return str(self.weights.get("license", ""))

    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())

    def manifest(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "spec": self.spec,
            "weights": self.weights,
            "variants": {name: asdict(variant) for name, variant in self.variants.items()},
        }


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_files(root: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 by name of files inside `root`."""
    return {name: sha256_file(root / name) for name in names}


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(
        what,
        where=str(path),
        next_step="Install the model again: memcli models pull NAME (or memcli models add FILE)",
    )


def _inside(root: Path, name: str) -> Path:
    """A file named by the manifest; a name that leaves the bundle is an attack or damage."""
    path = root / name
    if Path(name).is_absolute() or ".." in Path(name).parts or path.is_symlink():
        raise _damaged(root / MANIFEST, f"the manifest names a file outside the bundle: {name!r}")
    return path


def _variant(name: str, entry: dict[str, Any]) -> Variant:
    variant = Variant(
        precision=entry["precision"],
        graph=str(entry["graph"]),
        engines=tuple(entry["engines"]),
        files={str(file): str(digest) for file, digest in entry["files"].items()},
        reference=dict(entry["reference"]),
        parity=list(entry["parity"]),
        made_by=dict(entry["made_by"]),
    )
    if variant.precision != name or name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}")
    if not set(variant.engines) <= set(ENGINES):
        raise ValueError(f"unknown engine in {variant.engines}")
    if variant.graph not in variant.files:
        raise ValueError(f"no hash for {variant.graph}")
    return variant


def frame_prep(entry: dict[str, Any]) -> FramePrep:
    """A FramePrep from JSON, where tuples are lists."""
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()
    }
    return FramePrep(**values)


def read_bundle(root: Path) -> Bundle:
    """Open a bundle folder.

    Raises ModelError if it is none, or its manifest is damaged or of a newer schema. Hashes are
    checked by `verify_files`, for the variant that is going to be used.
    """
    path = root / MANIFEST
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"not a bundle: it has no {MANIFEST}", where=str(root)) from None
    except (OSError, ValueError) as error:
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
        return Bundle(
            root=root,
            model=str(entry["model"]),
            prep=frame_prep(entry["spec"]["prep"]),
            spec=dict(entry["spec"]),
            weights=dict(entry["weights"]),
            variants=cast("dict[Precision, Variant]", variants),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"the manifest is damaged: {error}") from error


def verify_files(bundle: Bundle, variant: Variant) -> None:
    """Check every file of a variant against its hash.

    Raises ModelError naming the first file that is missing or differs.
    """
    for name, expected in variant.files.items():
        path = _inside(bundle.root, name)
        if not path.is_file():
            raise _damaged(path, "a file of the bundle is missing")
        if sha256_file(path) != expected:
            raise _damaged(path, "a file of the bundle was changed or damaged (SHA-256 differs)")


def write_manifest(bundle: Bundle) -> None:
    """Write `manifest.json` atomically: a crash leaves the old or the new one."""
    text = json.dumps(bundle.manifest(), indent=2, sort_keys=True) + "\n"
    temporary = bundle.root / f".{MANIFEST}.{os.getpid()}"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(bundle.root / MANIFEST)


def install(staging: Path, target: Path) -> None:
    """Move a finished bundle folder to its place; an older one is replaced at once."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.replace(old)
    staging.replace(target)
    shutil.rmtree(old, ignore_errors=True)
