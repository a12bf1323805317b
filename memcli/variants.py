"""What `memcli export --int8` and the like do: another precision of an installed model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from memcli.errors import MemcliError, UsageError
from memcli.spec import EegPrep, Precision

if TYPE_CHECKING:
    from memcli.captions import Captions
    from memcli.engines.bundle import Bundle, Variant
    from memcli.export.calibration import CalibrationClips
    from memcli.export.calibration_captions import CalibrationCaptions
    from memcli.export.calibration_epochs import CalibrationEpochs
    from memcli.exporting import ExportRequest

Report = Callable[[str], None]
CALIBRATED: tuple[Precision, ...] = ("int8", "fp8")


def make_precision(
    bundle: Bundle, precision: Precision, request: ExportRequest, report: Report
) -> list[str]:
    """Add a precision to an installed bundle; gives lines that say what was measured.

    Raises UsageError for int8 of a model of frames without videos, and as
    `memcli.export.precision.make_variant` does.
    """
    from memcli.captions import read_captions
    from memcli.export.calibration import CalibrationClips, read_calibration
    from memcli.export.precision import make_variant

    spec = bundle.spec
    clips = CalibrationClips([], [])
    if spec.eeg is not None:
        epochs = _epochs(bundle, spec.eeg, request, report)
        variant = make_variant(
            bundle, precision, epochs=epochs, method=request.method, report=report
        )
        return told(bundle.model, variant)
    if spec.prep is not None and request.calibration is not None:
        clips = read_calibration(request.calibration, spec.prep, report=report)
    elif spec.prep is not None and precision in CALIBRATED:
        raise UsageError(
            f"--{precision} is verified on real videos, and none were given",
            next_step=f"Name some of yours: memcli export {bundle.model} --{precision}"
            " --calibration DIR",
        )
    elif spec.prep is None and request.calibration is not None:
        report(f"{bundle.model} reads no frames: made without --calibration")
    captions = None
    if spec.text is None and request.captions is not None:
        report(f"{bundle.model} reads no captions: made without --captions")
    elif spec.prep is not None and request.captions is not None and request.calibration is None:
        report(f"{bundle.model}: made without --captions, which are of no videos that were given")
    elif request.captions is not None:
        clips, captions = _captions(
            read_captions(request.captions), clips, spec.prep is None, report
        )
    variant = make_variant(
        bundle,
        precision,
        calibration=clips.calibration,
        holdout=clips.holdout,
        captions=captions,
        method=request.method,
        report=report,
    )
    return told(bundle.model, variant)


def _epochs(
    bundle: Bundle, prep: EegPrep, request: ExportRequest, report: Report
) -> CalibrationEpochs | None:
    """Epochs of the user's recordings; None where there are none."""
    from memcli.export.calibration_epochs import read_calibration_epochs
    from memcli.recognition.settings import check_reading

    if request.captions is not None:
        report(f"{bundle.model} reads no captions: made without --captions")
    if request.calibration is None:
        return None
    check_reading()
    return read_calibration_epochs(request.calibration, prep, report=report)


def _captions(
    captions: Captions, clips: CalibrationClips, alone: bool, report: Report
) -> tuple[CalibrationClips, CalibrationCaptions]:
    """Captions of the clips, which lose those without; or of whatever the file has."""
    from memcli.export.calibration_captions import captions_of_file, captions_of_videos

    if alone:
        return clips, captions_of_file(captions.entries.values(), captions.name)
    return captions_of_videos(clips, captions.of, captions.name, report)


def told(model: str, variant: Variant) -> list[str]:
    """What the gate measured, one line for each kind of input."""
    lines = []
    for one in variant.parity:
        text = f"{model} {variant.precision}: max |difference| {one['max_abs']:.4f}"
        text += f", mean {one['mean_abs']:.4f}"
        if one.get("srcc") is not None:
            text += f", SRCC {one['srcc']:.4f}"
        if one.get("cosine_min") is not None:
            text += f", cosine of embeddings at least {one['cosine_min']:.5f}"
        noun = one.get("of") or "clips"
        inputs = one.get("inputs") or one.get("frames_of") or f"reference {noun}"
        by = one.get("runtime") or one.get("engine")
        lines.append(f"{text} on {one['clips']} {inputs}{f' ({by})' if by else ''}")
    if variant.precision == "bf16":
        from memcli.engines.openvino import require_cpu_precision

        try:
            require_cpu_precision("bf16")
        except MemcliError as error:
            lines.append(f"It is for other machines: {error.what}")
    if variant.precision in ("fp16", "fp8"):
        lines.append("It is for GPUs; this CPU goes on with the other precisions")
    return lines
