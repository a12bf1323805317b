"""What `memcli export` does: training runs to fp32, fp32 to other precisions, engines, packing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from memcli import store
from memcli.compiling import EngineOptions, check_capability, check_target
from memcli.errors import MissingDependencyError, ModelError, UsageError
from memcli.models import DEFAULT_MODEL, MODELS
from memcli.precisions import (
    CALIBRATED,
    check_calibration,
    compile_asked,
    make_precision,
    training_videos,
)
from memcli.spec import ModelSpec, Precision

if TYPE_CHECKING:
    from memcli.engines.bundle import Bundle
    from memcli.export.ranges import Method
    from memcli.train.run import Run

Target = Literal["onnx", "openvino", "tensorrt", "tensorrt-rtx"]
Report = Callable[[str], None]
_MOST_VIDEOS = 512
"""Clips of all of them are in memory at once."""
_NOT_OPENVINO: tuple[Precision, ...] = ("fp16", "fp8")


@dataclass(frozen=True)
class ExportRequest:
    """What was asked for."""

    models: tuple[str, ...] = ()
    """None: the run's, all that are installed, or the default model."""
    precisions: tuple[Precision, ...] = ()
    run: Path | None = None
    calibration: Path | int | None = None
    """A folder of videos or of recordings, or how many of the videos it was trained on."""
    captions: Path | None = None
    method: Method | None = None
    target: Target = "onnx"
    target_capability: str | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    output: Path | None = None
    """A folder, or a file that ends in `.memcli`."""
    light: bool = False
    """Pack without the weights of public encoders."""
    offline: bool = False

    @property
    def compiles(self) -> bool:
        """Whether an engine is to be compiled now."""
        return self.target in ("tensorrt", "tensorrt-rtx")

    @property
    def packs_one(self) -> bool:
        """Whether the output is a file."""
        return self.output is not None and self.output.suffix == store.ARCHIVE_SUFFIX

    @property
    def steps(self) -> tuple[Precision | None, ...]:
        """Precisions to make of each model; None where it is only packed or compiled."""
        if self.precisions:
            return self.precisions
        only = self.run is None and (self.output is not None or self.compiles)
        return (None,) if only else ("fp32",)


def parse_calibration(text: str) -> Path | int:
    """A folder, or a number of videos. Raises UsageError for neither, and for a number too large.

    A folder whose name is a number is a folder.
    """
    path = Path(text)
    if text and path.exists():
        return path
    if not (text.isascii() and text.isdecimal()):
        raise UsageError("--calibration: no such folder", where=text)
    if not 1 <= int(text[:9]) <= _MOST_VIDEOS:
        raise UsageError(f"--calibration takes 1 to {_MOST_VIDEOS} videos, not {text[:9]}")
    return int(text)


def check_request(request: ExportRequest) -> None:
    """Raise UsageError for what makes no sense, before minutes of work."""
    if request.run is not None and request.precisions and "fp32" not in request.precisions:
        raise UsageError(
            "--run makes fp32; other precisions are made from the installed model",
            next_step="First without a precision, then without --run.",
        )
    if request.run is not None and len(request.models) > 1:
        raise UsageError("a run is of one model", where=str(request.run))
    if request.target_capability is not None and request.target != "tensorrt-rtx":
        raise UsageError(
            "--target-capability is for TensorRT-RTX, which alone builds for other GPUs",
            next_step="Add --target tensorrt-rtx",
        )
    if request.target_capability is not None:
        check_capability(request.target_capability)
    if (given := request.engine.named()) and not request.compiles:
        raise UsageError(
            f"{given[0]} is for compiled engines, and none is asked for",
            next_step="Add --target tensorrt or --target tensorrt-rtx",
        )
    request.engine.check()
    _check_used(request)
    if request.target == "openvino":
        for precision in request.precisions:
            if precision in _NOT_OPENVINO:
                raise UsageError(
                    f"OpenVINO does not execute {precision} on a CPU",
                    next_step="Use --bf16 or --int8, or another --target",
                )
    output = request.output
    if request.light and output is None:
        raise UsageError("--light is for packing", next_step="Add --output FILE.memcli")
    if request.light and set(request.precisions) - {"fp32"}:
        raise UsageError(
            "a light file holds fp32 only",
            next_step="Make other precisions where it is added, or pack without --light.",
        )
    if output is None:
        return
    if output.suffix and not request.packs_one and not output.is_dir():
        raise UsageError(
            "a packed model has another ending",
            where=str(output),
            next_step=f"Use --output {output.with_suffix(store.ARCHIVE_SUFFIX).name}, or a folder",
        )
    if request.packs_one and len(request.models) > 1:
        raise UsageError(
            "several models do not go into one file", next_step="Name a folder: --output DIR"
        )
    store.check_output(output)
    if not request.packs_one:
        store.check_output_folder(output)


def _check_used(request: ExportRequest) -> None:
    """Raise UsageError for an option that no precision of the request has a use for."""
    made = [one for one in request.steps if one not in (None, "fp32")]
    if request.method is not None and not set(made) & set(CALIBRATED):
        raise UsageError(
            "--method is how int8 and fp8 choose ranges, and neither is asked for",
            next_step="Add --int8 or --fp8",
        )
    inputs = {"--calibration": request.calibration, "--captions": request.captions}
    for option, value in inputs.items():
        if value is not None and not made:
            raise UsageError(
                f"{option} is for precisions that are made from fp32, and none is asked for",
                next_step="Add --fp16, --bf16, --int8 or --fp8",
            )


def check_inputs(request: ExportRequest, models: tuple[str, ...]) -> None:
    """Raise UsageError for inputs that none of the models takes.

    Of several models, those that have no use for some go without; that is reported. Raises as
    `memcli.compiling.check_target` for an engine that cannot be built here.
    """
    if request.target == "tensorrt" or request.target == "tensorrt-rtx":
        check_target(request.target, request.steps, request.target_capability)
    specs = [_spec_of(model) for model in models]
    known = [spec for spec in specs if spec is not None]
    if len(known) < len(specs):
        return  # what is wrong with a model is said when its turn comes
    names = ", ".join(models)
    watched = [spec for spec in known if spec.prep is not None or spec.eeg is not None]
    if request.calibration is not None and not watched:
        raise UsageError(
            f"--calibration names videos, and no frames are read by {names}",
            next_step="Give captions: --captions FILE",
        )
    if len(models) == 1:  # of several, what one lacks does not stop the others
        check_calibration(known[0], request)
    if isinstance(request.calibration, int):
        for spec in known:
            if spec.prep is not None:
                training_videos(spec.name, request.calibration)
    if request.captions is None:
        return
    if all(spec.text is None for spec in known):
        raise UsageError(f"--captions: no captions are read by {names}")
    alone = any(spec.text is not None and spec.prep is None for spec in known)
    if request.calibration is None and not alone:
        raise UsageError(
            "--captions are of videos, and none were given",
            next_step="Add --calibration DIR",
        )


def _spec_of(model: str) -> ModelSpec | None:
    """What the installed model is, or will be; None if that is not known."""
    if store.is_installed(model):
        try:
            return store.find(model).spec
        except ModelError:
            return None
    return MODELS.get(model)


def models_of(request: ExportRequest) -> tuple[str, ...]:
    """The models that were named, or the installed ones that can be meant.

    Raises UsageError for several models where one file is to be written.
    """
    if request.models:
        return request.models
    if request.run is not None:
        from memcli.train.run import read_run

        return (read_run(request.run).model,)
    if request.precisions and "fp32" not in request.precisions:
        names = tuple(bundle.model for bundle in store.installed()) or (DEFAULT_MODEL,)
        if request.packs_one and len(names) > 1:
            raise UsageError(
                f"several models are installed: {', '.join(names)}", next_step="Name one of them"
            )
        return names
    return (DEFAULT_MODEL,)


def export_one(
    request: ExportRequest, model: str, precision: Precision | None, report: Report
) -> list[str]:
    """Carry out one step for one model; gives lines that say what became of it.

    Later steps use what this one installs: after an error they would use an older model. Raises as
    `memcli.export` does; an installed model is then as it was.
    """
    lines: list[str] = []
    if precision == "fp32":
        lines += _export_run(_find_run(model, request.run), request.offline, report)
    bundle = _installed(request, model, report)
    if precision not in (None, "fp32"):
        assert precision is not None
        lines += make_precision(bundle, precision, request, report)
    elif request.compiles:
        lines.append(compile_asked(bundle, precision, request, report))
    return lines


def pack_one(request: ExportRequest, model: str, report: Report) -> list[str]:
    """Pack a model whose steps all succeeded, if that was asked for; gives lines that say so.

    Raises as `memcli.store.pack` and `memcli.packing.pack_light` do.
    """
    if request.output is None:
        return []
    target = request.output
    if not request.packs_one:
        store.make_output_folder(target)
        target = target / f"{model}{store.ARCHIVE_SUFFIX}"
    return _pack(store.find(model), target, request, report)


def left_undone(request: ExportRequest, model: str, failed: Precision | None) -> str:
    """What is not made of a model because the step `failed`; empty if there is nothing."""
    later = request.steps[request.steps.index(failed) + 1 :]
    parts = [f"not made: {', '.join(str(one) for one in later)}"] if later else []
    parts += ["nothing was packed"] if request.output is not None else []
    return f"{model}: {'; '.join(parts)}" if parts else ""


def _pack(bundle: Bundle, target: Path, request: ExportRequest, report: Report) -> list[str]:
    if not request.light:
        store.pack(bundle, target)
        return [f"packed into {target}"]
    from memcli.packing import pack_light

    return pack_light(bundle, target, run=request.run, offline=request.offline, report=report)


def _installed(request: ExportRequest, model: str, report: Report) -> Bundle:
    """The installed bundle; one that is published is pulled, one that was trained is exported."""
    published = model in MODELS and MODELS[model].weights is not None
    if not store.is_installed(model) and not published and model in MODELS:
        from memcli.train.run import latest_run

        if request.run is None:
            try:
                latest_run(model)
            except ModelError:
                store.find(model)  # says how to get it
        for line in _export_run(_find_run(model, request.run), request.offline, report):
            report(line)
    return store.ensure(model, offline=request.offline, report=report)


def _find_run(model: str, folder: Path | None) -> Run:
    """The run that was asked for.

    Raises UsageError for a model that is not trained or a run of another one, ModelError for a
    model without a run.
    """
    from memcli.train.run import latest_run, read_run

    if folder is not None:
        run = read_run(folder)
        if model != run.model:
            raise UsageError(f"this is a run of {run.model}, not of {model}", where=str(folder))
        return run
    what = "Name a precision (--fp16, --bf16, --int8, --fp8) or --output"
    if model in MODELS and MODELS[model].weights is not None:
        raise UsageError(f"nothing to do: {model} is published in fp32", next_step=what)
    try:
        found = latest_run(model)
    except ModelError:
        if not store.is_installed(model):
            store.find(model)  # says how to get it
        if model in MODELS:
            raise
        raise UsageError(
            f"nothing to do: {model} is installed, and was not trained on this machine",
            next_step=what,
        ) from None
    return read_run(found)


def _export_run(run: Run, offline: bool, report: Report) -> list[str]:
    of_eeg = run.spec.eeg is not None
    for package in ("torch", "onnxscript") if of_eeg else ("torch", "transformers", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(
                package,
                purpose="exporting a training run",
                install="pip install 'memcli[export]'",
            )
    from memcli.export.trained import export_run

    report(f"run {run.folder.name}: {run.model}, trained on {run.spec.trained_on} ({run.folder})")
    bundle = export_run(run, offline=offline, report=report)
    return [
        f"{bundle.model} is installed, in fp32, from {run.folder}",
        f"Use it: memcli eeg RECORDINGS --model {bundle.model}"
        if of_eeg
        else f"Use it: memcli score VIDEOS --model {bundle.model}",
    ]
