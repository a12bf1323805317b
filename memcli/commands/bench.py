"""`memcli bench`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memcli.commands.options import engine_options, json_option
from memcli.errors import ExitCode, MemcliError, ModelError

if TYPE_CHECKING:
    from memcli.benchmark import EngineSpeed, Report, Speed
    from memcli.engines.bundle import Bundle
    from memcli.engines.select import Candidate
    from memcli.inputs import Source
    from memcli.scoring import ScoreSettings

MAX_VIDEOS = 64
"""More than these only take longer; a larger folder is sampled evenly."""
_CLIPS = 8
_CLIP_SIZE = (1280, 720)
_CLIP_FRAMES = 96
_CLIP_RATE = 24

_CAPTIONS = "made up: a captioner's time is not in these figures; `memcli caption` says its own"


@dataclass
class BenchReport:
    """What was measured, where and on what."""

    machine: str
    model: str
    videos: str
    """In words: how many, and where they are from."""
    frames: int
    repeat: int
    workers: int
    decode: Speed
    """As the workers do it: reading, decoding, preprocessing."""
    preprocess: Speed | None
    engines: list[EngineSpeed] = field(default_factory=list)
    captions: str | None = None
    """Which, where the model reads some."""
    engine_problem: str | None = None
    """Why no engine could be measured at all."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain["decode"] = self.decode.to_dict()
        plain["preprocess"] = self.preprocess and self.preprocess.to_dict()
        plain["engines"] = [speed.to_dict() for speed in self.engines]
        return plain


@click.command(name="bench")
@click.argument("paths", nargs=-1, metavar="[PATH...]")
@engine_options
@click.option(
    "--frames", type=click.IntRange(min=1), help="Frames per video.  [default: the model's own]"
)
@click.option("--workers", type=click.IntRange(min=1), help="Decode workers.  [default: chosen]")
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Measurements of each stage; their median counts.",
)
@json_option("The measurements as JSON on standard output.")
def command(
    paths: tuple[str, ...],
    frames: int | None,
    workers: int | None,
    repeat: int,
    as_json: bool,
    **engine: Any,
) -> int:
    """Measure decode, preprocess, engine and end-to-end speed.

    PATH is as for `memcli score`; without one, clips made on the spot are taken. Every verified
    engine and precision of the model is measured, or the one that --engine and --precision name. Of
    an EEG model, only engines are measured, on synthetic epochs.

    \b
    Examples:
      memcli bench
      memcli bench ./videos --repeat 5
      memcli bench ./videos --precision int8 --json
    """
    from memcli.progress import json_event, say
    from memcli.scoring import ScoreSettings

    def report(text: str) -> None:
        json_event("message", text=text) if as_json else say(text)

    settings = ScoreSettings(frames=frames, workers=workers, **engine)
    if _is_eeg(settings.model):
        return _bench_eeg(settings, paths, repeat, report, as_json=as_json)
    with _videos(paths, report) as (sources, origin):
        measured = _measure(settings, sources, origin, repeat, report)
    if as_json:
        click.echo(json.dumps(measured.to_dict(), indent=2))
    else:
        _show(measured)
    done = any(speed.problem is None for speed in measured.engines)
    return ExitCode.OK if done else ExitCode.NOT_USABLE


def _is_eeg(name: str) -> bool:
    """Whether a model is one of EEG, as far as that can be known before it is opened."""
    from memcli import store
    from memcli.models import MODELS

    spec = MODELS.get(name)
    if spec is None or store.is_installed(name):
        spec = store.find(name).spec
    return spec.eeg is not None


def _bench_eeg(
    settings: ScoreSettings, paths: Sequence[str], repeat: int, report: Report, *, as_json: bool
) -> int:
    from memcli.benchmark_eeg import check_bench_settings, measure_eeg
    from memcli.terminal import print_table
    from memcli.text import plural, printable

    check_bench_settings(settings, paths)
    bundle, candidates, problem = _candidates(settings, report)
    measured = measure_eeg(settings, bundle, candidates, problem, repeat, report)
    done = [one for one in measured.engines if one.problem is None]
    if as_json:
        click.echo(json.dumps(measured.to_dict(), indent=2))
        return ExitCode.OK if done else ExitCode.NOT_USABLE
    click.echo(f"machine  {printable(measured.machine)}")
    click.echo(f"model    {printable(measured.model)}")
    click.echo(
        f"epochs   {measured.epochs} synthetic ones of {plural(measured.channels, 'channel')} and"
        f" {plural(measured.samples, 'sample')}, {measured.batch_size} in a batch"
    )
    click.echo(f"medians of {plural(measured.repeat, 'measurement')} each\n")
    rows = [(one.candidate, f"{one.epochs_per_s:,.1f}", f"{one.spread:.0%}") for one in done]
    print_table(("engine", "epochs/s", "spread"), rows, right=("epochs/s", "spread"))
    for one in measured.engines:
        if one.problem is not None:
            _echo_lines(f"{one.candidate}: not measured: {one.problem}")
    if measured.engine_problem:
        _echo_lines(f"engines not measured: {measured.engine_problem}")
    return ExitCode.OK if done else ExitCode.NOT_USABLE


def _measure(
    settings: ScoreSettings, sources: list[Source], origin: str, repeat: int, report: Report
) -> BenchReport:
    from memcli import benchmark
    from memcli.machine import cpu_label
    from memcli.text import plural

    bundle, candidates, problem = _candidates(settings, report)
    settings = benchmark.with_captions(settings, bundle)
    report("measuring decoding ...")
    good, scorer = benchmark.decodable(settings, bundle, sources)
    if len(good) < len(sources):
        origin += f" (not decodable and left out: {len(sources) - len(good):,})"
    engines = []
    for candidate in candidates:
        report(f"measuring {candidate} ...")
        engines.append(benchmark.measure_engine(settings, bundle, candidate, good, repeat, report))
    return BenchReport(
        machine=cpu_label(),
        model=bundle.model,
        videos=f"{plural(len(good), 'video')}{origin}",
        frames=scorer.frames,
        repeat=repeat,
        workers=scorer.workers,
        decode=benchmark.pooled_decode(engines, scorer.workers)
        or benchmark.measure_decode(scorer, good, repeat),
        preprocess=benchmark.measure_preprocess(scorer, good, repeat),
        engines=engines,
        captions=None if bundle.spec.text is None else _CAPTIONS,
        engine_problem=problem,
    )


def _candidates(
    settings: ScoreSettings, report: Report
) -> tuple[Bundle, list[Candidate], str | None]:
    """The model, every way to run it that was asked for, and why there is none.

    A model of the registry that cannot be had still says how frames are prepared.
    """
    from memcli.engines.select import list_candidates
    from memcli.models import MODELS
    from memcli.store import ensure, is_installed

    try:
        bundle = ensure(settings.model, offline=settings.offline, report=report)
    except ModelError as error:
        known = MODELS.get(settings.model)
        if known is None or known.prep is None or known.text is not None:
            raise
        if is_installed(settings.model):
            raise
        return _weightless(settings.model), [], str(error)
    try:
        found = list_candidates(
            bundle,
            engine=settings.engine,
            device=settings.device,
            precision=settings.precision,
        )
    except MemcliError as error:
        if settings.engine != "auto" or settings.device != "auto" or settings.precision != "auto":
            raise
        return bundle, [], str(error)
    return bundle, found, None


def _weightless(name: str) -> Bundle:
    from memcli.engines.bundle import Bundle
    from memcli.models import get_model

    return Bundle(Path(), get_model(name), variants={})


@contextmanager
def _videos(paths: Sequence[str], report: Report) -> Iterator[tuple[list[Source], str]]:
    """The videos to measure with, and what follows "N videos": where they are from."""
    from memcli.inputs import collect

    if paths:
        found = collect(paths).items
        if len(found) > MAX_VIDEOS:
            step = len(found) / MAX_VIDEOS
            chosen = [found[int(number * step)] for number in range(MAX_VIDEOS)]
            yield chosen, f" of the {len(found):,} of {', '.join(paths)}, evenly chosen"
        else:
            yield found, f" of {', '.join(paths)}"
        return
    with tempfile.TemporaryDirectory(prefix="memcli-bench-") as folder:
        report("no videos given: making some ...")
        origin = _make_clips(Path(folder))
        yield collect([folder]).items, origin


def _make_clips(folder: Path) -> str:
    """Encode one clip, show it under several names, and say what it is."""
    import av
    import numpy as np

    width, height = _CLIP_SIZE
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    # Soft shapes with some grain, moving: neither trivial to decode nor noise.
    random = np.random.default_rng(0)
    coarse = random.integers(40, 216, (height // 40 + 1, width // 40 + 1, 3))
    picture = coarse.repeat(40, axis=0).repeat(40, axis=1)[:height, :width]
    picture = (picture + random.integers(-8, 9, picture.shape)).astype(np.uint8)
    first = folder / "clip-1.mp4"
    with av.open(str(first), "w") as container:
        stream: Any = container.add_stream(codec, rate=_CLIP_RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if codec == "libx264":
            stream.options = {"preset": "veryfast"}
        for number in range(_CLIP_FRAMES):
            moved = np.roll(picture, (2 * number, 5 * number), axis=(0, 1)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode())
    for number in range(2, _CLIPS + 1):
        (folder / f"clip-{number}.mp4").symlink_to(first.name)
    seconds = _CLIP_FRAMES / _CLIP_RATE
    return f": one generated clip ({width}x{height}, {seconds:g} s, {codec}) by as many names"


def _show(measured: BenchReport) -> None:
    from memcli.terminal import print_table
    from memcli.text import plural, printable

    workers = plural(measured.workers, "worker")
    click.echo(f"machine  {printable(measured.machine)}")
    looked_at = plural(measured.frames, "frame") if measured.frames else "captions, no frames,"
    click.echo(f"model    {printable(measured.model)}, {looked_at} per video")
    click.echo(f"videos   {printable(measured.videos)}")
    if measured.captions:
        click.echo(f"captions {measured.captions}")
    click.echo(f"medians of {plural(measured.repeat, 'measurement')} each\n")
    first = "decode" if measured.frames else "read captions"
    with_more = " (with preprocess)" if measured.frames else ""
    rows = [_cells(f"{first}, {workers}{with_more}", measured.decode)]
    if measured.preprocess:
        rows.append(_cells(f"preprocess alone, {workers}", measured.preprocess))
    for speed in measured.engines:
        if speed.engine and speed.end_to_end:
            rows.append(_cells(f"{speed.candidate}: engine alone", speed.engine))
            rows.append(_cells(f"{speed.candidate}: end to end", speed.end_to_end))
    columns = ("stage", "videos/s", "frames/s", "spread")
    print_table(columns, rows, right=columns[1:])
    click.echo()
    for speed in measured.engines:
        _echo_lines(f"{speed.candidate}: {_judgement(speed)}")
    if measured.engine_problem:
        _echo_lines(f"engines not measured: {measured.engine_problem}")


def _echo_lines(text: str) -> None:
    from memcli.text import printable

    for line in text.splitlines():
        click.echo(printable(line))


def _cells(stage: str, speed: Speed) -> tuple[str, ...]:
    return (
        stage,
        f"{speed.videos_per_s:,.2f}",
        f"{speed.frames_per_s:,.1f}" if speed.frames else "",
        f"{speed.spread:.0%}",
    )


def _judgement(speed: EngineSpeed) -> str:
    if speed.problem is not None:
        return f"not measured: {speed.problem}"
    return (
        f"the bottleneck is the {'engine' if speed.bottleneck == 'engine' else 'decoding'};"
        f" end to end takes {speed.ratio:.2f} x the time of the slower of the two alone"
    )
