"""From a filled fp32 graph to an installed bundle, through the parity gate."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import memcli
from memcli.engines import records
from memcli.engines.base import EngineName
from memcli.engines.bundle import (
    LICENSE_FILE,
    Bundle,
    Variant,
    hash_files,
    install,
    read_bundle,
    write_manifest,
)
from memcli.engines.loading import graph_facts, import_runtime, installed_runtimes
from memcli.engines.onnxruntime import open_onnxruntime
from memcli.engines.openvino import open_openvino
from memcli.engines.verify import ParityReport, Reference, verify
from memcli.errors import MemcliError, ModelError, OutputError, ParityError
from memcli.home import bundles_dir
from memcli.spec import ModelSpec, Precision

GRAPHS = Path(__file__).parent / "graphs"
CPU_ENGINES: tuple[EngineName, ...] = ("openvino", "onnxruntime")
FP32_GRAPH = "fp32/model.onnx"


def build_bundle(
    spec: ModelSpec,
    staging: Path,
    *,
    target: Path | None = None,
    reference: Mapping[str, Any] | None = None,
    made_by: Mapping[str, str] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Gate the fp32 graph in `staging` and install the folder as `target`.

    `staging` holds what `memcli.export.pull` leaves: `model.onnx`, the external data it names and
    the licence of the weights (or the graph already in `fp32/`). It must be on the file system of
    `target` (default: `bundles_dir()/NAME`), and becomes it.
    `reference` defaults to `graphs/NAME.reference.json`. The graph must reproduce it with every
    runtime installed here; without any runtime the gate is left to the first use, and said so.

    Raises ParityError with the numbers and ModelError if the staging folder is incomplete; then
    an installed bundle stays as it was.
    """
    if not (staging / LICENSE_FILE).is_file():
        raise ModelError(
            f"the licence of the weights, {LICENSE_FILE}, is missing", where=str(staging)
        )
    _arrange(staging)
    entry = dict(reference) if reference is not None else load_reference(spec)
    entry["tolerance"] = spec.to_dict()["tolerances"]["fp32"]
    variant = make_float_variant(staging, "fp32", Reference.from_dict(entry), made_by or {})
    spec_entry = json.loads(json.dumps(spec.to_dict()))
    bundle = Bundle(
        root=staging,
        model=spec.name,
        prep=spec.prep,
        spec=spec_entry,
        weights=spec_entry["weights"],
        variants={"fp32": variant},
    )
    reports = gate_everywhere(bundle, variant, report)
    variant = replace(variant, parity=[parity.to_dict() for parity in reports])
    return publish(replace(bundle, variants={"fp32": variant}), target or bundles_dir() / spec.name)


def _arrange(staging: Path) -> None:
    """Move a graph and its external data into the folder of their precision."""
    pulled = staging / Path(FP32_GRAPH).name
    if not pulled.is_file():
        return
    try:
        (staging / FP32_GRAPH).parent.mkdir(exist_ok=True)
        for name in graph_files(staging, pulled.name):
            (staging / name).replace((staging / FP32_GRAPH).with_name(name))
    except OSError as error:
        raise OutputError(f"cannot arrange the bundle: {error}", where=str(staging)) from error


def load_reference(spec: ModelSpec) -> dict[str, Any]:
    """The original's scores, stored beside the weightless graph.

    Raises ModelError if the package lacks the file.
    """
    path = GRAPHS / f"{spec.name}.reference.json"
    try:
        entry: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the parity reference cannot be read: {error}", where=str(path)
        ) from error
    names = ("kind", "clips", "frames_per_clip", "seed", "frame_scores")
    return {name: entry[name] for name in names if name in entry}


def make_float_variant(
    root: Path, precision: Precision, reference: Reference, made_by: Mapping[str, str]
) -> Variant:
    """A variant that executes the fp32 graph of the bundle folder `root` in `precision`.

    Raises ModelError if the graph or its external data is missing or lies outside the folder.
    """
    graph = root / FP32_GRAPH
    if not graph.is_file():
        raise ModelError("the fp32 graph is missing", where=str(graph))
    return Variant(
        precision=precision,
        graph=FP32_GRAPH,
        engines=CPU_ENGINES if precision == "fp32" else ("openvino",),
        files=hash_files(root, graph_files(root, FP32_GRAPH)),
        reference=reference.to_dict(),
        made_by=versions(made_by),
    )


def graph_files(root: Path, graph: str) -> list[str]:
    """A graph and its external data, as paths inside the bundle folder `root`.

    Raises ModelError if external data is missing or named outside the graph's own folder.
    """
    folder = Path(graph).parent
    names = [graph]
    for name in sorted(graph_facts(root / graph).external_files):
        if Path(name).name != name or not (root / folder / name).is_file():
            raise ModelError(
                f"the graph's weights {name!r} are not beside it", where=str(root / graph)
            )
        names.append(str(folder / name))
    return names


def gate_everywhere(
    bundle: Bundle, variant: Variant, report: Callable[[str], None]
) -> list[ParityReport]:
    """Verify a variant with every runtime that is installed and may execute it.

    The results are remembered, so that the first use does not verify again. Raises ParityError,
    with all numbers, if one runtime fails; other errors of a single runtime are reported only,
    unless no other is left.
    """
    reports: list[ParityReport] = []
    errors: list[MemcliError] = []
    for name in (name for name in variant.engines if name in installed_runtimes()):
        open_graph = open_openvino if name == "openvino" else open_onnxruntime
        try:
            with open_graph(
                bundle.graph_path(variant), device="cpu", precision=variant.precision, threads=None
            ) as engine:
                parity = verify(engine, bundle, variant)
        except MemcliError as error:
            errors.append(error)
            report(f"{name} at {variant.precision}: {error.what}")
            continue
        report(f"{name} at {variant.precision}: {parity.numbers()}")
        reports.append(parity)
        if not parity.passed:
            raise ParityError(
                f"{name} does not reproduce {bundle.model} at {variant.precision}: "
                f"{parity.numbers()}",
                next_step="Nothing was installed.",
            )
        version = import_runtime(name).__version__
        records.store(records.RecordKey(variant, name, version, "cpu", None), parity)
    if errors and not reports:
        raise errors[0]
    if not reports:
        report("no runtime is installed: the graph will be verified at its first use")
    return reports


def publish(bundle: Bundle, target: Path) -> Bundle:
    """Write the manifest into the bundle's folder, move the folder to `target` and open it.

    Raises OutputError if the disk does not allow it.
    """
    try:
        write_manifest(bundle)
        install(bundle.root, target)
    except OSError as error:
        raise OutputError(f"cannot install the bundle: {error}", where=str(target)) from error
    return read_bundle(target)


def versions(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What made a variant: memcli, Python and `more`."""
    return {"memcli": memcli.__version__, "python": platform.python_version(), **(more or {})}
