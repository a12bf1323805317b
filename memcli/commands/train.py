"""`memcli train`."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Any

import click

from memcli.commands.eeg_options import EEG_ONLY, eeg_options, eeg_settings
from memcli.commands.options import json_option

_VIDEO_ONLY = (
    *("dataset", "target", "encoder", "text_encoder", "features", "frames", "adaptation_epochs"),
    *("choose_alpha", "max_missing", "devices", "mixed_precision", "auto_batch", "workers"),
)
_VIDEO_SPLITS = ("folds", "official", "full")
_EEG_SPLITS = ("epochs", "subjects", "videos")
_OPTION_NAMES = {"options": "set", "baselines": "baseline"}


@click.command(name="train")
@click.argument("model")
@click.option(
    "--dataset",
    metavar="NAME",
    help="Its format: memento10k, videomem, csv, ...  [default: what the files say]",
)
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Where it lies.")
@click.option("--target", metavar="SCORE", help="short-term, long-term, raw or normalized.")
@click.option(
    "--split",
    type=click.Choice([*_VIDEO_SPLITS, *_EEG_SPLITS]),
    help="Held-out videos: folds; the dataset's dev; none.  [default: folds]  EEG: folds of epochs,"
    " subjects or videos.  [default: epochs]",
)
@click.option("--folds", type=click.IntRange(min=2), metavar="K", help="Number of folds.")
@click.option(
    "--encoder", metavar="PATH|HUB", help="Another encoder: a folder, or OWNER/NAME[@REV]."
)
@click.option("--text-encoder", metavar="PATH|HUB", help="Another encoder of captions.")
@eeg_options
@click.option("--features", metavar="NAME", help="Precomputed features of the dataset instead.")
@click.option("--frames", type=click.IntRange(min=1), metavar="N", help="Frames per video.")
@click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="At most this many.")
@click.option(
    "--adaptation-epochs",
    type=click.IntRange(min=1),
    metavar="N",
    help="At most this many of the contrastive adaptation (FCLIP).",
)
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Samples per step.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Of Adam.",
)
@click.option(
    "--set",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the head; `memcli models show MODEL` and docs/models.md list them.",
)
@click.option("--choose-alpha", is_flag=True, help="Choose late fusion's weight by the folds.")
@click.option(
    "--max-missing",
    type=click.FloatRange(0, 100),
    default=5.0,
    show_default=True,
    metavar="PERCENT",
    help="Videos that may be left out.",
)
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="The run's folder.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--devices", type=click.IntRange(min=1), default=1, metavar="N", help="How many.")
@click.option("--mixed-precision", type=click.Choice(["16", "bf16"]), help="Faster on recent GPUs.")
@click.option("--auto-batch", is_flag=True, help="Halve the batch until it fits into memory.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Decoding threads.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@json_option("The result as JSON on standard output, progress as JSON lines.")
def command(model: str, resume: Path | None, as_json: bool, **given: Any) -> None:
    """Train a model of the papers on a dataset.

    Everything that is left out is as the model's paper says (`memcli models show MODEL`). Features
    of frozen encoders are computed once and kept. A run folder holds the weights, the predictions
    of held-out videos, the settings and the versions; nothing of an earlier run is changed.

    \b
    Examples:
      memcli train vision --dataset memento10k --data ./memento10k
      memcli train clip-gru --dataset csv --data ./clips --encoder ./clip-vit-large
      memcli train fclip-text --resume ~/.cache/memcli/runs/fclip-text/20260131-101500
      memcli train eeg-cnn --data ./recordings --pretext tcl-regress --baseline riemann
    \b
    With --resume the settings are the run's; --data, --encoder and --text-encoder then say where
    the same dataset and the same encoders lie now, if they were moved.
    """
    import json

    from memcli.models import get_model
    from memcli.text import printable
    from memcli.training import train_model
    from memcli.training.progress import make_training_progress
    from memcli.training.report import closing_lines, summary

    _check_kind(model, is_eeg=get_model(model).eeg is not None)
    if get_model(model).eeg is not None:
        _train_eeg(model, resume, given, as_json=as_json)
        return
    settings = _settings(model, resume, given)
    run = train_model(settings, make_training_progress(as_json=as_json), resume=resume)
    if as_json:
        click.echo(json.dumps(summary(run)))
        return
    click.echo("\n".join(printable(line) for line in closing_lines(run)))


def _train_eeg(model: str, resume: Path | None, given: dict[str, Any], *, as_json: bool) -> None:
    import json

    from memcli.text import printable
    from memcli.training.eeg import resume_eeg, train_eeg
    from memcli.training.eeg_report import closing_lines
    from memcli.training.progress import make_training_progress
    from memcli.training.report import summary

    progress = make_training_progress(as_json=as_json)
    if resume is not None:
        _refuse_with_resume({"device", "data"}, given)
        _check_model(model, resume)
        run = resume_eeg(resume, progress, device=given["device"], data=given["data"])
    else:
        if given["data"] is None:
            raise _no_data(model)
        given["options"] = dict(head_option(text) for text in given["options"])
        settings = eeg_settings(model, given)
        run = train_eeg(settings, progress, output=given["output"], device=given["device"])
    if as_json:
        click.echo(json.dumps(summary(run)))
        return
    click.echo("\n".join(printable(line) for line in closing_lines(run)))


def _check_kind(model: str, *, is_eeg: bool) -> None:
    """Raises UsageError for an option of the other kind of model."""
    from memcli.errors import UsageError

    context = click.get_current_context()
    strange = _VIDEO_ONLY if is_eeg else EEG_ONLY
    for name in strange:
        source = context.get_parameter_source(name)
        if source is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(
                f"this is for models of {'videos' if is_eeg else 'EEG'}, and {model} is one of"
                f" {'EEG' if is_eeg else 'videos'}",
                where=f"--{_OPTION_NAMES.get(name, name.replace('_', '-'))}",
                next_step="Leave it out.",
            )
    split = context.params["split"]
    if split is not None and (split in _EEG_SPLITS) != is_eeg:
        raise UsageError(
            f"{model} has no such split",
            where=f"--split {split}",
            next_step=f"One of: {', '.join(_EEG_SPLITS if is_eeg else _VIDEO_SPLITS)}",
        )


def _no_data(model: str) -> Exception:
    from memcli.errors import UsageError

    return UsageError(
        "what to train on is missing",
        next_step=f"Name it:  memcli train {model} --data DIR",
    )


def _refuse_with_resume(free: set[str], given: dict[str, Any]) -> None:
    """Raises UsageError for an option that decides about the result."""
    from memcli.errors import UsageError

    context = click.get_current_context()
    for name in given:
        source = context.get_parameter_source(name)
        if name not in free and source is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(
                "a resumed training keeps its settings",
                where=f"--{_OPTION_NAMES.get(name, name.replace('_', '-'))}",
                next_step="Leave this option out, or train anew without --resume.",
            )


def _settings(model: str, resume: Path | None, given: dict[str, Any]) -> Any:
    """TrainSettings of the options. Raises UsageError for contradictions."""
    from memcli.models import get_model
    from memcli.training.plan import check_options
    from memcli.training.settings import TrainSettings

    given = {name: value for name, value in given.items() if name not in EEG_ONLY}
    given["split"] = given["split"] or "folds"
    given["options"] = dict(head_option(text) for text in given["options"])
    check_options(get_model(model), given["options"])
    free = {"device", "devices", "auto_batch", "workers", "offline"}
    free |= {"data", "encoder", "text_encoder"}  # where these lie now
    if resume is not None:
        _refuse_with_resume(free, given)
        _check_model(model, resume)
    elif given["data"] is None:
        raise _no_data(model)
    elif given["dataset"] is None:
        from memcli.train.datasets import detect

        given["dataset"] = detect(given["data"])
    given["max_missing"] /= 100
    given["precision"] = given.pop("mixed_precision") or "32"
    given["dataset"] = given["dataset"] or ""
    given["data"] = Path() if given["data"] is None else given["data"].absolute()
    return TrainSettings(model, **given)


def _check_model(model: str, resume: Path) -> None:
    from memcli.errors import UsageError
    from memcli.train.run import read_run, runs_dir

    if not resume.is_dir():
        raise UsageError(
            "this is a file, not the folder of a run" if resume.exists() else "no such folder",
            where=str(resume),
            next_step=f"Check the spelling; runs without --output are in {runs_dir(model)}",
        )
    found = read_run(resume, unfinished=True).model
    if found != model:
        raise UsageError(
            f"this is a run of {found}, not of {model}",
            where=str(resume),
            next_step=f"memcli train {found} --resume {shlex.quote(str(resume))}",
        )


def head_option(text: str) -> tuple[str, int | float | str]:
    """`KEY=VALUE` with the value as int, float or text, whatever it reads as.

    Raises UsageError for anything else.
    """
    from memcli.errors import UsageError

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"{text!r} is not KEY=VALUE", where="--set")
    return name, _number(value)


def _number(text: str) -> int | float | str:
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        return float(text)
    return text
