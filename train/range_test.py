"""Smith's learning-rate range test.

Source: 001_de183854d7703535.txt, section 4.3: train with rates from 1e-8 to 1 and take the one "at
which the loss is placed at the midpoint of the steepest descent region on the graph that shows the
relationship between learning rate and loss". Here that is the rate at which the loss has come half
the way from its plateau at the lowest rates to its minimum.

The sweep is Lightning's: 100 steps with rates that grow exponentially. Two of its results are not
used. Its suggestion divides by differences of the rate itself, which at 1e-8 turns the least noise
into the steepest slope. Its losses are a running mean over about 50 of the 100 steps, which hides
the descent; the losses of the steps are computed back from it.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

LOWEST, HIGHEST = 1e-8, 1.0
STEPS = 100
_BETA = 0.98
"""Of Lightning's running mean."""
_WINDOW = 9
"""Steps in the centred mean that the midpoint is looked for in; a decade has 12.5."""
_PLATEAU = 20
"""Steps, up to a rate of 4e-7, at which nothing is learned yet."""
_SIGNIFICANT = 1.2
"""A descent is one if it exceeds the noise of single steps by this factor."""
FALLBACK_FROZEN, FALLBACK_TUNED = 1e-3, 1e-5
"""Where the test finds no descent: what it most often gave in 001_de183854d7703535.txt, table 6, to
heads on frozen encoders and, rounded, to fine-tuning."""


def find_learning_rate(
    module: Any, make_trainer: Callable[..., Any], folder: Path
) -> tuple[float | None, dict[str, list[float]]]:
    """The suggested rate for `module`, None if there is none, and the curve (`lr`, `loss`).

    `make_trainer(**options)` makes a Lightning Trainer. `folder` takes a checkpoint for as long as
    the test lasts; weights, optimiser and loops are as before afterwards.
    """
    from lightning.pytorch.tuner import Tuner

    trainer = make_trainer(max_epochs=STEPS, default_root_dir=folder)
    with contextlib.redirect_stderr(io.StringIO()):  # its bar does not ask whether anyone looks
        finder = Tuner(trainer).lr_find(
            module,
            min_lr=LOWEST,
            max_lr=HIGHEST,
            num_training=STEPS,
            early_stop_threshold=4.0,
            update_attr=False,
        )
    if finder is None:
        return None, {"lr": [], "loss": []}
    losses = step_losses([float(one) for one in finder.results["loss"]])
    rates = [float(one) for one in finder.results["lr"]][: len(losses)]
    return suggestion(rates, losses), {"lr": rates, "loss": losses}


def step_losses(means: Sequence[float]) -> list[float]:
    """The loss of each step from Lightning's running mean with its correction for the beginning.

    That correction counts one step too many (so the first mean is about half the first loss).
    """
    sums = [0.0] + [mean * (1 - _BETA ** (step + 2)) for step, mean in enumerate(means)]
    return [(after - _BETA * before) / (1 - _BETA) for before, after in pairwise(sums)]


def suggestion(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate at which the loss has fallen half the way from its plateau to its minimum.

    None if the losses end early (the first steps diverged) or their descent is within the noise.
    """
    finite = next((i for i, one in enumerate(losses) if not math.isfinite(one)), len(losses))
    if finite < _PLATEAU + _WINDOW:
        return None
    loss = np.array(losses[:finite])
    half = _WINDOW // 2
    padded = np.pad(loss, half, mode="edge")
    smooth = np.convolve(padded, np.full(_WINDOW, 1 / _WINDOW), mode="valid")
    noise = float(np.std((loss - smooth)[: finite // 2]))
    plateau, lowest = float(smooth[:_PLATEAU].mean()), int(np.argmin(smooth))
    if plateau - smooth[lowest] <= _SIGNIFICANT * noise + 1e-12 or lowest < _PLATEAU:
        return None
    above = np.nonzero(smooth[:lowest] > (plateau + smooth[lowest]) / 2)[0]
    return float(rates[int(above[-1]) + 1])
