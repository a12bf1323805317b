"""Add a precision to an installed bundle. Works on the bundle alone: no torch, no checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memcli.engines.bundle import (
    Bundle,
    Variant,
    hash_files,
    read_bundle,
    sha256_file,
    verify_files,
    write_manifest,
)
from memcli.engines.loading import import_runtime
from memcli.engines.openvino import open_openvino, require_cpu_precision
from memcli.engines.reference import synthetic_frames
from memcli.engines.verify import Reference, run_scores
from memcli.errors import ModelError, OutputError, UsageError
from memcli.export.build import (
    FP32_GRAPH,
    gate_everywhere,
    graph_files,
    make_float_variant,
    versions,
)
from memcli.export.calibration import make_calibration_set
from memcli.export.int8 import make_int8
from memcli.export.parity import gate
from memcli.spec import Precision, Tolerance

if TYPE_CHECKING:
    import numpy.typing as npt

    Clip = npt.NDArray[np.uint8]

Report = Callable[[str], None]
GRAPH_FILE = "model.onnx"


def make_variant(
    bundle: Bundle,
    precision: Precision,
    *,
    calibration: Iterable[Clip] = (),
    holdout: Iterable[Clip] = (),
    report: Report = lambda _: None,
) -> Variant:
    """Make a variant from the fp32 graph, gate it, and install it into the bundle.

    int8 needs real clips, uint8 [T, H, W, 3], prepared as for scoring: `calibration` to choose
    ranges and layers with, `holdout` (at least 12 other videos, 64 frames) for the gate. bf16
    executes the fp32 graph in bf16; it is gated on `holdout` too if there is any. The last entry of
    the variant's `parity` is the gate on holdout clips.

    Until the gate has passed the installed bundle is not touched. Raises ParityError with the
    numbers if it does not pass, EngineError if this CPU or version cannot execute the precision,
    UsageError for too few clips, ModelError for a damaged bundle, OutputError for a full disk.
    """
    check_precision(precision)
    if "fp32" not in bundle.variants:
        raise ModelError("the bundle has no fp32 graph to start from", where=str(bundle.root))
    tolerance = _tolerance(bundle, precision)
    verify_files(bundle, bundle.variants["fp32"])
    reference = replace(Reference.from_dict(bundle.variants["fp32"].reference), tolerance=tolerance)
    if precision == "bf16":
        variant = make_float_variant(bundle.root, precision, reference, {})
        variant = _gated(bundle, variant, report)
        held = list(holdout)
        if held:
            variant = replace(variant, parity=[*variant.parity, _bf16_parity(bundle, held, report)])
        return _add(bundle, variant, None)
    clips = make_calibration_set(calibration, holdout, bundle.prep)
    staging = bundle.root.with_name(f".{bundle.root.name}.making-{os.getpid()}")
    try:
        staging.mkdir(parents=True)
        result = make_int8(bundle.root / FP32_GRAPH, staging / GRAPH_FILE, clips, tolerance, report)
        folder = f"int8-{sha256_file(staging / GRAPH_FILE)[:8]}"
        staged = replace(bundle, root=staging)
        (staging / folder).mkdir()
        for name in graph_files(staging, GRAPH_FILE):
            (staging / name).replace(staging / folder / name)
        graph = f"{folder}/{GRAPH_FILE}"
        variant = Variant(
            precision="int8",
            graph=graph,
            engines=("openvino",),
            files=hash_files(staging, graph_files(staging, graph)),
            reference=_own_reference(staged, graph, reference).to_dict(),
            made_by=versions({"openvino": import_runtime("openvino").__version__}),
        )
        measured = {
            **asdict(result.holdout),
            "frames_of": "holdout videos",
            "int8_layers": result.int8_layers,
            "float_layers": list(result.float_layers),
        }
        variant = _gated(staged, variant, report)
        variant = replace(variant, parity=[*variant.parity, measured])
        return _add(bundle, variant, staging / folder)
    except OSError as error:
        raise OutputError(f"cannot write the graph: {error}", where=str(bundle.root)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_precision(precision: Precision) -> None:
    """Raise, saying why and what to do, if this machine and version cannot make `precision`."""
    if precision == "fp32":
        raise UsageError("fp32 is what every other precision is made from; it is installed already")
    require_cpu_precision(precision)


def _bf16_parity(bundle: Bundle, clips: list[Clip], report: Report) -> dict[str, Any]:
    """bf16 against fp32 on real clips. Raises ParityError."""
    graph = bundle.root / FP32_GRAPH
    scores: list[npt.NDArray[np.float64]] = []
    choices: tuple[Precision, ...] = ("bf16", "fp32")
    for precision in choices:
        with open_openvino(graph, device="cpu", precision=precision, threads=None) as engine:
            scores.append(np.concatenate([run_scores(engine, clip[None]) for clip in clips]))
    measured = gate(scores[0], scores[1], _tolerance(bundle, "bf16"), what="bf16")
    report(f"bf16: holdout clips: {measured.numbers()}")
    return {**asdict(measured), "frames_of": "holdout videos"}


def _gated(bundle: Bundle, variant: Variant, report: Report) -> Variant:
    parity = gate_everywhere(bundle, variant, report)
    return replace(variant, parity=[*variant.parity, *(one.to_dict() for one in parity)])


def _add(bundle: Bundle, variant: Variant, folder: Path | None) -> Variant:
    """Install a gated variant: its folder, if it has one, then the manifest that names it.

    The folder's name is new with every content, so that a crash in between leaves the former
    manifest with the former files. No hard links: onnx refuses files that have several names.
    """
    if folder is not None:
        target = bundle.root / folder.name
        shutil.rmtree(target, ignore_errors=True)
        folder.replace(target)
    # Read again: another process may have added a precision in the minutes that this one took.
    current = read_bundle(bundle.root)
    former = current.variants.get(variant.precision)
    write_manifest(replace(current, variants={**current.variants, variant.precision: variant}))
    if folder is not None and former is not None and former.graph != variant.graph:
        shutil.rmtree((bundle.root / former.graph).parent, ignore_errors=True)
    return variant


def _tolerance(bundle: Bundle, precision: Precision) -> Tolerance:
    entry = bundle.spec.get("tolerances", {}).get(precision)
    if entry is None:
        raise ModelError(f"{bundle.model} defines no tolerance for {precision}: it has no gate")
    return Tolerance(**entry)


def _own_reference(bundle: Bundle, graph: str, reference: Reference) -> Reference:
    """The scores of the int8 graph itself on the synthetic frames.

    How far int8 is from the original was measured on real videos, which the bundle cannot hold.
    What is left to verify on another machine is that the runtime executes the graph as it did here.
    """
    frames = synthetic_frames(
        bundle.prep, reference.clips, reference.frames_per_clip, reference.seed
    )
    with open_openvino(bundle.root / graph, device="cpu", precision="int8", threads=None) as engine:
        scores = run_scores(engine, frames)
    return replace(reference, frame_scores=tuple(tuple(map(float, row)) for row in scores))
