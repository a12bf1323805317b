"""The report: right numbers, nothing from outside interpreted, whole or not at all."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_eeg_journal import ROW

from memcli.errors import OutputError, UsageError
from memcli.progress import PlainProgress
from memcli.recognition.rates import rates
from memcli.recognition.rows import DEMONSTRATION, EpochRow
from memcli.recognition.run import EegSummary, check_report
from memcli.recognition.wording import RECOGNITION, closing_lines
from memcli.spec import EegPrep

EVIL = "<script>alert(1)</script>$x^{2$ {{7*7}} \x1b[31m\u202e"
PREP = EegPrep(channels=("Cz",), duration_s=2.0)
SUMMARY = EegSummary(
    output="t.csv",
    report="r.html",
    model="tiny-eeg",
    bundle="tiny-eeg@0",
    engine="onnxruntime",
    reason="",
    note=None,
    threshold=0.5,
    total=1,
    resumed=0,
    resumed_failed=0,
)


def row(path: str, epoch: int | None, probability: float | None, label: int | None) -> EpochRow:
    return replace(
        ROW,
        path=path,
        epoch=epoch,
        probability=probability,
        recognised=None if probability is None else probability >= 0.5,
        label=label,
        status="failed" if probability is None else "ok",
        contributions=None if probability is None else [0.5, -0.25],
        event=EVIL,
        flags=EVIL,
        error=EVIL if probability is None else None,
    )


@pytest.mark.parametrize("seed", range(5))
def test_rates_against_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 60)
    found = rng.integers(0, 8, 60) / 8 + 0.03 * labels * (seed > 2)  # with ties
    got = rates(labels, found, 0.5)
    assert got is not None
    ones, zeros = found[labels == 1], found[labels == 0]
    pairs = (ones[:, None] > zeros).mean() + (ones[:, None] == zeros).mean() / 2
    assert got.auroc == pytest.approx(pairs)
    assert got.balanced_accuracy == pytest.approx(((ones >= 0.5).mean() + (zeros < 0.5).mean()) / 2)
    assert got.accuracy == pytest.approx(((found >= 0.5) == labels).mean())
    assert got.majority == pytest.approx(max(labels.mean(), 1 - labels.mean()))
    assert (got.true_positive[0], got.false_positive[0]) == (0, 0)
    assert (got.true_positive[-1], got.false_positive[-1]) == (1, 1)


def test_rates_need_both_labels() -> None:
    assert rates([1, 1], [0.1, 0.9], 0.5) is None
    assert rates([], [], 0.5) is None


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("mne")
    from memcli.recognition.report import write_report

    path = tmp_path_factory.mktemp("report") / "r.html"
    found = [(0.9, 1), (0.6, 0), (0.4, 1), (0.1, 0)]
    rows = [row(f"/in/{EVIL}.fif", n, *one) for n, one in enumerate(found)]
    rows.append(row(f"/in/{EVIL}.fif", None, None, None))
    summary = replace(SUMMARY, note=DEMONSTRATION, output=EVIL, bundle=EVIL, engine=EVIL)
    write_report(path, lambda: iter(rows), summary, PREP)
    assert [one.name for one in path.parent.iterdir()] == ["r.html"]
    return path.read_text(encoding="utf-8")


def test_the_report_has_figures_and_rates(page: str) -> None:
    assert page.count('<img class="figure-img') == 4  # histogram, ROC, and two of the recording
    assert "AUROC" in page
    assert "0.750" in page  # three of four pairs in order
    assert "balanced accuracy at 0.5" in page
    assert DEMONSTRATION in page


def test_nothing_from_outside_is_interpreted(page: str) -> None:
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{7*7}}" in page
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_without_labels_or_probabilities(tmp_path: Path) -> None:
    pytest.importorskip("mne")
    from memcli.recognition.report import write_report

    path = tmp_path / "r.html"
    write_report(path, lambda: iter([row("a.fif", None, None, None)]), SUMMARY, PREP)
    page = path.read_text(encoding="utf-8")
    assert "No epoch has a probability" in page
    assert "AUROC" not in page
    assert DEMONSTRATION not in page


def test_a_failure_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mne = pytest.importorskip("mne")
    from memcli.recognition.report import write_report

    def full(self: object, path: Path, **_: object) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mne.Report, "save", full)
    path = tmp_path / "r.html"
    path.write_text("old")

    def rows() -> Iterator[EpochRow]:
        return iter([row("a.fif", 0, 0.5, None)])

    with pytest.raises(OutputError, match="No space left"):
        write_report(path, rows, SUMMARY, PREP)
    assert [one.read_text() for one in tmp_path.iterdir()] == ["old"]


def test_places_where_no_report_can_be(tmp_path: Path) -> None:
    for path in (tmp_path / "r.pdf", tmp_path / "absent" / "r.html"):
        with pytest.raises(UsageError):
            check_report(path)
    check_report(tmp_path / "r.html")


def test_no_time_is_foretold_before_a_recording_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = PlainProgress(RECOGNITION)
    for ok, left in ((0, False), (1, True)):
        monkeypatch.setattr(watching, "_next", 0.0)
        watching.advance(ROW, replace(SUMMARY, total=2, ok=ok, elapsed_s=3.0))
        assert (" left" in capsys.readouterr().err) is left


def test_counts_of_the_closing_line_are_of_what_was_done() -> None:
    some = replace(SUMMARY, total=42, ok=15, failed=27, epochs=89)
    assert closing_lines(some)[0].startswith("89 epochs of 15 recordings scored, 27 recordings")
    again = replace(SUMMARY, total=42, resumed=42)
    assert closing_lines(again)[0].startswith("nothing left to score")
