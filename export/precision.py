"""Add a precision to an installed bundle. Works on the bundle alone: no torch, no checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memcli.engines.bundle import (
    FP32_GRAPH,
    GRAPH_FILE,
    Bundle,
    Variant,
    hash_files,
    read_bundle,
    verify_files,
    write_manifest,
)
from memcli.engines.files import install, locked, staging
from memcli.engines.loading import import_runtime
from memcli.engines.openvino import open_openvino, require_cpu_precision
from memcli.engines.verify import INPUT, Reference, reference_feeds, run_scores
from memcli.errors import EngineError, MemcliError, ModelError, OutputError, UsageError
from memcli.export.build import (
    gate_everywhere,
    graph_files,
    make_float_variant,
    versions,
)
from memcli.export.calibration import make_calibration_set
from memcli.export.int8 import make_int8
from memcli.export.parity import gate
from memcli.spec import FramePrep, Precision, Tolerance

if TYPE_CHECKING:
    import numpy.typing as npt

    Clip = npt.NDArray[np.uint8]

Report = Callable[[str], None]


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
    executes the fp32 graph in bf16; it is gated on `holdout` too if there is any, unless the model
    reads captions, which these clips lack. The last entry of the variant's `parity` is the gate on
    holdout clips.

    Until the gate has passed the installed bundle is not touched. Raises ParityError with the
    numbers if it does not pass, EngineError if this CPU or version cannot execute the precision,
    UsageError for too few clips, ModelError for a damaged bundle, OutputError for a full disk.
    """
    check_precision(precision)
    prep = _int8_prep(bundle) if precision == "int8" else None
    if "fp32" not in bundle.variants:
        raise ModelError("the bundle has no fp32 graph to start from", where=str(bundle.root))
    tolerance = _tolerance(bundle, precision)
    verify_files(bundle, bundle.variants["fp32"])
    reference = replace(Reference.from_dict(bundle.variants["fp32"].reference), tolerance=tolerance)
    if precision == "bf16":
        variant = make_float_variant(bundle.root, bundle.spec, precision, reference, {})
        variant = _gated(bundle, variant, report)
        held = list(holdout) if bundle.spec.text is None else []
        if held:
            variant = replace(variant, parity=[*variant.parity, _bf16_parity(bundle, held, report)])
        return _add(bundle, variant, None, report)
    clips = make_calibration_set(calibration, holdout, prep or _int8_prep(bundle))
    try:
        with staging(bundle.root, "make") as folder:
            result = make_int8(
                bundle.root / FP32_GRAPH, folder / GRAPH_FILE, clips, tolerance, report
            )
            variant = _int8_variant(bundle, folder, reference)
            variant = _gated(replace(bundle, root=folder), variant, report)
            measured = {
                **asdict(result.holdout),
                "frames_of": "holdout videos",
                "int8_layers": result.int8_layers,
                "float_layers": list(result.float_layers),
            }
            variant = replace(variant, parity=[*variant.parity, measured])
            return _add(bundle, variant, folder / Path(variant.graph).parent, report)
    except MemcliError:
        raise  # some are OSErrors too
    except OSError as error:
        raise OutputError(f"cannot write the graph: {error}", where=str(bundle.root)) from error


def _int8_prep(bundle: Bundle) -> FramePrep:
    """How to prepare calibration clips. Raises EngineError for a model that int8 is not for."""
    spec = bundle.spec
    if spec.prep is None or spec.text is not None or not spec.frame_scores:
        raise EngineError(
            f"{spec.name} cannot be made int8: its calibration needs a score for every frame, from"
            " frames alone",
            next_step="Use fp32, or bf16 on a CPU that has it: memcli export MODEL --bf16",
        )
    return spec.prep


def _int8_variant(bundle: Bundle, folder: Path, reference: Reference) -> Variant:
    """The graph in `folder`, moved to a folder in it that is named after the content."""
    hashes = hash_files(folder, graph_files(folder, GRAPH_FILE, bundle.spec))
    content = hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()[:8]
    place = f"int8-{content}"
    (folder / place).mkdir()
    for name in hashes:
        (folder / name).replace(folder / place / name)
    graph = f"{place}/{GRAPH_FILE}"
    return Variant(
        precision="int8",
        graph=graph,
        engines=("openvino",),
        files={f"{place}/{name}": digest for name, digest in hashes.items()},
        reference=_own_reference(replace(bundle, root=folder), graph, reference).to_dict(),
        made_by=versions({"openvino": import_runtime("openvino").__version__}),
    )


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
    by_frame = bundle.spec.frame_scores
    for precision in choices:
        with open_openvino(graph, device="cpu", precision=precision, threads=None) as engine:
            parts = [run_scores(engine, {INPUT: c[None]}, frame_scores=by_frame) for c in clips]
            scores.append(np.concatenate(parts))
    measured = gate(scores[0], scores[1], _tolerance(bundle, "bf16"), what="bf16")
    report(f"bf16: holdout clips: {measured.numbers()}")
    return {**asdict(measured), "frames_of": "holdout videos"}


def _gated(bundle: Bundle, variant: Variant, report: Report) -> Variant:
    parity = gate_everywhere(bundle, variant, report)
    return replace(variant, parity=[*variant.parity, *(one.to_dict() for one in parity)])


def _add(bundle: Bundle, variant: Variant, folder: Path | None, report: Report) -> Variant:
    """Install a gated variant: its folder, if it has one, then the manifest that names it.

    The folder's name is new with every content, so that a crash in between leaves the former
    manifest with the former files. No hard links: onnx refuses files that have several names.
    """
    name = bundle.model

    def waiting() -> None:
        report(f"another memcli is changing {name}: waiting for it")

    try:
        with locked(bundle.root, waiting):
            # Read again: others may have changed the bundle in the minutes that this one took.
            current = read_bundle(bundle.root)
            before, now = bundle.variants["fp32"], current.variants.get("fp32")
            if now is None or now.files != before.files:
                raise ModelError(
                    f"{name} was replaced while its {variant.precision} was made",
                    where=str(bundle.root),
                    next_step="Run the same command again.",
                )
            if folder is not None:
                install(folder, bundle.root / folder.name)
            variants = {**current.variants, variant.precision: variant}
            write_manifest(replace(current, variants=variants))
            if former := current.variants.get(variant.precision):
                _delete_unused(bundle.root, former, variants.values())
    except MemcliError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write the bundle: {error}", where=str(bundle.root)) from error
    return variant


def _delete_unused(root: Path, former: Variant, variants: Iterable[Variant]) -> None:
    """Delete the folder of a variant that the manifest no longer names."""
    folder = Path(former.graph).parent
    used = {part for one in variants for name in one.files for part in Path(name).parents}
    if len(folder.parts) == 1 and folder not in used:
        shutil.rmtree(root / folder, ignore_errors=True)


def _tolerance(bundle: Bundle, precision: Precision) -> Tolerance:
    tolerance = bundle.spec.tolerances.get(precision)
    if tolerance is None:
        raise ModelError(f"{bundle.model} defines no tolerance for {precision}: it has no gate")
    return tolerance


def _own_reference(bundle: Bundle, graph: str, reference: Reference) -> Reference:
    """The scores of the int8 graph itself on the synthetic frames.

    How far int8 is from the original was measured on real videos, which the bundle cannot hold.
    What is left to verify on another machine is that the runtime executes the graph as it did here.
    """
    feeds = reference_feeds(reference, bundle.spec, None)
    with open_openvino(bundle.root / graph, device="cpu", precision="int8", threads=None) as engine:
        scores = run_scores(engine, feeds, frame_scores=True)
    return replace(reference, frame_scores=tuple(tuple(map(float, row)) for row in scores))
