"""`memcli export`."""

from __future__ import annotations

from pathlib import Path

import click

from memcli.models import DEFAULT_MODEL
from memcli.spec import Precision


@click.command(name="export")
@click.argument("model", default=DEFAULT_MODEL)
@click.option(
    "--bf16", "precision", flag_value="bf16", help="bfloat16, on CPUs that compute in it."
)
@click.option("--int8", "precision", flag_value="int8", help="8-bit integers, calibrated.")
@click.option("--fp16", "precision", flag_value="fp16", help="Half precision, for GPUs.")
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
    model: str,
    precision: Precision | None,
    calibration: Path | None,
    output: Path | None,
    offline: bool,
) -> None:
    """Make a faster precision of an installed model, verified against fp32.

    The new precision is used by `memcli score` only if its scores stay within the tolerance of the
    model (`memcli models show`) on videos that did not calibrate it; otherwise nothing is changed.

    \b
    Examples:
      memcli export resmem --int8 --calibration ./videos
      memcli export resmem --bf16 --calibration ./videos
      memcli export resmem --output resmem.memcli
    """
    from memcli import store
    from memcli.errors import UsageError
    from memcli.progress import say
    from memcli.text import printable

    if precision is None and output is None:
        raise UsageError("nothing to do", next_step="Name a precision (--bf16, --int8) or --output")
    if output is not None and output.suffix != store.ARCHIVE_SUFFIX:
        raise UsageError(
            "a packed model has another ending",
            where=str(output),
            next_step=f"Use --output {output.with_suffix(store.ARCHIVE_SUFFIX).name}",
        )
    if output is not None:
        store.check_output(output)
    bundle = store.ensure(model, offline=offline, report=say)
    if precision is not None:
        from memcli.export.calibration import read_calibration
        from memcli.export.precision import check_precision, make_variant

        check_precision(precision)
        if calibration is None:
            raise UsageError(
                f"--{precision} is verified on real videos, and none were given",
                next_step=f"Name some of yours: memcli export {model} --{precision}"
                " --calibration DIR",
            )
        clips = read_calibration(calibration, bundle.prep, report=say)
        variant = make_variant(
            bundle, precision, calibration=clips.calibration, holdout=clips.holdout, report=say
        )
        report = variant.parity[-1]
        click.echo(
            f"{bundle.model} {precision}: max |difference| {report['max_abs']:.4f},"
            f" mean {report['mean_abs']:.4f} on {report['clips']} videos not calibrated with"
        )
    if output is not None:
        store.pack(store.find(model), output)
        click.echo(printable(f"packed into {output}"))
