"""Videos per second of decoding, of the engine, and of both together; how long the GPU idles."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memcli.benchmark import measure_scorer
from memcli.decoding import DecoderChoice
from memcli.engines.bundle import Bundle
from memcli.engines.select import open_engine
from memcli.errors import MemcliError
from memcli.inputs import Source, collect
from memcli.scoring import Scorer, ScoreSettings

_SAMPLE_MS = 50


@dataclass
class Idle:
    """Samples of the GPU's utilisation in percent: time with at least one kernel running."""

    samples: list[float] = field(default_factory=list)

    @property
    def share(self) -> float | None:
        """Share of the time in which nothing ran."""
        return 1 - statistics.fmean(self.samples) / 100 if self.samples else None


@contextmanager
def watch_gpu(index: int = 0) -> Iterator[Idle]:
    """Asks nvidia-smi all the time; no samples where there is none."""
    idle = Idle()
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield idle
        return
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    command = [tool, f"--id={index}", *query, f"--loop-ms={_SAMPLE_MS}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield idle
    finally:
        process.terminate()
        output, _ = process.communicate()
        idle.samples += [float(line) for line in output.split() if line.strip().isdigit()]


def make_videos(folder: Path, count: int, *, frames: int, width: int, height: int) -> None:
    """H.264 clips with B-frames, two seconds to a group; a few that differ, then copies."""
    from tests.media import make_video

    folder.mkdir(parents=True)
    for number in range(count):
        target = folder / f"{number:03}.mp4"
        if number >= 4:
            shutil.copy(folder / f"{number % 4:03}.mp4", target)
            continue
        options = {"g": "48", "bf": "3", "preset": "veryfast"}
        make_video(target, frames=frames, rate=24, width=width, height=height, options=options)


def measure(
    bundle: Bundle,
    videos: Path,
    candidates: Sequence[tuple[Any, Any]],
    decoders: Sequence[DecoderChoice],
    *,
    device: str,
    batch_size: int,
    repeat: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One dict per engine and decoder: of `memcli.benchmark`, with decoder and idle share."""
    sources = list(collect([videos]).items)
    rows = []
    for engine, precision in candidates:
        for decoder in decoders:
            say(f"end to end: {engine} {precision}, decoding on {decoder}")
            row: dict[str, Any] = {"candidate": f"{engine} {precision}", "decoder": decoder}
            try:
                row |= _one(bundle, sources, engine, precision, decoder, device, batch_size, repeat)
            except MemcliError as error:
                row["problem"] = str(error)
            rows.append(row)
    return rows


def _one(
    bundle: Bundle,
    sources: list[Source],
    engine: Any,
    precision: Any,
    decoder: DecoderChoice,
    device: str,
    batch_size: int,
    repeat: int,
) -> dict[str, Any]:
    settings = ScoreSettings(model=str(bundle.root), decoder=decoder, batch_size=batch_size)
    selection = open_engine(bundle, engine=engine, device=device, precision=precision)
    with Scorer(settings, bundle, selection) as scorer:
        chosen = scorer.choose_decoder(lambda: [source.path for source in sources])
        found = measure_scorer(scorer, sources, repeat, str(selection.variant.precision)).to_dict()
        idle = Idle()
        if device != "cpu":
            index = device.partition(":")[2]
            with watch_gpu(int(index or 0)) as idle:
                _score_all(scorer, sources)
    kept = {name: found[name] for name in ("decode", "engine", "end_to_end", "bottleneck", "ratio")}
    return {**kept, "decoder_reason": chosen.reason, "gpu_idle_share": idle.share}


def _score_all(scorer: Scorer, sources: list[Source]) -> None:
    for _ in scorer.score(sources):
        pass
