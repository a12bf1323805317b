"""Frames per second of every engine against PyTorch: same batch, same run, in turns.

Every candidate takes uint8 frames in host memory and gives results in host memory, so that copies
count for all of them.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from memcli.engines.base import EngineName
from memcli.engines.bundle import Bundle
from memcli.errors import MemcliError
from tests.gpu.siglip import flops_per_frame, load_tower

FRAMES_PER_VIDEO = 16
EAGER = "PyTorch eager fp16"
SDPA = "PyTorch fp16, scaled-dot-product attention"
COMPILED = "PyTorch torch.compile max-autotune fp16"
_MATRIX = {"cuda": 8192, "cpu": 256}
_MATRIX_RUNS = 20

Run = Callable[[np.ndarray], np.ndarray]
"""Frames uint8 [N, H, W, 3] to something per frame or video."""


@dataclass
class Candidate:
    """One way to compute it."""

    name: str
    open: Callable[[], tuple[Run, Callable[[], None]]]
    """The run, and what frees it."""


@dataclass
class Speed:
    """What was measured of one candidate."""

    name: str
    frames_per_s: float | None = None
    """Median of the rounds."""
    rounds: list[float] = field(default_factory=list)
    share_of_matrix_rate: float | None = None
    problem: str | None = None
    """Why there is no number."""


def matrix_rate(device: str) -> float:
    """FLOP/s of a large square fp16 matrix product (fp32 on a CPU): the best of five rounds."""
    import torch

    size = _MATRIX[device]
    kind = torch.float16 if device == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    best = 0.0
    for _ in range(6):
        _wait(device)
        started = time.perf_counter()
        for _ in range(_MATRIX_RUNS):
            torch.mm(left, right)
        _wait(device)
        best = max(best, 2.0 * size**3 * _MATRIX_RUNS / (time.perf_counter() - started))
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def torch_candidates(checkpoint: Path, device: str, *, compiled: bool) -> list[Candidate]:
    """The tower in PyTorch: eager, with fused attention, and compiled."""

    def make(attention: str, compile_it: bool) -> Callable[[], tuple[Run, Callable[[], None]]]:
        def open_it() -> tuple[Run, Callable[[], None]]:
            import torch

            kind = torch.float16 if device == "cuda" else torch.float32
            tower = load_tower(checkpoint, attention).to(device, kind)

            def forward(frames: Any) -> Any:
                pixels = frames.permute(0, 3, 1, 2).to(kind) / 127.5 - 1
                return tower(pixel_values=pixels).pooler_output.float()

            step = torch.compile(forward, mode="max-autotune") if compile_it else forward

            def run(frames: np.ndarray) -> np.ndarray:
                with torch.inference_mode():
                    result: np.ndarray = step(torch.from_numpy(frames).to(device)).cpu().numpy()
                return result

            def close() -> None:
                nonlocal tower
                tower = None
                gc.collect()
                if device == "cuda":
                    torch.cuda.empty_cache()

            return run, close

        return open_it

    candidates = [Candidate(EAGER, make("eager", False)), Candidate(SDPA, make("sdpa", False))]
    if compiled:
        candidates.append(Candidate(COMPILED, make("sdpa", True)))
    return candidates


def engine_candidate(bundle: Bundle, name: EngineName, device: str, precision: Any) -> Candidate:
    """A verified engine of the bundle."""

    def open_it() -> tuple[Run, Callable[[], None]]:
        from memcli.engines.select import open_engine

        chosen = open_engine(bundle, engine=name, device=device, precision=precision).engine

        def run(frames: np.ndarray) -> np.ndarray:
            clips = frames.reshape(-1, FRAMES_PER_VIDEO, *frames.shape[1:])
            result: np.ndarray = chosen.run({"frames": clips})["score"]
            return result

        return run, chosen.close

    return Candidate(f"{name} {precision}", open_it)


def measure(
    candidates: Sequence[Candidate],
    frames: np.ndarray,
    *,
    rounds: int,
    checkpoint: Path,
    rate: float,
    say: Callable[[str], None],
) -> list[Speed]:
    """Open all, warm them up, time them in turns. One that fails has its reason instead."""
    speeds = {one.name: Speed(one.name) for one in candidates}
    runs: dict[str, tuple[Run, Callable[[], None]]] = {}
    for one in candidates:
        say(f"preparing {one.name}")
        try:
            run, close = one.open()
            runs[one.name] = run, close
            run(frames)
            run(frames)
        except Exception as error:
            speeds[one.name].problem = _line(error)
            runs.pop(one.name, None)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name in list(runs):
            took = _timed(runs[name][0], frames)
            if isinstance(took, str):
                speeds[name].problem = took
                del runs[name]
            else:
                speeds[name].rounds.append(len(frames) / took)
    for _, close in runs.values():
        close()
    flops = flops_per_frame(checkpoint)
    for speed in speeds.values():
        if speed.rounds and speed.problem is None:
            speed.frames_per_s = statistics.median(speed.rounds)
            speed.share_of_matrix_rate = speed.frames_per_s * flops / rate
    return list(speeds.values())


def _timed(run: Run, frames: np.ndarray) -> float | str:
    """Seconds, or why it failed."""
    started = time.perf_counter()
    try:
        run(frames)
    except Exception as error:
        return _line(error)
    return time.perf_counter() - started


def _line(error: Exception) -> str:
    text = error.what if isinstance(error, MemcliError) else str(error)
    return f"{type(error).__name__}: {next(iter(text.splitlines()), '')[:200]}"
