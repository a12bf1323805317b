"""Add a precision to an installed bundle. Works on the bundle alone: no torch, no checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from memcli.engines.bundle import (
    FP32_GRAPH,
    GRAPH_FILE,
    Bundle,
    Variant,
    read_bundle,
    verify_files,
    write_manifest,
)
from memcli.engines.files import install, locked, staging
from memcli.engines.verify import Reference
from memcli.errors import MemcliError, ModelError, OutputError, ParityError, UsageError
from memcli.export.build import engine_rows, gate_everywhere
from memcli.export.calibration import CalibrationSet, make_calibration_set
from memcli.export.calibration_captions import (
    CalibrationCaptions,
    synthetic_calibration_captions,
)
from memcli.export.calibration_epochs import CalibrationEpochs, synthetic_calibration_epochs
from memcli.export.evidence import is_real, verified_on
from memcli.export.half_variant import make_half
from memcli.export.int8 import make_int8
from memcli.export.int8_variant import SIGNED_FOLDER, int8_variant
from memcli.export.parity_table import write_parity_table
from memcli.export.quantize import Scheme
from memcli.export.ranges import Method
from memcli.spec import PRECISIONS, Precision, Tolerance

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
    captions: CalibrationCaptions | None = None,
    epochs: CalibrationEpochs | None = None,
    videos: int | None = None,
    method: Method | None = None,
    before: Callable[[Bundle], object] = lambda _: None,
    report: Report = lambda _: None,
) -> Variant:
    """Make a variant from the fp32 graph, gate it, and install it into the bundle.

    int8 and fp8 need real clips, uint8 [T, H, W, 3], prepared as for scoring: `calibration` to
    choose ranges and layers with, `holdout` (of at least 12 other videos, 64 frames) for the
    gate; a model that reads captions needs `captions`, of these clips or of themselves, and a model
    of EEG `epochs`; both have synthetic ones without. `method` is how ranges are chosen. fp16 and
    bf16 need nothing: their gate has synthetic inputs, and also whatever is given. `videos` is how
    many the clips of the gate are of, where it has several of each. `before` is called with the
    bundle as it will be, before that is installed: what it raises keeps the old one. The variant's
    `parity` has all reports.

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
    if precision == "fp16" or precision == "bf16":
        clips = [*calibration, *holdout]
        texts = [] if captions is None else [*captions.calibration, *captions.holdout]
        try:
            with staging(bundle.root, "make") as folder:
                variant = make_half(
                    bundle, folder, precision, reference, tolerance,
                    clips=clips, captions=texts, epochs=epochs, videos=videos, report=report,
                )  # fmt: skip
                # The fp32 graph, which OpenVINO executes in bf16, is looked for beside it.
                (folder / "fp32").symlink_to((bundle.root / FP32_GRAPH).parent.resolve())
                variant = _gated(replace(bundle, root=folder), variant, report)
                before(_with(bundle, folder, variant))
                return _add(bundle, variant, folder / Path(variant.graph).parent, report)
        except MemcliError:
            raise  # as below
        except OSError as error:
            raise _cannot_write(bundle, error) from error
    data = _calibration(bundle, precision, calibration, holdout, captions, epochs, videos, report)
    try:
        with staging(bundle.root, "make") as folder:
            (folder / SIGNED_FOLDER).mkdir()
            try:
                result = make_int8(
                    bundle.root / FP32_GRAPH,
                    folder / GRAPH_FILE,
                    data,
                    tolerance,
                    report,
                    method=method,
                    scheme=_scheme(bundle, precision),
                    signed_graph=folder / SIGNED_FOLDER / GRAPH_FILE,
                )
            except ParityError as error:
                if bundle.spec.eeg is None or epochs is not None:
                    raise
                raise _wants_recordings(error, precision) from error
            variant = int8_variant(bundle, folder, reference, result)
            variant = _gated(replace(bundle, root=folder), variant, report)
            variant = replace(variant, parity=[*variant.parity, *result.reports()])
            before(_with(bundle, folder, variant))
            return _add(bundle, variant, folder / Path(variant.graph).parent, report)
    except MemcliError:
        raise  # some are OSErrors too
    except OSError as error:
        raise _cannot_write(bundle, error) from error


def _wants_recordings(error: ParityError, precision: Precision) -> ParityError:
    """For an EEG model whose ranges were chosen with synthetic epochs."""
    hint = (
        "This was with synthetic epochs; recordings may help:"
        f"  memcli export MODEL --{precision} --calibration DIR"
    )
    steps = "\n".join(filter(None, (error.next_step, hint)))
    return ParityError(error.what, where=error.where, next_step=steps)


def _scheme(bundle: Bundle, precision: Precision) -> Scheme | None:
    """The scheme of 8 bits, or None for that of the kind of model.

    The EEG model is a CNN, but so small that unsigned activations make it no faster: one signed
    graph is for every runtime.
    """
    if precision == "fp8":
        return "fp8"
    return None if bundle.spec.eeg is None else "s8s8"


def _cannot_write(bundle: Bundle, error: OSError) -> OutputError:
    return OutputError(f"cannot write the graph: {error}", where=str(bundle.root))


def _calibration(
    bundle: Bundle,
    precision: Precision,
    calibration: Iterable[Clip],
    holdout: Iterable[Clip],
    captions: CalibrationCaptions | None,
    epochs: CalibrationEpochs | None,
    videos: int | None,
    report: Report,
) -> CalibrationSet:
    """What int8 is calibrated and checked with. Raises UsageError, ModelError."""
    if bundle.spec.eeg is not None:
        if epochs is None:
            report("int8: no recordings given: calibrated and checked with synthetic epochs")
        return (epochs or synthetic_calibration_epochs(bundle.spec.eeg)).as_set()
    kept, held = list(calibration), list(holdout)
    if bundle.spec.text is not None and captions is None:
        counts = () if bundle.spec.prep is None else (len(kept), len(held))
        captions = synthetic_calibration_captions(*counts)
        report(f"{precision}: no captions given: calibrated and checked with synthetic ones")
    tokenizer = bundle.tokenizer_path(bundle.variants["fp32"])
    return make_calibration_set(
        bundle.spec, kept, held, captions=captions, tokenizer=tokenizer, videos=videos
    )


def check_precision(precision: Precision) -> None:
    """Raise UsageError for the precision that is not made from another."""
    if precision == "fp32":
        raise UsageError("fp32 is what every other precision is made from; it is installed already")


def _with(bundle: Bundle, folder: Path, variant: Variant) -> Bundle:
    """The bundle with a variant whose files are in `folder`."""
    return replace(bundle, root=folder, variants={**bundle.variants, variant.precision: variant})


def _gated(bundle: Bundle, variant: Variant, report: Report) -> Variant:
    parity = gate_everywhere(bundle, variant, report)
    return replace(variant, parity=[*variant.parity, *engine_rows(variant, parity)])


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
            variant = _keep_evidence(current.variants.get(variant.precision), variant, report)
            if folder is not None:
                install(folder, bundle.root / folder.name)
            variants = {**current.variants, variant.precision: variant}
            changed = replace(current, variants=variants)
            write_manifest(changed)
            write_parity_table(changed)
            _delete_unused(bundle.root, variants.values())
    except MemcliError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write the bundle: {error}", where=str(bundle.root)) from error
    return variant


def _keep_evidence(former: Variant | None, variant: Variant, report: Report) -> Variant:
    """The variant with what was measured on real inputs of the same graph, byte for byte.

    Of another graph that was, it is only told.
    """
    real = [one for one in former.parity if is_real(one)] if former is not None else []
    if former is None or not real or any(map(is_real, variant.parity)):
        return variant
    on = verified_on(real)
    if former.digest == variant.digest:
        report(f"{variant.precision}: the same graph as before: kept what was measured on {on}")
        return replace(variant, parity=[*variant.parity, *real])
    report(
        f"{variant.precision}: the former graph was verified on {on}, this one is not: "
        "name them again to do so (--calibration DIR)"
    )
    return variant


def _delete_unused(root: Path, variants: Iterable[Variant]) -> None:
    """Delete the folders of variants that none has files in: replaced ones, and those of processes
    that died before they wrote the manifest."""
    used = {Path(name).parts[0] for one in variants for name in one.files}
    for folder in root.iterdir():
        precision, dash, _ = folder.name.partition("-")
        of_variant = dash and precision in PRECISIONS and folder.is_dir()
        if of_variant and folder.name not in used and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _tolerance(bundle: Bundle, precision: Precision) -> Tolerance:
    tolerance = bundle.spec.tolerances.get(precision)
    if tolerance is None:
        raise ModelError(f"{bundle.model} defines no tolerance for {precision}: it has no gate")
    return tolerance
