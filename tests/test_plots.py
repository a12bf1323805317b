"""Plots: what they show, that they are whole files, and that names in them do no harm."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcli.errors import OutputError, UsageError
from memcli.train import plots

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

PNG = b"\x89PNG\r\n\x1a\n"


def scores(count: int = 60) -> tuple[Any, Any]:
    random = np.random.default_rng(4)
    truth = random.random(count)
    return truth, np.clip(truth + 0.2 * random.standard_normal(count), 0, 1)


@pytest.mark.parametrize("plot", [plots.scatter, plots.calibration])
def test_plots_are_png_files_and_the_same_each_time(plot: Any, tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    path.write_text("an older plot")
    plot(path, *scores(), title="model on dataset")
    first = path.read_bytes()
    assert first.startswith(PNG)
    plot(path, *scores(), title="model on dataset")
    assert path.read_bytes() == first
    plot(path, *scores(59), title="model on dataset")
    assert path.read_bytes() != first
    assert [entry.name for entry in tmp_path.iterdir()] == ["plot.png"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~plots._umask()


def test_scatter_tells_the_correlation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    plots.scatter(tmp_path / "s.png", [0.1, 0.5, 0.9], [0.2, 0.4, 0.8], title="t")
    plots.scatter(tmp_path / "s.png", [0.1, 0.5, 0.9], [0.4, 0.4, 0.4], title="t")
    texts = [figure.axes[0].texts[0].get_text() for figure in figures]
    assert texts == ["SRCC 1.000, n = 3", "SRCC undefined, n = 3"]
    points = figures[0].axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points, [[0.1, 0.2], [0.5, 0.4], [0.9, 0.8]])


def test_reliability_bins_hold_equally_many() -> None:
    predicted = np.arange(10) / 10
    truth = predicted[::-1].copy()
    centres, means, errors = plots.reliability(truth, predicted, 3)
    np.testing.assert_allclose(centres, [0.15, 0.5, 0.8])  # 4, 3 and 3 videos
    np.testing.assert_allclose(means, [0.75, 0.4, 0.1])
    expected = [np.std(part, ddof=1) / len(part) ** 0.5 for part in np.array_split(truth, 3)]
    np.testing.assert_allclose(errors, expected)
    centres, means, errors = plots.reliability(truth[:2], predicted[:2], 10)
    assert (centres, means, errors) == ([0.0, 0.1], [0.9, 0.8], [0.0, 0.0])


@pytest.mark.parametrize("plot", [plots.scatter, plots.calibration])
@pytest.mark.parametrize("title", ["$\\frac$ x_1^$", "\x1b[31mred\x1b[0m\nline", "名前 " * 90, ""])
def test_names_from_outside_do_no_harm(plot: Any, title: str, tmp_path: Path) -> None:
    plot(tmp_path / "plot.png", *scores(), title=title)
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_titles_are_made_printable() -> None:
    _, axes = plots._figure("\x1b[31mred\nline " + "x" * 200)
    text = axes.get_title()
    assert text.startswith("\\x1b[31mred\\nline xxx")
    assert len(text) == 100


@pytest.mark.parametrize("plot", [plots.scatter, plots.calibration])
def test_few_or_equal_scores_can_be_plotted(plot: Any, tmp_path: Path) -> None:
    for truth, predicted in (([0.5], [0.4]), ([0.5, 0.5], [0.5, 0.5])):
        plot(tmp_path / "plot.png", truth, predicted, title="t")
        assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("plot", [plots.scatter, plots.calibration])
def test_nothing_to_plot_is_an_error(plot: Any, tmp_path: Path) -> None:
    for truth, predicted in (([], []), ([0.1], [0.1, 0.2])):
        with pytest.raises(UsageError, match="nothing to plot"):
            plot(tmp_path / "plot.png", truth, predicted, title="t")
    with pytest.raises(UsageError, match="0 bins"):
        plots.reliability(*scores(), 0)


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write this plot"):
        plots.scatter(tmp_path / "none" / "plot.png", *scores(), title="t")


def test_a_failed_plot_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def full(self: Any, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "plot.png"
    path.write_text("an older plot")
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OutputError, match="No space left"):
        plots.scatter(path, *scores(), title="t")
    assert path.read_text() == "an older plot"
    assert [entry.name for entry in tmp_path.iterdir()] == ["plot.png"]
