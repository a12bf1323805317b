"""What `memcli export --fp16` and its like do with an installed model: a precision, its engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from memcli.compiling import compile_engine
from memcli.errors import MemcliError, ModelError, UsageError, VideoError
from memcli.spec import EegPrep, ModelSpec, Precision

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
    """Add a precision to an installed bundle. Raises UsageError for int8 without videos."""
    from memcli.captions import read_captions
    from memcli.export.calibration import CalibrationClips, read_calibration
    from memcli.export.calibration_captions import without_calibration
    from memcli.export.precision import make_variant

    if (installed := _as_installed(bundle, precision, request)) is not None:
        lines = [_told_as_installed(bundle, installed)]
        if request.compiles:
            lines.append(compile_asked(bundle, precision, request, report))
        return lines
    spec = bundle.spec
    clips = CalibrationClips([], [])
    epochs = None if spec.eeg is None else _epochs(bundle, spec.eeg, request, report)
    described = None
    if request.captions is not None and spec.text is not None:
        described = read_captions(request.captions)
    if spec.prep is not None and request.calibration is not None:
        wanted = partial(_is_described, described, report=report)
        videos = request.calibration
        source = videos if isinstance(videos, Path) else training_videos(bundle.model, videos)
        clips = read_calibration(source, spec.prep, wanted=wanted, report=report)
    elif spec.prep is not None and precision in CALIBRATED:
        raise _uncalibrated(bundle.model, precision)
    elif spec.prep is None and spec.eeg is None and request.calibration is not None:
        report(f"{bundle.model} reads no frames: made without --calibration")
    captions = None
    if spec.text is None and request.captions is not None:
        report(f"{bundle.model} reads no captions: made without --captions")
    elif spec.prep is not None and request.captions is not None and request.calibration is None:
        report(f"{bundle.model}: made without --captions, which are of no videos that were given")
    elif described is not None:
        clips, captions = _captions(described, clips, spec.prep is None, report)
    if precision not in CALIBRATED:
        clips, captions = without_calibration(clips, captions)
    compiled: list[str] = []

    def compile_it(made: Bundle) -> None:
        """Before the precision is installed: it is of no use where its engine cannot be built."""
        compiled.append(compile_asked(made, precision, request, report, check_files=False))

    variant = make_variant(
        bundle,
        precision,
        calibration=clips.calibration,
        holdout=clips.holdout,
        captions=captions,
        epochs=epochs,
        videos=clips.holdout_videos if clips.holdout else None,
        method=request.method,
        before=compile_it if request.compiles else lambda _: None,
        report=report,
    )
    return _told(bundle, variant) + compiled


def _epochs(
    bundle: Bundle, prep: EegPrep, request: ExportRequest, report: Report
) -> CalibrationEpochs | None:
    """Epochs of the user's recordings; None where there are none. Raises UsageError."""
    from memcli.export.calibration_epochs import read_calibration_epochs
    from memcli.recognition.settings import check_reading

    if request.calibration is None:
        return None
    if not isinstance(request.calibration, Path):
        raise UsageError(
            f"--calibration {request.calibration} takes videos, and {bundle.model} reads EEG",
            next_step="Name a folder with recordings: --calibration DIR",
        )
    check_reading()
    return read_calibration_epochs(request.calibration, prep, report=report)


def check_calibration(spec: ModelSpec, request: ExportRequest) -> None:
    """Raise UsageError, before other precisions are made, for one that lacks its videos."""
    from memcli import store

    if spec.prep is None or request.calibration is not None:
        return
    for precision in set(request.precisions) & set(CALIBRATED):
        installed = store.is_installed(spec.name) and store.find(spec.name)
        if not installed or _as_installed(installed, precision, request) is None:
            raise _uncalibrated(spec.name, precision)


def _uncalibrated(model: str, precision: Precision) -> UsageError:
    return UsageError(
        f"--{precision} is verified on real videos, and none were given",
        next_step=f"Name some of yours: memcli export {model} --{precision} --calibration DIR",
    )


def training_videos(model: str, count: int) -> list[str]:
    """Paths of `count` videos, spread over the data that the model was trained on here.

    Raises UsageError where no run tells of the data, or it has gone or has fewer videos.
    """
    from memcli.export.calibration import spread_items
    from memcli.train.datasets import load_dataset
    from memcli.train.run import latest_run, read_run

    hint = "Name a folder with videos instead: --calibration DIR"
    try:
        run = read_run(latest_run(model))
        name, root = str(run.dataset["name"]), Path(str(run.dataset["root"]))
    except (ModelError, KeyError) as error:
        raise UsageError(
            f"--calibration {count} takes videos that {model} was trained on, and no training run "
            "on this machine tells which",
            next_step=hint,
        ) from error
    try:
        found = [str(item.path) for item in load_dataset(name, root).items if item.path is not None]
    except MemcliError as error:
        raise UsageError(
            f"{model} was trained on {name}, which is no longer here: {error.what}",
            where=str(root),
            next_step=hint,
        ) from error
    if len(found) < count:
        raise UsageError(
            f"{name} has {len(found)} videos here, fewer than {count}",
            where=str(root),
            next_step=hint,
        )
    return spread_items(sorted(found), count)


def _as_installed(bundle: Bundle, precision: Precision, request: ExportRequest) -> Variant | None:
    """The installed variant where it is only to be compiled or packed, and need not be made again.

    A bundle keeps variants of its present fp32 graph only. Raises ModelError if that of a
    calibrated precision is damaged; others are made again, also those of another memcli.
    """
    from memcli import __version__
    from memcli.engines.bundle import verify_files

    variant = bundle.variants.get(precision)
    inputs = request.calibration or request.captions or request.method
    if variant is None or inputs or not (request.compiles or request.output is not None):
        return None
    if precision in CALIBRATED:
        verify_files(bundle, variant)
        return variant
    if variant.made_by.get("memcli") != __version__:
        return None
    try:
        verify_files(bundle, variant)
    except ModelError:
        return None
    return variant


def _told_as_installed(bundle: Bundle, variant: Variant) -> str:
    from memcli.export.evidence import verified_on

    text = f"{bundle.model} {variant.precision}: as installed ({variant.digest})"
    on = verified_on(variant.parity)
    return f"{text}, verified on {on}" if on else text


def _is_described(captions: Captions | None, path: str, *, report: Report) -> bool:
    """Whether captions of a video are there, if they are needed at all."""
    if captions is None:
        return True
    try:
        captions.of(path)
    except VideoError as error:
        report(f"not used: {path}: {error.what}")
        return False
    return True


def _captions(
    captions: Captions, clips: CalibrationClips, alone: bool, report: Report
) -> tuple[CalibrationClips, CalibrationCaptions]:
    """Captions of the clips, which lose those without; or of whatever the file has."""
    from memcli.export.calibration_captions import captions_of_file, captions_of_videos

    if alone:
        return clips, captions_of_file(captions.entries.values(), captions.name)
    return captions_of_videos(clips, captions.of, captions.name, report)


def _told(bundle: Bundle, variant: Variant) -> list[str]:
    """What the gate measured, one line for each kind of input."""
    from memcli.export.evidence import inputs_of, narrow_warning, runtime_of

    model = bundle.model
    lines = []
    for one in variant.parity:
        text = f"{model} {variant.precision}: max |difference| {one['max_abs']:.2g}"
        text += f", mean {one['mean_abs']:.2g}"
        if one.get("srcc") is not None:
            text += f", SRCC {one['srcc']:.4f}"
        if one.get("cosine_min") is not None:
            text += f", cosine of embeddings at least {one['cosine_min']:.5f}"
        text += f" on {one['clips']} {inputs_of(one)}"
        text += f", against {one['against']}" if "against" in one else ""
        role = f"{one['role']}; " if "role" in one else ""
        lines.append(f"{text} ({role}{runtime_of(one)})")
        if warning := narrow_warning(one, bundle.spec.tolerances.get(variant.precision)):
            lines.append(f"{model} {variant.precision}: warning: {warning}")
    if variant.precision == "bf16":
        from memcli.engines.openvino import require_cpu_precision
        from memcli.errors import MemcliError

        try:
            require_cpu_precision("bf16")
        except MemcliError as error:
            lines.append(f"It is for other machines: {error.what}")
    if variant.precision in ("fp16", "fp8"):
        lines.append("It is for GPUs; this CPU goes on with the other precisions")
    return lines


def compile_asked(
    bundle: Bundle,
    precision: Precision | None,
    request: ExportRequest,
    report: Report,
    *,
    check_files: bool = True,
) -> str:
    """Compile the engine that was asked for; says where. Raises as `compile_engine`."""
    assert request.target == "tensorrt" or request.target == "tensorrt-rtx"
    return compile_engine(
        bundle,
        precision,
        request.target,
        target_capability=request.target_capability,
        options=request.engine,
        output=_plans_folder(request),
        check_files=check_files,
        report=report,
    )


def _plans_folder(request: ExportRequest) -> Path | None:
    """Where compiled engines are written for another machine: beside the packed models."""
    output = request.output
    return None if output is None else output.parent if request.packs_one else output
