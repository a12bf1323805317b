"""`memcli evaluate`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memcli.commands.options import choice_options, json_option
from memcli.errors import ExitCode, UsageError
from memcli.text import printable

if TYPE_CHECKING:
    from memcli.engines.candidates import EngineChoice, PrecisionChoice
    from memcli.evaluation import CrossValidation, Evaluation
    from memcli.train.metrics import Estimate, Metrics

_SHOWN = 3


class _Command(click.Command):
    """Says where the folder of a run goes: `--run` takes none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if not ctx.params.get("use_run") or not (extra := _unexpected(error)):
                raise
            named = str(ctx.params.get("model", ""))
            folder = named if Path(named).is_dir() and not Path(extra).is_dir() else extra
            raise UsageError(
                "--run takes no folder: it stands for the newest run of a model",
                where=printable(folder),
                next_step=f"Of this run:  memcli evaluate {shlex.quote(folder)} --data DIR",
            ) from error


def _unexpected(error: click.UsageError) -> str:
    """The one argument too much that an error of click is about; empty if it is of another kind."""
    found = re.search(r"unexpected extra argument \((.*)\)$", error.message, re.DOTALL)
    return found[1] if found else ""


@click.command(name="evaluate", cls=_Command)
@click.argument("model", metavar="MODEL|BUNDLE|RUN")
@click.option("--dataset", metavar="NAME", help="Its format.  [default: what the files say]")
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="DIR",
    help="Folder of the dataset.",
)
@click.option("--target", metavar="TARGET", help="Which scores.  [default: the dataset's own]")
@click.option("--split", metavar="SPLIT", help="train, dev or test.  [default: all with a score]")
@click.option("--run", "use_run", is_flag=True, help="The newest training run, not the bundle.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where results go.  [default: evaluation-MODEL]",
)
@choice_options
@click.option("--workers", type=click.IntRange(min=1), help="Decode workers.  [default: chosen]")
@click.option("--offline", is_flag=True, help="Never use the network.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the bootstrap intervals.",
)
@json_option("Print the metrics as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    dataset: str | None,
    data: Path,
    target: str | None,
    split: str | None,
    use_run: bool,
    output: Path | None,
    engine: EngineChoice,
    device: str,
    precision: PrecisionChoice,
    workers: int | None,
    offline: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Measure a trained or installed model on a dataset.

    Rank and linear correlation (SRCC, PLCC), squared and absolute error (MSE, MAE) with 95 %
    intervals. Where a run was cross-validated on this dataset, the figures of its held-out videos
    come first: those of the videos it was trained on say little, and are marked. Tables and plots
    go to a folder. Of a model that is both installed and trained here, the bundle is measured;
    --engine and --precision are for bundles: what does int8 cost on your data?

    \b
    Examples:
      memcli evaluate early-fusion --dataset memento10k --data DIR --split dev
      memcli evaluate early-fusion --precision int8 --dataset memento10k --data DIR
      memcli evaluate early-fusion --run --dataset memento10k --data DIR
      memcli evaluate ./my-run --dataset csv --data clips.csv --output results
    """
    from memcli.evaluation import EvaluationSettings, evaluate
    from memcli.progress import say
    from memcli.train.datasets import detect
    from memcli.training.progress import make_training_progress

    settings = EvaluationSettings(
        model=model,
        dataset=dataset or detect(data),
        data=data,
        target=target,
        split=split,
        use_run=use_run,
        output=output,
        engine=engine,
        device=device,
        precision=precision,
        workers=workers,
        offline=offline,
        seed=seed,
    )
    evaluation = evaluate(settings, make_training_progress(as_json=as_json))
    for warning in evaluation.warnings:
        say(f"warning: {warning}")
    if as_json:
        click.echo(json.dumps(evaluation.to_dict()))
    else:
        for line in _lines(evaluation, output or Path(f"evaluation-{evaluation.model}")):
            click.echo(line)
    if not evaluation.complete:
        ctx.exit(ExitCode.SOME_INPUTS_FAILED)


def _lines(evaluation: Evaluation, folder: Path) -> list[str]:
    part = f", {printable(evaluation.split)}" if evaluation.split else ""
    lines = [
        printable(f"measured {evaluation.measured}"),
        printable(f"on {evaluation.dataset} ({evaluation.target}{part}) in {evaluation.root}"),
        f"{evaluation.metrics.n:,} of {len(evaluation.items):,} videos",
        *_left_out(evaluation),
        "",
    ]
    held_out = _held_out(evaluation.cross_validation)
    measured = [*_label(evaluation), *_table(evaluation.metrics)]
    if evaluation.headline == "metrics":
        lines += [*measured, *(["", *held_out] if held_out else [])]
    elif held_out:
        lines += [*held_out, "", *measured]
    else:
        lines += ["no figures of held-out videos: nothing here says how well it predicts", ""]
        lines += measured
    return [*lines, "", printable(f"written to {folder}")]


def _held_out(validation: CrossValidation | None) -> list[str]:
    """What the run says of videos, each scored by a model that was not trained on it."""
    if validation is None:
        return []
    mean = validation.to_dict()
    lines = [
        f"held-out videos of the training ({validation.held_out.n:,}):"
        f" mean SRCC {_number(mean['mean_srcc'])} {_interval(mean['fisher'])}".rstrip(),
        *_table(validation.held_out),
    ]
    for fold, metrics in validation.folds:
        values = (metrics.srcc, metrics.plcc, metrics.mse, metrics.mae)
        names = ("SRCC", "PLCC", "MSE", "MAE")
        told = "  ".join(f"{n} {_number(v.value)}" for n, v in zip(names, values, strict=True))
        lines.append(f"  fold {fold}: {told}  n {metrics.n:,}")
    return lines


def _label(evaluation: Evaluation) -> list[str]:
    """What to know of the figures of all measured videos."""
    if evaluation.headline == "metrics":
        return []
    if evaluation.trained_on is None:
        return ["videos that it may have been trained on:"]
    count = f"{evaluation.trained_on:,} of {evaluation.metrics.n:,}"
    return [f"{evaluation.metrics_of} ({count}): how well it remembers, not how well it predicts"]


def _left_out(evaluation: Evaluation) -> list[str]:
    left_out = evaluation.predictions.left_out
    if not left_out:
        return []
    lines = [f"{len(left_out):,} left out:"]
    lines += [printable(f"  {name}: {why}") for name, why in list(left_out.items())[:_SHOWN]]
    if len(left_out) > _SHOWN:
        lines.append(f"  and {len(left_out) - _SHOWN:,} more, in predictions.csv")
    return lines


def _table(metrics: Metrics) -> list[str]:
    rows: list[tuple[str, Estimate]] = [
        ("SRCC", metrics.srcc),
        ("PLCC", metrics.plcc),
        ("MSE", metrics.mse),
        ("MAE", metrics.mae),
    ]
    lines = [f"      {'value':>8}  {'bootstrap 95 %':<18}  Fisher 95 %"]
    for name, one in rows:
        line = f"{name:<4}  {_number(one.value):>8}  {_interval(one.bootstrap):<18}"
        lines.append(f"{line}  {_interval(one.fisher)}".rstrip())
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(interval: Any) -> str:
    return "" if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}]"
