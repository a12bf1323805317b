"""`memcli eeg`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from memcli.commands.options import engine_options, json_option, resume_options, table_options
from memcli.errors import UsageError

if TYPE_CHECKING:
    pass

DEFAULT_MODEL = "eeg-cnn"
DEFAULT_OUTPUT = "recognition.csv"


@click.command(name="eeg")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@partial(engine_options, default_model=DEFAULT_MODEL)
@click.option("--info", is_flag=True, help="Show what recordings hold and whether the model fits.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Table to write: .csv, .jsonl or .parquet.  [default: {DEFAULT_OUTPUT}, and a table on"
    " the terminal]",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Also write a report: probabilities, what each window contributes and, with labels, ROC.",
)
@click.option(
    "--event",
    metavar="REGEX|ID",
    help="Events that epochs begin at, by name or id.  [default: the only kind there is]",
)
@click.option(
    "--onsets",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="CSV",
    help="A table of onsets in place of the recordings' own events.",
)
@click.option("--subject", metavar="NAME", help="Who was recorded.  [default: as the files say]")
@click.option(
    "--on-missing",
    type=click.Choice(["fail", "interpolate"]),
    default="fail",
    show_default=True,
    help="Channels that the model takes and a recording lacks.",
)
@click.option(
    "--on-dead",
    type=click.Choice(["fail", "flag"]),
    default="fail",
    show_default=True,
    help="Channels that are flat or no numbers throughout: as missing, or scored with a flag.",
)
@click.option(
    "--on-bad",
    type=click.Choice(["flag", "skip"]),
    default="flag",
    show_default=True,
    help="Epochs that are flat, clipped or marked BAD: scored with a flag, or left out.",
)
@click.option(
    "--on-short",
    type=click.Choice(["fail", "pad"]),
    default="fail",
    show_default=True,
    help="Recordings that are shorter than an epoch.",
)
@click.option(
    "--unit",
    type=click.Choice(["check", "recorded", "V", "mV", "uV"]),
    default="check",
    show_default=True,
    help="What the numbers in the files are; check: as they say, if EEG can be so large.",
)
@click.option(
    "--montage",
    metavar="NAME",
    help="Positions to interpolate with.  [default: the recording's own, else standard_1005]",
)
@click.option(
    "--sfreq",
    type=click.FloatRange(min=0, min_open=True),
    metavar="HZ",
    help="Sampling rate of .npy and .npz files that do not say.",
)
@click.option("--channel-names", metavar="A,B,...", help="Their channels, in order.")
@click.option(
    "--threshold",
    type=click.FloatRange(min=0, max=1),
    default=0.5,
    show_default=True,
    help="From this probability on a clip counts as recognised.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Epochs per engine call.  [default: chosen]"
)
@click.option(
    "--readers",
    type=click.IntRange(min=1),
    help="Recordings read at the same time.  [default: chosen]",
)
@resume_options
@click.option("-q", "--quiet", is_flag=True, help="No progress, table or summary; errors only.")
@json_option("Progress and summary as JSON lines on standard error; --info on standard output.")
def command(
    paths: tuple[str, ...],
    info: bool,
    output: Path | None,
    report: Path | None,
    event: str | None,
    onsets: Path | None,
    subject: str | None,
    on_missing: Literal["fail", "interpolate"],
    on_dead: Literal["fail", "flag"],
    on_bad: Literal["flag", "skip"],
    on_short: Literal["fail", "pad"],
    unit: Literal["check", "recorded", "V", "mV", "uV"],
    montage: str | None,
    sfreq: float | None,
    channel_names: str | None,
    threshold: float,
    batch_size: int | None,
    readers: int | None,
    resume: bool,
    retry_failed: bool,
    on_error: Literal["skip", "fail"],
    quiet: bool,
    as_json: bool,
    **engine: Any,
) -> int:
    """Recognition from EEG: how probable it is that a clip was recognised.

    PATH is a recording (FIF, EDF, BDF, BrainVision, EEGLAB, CNT, GDF, or epochs as .npy or .npz), a
    folder (searched recursively), a BIDS dataset or a quoted glob.

    One row per epoch: a probability in [0, 1], or the reason why there is none. Epochs are 0 to 11
    s after each event unless the model says otherwise. Rows are kept as they are finished; after an
    interruption the same command goes on where it stopped.

    \b
    Examples:
      memcli eeg --info recording.vhdr
      memcli eeg recording.vhdr --event 'Stimulus/S  1'
      memcli eeg ./dataset --event clip --output epochs.parquet --report report.html
      memcli eeg recording.edf --onsets onsets.csv --on-missing interpolate
    """
    from memcli.eeg import EpochOptions
    from memcli.recognition.settings import EegSettings

    table = table_options(
        output, DEFAULT_OUTPUT, resume=resume, retry_failed=retry_failed, on_error=on_error
    )
    settings = EegSettings(
        options=EpochOptions(
            event=event,
            onsets=onsets,
            on_missing=on_missing,
            on_dead=on_dead,
            on_bad=on_bad,
            on_short=on_short,
            unit=unit,
            montage=montage,
            subject=subject,
        ),
        sfreq_hz=sfreq,
        channels=_names(channel_names),
        threshold=threshold,
        batch_size=batch_size,
        readers=readers,
        **engine,
    )
    if info:
        from memcli.recognition.info import show_recordings

        if output is not None or report is not None:
            raise UsageError("--info writes no table and no report")
        return int(show_recordings(paths, settings, as_json=as_json))
    from memcli.progress import conclude, watcher
    from memcli.recognition.run import recognise_to_table
    from memcli.recognition.terminal import show_epochs
    from memcli.recognition.wording import RECOGNITION, closing_lines

    progress = watcher(RECOGNITION, quiet=quiet, as_json=as_json)
    summary = recognise_to_table(paths, settings, table, progress, report=report)
    show = None if output else partial(show_epochs, table.output)
    return conclude(summary, closing_lines(summary), quiet=quiet, as_json=as_json, show=show)


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise UsageError(
            f"not the names of channels: {text!r}", next_step="Write --channel-names Fp1,Fp2,..."
        )
    return names
