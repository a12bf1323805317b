"""SigLIP-B/16 on this CPU: every runtime and precision against PyTorch eager, in one run.

    python -m tests.benchmarks.encoders --videos DIR --profile

The registry's `vision` model with an encoder of the published size and random weights (speed does
not depend on them) and a narrow head. Candidates score the same 16 frames in turn, round by round.
Besides time on the clock, the processor time of all threads is measured: where other work keeps the
cores busy, only its ratios mean much. int8 has every layer in 8 bits that can be, and no gate: what
is timed is the speed of the arithmetic. `--gate` makes it as `memcli export --int8` does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from memcli.engines.loading import cpu_features, cpu_name
from memcli.engines.onnxruntime import open_onnxruntime
from memcli.engines.openvino import open_openvino
from memcli.engines.verify import INPUT, SCORE
from memcli.export import trained
from memcli.export.calibration import CalibrationSet
from memcli.export.int8 import collect, make_int8, save
from memcli.export.layers import quantisable_layers
from memcli.export.quantize import quantise
from memcli.export.ranges import choose_range
from memcli.spec import Tolerance
from tests.benchmarks.engines import read_videos, say
from tests.gpu.siglip import make_checkpoint

Score = Callable[[np.ndarray], np.ndarray]
"""uint8 [clips, T, H, W, 3] -> scores [clips]"""
PEER = "PyTorch eager fp32"
FRAMES = 16


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--videos", type=Path, required=True, help="folder of real videos")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gate", action="store_true", help="int8 by search and gate (long)")
    parser.add_argument("--profile", action="store_true", help="time by operator, ONNX Runtime")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, spec = make_graphs(folder)
        clips = read_videos(options.videos, spec)
        batches = [{INPUT: clip[None, :1]} for clip in clips]
        if options.gate:
            make_gated_8_bits(folder, batches, spec.tolerances["int8"])
        else:
            make_8_bits(folder, batches[:4])
        print(f"{cpu_name()}, {os.cpu_count()} CPUs ({' '.join(cpu_features())})\n")
        measure(candidates(folder, model), clips[0][None, : options.frames], options.rounds)
        for name in ("fp32", "int8") if options.profile else ():
            profile(folder / name / "model.onnx", clips[0][None, : options.frames])


def make_graphs(folder: Path) -> tuple[Any, Any]:
    """The module and its spec; its graph in `fp32`."""
    sys.path.append(str(Path(__file__).parent.parent))  # which pytest adds, and `python -m` not
    from tiny_models import make_tiny_model

    (folder / "siglip").mkdir()
    make_checkpoint(folder / "siglip")
    made = make_tiny_model("vision", folder)
    for name in ("fp32", "int8"):
        (folder / name).mkdir()
    trained.write_traced(made.model.eval(), made.spec, folder / "fp32")
    return made.model, made.spec


def make_8_bits(folder: Path, batches: Sequence[Any]) -> None:
    """`int8` with all layers that can be quantised in 8 bits, for speed: no search, no gate."""
    model = onnx.load(str(folder / "fp32/model.onnx"))
    layers = quantisable_layers(model)
    names = list(dict.fromkeys(layer.input for layer in layers))
    ranges = {
        name: choose_range(one, "minmax", "s8s8")
        for name, one in collect(model, names, batches, "minmax").items()
    }
    save(quantise(model, layers, ranges, "s8s8"), folder / "int8/model.onnx")
    print(f"int8: {len(layers)} layers, speed only\n")


def make_gated_8_bits(folder: Path, batches: Sequence[Any], tolerance: Tolerance) -> None:
    """`int8` as `memcli export --int8` makes it. Raises ParityError if the gate refuses it."""
    data = CalibrationSet(tuple(batches[::2]), tuple(batches[1::2]))
    result = make_int8(folder / "fp32/model.onnx", folder / "int8/model.onnx", data, tolerance, say)
    print(
        f"int8: {result.int8_layers} layers, {len(result.float_layers)} left in float; "
        f"{len(data.holdout)} videos: {result.holdout.numbers()}, cosine of embeddings "
        f"min {result.cosine_min:.5f}, mean {result.cosine_mean:.5f}\n"
    )


def candidates(folder: Path, model: Any) -> dict[str, Score]:
    """Everything to compare, the peer first."""
    import torch

    def eager(clips: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            scores: np.ndarray = model(torch.from_numpy(clips), None, None).score.numpy()
        return scores

    found: dict[str, Score] = {PEER: eager}
    kinds: Mapping[str, Any] = {"ONNX Runtime": open_onnxruntime, "OpenVINO": open_openvino}
    for runtime, open_graph in kinds.items():
        for name in ("fp32", "int8"):
            engine = open_graph(
                folder / name / "model.onnx", device="cpu", precision=name, threads=None
            )
            found[f"{runtime} {name}"] = lambda clips, run=engine.run: run({INPUT: clips})[SCORE]
    return found


def measure(found: Mapping[str, Score], clip: np.ndarray, rounds: int) -> None:
    """One warm-up and `rounds` rounds in turns; prints the table."""
    clocks: dict[str, list[float]] = {name: [] for name in found}
    processors: dict[str, list[float]] = {name: [] for name in found}
    scores = {name: score(clip) for name, score in found.items()}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}, load {os.getloadavg()[0]:.1f}")
        for name, score in found.items():
            clock, processor = time.perf_counter(), time.process_time()
            score(clip)
            clocks[name].append(time.perf_counter() - clock)
            processors[name].append(time.process_time() - processor)
    print("| candidate | s | × peer | processor s | × peer | Δ score |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in found:
        cells = []
        for times in (clocks, processors):
            ratio = [a / b for a, b in zip(times[PEER], times[name], strict=True)]
            cells += [f"{statistics.median(times[name]):.2f}", f"{statistics.median(ratio):.2f}"]
        difference = float(np.abs(scores[name] - scores[PEER]).max())
        print(f"| {name} | {' | '.join(cells)} | {difference:.1e} |", flush=True)


def profile(graph: Path, clip: np.ndarray) -> None:
    """Share of each operator in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(graph.parent / "profile")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(graph), options, ["CPUExecutionProvider"])
    for _ in range(2):
        session.run(None, {INPUT: clip})
    totals = Counter[str]()
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            totals[event["args"]["op_name"]] += event["dur"]
    everything = sum(totals.values())
    print(f"\n| ONNX Runtime, {graph.parent.name} | ms | share |\n| --- | ---: | ---: |")
    for name, spent in totals.most_common(12):
        print(f"| {name} | {spent / 2000:.0f} | {spent / everything:.1%} |")


if __name__ == "__main__":
    main()
