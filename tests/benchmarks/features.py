"""Is extracting features as fast as scoring, and what does keeping them save?

    python -m tests.benchmarks.features [--videos DIR] [--parts extraction cache] [--json]

extraction  `extract_frames` with PyTorch against the way of `memcli score`: the same encoder as a
            graph in OpenVINO (ONNX Runtime where that is absent), the same decoding and pipeline,
            its batch size and workers. In turns, medians. Target: at least 0.9.
cache       `memcli train`, 5 folds and all videos: the first run, which computes the features,
            against the second, which finds them. Target: at least 20 times as fast.

Encoders have the sizes of the published ones and random weights, which cost the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memcli.engines.base import Engine
from memcli.engines.loading import installed_runtimes, usable_cpus
from memcli.engines.onnxruntime import open_onnxruntime
from memcli.engines.openvino import open_openvino
from memcli.extraction import extract_frames, frames_at_a_time, torch_frames
from memcli.home import HOME_VARIABLE
from memcli.inputs import collect
from memcli.machine import cpu_label
from memcli.models import get_model
from memcli.models.encoders import CLIP_B32_VISION, CLIP_PREP, SIGLIP_PREP, SIGLIP_VISION
from memcli.pipeline import Pipeline
from memcli.spec import EncoderSpec, FramePrep
from memcli.train.encoders import frame_prep, load_encoder, resolve
from memcli.train.features import FeatureStore
from memcli.video import Clip, read_clip
from tests.media import make_video

EXTRACTION_TARGET = 0.9
CACHE_TARGET = 20.0
PARTS = ("extraction", "cache")
ENCODERS: dict[str, tuple[EncoderSpec, FramePrep]] = {
    "siglip-b16": (SIGLIP_VISION, SIGLIP_PREP),
    "clip-b32": (CLIP_B32_VISION, CLIP_PREP),
}
CACHE_MODELS = ("brr",)


@dataclass(frozen=True)
class Figure:
    """One line of the result. `target` is the least that `ratio` should be."""

    what: str
    measured: str
    ratio: float
    target: float


class Clips(torch.nn.Module):
    """An encoder of clips uint8 [B, T, H, W, 3], as the graphs that scoring runs take them."""

    def __init__(self, encoder: torch.nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """[B, T, D]"""
        batch, count = frames.shape[:2]
        return self.encoder(frames.flatten(0, 1)).reshape(batch, count, -1)


def make_checkpoint(name: str, folder: Path) -> Path:
    """A checkpoint in the hub's format, the vision tower in its published size, random weights."""
    import transformers

    torch.manual_seed(0)
    spec, prep = ENCODERS[name]
    layers = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    vision: dict[str, Any] = {**layers, "num_hidden_layers": 12, "image_size": prep.crop_width}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    if name == "siglip-b16":
        config: Any = transformers.SiglipConfig(
            text_config=text, vision_config={**vision, "patch_size": 16}
        )
        model: Any = transformers.SiglipModel(config)
    else:
        size = {"projection_dim": spec.dim}
        vision |= {"patch_size": 32, **size}
        config = transformers.CLIPConfig(text_config=text | size, vision_config=vision, **size)
        model = transformers.CLIPModel(config)
    model.save_pretrained(folder)
    shape = {"height": prep.crop_height, "width": prep.crop_width}
    stretch = prep.fit == "stretch"
    processor = {
        "do_resize": True,
        "size": shape if stretch else {"shortest_edge": prep.resize_width},
        "resample": 3,
        "do_center_crop": not stretch,
        "crop_size": shape,
        "do_normalize": True,
        "image_mean": prep.mean,
        "image_std": prep.std,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def open_engine(encoder: torch.nn.Module, prep: FramePrep, folder: Path) -> Engine:
    """The encoder as a graph in the runtime that scoring would take on a CPU."""
    graph = folder / "encoder.onnx"
    frames = torch.zeros((2, prep.frames, *prep.frame_shape()), dtype=torch.uint8)
    shapes = {"frames": {0: torch.export.Dim("batch", min=1, max=64)}}
    torch.onnx.export(
        Clips(encoder).eval(),
        (frames,),
        str(graph),
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=["frames"],
        output_names=["features"],
        external_data=True,
        verbose=False,
    )
    runtimes = installed_runtimes()
    opened = open_openvino if "openvino" in runtimes else open_onnxruntime
    return opened(graph, device="cpu", precision="fp32", threads=None)


def find_videos(folder: Path | None, scratch: Path, count: int) -> dict[str, Path]:
    """`count` decodable videos by id: of a folder (links, over and over), or made here."""
    if folder is None:
        originals = [
            make_video(scratch / f"made-{n}.mp4", frames=96 + n, rate=24, width=640, height=360)
            for n in range(4)
        ]
    else:
        originals = [Path(source.path).resolve() for source in collect([folder]).items]
    links = scratch / "videos"
    links.mkdir()
    for number in range(count):
        original = originals[number % len(originals)]
        # The cache knows a video by its own path, so that each link counts.
        (links / f"{number:05}{original.suffix}").symlink_to(original)
    return {path.name: path for path in sorted(links.iterdir())}


def score_way(videos: Sequence[Path], prep: FramePrep, engine: Engine) -> int:
    """Run videos as `memcli score` does on a CPU, but for the table; how many decoded."""

    def read(path: Path, deadline: float | None, cancelled: Callable[[], bool]) -> Clip:
        return read_clip(path, prep, deadline=deadline, cancelled=cancelled)

    def infer(clips: Sequence[Clip]) -> list[bool]:
        return [bool(engine.run({"frames": clip.frames[None]})) for clip in clips]

    workers = min(4, max(2, usable_cpus() // 2))
    pipeline = Pipeline(read, infer, workers=workers, queue_size=2 * (1 + workers))
    with closing(pipeline.run(videos)) as outcomes:
        return sum(outcome.error is None for outcome in outcomes)


def extraction(
    name: str, videos: dict[str, Path], rounds: int, checkpoint: Path, scratch: Path
) -> list[Figure]:
    """Videos per second of both ways, in turns: with decoding, and the encoder alone."""
    spec, found = resolve(ENCODERS[name][0], override=str(checkpoint))
    prep = frame_prep(found, ENCODERS[name][1])
    encoder = load_encoder(spec, found, prep)
    encode = torch_frames(encoder, "cpu")
    with open_engine(encoder, prep, scratch) as engine:
        # Each way by the batches it works with: one video, and as many as fill the cores.
        batch = max(1, frames_at_a_time("cpu") // prep.frames)
        shape = (batch, prep.frames, *prep.frame_shape())
        frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        first = {"frames": frames[:1]}
        theirs, ours = engine.run(first)["features"], encode(frames)[:1]
        difference = np.abs(theirs - ours).max() / np.abs(ours).max()
        times: dict[str, list[float]] = {"score": [], "extract": [], "engine": [], "torch": []}
        score_way(list(videos.values())[:2], prep, engine)  # threads and memory are made
        for number in range(rounds):
            times["score"].append(timed(lambda: score_way(list(videos.values()), prep, engine)))
            folder = scratch / f"features-{number}"
            with FeatureStore.open(folder, (spec.dim,), "float32", {}) as store:
                times["extract"].append(
                    timed(lambda store=store: extract_frames(videos, prep, encode, store))
                )
            times["engine"].append(timed(lambda: engine.run(first)))
            times["torch"].append(timed(lambda: encode(frames)) / batch)
        label = str(engine.describe())
    return [
        Figure(
            f"extraction against scoring: {name}, {len(videos)} videos of {prep.frames} frames",
            f"{per_second(times['extract'], len(videos))} with PyTorch, "
            f"{per_second(times['score'], len(videos))} with {label}",
            paired(times["score"], times["extract"]),
            EXTRACTION_TARGET,
        ),
        Figure(
            f"the encoder alone, per video: {name}",
            f"{statistics.median(times['torch']):.3f} s with PyTorch, "
            f"{statistics.median(times['engine']):.3f} s with {label}; "
            f"relative difference of features {difference:.1e}",
            paired(times["engine"], times["torch"]),
            EXTRACTION_TARGET,
        ),
    ]


def timed(run: Callable[[], object]) -> float:
    """Seconds on the clock."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def per_second(seconds: Sequence[float], videos: int) -> str:
    """Median speed."""
    return f"{videos / statistics.median(seconds):.2f} videos/s"


def paired(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of the rounds' ratios: what else the machine does hits both of a round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def cache(model: str, videos: dict[str, Path], checkpoints: dict[str, Path], rounds: int) -> Figure:
    """What `memcli train MODEL` does, 5 folds and all videos, first and on cached features.

    Scores are random: only time is asked for.
    """
    from memcli.training import TrainSettings, train_model

    siglip = get_model(model).encoder("vision") == SIGLIP_VISION
    encoder = "siglip-b16" if siglip else "clip-b32"
    folder = next(iter(videos.values())).parent
    random = np.random.default_rng(0)
    rows = [f"{name},{random.random():.4f}" for name in videos]
    (folder / "scores.csv").write_text("\n".join(["path,score", *rows]) + "\n")
    settings = TrainSettings(
        model, "csv", folder, encoder=str(checkpoints[encoder]), max_missing=0.5, offline=True
    )
    first = timed(lambda: train_model(settings))
    later = [timed(lambda: train_model(settings)) for _ in range(rounds)]
    return Figure(
        f"training on cached features: {model}, {encoder}, {len(videos)} videos, 5 folds",
        f"first {first:.1f} s, then {statistics.median(later):.2f} s",
        first / statistics.median(later),
        CACHE_TARGET,
    )


def main() -> None:
    """Measure and print; always ends with 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--videos", type=Path, help="folder of videos (default: made here)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--models", nargs="+", default=list(CACHE_MODELS), help="for cache")
    parser.add_argument("--count", type=int, default=24, help="videos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="memcli-bench-") as name:
        scratch = Path(name)
        videos = find_videos(arguments.videos, scratch, arguments.count)
        checkpoints = {one: make_checkpoint(one, scratch / one) for one in ENCODERS}
        if "extraction" in arguments.parts:
            for encoder in arguments.encoders:
                place = scratch / f"extraction-{encoder}"
                place.mkdir()
                figures += extraction(
                    encoder, videos, arguments.rounds, checkpoints[encoder], place
                )
        if "cache" in arguments.parts:
            for number, model in enumerate(arguments.models):
                os.environ[HOME_VARIABLE] = str(scratch / f"home-{number}")
                figures.append(cache(model, videos, checkpoints, arguments.rounds))
    source = f"real, from {arguments.videos}" if arguments.videos else "made here"
    command = "python -m tests.benchmarks.features " + " ".join(sys.argv[1:])
    if arguments.json:
        head = {"machine": cpu_label(), "command": command, "videos": source}
        print(json.dumps({**head, "figures": [asdict(one) for one in figures]}, indent=2))
        return
    print(f"{cpu_label()}; videos: {source}\n\n    {command}\n")
    print("| what | measured | ratio | target | met |\n| --- | --- | ---: | ---: | --- |")
    for one in figures:
        met = "yes" if one.ratio >= one.target else "NO"
        print(f"| {one.what} | {one.measured} | {one.ratio:.2f} | {one.target:g} | {met} |")


if __name__ == "__main__":
    main()
