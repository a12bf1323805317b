"""From a filled fp32 graph to an installed bundle, through the parity gate."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import memcli
from memcli.engines import openvino, records
from memcli.engines.base import EngineName
from memcli.engines.bundle import (
    FP32_GRAPH,
    GRAPH_FILE,
    LICENSE_FILE,
    MANIFEST,
    MAX_TRAINING_BYTES,
    Bundle,
    Variant,
    hash_files,
    read_bundle,
    verify_files,
    write_manifest,
)
from memcli.engines.candidates import TENSORRT
from memcli.engines.files import install
from memcli.engines.loading import graph_facts, import_runtime, installed_runtimes
from memcli.engines.onnxruntime import open_onnxruntime
from memcli.engines.openvino import open_openvino
from memcli.engines.verify import ParityReport, Reference, verify
from memcli.errors import MemcliError, ModelError, OutputError, ParityError
from memcli.export.evidence import (
    ENGINE,
    GATE,
    OWN_SCORES,
    PYTORCH,
    reference_inputs,
    spread_of,
)
from memcli.export.fill import GRAPHS
from memcli.export.parity_table import write_parity_table
from memcli.home import bundles_dir
from memcli.spec import ModelSpec, Precision

CPU_ENGINES: tuple[EngineName, ...] = ("openvino", "onnxruntime")
HALVES: tuple[Precision, ...] = ("fp16", "bf16")


def build_bundle(
    spec: ModelSpec,
    staging: Path,
    *,
    target: Path | None = None,
    reference: Reference | Mapping[str, Any] | None = None,
    made_by: Mapping[str, str] | None = None,
    training: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Gate the fp32 graph in `staging` and install the folder as `target`.

    `staging` holds `model.onnx`, the external data it names, the terms of the weights
    (`LICENSE.weights.txt`) and, for a model that reads captions, its tokenizer
    (`spec.text.tokenizer`). It must be on the file system of `target` (default:
    `bundles_dir()/NAME`), and becomes it. Other precisions of a bundle already there are kept if
    they were made from the same graph and weights; if not, `report` names them.
    `reference` defaults to `graphs/NAME.reference.json`; its tolerance is always that of `spec`.
    The graph must reproduce it with every runtime installed here; without any runtime the gate is
    left to the first use, and said so. `training` is what the manifest tells of the training: JSON
    values.

    Raises ParityError with the numbers and ModelError if the staging folder is incomplete; then
    an installed bundle stays as it was.
    """
    if not (staging / LICENSE_FILE).is_file():
        raise ModelError(
            f"the licence of the weights, {LICENSE_FILE}, is missing", where=str(staging)
        )
    if reference is None:
        reference = load_reference(spec)
    entry = reference.to_dict() if isinstance(reference, Reference) else dict(reference)
    entry["tolerance"] = _fp32_tolerance(spec)
    # Both before anything is moved: what the manifest cannot hold is no bundle.
    told = _json_object(training or {})
    checked = Reference.from_dict(entry)
    _arrange(staging, spec)
    variant = make_float_variant(staging, spec, "fp32", checked, made_by or {})
    bundle = Bundle(staging, spec, variants={"fp32": variant}, training=told)
    reports = gate_everywhere(bundle, variant, report)
    variant = replace(variant, parity=engine_rows(variant, reports))
    bundle = replace(bundle, variants={"fp32": variant})
    target = target or bundles_dir() / spec.name
    return publish(keep_variants(bundle, target, report), target)


def _fp32_tolerance(spec: ModelSpec) -> dict[str, Any]:
    if "fp32" not in spec.tolerances:
        raise ModelError(f"{spec.name} defines no tolerance for fp32: it has no gate")
    return asdict(spec.tolerances["fp32"])


def _json_object(training: Mapping[str, Any]) -> dict[str, Any]:
    """`training` as it comes back from the manifest, which must be able to hold it."""
    try:
        text = json.dumps(dict(training), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelError(f"the report of the training is not JSON: {error}") from error
    if len(text) > MAX_TRAINING_BYTES:
        raise ModelError(
            f"the report of the training is longer than {MAX_TRAINING_BYTES >> 20} MiB",
            next_step="Train it with fewer folds: each tells of its own metrics.",
        )
    value: dict[str, Any] = json.loads(text)
    return value


def _arrange(staging: Path, spec: ModelSpec) -> None:
    """Move a graph, its external data and its tokenizer into the folder of their precision."""
    if not (staging / GRAPH_FILE).is_file():
        raise ModelError("the fp32 graph is missing", where=str(staging / GRAPH_FILE))
    try:
        (staging / FP32_GRAPH).parent.mkdir(exist_ok=True)
        for name in graph_files(staging, GRAPH_FILE, spec):
            (staging / name).replace((staging / FP32_GRAPH).with_name(name))
    except OSError as error:
        raise OutputError(f"cannot arrange the bundle: {error}", where=str(staging)) from error


def keep_variants(bundle: Bundle, installed: Path, report: Callable[[str], None]) -> Bundle:
    """`bundle`, of fp32 only, with the other precisions of the bundle at `installed`.

    Those of another graph, preparation or tolerance, and damaged ones, are left out and reported.
    Raises OutputError if the disk does not take the copies.
    """
    if not (installed / MANIFEST).is_file():
        return bundle
    try:
        old = read_bundle(installed)
    except ModelError:
        report("the installed bundle is damaged: precisions made from it are not kept")
        return bundle
    fp32 = bundle.variants["fp32"]
    same = "fp32" in old.variants and old.variants["fp32"].files == fp32.files
    kept = dict(bundle.variants)
    for precision, variant in old.variants.items():
        if precision == "fp32":
            continue
        why = "it was made from another graph" if not same else None
        if _contract(old, precision) != _contract(bundle, precision):
            why = "what it must keep to has changed"
        try:
            if why is None:
                verify_files(old, variant)
                _copy_files(old.root, bundle.root, set(variant.files) - set(fp32.files))
        except ModelError as error:
            why = error.what
        if why is None:
            kept[precision] = variant
        else:
            report(f"{precision} is not kept: {why} (memcli export {bundle.model} --{precision})")
    return replace(bundle, variants=kept)


def _contract(bundle: Bundle, precision: Precision) -> tuple[object, ...]:
    """What a variant depends on besides the fp32 graph."""
    spec = bundle.spec
    return spec.prep, spec.text, spec.eeg, spec.frame_scores, spec.tolerances.get(precision)


def _copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    try:
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)
    except OSError as error:
        raise OutputError(f"cannot copy {name}: {error}", where=str(target)) from error


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
    names = ("kind", "clips", "frames_per_clip", "seed", "frame_scores", "scores", "captions")
    return {name: entry[name] for name in names if name in entry}


def make_float_variant(
    root: Path,
    spec: ModelSpec,
    precision: Precision,
    reference: Reference,
    made_by: Mapping[str, str],
) -> Variant:
    """A variant that executes the fp32 graph of the bundle folder `root` in `precision`.

    Raises ModelError if the graph or a file it needs is missing or lies outside the folder.
    """
    graph = root / FP32_GRAPH
    if not graph.is_file():
        raise ModelError("the fp32 graph is missing", where=str(graph))
    return Variant(
        precision=precision,
        graph=FP32_GRAPH,
        engines=(*CPU_ENGINES, *TENSORRT) if precision == "fp32" else ("openvino",),
        files=hash_files(root, graph_files(root, FP32_GRAPH, spec)),
        reference=reference.to_dict(),
        made_by=versions(made_by),
    )


def graph_files(root: Path, graph: str, spec: ModelSpec) -> list[str]:
    """A graph, its external data and its tokenizer, as paths inside the bundle folder `root`.

    Raises ModelError if one is missing or named outside the graph's own folder.
    """
    folder = Path(graph).parent
    names = [graph]
    for name in sorted(graph_facts(root / graph).external_files):
        if Path(name).name != name or not (root / folder / name).is_file():
            raise ModelError(
                f"the graph's weights {name!r} are not beside it", where=str(root / graph)
            )
        names.append(str(folder / name))
    if spec.text is not None:
        name = spec.text.tokenizer
        if not (root / folder / name).is_file():
            raise ModelError(f"the tokenizer {name!r} is missing", where=str(root / folder))
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
    for name, device in _places(variant):
        open_graph = open_openvino if name == "openvino" else open_onnxruntime
        try:
            with open_graph(
                bundle.graph_path(variant, name),
                device=device,
                precision=variant.precision,
                threads=None,
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
        records.store(records.RecordKey(variant, name, version, device, None), parity)
    if errors and not reports:
        raise errors[0]
    if not reports:
        what = f"here computes in {variant.precision}" if installed_runtimes() else "is installed"
        report(f"no runtime {what}: the graph will be verified at its first use")
    return reports


def engine_rows(variant: Variant, reports: Iterable[ParityReport]) -> list[dict[str, Any]]:
    """What `gate_everywhere` found, as rows of the parity report.

    The reference of int8 is what its own graph gave; that of all others, what the original gave.
    """
    against = OWN_SCORES if variant.precision == "int8" else PYTORCH
    role = GATE if variant.precision == "fp32" else ENGINE
    spread = spread_of(Reference.from_dict(variant.reference).expected().mean(axis=1))
    told = {"role": role, "against": against, **spread.to_dict()}
    return [one.to_dict() | told | {"inputs": reference_inputs(one.of)} for one in reports]


def _places(variant: Variant) -> list[tuple[EngineName, str]]:
    """Runtimes and devices here that compute in the precision of a variant.

    TensorRT is not among them: it compiles for minutes, and does so at the first use.
    """
    here = [name for name in CPU_ENGINES if name in variant.engines]
    here = [name for name in here if name in installed_runtimes()]
    if variant.precision == "fp8":
        return []
    if variant.precision not in HALVES:
        return [(name, "cpu") for name in here]
    places: list[tuple[EngineName, str]] = []
    if "openvino" in here and "BF16" in openvino.cpu_capabilities():
        places.append(("openvino", "cpu"))
    if "onnxruntime" in here:
        providers = import_runtime("onnxruntime").get_available_providers()
        places += [("onnxruntime", "cuda")] if "CUDAExecutionProvider" in providers else []
    return places


def publish(bundle: Bundle, target: Path) -> Bundle:
    """Write the manifest into the bundle's folder, move the folder to `target` and open it.

    Raises OutputError if the disk does not allow it.
    """
    try:
        write_manifest(bundle)
        write_parity_table(bundle)
        install(bundle.root, target)
    except OSError as error:
        raise OutputError(f"cannot install the bundle: {error}", where=str(target)) from error
    return read_bundle(target)


def versions(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What made a variant: memcli, Python and `more`."""
    return {"memcli": memcli.__version__, "python": platform.python_version(), **(more or {})}
