"""`memcli dataset`: what a dataset holds, what is wrong with it, and made-up EEG to try."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memcli.commands.eeg_options import channel_names, eeg_reading_options
from memcli.commands.options import json_option
from memcli.errors import ExitCode, UsageError
from memcli.spec import FramePrep
from memcli.text import plural, printable

if TYPE_CHECKING:
    from memcli.train.datasets import Dataset, Item, Problem

_EEG = "eeg"
_SHOWN = 20
_SAY_EVERY_S = 10.0
_DECODE_TIMEOUT_S = 120.0
_PREP = FramePrep(frames=3, resize_width=32, resize_height=32, crop_width=32, crop_height=32)
"""Enough to know whether a video decodes: its start, its middle, its end."""


@click.group(name="dataset")
def command() -> None:
    """Check a dataset before training: what is missing, duplicated or unreadable.

    \b
    Examples:
      memcli dataset check ./memento10k
      memcli dataset check ./films.csv --dataset moviemem --decode
      memcli dataset check ./recordings --dataset eeg --event 'clip/.*' --recognised old
    """


@command.command(name="check")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--dataset",
    "name",
    metavar="NAME",
    help="memento10k, videomem, trecvid, videm, moviemem, csv or eeg; default: what the files say.",
)
@click.option("--decode", is_flag=True, help="Decode three frames of every video, too.")
@eeg_reading_options
@json_option("The summary and every problem as JSON on standard output.")
def check(folder: Path, name: str | None, decode: bool, as_json: bool, **reading: Any) -> int:
    """Say what a dataset holds, and each problem with its file and line.

    DIR is the dataset's folder, the CSV file of the generic form, or a recording. Exit code: 0
    without errors, 1 with errors, 2 if DIR is no dataset.
    """
    from memcli.train.datasets import detect, load_dataset

    if name == _EEG:
        if decode:
            raise UsageError("this is for videos", where="--decode", next_step="Leave it out.")
        return _check_eeg(folder, reading, as_json=as_json)
    _refuse_eeg_options(reading)
    dataset = load_dataset(name or detect(folder), folder)
    problems = [*dataset.problems, *(_undecodable(dataset) if decode else ())]
    if as_json:
        click.echo(json.dumps(_report(dataset, problems), indent=2))
    else:
        for line in _summary(dataset) + _listing(problems):
            click.echo(printable(line))
    failed = any(problem.severity == "error" for problem in problems)
    return ExitCode.SOME_INPUTS_FAILED if failed else ExitCode.OK


@command.command(name="planted-eeg")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--subjects", type=click.IntRange(1, 999), default=8, show_default=True)
@click.option("--epochs", type=click.IntRange(2, 10_000), default=40, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True)
@click.option(
    "--like",
    type=click.Path(exists=True, path_type=Path),
    metavar="RECORDING",
    help="With the EEG channels and the rate of this one.",
)
@click.option(
    "--channels", metavar="A,B,...", help="With these.  [default: 32 of the 10-20 system]"
)
@click.option("--sfreq", type=click.FloatRange(50, 20_000), metavar="HZ", help="[default: 250]")
@click.option("--effect", type=click.FloatRange(0), default=6.0, show_default=True, metavar="UV")
@click.option(
    "--test-share",
    type=click.FloatRange(0, 0.9),
    default=0.0,
    metavar="X",
    help="Share of videos in a test split.",
)
@click.option("--shuffled", is_flag=True, help="With labels that mean nothing.")
def planted_eeg(
    folder: Path,
    like: Path | None,
    channels: str | None,
    sfreq: float | None,
    **given: Any,
) -> None:
    """Write made-up EEG with a planted signal, to try `memcli train eeg-cnn` on.

    Epochs of 11 s with noise, alpha, blinks and mains hum, and a late positivity where the label is
    1, of EFFECT microvolts. What a model says that was trained on it means nothing for people, and
    everything that is made with such a model says so.

    \b
    Examples:
      memcli dataset planted-eeg ./planted
      memcli dataset planted-eeg ./planted --like recording.vhdr --subjects 12
    """
    from memcli.eeg import open_recording
    from memcli.models.eeg import CHANNELS_32
    from memcli.progress import say
    from memcli.train.eeg.planted import Planted, write_planted

    names = channel_names(channels) or CHANNELS_32
    rate = sfreq or 250.0
    if like is not None:
        if channels is not None or sfreq is not None:
            raise UsageError("--like says channels and rate already", where="--like")
        with open_recording(like) as recording:
            names, rate = recording.info.eeg, recording.info.sfreq_hz
    written = write_planted(Planted(names, sfreq_hz=rate, **given), folder)
    say(f"planted EEG in {printable(str(written))}: a demonstration, not data of people")


def _check_eeg(folder: Path, given: dict[str, Any], *, as_json: bool) -> int:
    """What a training of an EEG model would work on, and what is wrong with it."""
    from memcli.models.eeg import EEG_CNN
    from memcli.training.eeg_check import check_eeg
    from memcli.training.eeg_settings import EegSettings

    reading = given | {"channels": channel_names(given["channels"])}
    found = check_eeg(EegSettings(EEG_CNN.name, str(folder), **reading))
    if as_json:
        click.echo(json.dumps(found.report(), indent=2))
    else:
        for line in found.lines():
            click.echo(printable(line))
    return ExitCode.SOME_INPUTS_FAILED if found.problems else ExitCode.OK


def _refuse_eeg_options(given: dict[str, Any]) -> None:
    context = click.get_current_context()
    for name in given:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(
                "this is for recordings of EEG",
                where=f"--{name.replace('_', '-')}",
                next_step=f"Leave it out, or add  --dataset {_EEG}",
            )


def _by_split(dataset: Dataset) -> dict[str, list[Item]]:
    parts: defaultdict[str, list[Item]] = defaultdict(list)
    for item in dataset.items:
        parts[item.split or "all"].append(item)
    return parts


def _summary(dataset: Dataset) -> list[str]:
    from memcli.train.datasets import DATASETS

    items = dataset.items
    lines = [f"{dataset.name}: {DATASETS[dataset.name]}", f"in {dataset.root}", ""]
    lines.append(f"{'videos':<12}{_count(items)}; files of {_with_files(items)}")
    for split, part in _by_split(dataset).items():
        if split != "all":
            lines.append(f"  {split:<10}{_count(part)}; files of {_with_files(part)}")
    for target in dataset.targets:
        default = " (default)" if target == dataset.default_target else ""
        lines.append(f"{target:<12}{_statistics(dataset, target)}{default}")
    captions = sorted(Counter(len(item.captions) for item in items).items())
    counts = ", ".join(f"{number} for {count:,}" for number, count in captions)
    lines.append(f"{'captions':<12}{counts} videos")
    if any(item.fold is not None for item in items):
        folds = Counter(item.fold for item in items if item.fold is not None)
        sizes = ", ".join(f"{folds[fold]:,}" for fold in sorted(folds))
        lines.append(f"{'folds':<12}{len(folds)}, of {sizes} videos")
    if any(item.group is not None for item in items):
        lines.append(f"{'groups':<12}{len({item.group for item in items if item.group})}")
    for name, path in dataset.features.items():
        lines.append(f"{'features':<12}{name}: {path}")
    return lines


def _count(items: Sequence[Item]) -> str:
    labelled = sum(bool(item.scores) for item in items)
    return f"{len(items):,}, {labelled:,} with a score"


def _with_files(items: Sequence[Item]) -> str:
    files = [item.path for item in items if item.path is not None]
    size = f" ({sum(map(_size, files)) / 1e6:,.1f} MB)" if files else ""
    return f"{len(files):,}{size}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # gone since it was found
        return 0


def _statistics(dataset: Dataset, target: str) -> str:
    scores = [item.scores[target] for item in dataset.labelled(target)]
    if not scores:
        return "no score"
    low, high = min(scores), max(scores)
    return f"mean {statistics.fmean(scores):.4f}, {low:.4f} to {high:.4f}, {len(scores):,} videos"


def _listing(problems: Sequence[Problem]) -> list[str]:
    """Problems by kind, errors first."""
    from memcli.train.datasets import KINDS

    if not problems:
        return ["", "no problem found"]
    groups: defaultdict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        groups[problem.severity, problem.kind].append(problem)
    lines = []
    for (severity, kind), found in sorted(groups.items(), key=lambda group: group[0][0]):
        lines += ["", f"{plural(len(found), severity)}: {KINDS[kind]}"]
        lines += [f"  {problem.where}: {problem.what}" for problem in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"  and {len(found) - _SHOWN:,} more (--json lists them all)")
    errors = sum(problem.severity == "error" for problem in problems)
    total = f"{plural(errors, 'error')}, {plural(len(problems) - errors, 'warning')}"
    return [*lines, "", total]


def _report(dataset: Dataset, problems: Sequence[Problem]) -> dict[str, Any]:
    targets = {}
    for target in dataset.targets:
        scores = [item.scores[target] for item in dataset.labelled(target)]
        targets[target] = {
            "videos": len(scores),
            "mean": statistics.fmean(scores) if scores else None,
            "min": min(scores, default=None),
            "max": max(scores, default=None),
        }
    return {
        "dataset": dataset.name,
        "root": str(dataset.root),
        "videos": len(dataset.items),
        "files": sum(item.path is not None for item in dataset.items),
        "splits": {split: len(part) for split, part in _by_split(dataset).items()},
        "targets": targets,
        "default_target": dataset.default_target,
        "captions_per_video": dict(
            sorted(Counter(len(item.captions) for item in dataset.items).items())
        ),
        "features": {name: str(path) for name, path in dataset.features.items()},
        "problems": [
            {
                "severity": problem.severity,
                "kind": problem.kind,
                "what": problem.what,
                "file": problem.file,
                "line": problem.line,
            }
            for problem in problems
        ],
    }


def _undecodable(dataset: Dataset) -> list[Problem]:
    """The videos that do not decode, or not to their end."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Event

    from memcli.engines.loading import usable_cpus
    from memcli.progress import say

    items = [item for item in dataset.items if item.path is not None]
    stop = Event()
    pool = ThreadPoolExecutor(usable_cpus())  # PyAV releases the GIL
    found = []
    said = time.monotonic()
    try:
        results = pool.map(lambda item: _decode(item, stop.is_set), items)
        for done, problem in enumerate(results, 1):
            found += [problem] if problem is not None else []
            if time.monotonic() > said + _SAY_EVERY_S:
                said = time.monotonic()
                say(f"{done:,} of {len(items):,} videos decoded, {len(found):,} faulty")
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
    return found


def _decode(item: Item, cancelled: Callable[[], bool]) -> Problem | None:
    from memcli.errors import VideoError
    from memcli.train.datasets import Problem
    from memcli.video import read_clip

    assert item.path is not None
    deadline = time.monotonic() + _DECODE_TIMEOUT_S
    try:
        reason = read_clip(item.path, _PREP, deadline=deadline, cancelled=cancelled).damage
    except VideoError as error:
        reason = error.what
    if reason is None:
        return None
    return Problem("decode", printable(f"{item.path}: {reason}"), item.file, item.line, "error")
