"""Plots of predictions as PNG: scatter and calibration. matplotlib, without a display."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from memcli.errors import MissingDependencyError, OutputError, UsageError
from memcli.text import printable
from memcli.train.metrics import srcc

_CALIBRATION_BINS = 10
_TITLE_LENGTH = 100


def scatter(path: Path, truth: Any, predicted: Any, *, title: str) -> None:
    """Predicted over true scores, arrays [N], with Spearman's correlation, as PNG at `path`.

    An existing file is replaced only once the new one is whole. OutputError if it cannot be
    written, UsageError without any score, MissingDependencyError without matplotlib.
    """
    truth, predicted = _scores(truth, predicted)
    figure, axes = _figure(title)
    axes.scatter(truth, predicted, s=12, alpha=0.5, linewidths=0)
    low, high = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
    axes.plot([low, high], [low, high], color="0.6", linewidth=1, linestyle="--")
    correlation = srcc(truth, predicted)
    told = "undefined" if correlation is None else f"{correlation:.3f}"
    axes.text(0.02, 0.98, f"SRCC {told}, n = {len(truth)}", transform=axes.transAxes, va="top")
    axes.set_xlabel("true score")
    axes.set_ylabel("predicted score")
    save(figure, path)


def calibration(
    path: Path, truth: Any, predicted: Any, *, title: str, bins: int = _CALIBRATION_BINS
) -> None:
    """Mean true over mean predicted score in bins of equally many videos, as PNG at `path`.

    Arrays [N]; bars are the standard error of the bin's mean true score. Errors as `scatter`.
    """
    truth, predicted = _scores(truth, predicted)
    centres, means, errors = reliability(truth, predicted, bins)
    figure, axes = _figure(title)
    axes.errorbar(centres, means, yerr=errors, marker="o", markersize=4, capsize=2, linewidth=1)
    low, high = min(*centres, *means), max(*centres, *means)
    axes.plot([low, high], [low, high], color="0.6", linewidth=1, linestyle="--")
    axes.set_xlabel("mean predicted score of a bin")
    axes.set_ylabel("mean true score of a bin")
    save(figure, path)


def reliability(
    truth: Any, predicted: Any, bins: int = _CALIBRATION_BINS
) -> tuple[list[float], list[float], list[float]]:
    """Mean predicted score, mean true score and its standard error in quantile bins of [N].

    Videos are ordered by prediction and cut into `bins` parts whose sizes differ by at most one
    (fewer parts if there are fewer videos). A bin of one video has the error 0.
    """
    import numpy as np

    if bins < 1:
        raise UsageError(f"a calibration in {bins} bins")
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    centres = [float(predicted[part].mean()) for part in parts]
    means = [float(truth[part].mean()) for part in parts]
    errors = [
        float(truth[part].std(ddof=1) / len(part) ** 0.5) if len(part) > 1 else 0.0
        for part in parts
    ]
    return centres, means, errors


def require_packages() -> None:
    """Raise MissingDependencyError unless plots can be made; to be asked beforehand."""
    _figure("")


def _scores(truth: Any, predicted: Any) -> tuple[Any, Any]:
    import numpy as np

    truth, predicted = (np.asarray(values, dtype=np.float64) for values in (truth, predicted))
    if truth.ndim != 1 or truth.shape != predicted.shape or not len(truth):
        raise UsageError(f"nothing to plot in arrays of {truth.shape} and {predicted.shape}")
    return truth, predicted


def _figure(title: str) -> tuple[Any, Any]:
    try:
        # Not pyplot: it keeps figures and looks for a display.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "matplotlib", purpose="plotting", install="pip install 'memcli[train]'"
        ) from error

    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # A title may hold names from outside: no line breaks or control characters, no TeX.
    axes.set_title(printable(title)[:_TITLE_LENGTH], parse_math=False, fontsize="medium")
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG at `path`, which is replaced only once the new one is whole.

    Raises OutputError.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file, warnings.catch_warnings():
            # Names in scripts that the font lacks become boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            # Without the version of matplotlib: the same data, the same bytes.
            figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write this plot: {error.strerror}", where=printable(str(path))
        ) from error


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
