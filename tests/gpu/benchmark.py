"""All measurements of `tests/gpu/run.sh`, as one JSON file.

python -m tests.gpu.benchmark --output benchmark.json
python -m tests.gpu.benchmark --output x.json --rehearse     # tiny, on the CPU: runs the code
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from memcli import machine
from memcli.engines.bundle import Bundle, read_bundle
from memcli.errors import MemcliError
from tests.gpu import end_to_end, throughput
from tests.gpu.siglip import make_bundle

BATCH = 256
ENGINES = (
    ("onnxruntime", "fp32"),
    ("onnxruntime", "fp16"),
    ("onnxruntime", "int8"),
    ("tensorrt", "fp16"),
    ("tensorrt-rtx", "fp16"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Measure engines on this machine's GPU.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--videos", type=int, default=128)
    parser.add_argument("--rehearse", action="store_true", help="tiny model, on the CPU")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        found = run(Path(scratch), options)
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def run(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured."""
    rehearsal = bool(options.rehearse)
    device = "cpu" if rehearsal else "cuda"
    bundle, checkpoint = make_bundle(scratch, full_size=not rehearsal)
    engines = [("onnxruntime", "fp32")] if rehearsal else list(ENGINES)
    made, not_made = make_precisions(bundle, [] if rehearsal else ["fp16", "int8"])
    assert made.prep is not None
    batch = 2 * throughput.FRAMES_PER_VIDEO if rehearsal else BATCH
    shape = (batch, *made.prep.frame_shape())
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    rate = throughput.matrix_rate(device)
    candidates = throughput.torch_candidates(checkpoint, device, compiled=not rehearsal)
    candidates += [throughput.engine_candidate(made, *one[:1], device, one[1]) for one in engines]
    speeds = throughput.measure(
        candidates, frames, rounds=options.rounds, checkpoint=checkpoint, rate=rate, say=_say
    )
    videos = scratch / "videos"
    size = {"frames": 16, "width": 96, "height": 64}
    if not rehearsal:
        size = {"frames": 240, "width": 1280, "height": 720}
    end_to_end.make_videos(videos, options.videos, **size)
    found = end_to_end.measure(
        made,
        videos,
        engines if rehearsal else [one for one in engines if one[1] == "fp16"],
        ["cpu"] if rehearsal else ["cpu", "nvdec", "nvdec+gpu-resize", "auto"],
        device=device,
        batch_size=max(1, batch // throughput.FRAMES_PER_VIDEO),
        repeat=1 if rehearsal else 3,
        say=_say,
    )
    return {
        "schema": 1,
        "rehearsal": rehearsal,
        "machine": machine.inspect().to_dict(),
        "packages": {name: package.version for name, package in machine.inspect_packages().items()},
        "torch": _torch_version(),
        "batch": batch,
        "rounds": options.rounds,
        "matrix_flops": rate,
        "not_made": not_made,
        "throughput": [asdict(speed) for speed in speeds],
        "videos": {"count": options.videos, **size},
        "end_to_end": found,
    }


def make_precisions(bundle: Bundle, wanted: Sequence[Any]) -> tuple[Bundle, dict[str, str]]:
    """The bundle with what could be made of `wanted`, and why the rest could not.

    Calibrated with noise: speed does not depend on the ranges, and the weights are random.
    """
    from memcli.export.precision import make_variant

    problems = {}
    rng = np.random.default_rng(1)
    assert bundle.prep is not None
    shape = (throughput.FRAMES_PER_VIDEO, *bundle.prep.frame_shape())
    clips = [rng.integers(0, 256, shape, np.uint8) for _ in range(24)]
    for precision in wanted:
        _say(f"making {precision}")
        try:
            make_variant(bundle, precision, calibration=clips[:8], holdout=clips[8:], report=_say)
        except MemcliError as error:
            problems[precision] = str(error)
        bundle = read_bundle(bundle.root)
    return bundle, problems


def _torch_version() -> str:
    import torch

    return f"{torch.__version__}, CUDA {torch.version.cuda}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
