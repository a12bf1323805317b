"""`memcli export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from memcli.models import DEFAULT_MODEL
from memcli.spec import Precision

if TYPE_CHECKING:
    from memcli.engines.bundle import Bundle
    from memcli.train.run import Run


@click.command(name="export")
@click.argument("model", required=False)
@click.option("--fp32", "precision", flag_value="fp32", help="The model of a training run.")
@click.option(
    "--bf16", "precision", flag_value="bf16", help="bfloat16, on CPUs that compute in it."
)
@click.option("--int8", "precision", flag_value="int8", help="8-bit integers, calibrated.")
@click.option("--fp16", "precision", flag_value="fp16", help="Half precision, for GPUs.")
@click.option(
    "--run",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="The training run to export, instead of the model's latest.",
)
@click.option(
    "--calibration",
    type=click.Path(exists=True, path_type=Path),
    metavar="DIR",
    help="Your own videos: half of them calibrate, the other half verify.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.memcli",
    help="Also pack the model, all its precisions, into one file for another machine.",
)
@click.option("--offline", is_flag=True, help="Never use the network.")
def command(
    model: str | None,
    precision: Precision | None,
    folder: Path | None,
    calibration: Path | None,
    output: Path | None,
    offline: bool,
) -> None:
    """Make a verified engine of a trained model, or a faster precision of one.

    Without a precision, the model's latest training run becomes an fp32 graph, which is installed
    only if it gives the scores of the trained model. Other precisions are made from an installed
    model. They are used by `memcli score` only if their scores stay within the tolerance of the
    model (`memcli models show`) on videos that did not calibrate them; otherwise nothing is
    changed.

    \b
    Examples:
      memcli export early-fusion
      memcli export early-fusion --run ./runs/monday
      memcli export resmem --int8 --calibration ./videos
      memcli export resmem --bf16 --calibration ./videos
      memcli export resmem --output resmem.memcli
    """
    from memcli import store
    from memcli.errors import UsageError
    from memcli.progress import say
    from memcli.text import printable

    if folder is not None and precision not in (None, "fp32"):
        raise UsageError(
            "--run makes fp32; other precisions are made from the installed model",
            next_step="First without a precision, then without --run.",
        )
    if output is not None and output.suffix != store.ARCHIVE_SUFFIX:
        raise UsageError(
            "a packed model has another ending",
            where=str(output),
            next_step=f"Use --output {output.with_suffix(store.ARCHIVE_SUFFIX).name}",
        )
    if output is not None:
        store.check_output(output)
    if folder is not None or precision == "fp32" or (precision is None and output is None):
        run = _find_run(model, folder)
        bundle = _export_run(run, offline)
        model = bundle.model
    else:
        model = model or DEFAULT_MODEL
        bundle = store.ensure(model, offline=offline, report=say)
        if precision is not None:
            _make_precision(bundle, precision, calibration)
    if output is not None:
        store.pack(store.find(model), output)
        click.echo(printable(f"packed into {output}"))


def _find_run(model: str | None, folder: Path | None) -> Run:
    """The run that was asked for.

    Raises UsageError for a model that is not trained or a run of another one, ModelError for a
    model without a run.
    """
    from memcli import store
    from memcli.errors import ModelError, UsageError
    from memcli.models import MODELS
    from memcli.train.run import latest_run, read_run

    if folder is not None:
        run = read_run(folder)
        if model not in (None, run.model):
            raise UsageError(f"this is a run of {run.model}, not of {model}", where=str(folder))
        return run
    model = model or DEFAULT_MODEL
    if model in MODELS and MODELS[model].weights is not None:
        raise UsageError(
            f"nothing to do: {model} is published in fp32",
            next_step="Name a precision (--bf16, --int8) or --output",
        )
    try:
        found = latest_run(model)
    except ModelError:
        if not store.is_installed(model):
            store.find(model)  # says how to get it
        if model in MODELS:
            raise
        raise UsageError(
            f"nothing to do: {model} is installed, and was not trained on this machine",
            next_step="Name a precision (--bf16, --int8) or --output",
        ) from None
    return read_run(found)


def _export_run(run: Run, offline: bool) -> Bundle:
    import importlib.util

    from memcli.errors import MissingDependencyError
    from memcli.progress import say
    from memcli.text import printable

    for package in ("torch", "transformers", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(
                package,
                purpose="exporting a training run",
                install="pip install 'memcli[export]'",
            )
    from memcli.export.trained import export_run

    say(f"run {run.folder.name}: {run.model}, trained on {run.spec.trained_on} ({run.folder})")
    bundle = export_run(run, offline=offline, report=say)
    click.echo(printable(f"{bundle.model} is installed, in fp32, from {run.folder}"))
    click.echo(printable(f"Use it: memcli score VIDEOS --model {bundle.model}"))
    return bundle


def _make_precision(bundle: Bundle, precision: Precision, calibration: Path | None) -> None:
    """Add a precision to an installed bundle.

    Raises UsageError for one that is not to be had for this model, or without videos.
    """
    from memcli.errors import UsageError
    from memcli.export.calibration import read_calibration
    from memcli.export.precision import check_precision, make_variant
    from memcli.progress import say

    model, spec = bundle.model, bundle.spec
    if precision == "int8" and (spec.text is not None or not spec.frame_scores):
        raise UsageError(
            f"{model} cannot be made int8 yet: only models that score every frame by itself can",
            next_step=f"Possible: fp32, which is installed, and memcli export {model} --bf16",
        )
    check_precision(precision)
    if spec.prep is None or spec.text is not None:
        # Its captions are synthetic: videos have none. The gate is that of the reference.
        variant = make_variant(bundle, precision, report=say)
        of = "synthetic clips"
    elif calibration is None:
        raise UsageError(
            f"--{precision} is verified on real videos, and none were given",
            next_step=f"Name some of yours: memcli export {model} --{precision} --calibration DIR",
        )
    else:
        clips = read_calibration(calibration, spec.prep, report=say)
        variant = make_variant(
            bundle, precision, calibration=clips.calibration, holdout=clips.holdout, report=say
        )
        of = "videos not calibrated with"
    report = variant.parity[-1]
    click.echo(
        f"{model} {precision}: max |difference| {report['max_abs']:.4f},"
        f" mean {report['mean_abs']:.4f} on {report['clips']} {of}"
    )
