"""Speed and accuracy of every engine, side by side with PyTorch, in one run.

    python -m tests.benchmarks.engines                      # the installed bundle
    python -m tests.benchmarks.engines --wheel resmem.whl --videos DIR --profile

The peer is the way of ResMem's authors: PyTorch, eager, one frame at a time, the model loaded
once. All candidates score the same 16 frames in turn, round by round, so that what else the
machine does hits all of them; medians. Accuracy is against the peer on videos that had no part in
the calibration. `--wheel` builds a bundle in a temporary folder; int8 is made if missing and
`--videos` is given.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from memcli.engines.base import Engine
from memcli.engines.bundle import Bundle, Variant, read_bundle
from memcli.engines.loading import cpu_features, cpu_name
from memcli.engines.onnxruntime import open_onnxruntime
from memcli.engines.openvino import open_openvino
from memcli.engines.reference import synthetic_frames
from memcli.engines.verify import INPUT, compare, run_scores
from memcli.errors import MemcliError, VideoError
from memcli.export.build import build_bundle
from memcli.export.calibration import split_by_video
from memcli.export.precision import make_variant
from memcli.export.pull import pull
from memcli.home import HOME_VARIABLE, bundles_dir
from memcli.models import get_model
from memcli.spec import Tolerance
from memcli.video import read_clip

Score = Callable[[np.ndarray], np.ndarray]
"""uint8 [clips, T, H, W, 3] -> frame scores [clips, T]"""
PEER = "PyTorch eager, frame by frame"
FRAMES = 16
ACCURACY_FRAMES = 4


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    candidate: str
    frames_per_s: float
    ratio: float
    """Speed relative to the peer: median of the rounds' ratios."""
    max_abs: float
    mean_abs: float
    srcc: float | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--wheel", type=Path, help="the resmem wheel, to build a bundle from")
    parser.add_argument("--videos", type=Path, help="folder of real videos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--profile", action="store_true", help="time by kind of OpenVINO kernel")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        if options.wheel:
            os.environ[HOME_VARIABLE] = scratch
            pull(get_model("resmem"), Path(scratch) / "bundles" / "pulled",
                 wheel=options.wheel, offline=True, report=say)  # fmt: skip
            build_bundle(get_model("resmem"), Path(scratch) / "bundles" / "pulled", report=say)
        bundle = read_bundle(bundles_dir() / "resmem")
        clips = read_videos(options.videos, bundle) if options.videos else []
        calibration, holdout = split_by_video(clips)
        if clips and "int8" not in bundle.variants:
            make_variant(bundle, "int8", calibration=calibration, holdout=holdout, report=say)
            bundle = read_bundle(bundle.root)
        check = np.stack(holdout) if holdout else synthetic_frames(bundle.prep, 12, FRAMES, 99)
        step = FRAMES // ACCURACY_FRAMES
        rows = measure(candidates(bundle, options.threads), check[:1],
                       check[:, step // 2 :: step], options.rounds)  # fmt: skip
        profiles = profile(bundle, check[:1], options.threads) if options.profile else {}
    machine = f"{cpu_name()}, {os.cpu_count()} CPUs ({' '.join(cpu_features())})"
    if options.json:
        rows_json = [asdict(row) for row in rows]
        print(json.dumps({"machine": machine, "rows": rows_json, "profiles": profiles}, indent=1))
    else:
        print_markdown(machine, len(check), rows, profiles)


def say(line: str) -> None:
    """Progress, apart from the table."""
    print(line, file=sys.stderr, flush=True)


def read_videos(folder: Path, bundle: Bundle) -> list[np.ndarray]:
    """Clips uint8 [16, H, W, 3] of the files in `folder` that are videos, by path."""
    clips = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            frames = read_clip(path, bundle.prep, frames=FRAMES, threads=os.cpu_count() or 1).frames
        except VideoError:
            continue
        if len(np.unique(frames.reshape(FRAMES, -1)[:, ::97], axis=0)) > 1:  # no still pictures
            clips.append(frames)
    return clips


def candidates(bundle: Bundle, threads: int | None) -> dict[str, Score]:
    """Everything to compare that this machine can run, the peer first."""
    one_by_one, batched = torch_scores(bundle, threads)
    found: dict[str, Score] = {PEER: one_by_one, "PyTorch eager, batch of 16": batched}
    fp32 = bundle.variants["fp32"]
    bf16 = Variant("bf16", fp32.graph, ("openvino",), fp32.files, fp32.reference)
    for variant in (fp32, bundle.variants.get("int8"), bf16):
        for name, open_graph in (("onnxruntime", open_onnxruntime), ("openvino", open_openvino)):
            if variant is None or name not in variant.engines:
                continue
            try:
                engine = open_graph(
                    bundle.graph_path(variant),
                    device="cpu",
                    precision=variant.precision,
                    threads=threads,
                )
            except MemcliError as error:
                say(f"without {name} {variant.precision}: {error.what}")
                continue
            found[f"{name} {variant.precision}"] = functools.partial(frame_scores, engine)
    return found


def frame_scores(engine: Engine, clips: np.ndarray) -> np.ndarray:
    """Scores of frames [B, T] of clips [B, T, H, W, 3]."""
    return run_scores(engine, {INPUT: clips}, frame_scores=True).rows


def torch_scores(bundle: Bundle, threads: int | None) -> tuple[Score, Score]:
    """ResMem in PyTorch with the bundle's weights: frame by frame, and a clip at once."""
    import torch

    from memcli.train.architectures.resmem import ResMem, ResMemVideo

    if threads:
        torch.set_num_threads(threads)
    graph = onnx.load(str(bundle.graph_path(bundle.variants["fp32"]))).graph
    state = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    model = ResMem()
    wanted = model.state_dict()
    missing = {name for name in wanted if name not in state}
    if any(not name.endswith("num_batches_tracked") for name in missing):
        raise SystemExit(f"the fp32 graph lacks parameters: {sorted(missing)[:3]}")
    model.load_state_dict({name: state.get(name, wanted[name]) for name in wanted})
    video = ResMemVideo(model, bundle.prep).eval()

    def batched(frames: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            scores: np.ndarray = video(torch.from_numpy(frames))[1].numpy()
        return scores

    def one_by_one(frames: np.ndarray) -> np.ndarray:
        count, length = frames.shape[:2]
        flat = frames.reshape(count * length, 1, 1, *frames.shape[2:])
        return np.concatenate([batched(frame) for frame in flat]).reshape(count, length)

    return one_by_one, batched


def measure(found: dict[str, Score], clip: np.ndarray, check: np.ndarray, rounds: int) -> list[Row]:
    """Accuracy on `check`, which also warms up, then interleaved rounds on `clip`."""
    scores = {}
    for name, score in found.items():
        say(f"scoring {len(check)} clips: {name}")
        scores[name] = np.concatenate([score(one[None]) for one in check])
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 1):
        say(f"round {number} of {rounds}{' (warm-up)' if number == 0 else ''}")
        for name, score in found.items():
            start = time.perf_counter()
            score(clip)
            if number:
                times[name].append(time.perf_counter() - start)
    rows = []
    for name in found:
        difference = compare(scores[name], scores[PEER], Tolerance(1, 1))
        ratios = [a / b for a, b in zip(times[PEER], times[name], strict=True)]
        rows.append(
            Row(
                candidate=name,
                frames_per_s=clip.shape[1] / statistics.median(times[name]),
                ratio=statistics.median(ratios),
                max_abs=difference.max_abs,
                mean_abs=difference.mean_abs,
                srcc=difference.srcc,
            )
        )
    return rows


def profile(bundle: Bundle, clip: np.ndarray, threads: int | None) -> dict[str, dict[str, Any]]:
    """Milliseconds of one clip by layer type and kernel, of OpenVINO at fp32 and int8."""
    import openvino

    result: dict[str, dict[str, Any]] = {}
    for precision in ("fp32", "int8"):
        if precision not in bundle.variants:
            continue
        settings: dict[str, Any] = {"PERF_COUNT": True, "PERFORMANCE_HINT": "LATENCY"}
        settings |= {"INFERENCE_PRECISION_HINT": "f32"}
        settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        graph = bundle.graph_path(bundle.variants[precision])
        request = openvino.Core().compile_model(str(graph), "CPU", settings).create_infer_request()
        totals: dict[str, list[float]] = {}
        for repeat in range(4):
            request.infer({0: clip})
            sums: dict[str, float] = {}
            for info in request.profiling_info:
                key = f"{info.node_type} {info.exec_type}"
                sums[key] = sums.get(key, 0) + info.real_time.total_seconds() * 1000
            for key, total in sums.items() if repeat else ():
                totals.setdefault(key, []).append(total)
        medians = {key: statistics.median(values) for key, values in totals.items()}
        ordered = sorted(medians.items(), key=lambda item: -item[1])
        result[precision] = {key: round(value, 1) for key, value in ordered if value >= 1}
    return result


def print_markdown(
    machine: str, clips: int, rows: Sequence[Row], profiles: dict[str, dict[str, Any]]
) -> None:
    """The table as it goes into the documentation."""
    print(f"{machine}\n")
    print(f"| candidate | frames/s | × peer | max Δ | mean Δ | SRCC ({clips} videos) |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        srcc = "" if row.srcc is None else f"{row.srcc:.4f}"
        print(
            f"| {row.candidate} | {row.frames_per_s:.2f} | {row.ratio:.2f} "
            f"| {row.max_abs:.2g} | {row.mean_abs:.2g} | {srcc} |"
        )
    for precision, layers in profiles.items():
        print(f"\n| openvino {precision}: layer and kernel | ms per 16 frames |\n| --- | ---: |")
        for name, milliseconds in layers.items():
            print(f"| {name} | {milliseconds:g} |")


if __name__ == "__main__":
    main()
