"""`memcli caption`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from memcli.commands.options import (
    captioner_option,
    json_option,
    run_options,
    sampling_option,
    table_options,
)

if TYPE_CHECKING:
    from memcli.caption_table import CaptionSummary

DEFAULT_OUTPUT = "captions.csv"


@click.command(name="caption")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Table to write: .csv, .jsonl or .parquet.  [default: {DEFAULT_OUTPUT}]",
)
@click.option(
    "--sidecars",
    is_flag=True,
    help="Also write clip.txt beside each clip.mp4, unless captions are there already.",
)
@captioner_option
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:N]",
    help="Where the captioner runs.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads on a CPU.  [default: all cores]"
)
@sampling_option
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Videos at a time.  [default: chosen]"
)
@run_options
@click.option("-q", "--quiet", is_flag=True, help="No progress or summary; errors only.")
@json_option("Progress and summary as JSON lines on standard error.")
def command(
    paths: tuple[str, ...],
    output: Path | None,
    sidecars: bool,
    resume: bool,
    retry_failed: bool,
    on_error: Literal["skip", "fail"],
    shard: str | None,
    file_timeout: float | None,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Describe videos in words, with a captioner on this machine.

    PATH is what `memcli score` takes. One row per video: a caption, or the reason why there is
    none. A table of .csv or .jsonl can be given to `memcli score --captions`. Captions are kept: a
    later run or `memcli score` does not make them again. The network is never used.

    \b
    Examples:
      memcli caption ./videos
      memcli caption ./videos --sidecars --captioner 256m
      memcli caption ./videos --output captions.jsonl
    """
    from memcli.caption_table import CaptionSettings, caption_to_table
    from memcli.progress import Wording, conclude, watcher

    options = table_options(
        output,
        DEFAULT_OUTPUT,
        resume=resume,
        retry_failed=retry_failed,
        on_error=on_error,
        shard=shard,
    )
    wanted = CaptionSettings(**settings)
    if file_timeout:
        wanted = CaptionSettings(**settings, file_timeout_s=file_timeout)
    wording: Wording[CaptionSummary] = Wording(
        opening=_opening, unit="videos", speed=_speed, rates=_rates
    )
    progress = watcher(wording, quiet=quiet, as_json=as_json)
    summary = caption_to_table(paths, wanted, options, progress, sidecars=sidecars)
    return conclude(summary, _closing(summary), quiet=quiet, as_json=as_json)


def _opening(summary: CaptionSummary) -> list[str]:
    return [
        f"{summary.captioner} on {summary.device} at {summary.precision}",
        f"  weights: {summary.weights_license}",
        *summary.resumed_lines("video"),
    ]


def _closing(summary: CaptionSummary) -> list[str]:
    from memcli.progress import clock
    from memcli.text import plural, printable

    counts = [plural(summary.ok, "video") + " captioned"]
    if summary.partial:
        counts.append(f"{summary.partial:,} from a part of the video")
    counts.append(f"{summary.failed:,} failed")
    lines = [f"{', '.join(counts)} in {clock(summary.elapsed_s)} ({_speed(summary)})"]
    if summary.cut:
        lines.append(f"cut: {plural(summary.cut, 'caption')}, longer than the captioner's longest")
    if summary.sidecars or summary.sidecars_kept:
        kept = f"; {summary.sidecars_kept:,} already there" if summary.sidecars_kept else ""
        lines.append(f"beside the videos: {plural(summary.sidecars, 'file')} written{kept}")
    if summary.sidecars_failed:
        count = plural(summary.sidecars_failed, "caption")
        lines.append(f"not written beside the videos: {count}, which the table has")
        lines += [f"  {printable(path)}: {reason}" for path, reason in summary.sidecar_failures]
        if summary.sidecars_failed > len(summary.sidecar_failures):
            more = summary.sidecars_failed - len(summary.sidecar_failures)
            lines.append(f"  and {more:,} more, in the table")
    lines += summary.failed_lines("video", summary.failed)
    if summary.left_out:
        lines.append(f"left out: {plural(summary.left_out, 'file')} without the name of a video")
    return lines + summary.last_lines()


def _speed(summary: CaptionSummary) -> str:
    return f"{summary.videos_per_s:.2f} videos/s"


def _rates(summary: CaptionSummary) -> dict[str, float]:
    return {"videos_per_s": summary.videos_per_s}
