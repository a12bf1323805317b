"""Figures of the report. No text from outside comes into them: matplotlib would interpret it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from memcli.recognition.rates import Rates
    from memcli.recognition.rows import EpochRow

_BINS = 20
_WIDE = (8.5, 2.6)
_SQUARE = (4.2, 4.2)


def _axes(size: tuple[float, float]) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")  # no pyplot: nothing global, no window
    return figure, figure.subplots()


def histogram(probabilities: Sequence[float], threshold: float) -> Figure:
    """How often each probability occurs."""
    figure, axes = _axes(_WIDE)
    axes.hist(probabilities, bins=np.linspace(0, 1, _BINS + 1))
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1)
    axes.set(xlabel="probability of recognition", ylabel="epochs", xlim=(0, 1))
    return figure


def roc(rates: Rates) -> Figure:
    """The receiver operating characteristic."""
    figure, axes = _axes(_SQUARE)
    axes.plot(rates.false_positive, rates.true_positive)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.set_aspect("equal")
    axes.set_title(f"AUROC {rates.auroc:.3f}")
    return figure


def probabilities(rows: Sequence[EpochRow], threshold: float) -> Figure:
    """One bar per epoch of a recording, darker from the threshold on."""
    figure, axes = _axes(_WIDE)
    heights = [row.probability or 0.0 for row in rows]
    colours = ["C0" if row.recognised else "lightsteelblue" for row in rows]
    axes.bar([row.epoch or 0 for row in rows], heights, color=colours, width=0.9)
    axes.axhline(threshold, color="black", linestyle="--", linewidth=1)
    axes.set(xlabel="epoch", ylabel="probability", ylim=(0, 1))
    return figure


def contributions(rows: Sequence[EpochRow], start_s: float, window_s: float) -> Figure:
    """What each window adds to the logit: one column per epoch, one line per window."""
    figure, axes = _axes(_WIDE)
    image = np.array([row.contributions or [] for row in rows]).T
    most = float(np.abs(image).max()) or 1.0
    end_s = start_s + window_s * len(image)
    shown = axes.imshow(
        image,
        aspect="auto",
        cmap="RdBu_r",
        vmin=-most,
        vmax=most,
        interpolation="nearest",
        extent=(-0.5, len(rows) - 0.5, end_s, start_s),
    )
    figure.colorbar(shown, label="share of the logit")
    axes.set(xlabel="scored epoch, in order", ylabel="seconds after the event")
    return figure
