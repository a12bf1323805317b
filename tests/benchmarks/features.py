"""Is extracting features as fast as scoring, and what does keeping them save?

    python -m tests.benchmarks.features [--videos DIR] [--parts extraction cache] [--json]

extraction  `extract_frames` with PyTorch against the way of `memcli score`: the same encoder as a
            graph in OpenVINO (ONNX Runtime where that is absent), the same decoding and pipeline,
            its batch size and workers. In turns, medians. Target: at least 0.9.
cache       5-fold training of a head with its features computed first, against the same with them
            in the cache. Target: at least 20 times as fast.

Encoders have the sizes of the published ones and random weights, which cost the same time.
"""

from __future__ import annotations

import argparse
import json
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
from memcli.extraction import extract_frames, frame_features, torch_device, torch_frames
from memcli.inputs import collect
from memcli.machine import cpu_label
from memcli.models import get_model
from memcli.models.encoders import CLIP_B32_VISION, CLIP_PREP, SIGLIP_PREP, SIGLIP_VISION
from memcli.pipeline import Pipeline
from memcli.spec import EncoderSpec, FramePrep, ModelSpec
from memcli.train.data import Examples, HeldFrames
from memcli.train.encoders import FrameEncoder
from memcli.train.features import FeatureStore
from memcli.train.heads import make_head
from memcli.train.loop import FitSettings, fit
from memcli.video import Clip, read_clip
from tests.media import make_video

EXTRACTION_TARGET = 0.9
CACHE_TARGET = 20.0
PARTS = ("extraction", "cache")
ENCODERS: dict[str, tuple[EncoderSpec, FramePrep]] = {
    "siglip-b16": (SIGLIP_VISION, SIGLIP_PREP),
    "clip-b32": (CLIP_B32_VISION, CLIP_PREP),
}
CACHE_MODELS = ("brr", "vision")
LATER_RUNS = 3


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


def random_encoder(name: str) -> FrameEncoder:
    """The encoder in its published size, with random weights."""
    import transformers

    torch.manual_seed(0)
    spec, prep = ENCODERS[name]
    base: dict[str, Any] = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": prep.crop_width,
    }
    if name == "siglip-b16":
        config: Any = transformers.SiglipVisionConfig(**base, patch_size=16)
        kind: Any = transformers.SiglipVisionModel
    else:
        config = transformers.CLIPVisionConfig(**base, patch_size=32, projection_dim=spec.dim)
        kind = transformers.CLIPVisionModelWithProjection
    model = kind._from_config(config, attn_implementation="sdpa")
    return FrameEncoder(model, spec.dim, spec.pooling, prep).eval()


def open_engine(encoder: FrameEncoder, prep: FramePrep, folder: Path) -> Engine:
    """The encoder as a graph in the runtime that scoring would take on a CPU."""
    graph = folder / "encoder.onnx"
    frames = torch.zeros((2, prep.frames, *prep.frame_shape()), dtype=torch.uint8)
    shapes = {"frames": {0: torch.export.Dim("batch", min=1, max=64)}}
    torch.onnx.export(
        Clips(encoder),
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


def extraction(name: str, videos: dict[str, Path], rounds: int, scratch: Path) -> list[Figure]:
    """Videos per second of both ways, in turns: with decoding, and the encoder alone."""
    spec, prep = ENCODERS[name]
    encoder = random_encoder(name)
    encode = torch_frames(encoder, "cpu")
    with open_engine(encoder, prep, scratch) as engine:
        check = np.random.default_rng(0).integers(0, 256, (1, prep.frames, *prep.frame_shape()))
        frames = check.astype(np.uint8)
        theirs, ours = engine.run({"frames": frames})["features"], encode(frames)
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
            times["engine"].append(timed(lambda: engine.run({"frames": frames})))
            times["torch"].append(timed(lambda: encode(frames)))
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
            f"the encoder alone, one video: {name}",
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


def cache(name: str, videos: dict[str, Path], scratch: Path) -> Figure:
    """5-fold training of a model's head, with features computed first and with cached ones."""
    model = get_model(name)
    encoder_name = "siglip-b16" if model.encoders[0] == SIGLIP_VISION else "clip-b32"
    spec, prep = ENCODERS[encoder_name]
    encode = torch_frames(random_encoder(encoder_name), torch_device())
    folder = scratch / f"cache-{name}"

    def run(number: int) -> None:
        with FeatureStore.open(folder, (spec.dim,), "float32", {}) as store:
            extract_frames(videos, prep, encode, store)
            features = frame_features(videos, store)
        train_folds(model, features, scratch / f"fit-{name}-{number}")

    first = timed(lambda: run(0))
    later = [timed(lambda number=number: run(number)) for number in range(1, LATER_RUNS + 1)]
    return Figure(
        f"cached features: {name}, {encoder_name}, {len(videos)} videos, 5 folds",
        f"first {first:.1f} s, then {statistics.median(later):.2f} s",
        first / statistics.median(later),
        CACHE_TARGET,
    )


def train_folds(model: ModelSpec, features: dict[str, np.ndarray], folder: Path) -> None:
    """Train the head on each fold by the model's recipe. Scores are random: time is all we ask."""
    assert model.head is not None
    assert model.recipe is not None
    frames = torch.from_numpy(np.stack(list(features.values())))
    scores = torch.rand(len(features), generator=torch.Generator().manual_seed(0))
    examples = Examples(tuple(features), scores, frames=HeldFrames(frames))
    folds = model.recipe.folds
    for fold in range(folds):
        held = list(range(fold, len(examples), folds))
        kept = sorted(set(range(len(examples))) - set(held))
        torch.manual_seed(fold)
        head = make_head(model.head, frames.shape[-1], None)
        train, validation = examples.subset(kept), examples.subset(held)
        fit(head, train, validation, model.recipe, FitSettings(), folder / f"fold-{fold}")


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
        if "extraction" in arguments.parts:
            for encoder in arguments.encoders:
                (scratch / encoder).mkdir()
                figures += extraction(encoder, videos, arguments.rounds, scratch / encoder)
        if "cache" in arguments.parts:
            figures += [cache(model, videos, scratch) for model in arguments.models]
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
