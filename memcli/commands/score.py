"""`memcli score`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from memcli.captioning.sources import MODES, CaptionMode
from memcli.commands.options import (
    captioner_option,
    engine_options,
    json_option,
    run_options,
    sampling_option,
    table_options,
)
from memcli.decoding import DECODERS, DecoderChoice
from memcli.errors import UsageError
from memcli.spec import Sampling

DEFAULT_OUTPUT = "scores.csv"


@click.command(name="score")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@engine_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Table to write: .csv, .jsonl or .parquet.  [default: {DEFAULT_OUTPUT}, and a table on"
    " the terminal]",
)
@click.option(
    "--frames", type=click.IntRange(min=1), help="Frames per video.  [default: the model's own]"
)
@sampling_option
@click.option(
    "--captions",
    multiple=True,
    metavar="FILE|MODE",
    help="Captions for models that read them. FILE: CSV, TSV, JSON or JSON lines with a path (or"
    " file name) and a caption. MODE: prefer those given, then clip.txt or clip.srt beside the"
    " video, then the captioner's (default); require: given or beside, for every video; generate:"
    " the captioner's only; none. A file and a mode may both be given.",
)
@captioner_option
@click.option(
    "--decoder",
    type=click.Choice(DECODERS),
    default="auto",
    show_default=True,
    help="What decodes videos; auto tries the CPU and the GPU's NVDEC on the first ones;"
    " nvdec+gpu-resize keeps frames on the GPU until they are scored.",
)
@click.option("--curve", is_flag=True, help="Also write the score of every sampled frame.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Videos per engine call.  [default: chosen]"
)
@run_options
@click.option("-q", "--quiet", is_flag=True, help="No progress, table or summary; errors only.")
@json_option("Progress and summary as JSON lines on standard error.")
def command(
    paths: tuple[str, ...],
    output: Path | None,
    frames: int | None,
    sampling: Sampling,
    captions: tuple[str, ...],
    captioner: str | None,
    decoder: DecoderChoice,
    curve: bool,
    batch_size: int | None,
    workers: int | None,
    file_timeout: float | None,
    resume: bool,
    retry_failed: bool,
    on_error: Literal["skip", "fail"],
    shard: str | None,
    quiet: bool,
    as_json: bool,
    **engine: Any,
) -> int:
    """Score the memorability of videos.

    PATH is a video, a folder (searched recursively), a quoted glob, a list of paths (.txt with one
    a line, .csv with a column `path`), or - for paths on standard input.

    One row per video: a score in [0, 1], or the reason why there is none. Rows are kept as they are
    finished; after an interruption the same command goes on where it stopped.

    \b
    Examples:
      memcli score ./videos
      memcli score ./videos --output scores.parquet --retry-failed
      memcli score clip.mp4 --curve --frames 32 --output clip.jsonl
      memcli score ./videos --model early-fusion
      memcli score ./videos --model early-fusion --captions captions.csv --captions require
      find /archive -name '*.mov' -print0 | memcli score - --sampling keyframe --shard 1/4
    """
    from memcli.captions import read_captions
    from memcli.progress import closing_lines, conclude, make_progress
    from memcli.scoring import DEFAULT_FILE_TIMEOUT_S, ScoreSettings
    from memcli.table import score_to_table
    from memcli.terminal import show_table

    options = table_options(
        output,
        DEFAULT_OUTPUT,
        resume=resume,
        retry_failed=retry_failed,
        on_error=on_error,
        shard=shard,
    )
    file, mode = _captions(captions)
    settings = ScoreSettings(
        frames=frames,
        sampling=sampling,
        captions=None if file is None else read_captions(file),
        caption_mode=mode,
        captioner=captioner,
        decoder=decoder,
        curve=curve,
        batch_size=batch_size,
        workers=workers,
        file_timeout_s=file_timeout or DEFAULT_FILE_TIMEOUT_S,
        **engine,
    )
    summary = score_to_table(paths, settings, options, make_progress(quiet=quiet, as_json=as_json))
    show = None if output else partial(show_table, options.output)
    return conclude(summary, closing_lines(summary), quiet=quiet, as_json=as_json, show=show)


def _captions(values: tuple[str, ...]) -> tuple[Path | None, CaptionMode | None]:
    """The file and the mode among the values of `--captions`; at most one of each."""
    modes = [mode for value in values for mode in MODES if value == mode]
    files = [Path(value) for value in values if value not in MODES]
    if len(files) > 1:
        raise UsageError(f"--captions names two files: {files[0]} and {files[1]}")
    if len(set(modes)) > 1:
        raise UsageError(f"--captions is both {modes[0]} and {modes[1]}")
    for file in files:
        if not os.path.lexists(file):
            raise UsageError(
                "no such file of captions, and no mode",
                where=f"--captions {file}",
                next_step=f"Modes: {', '.join(MODES)}",
            )
    return files[0] if files else None, modes[0] if modes else None
