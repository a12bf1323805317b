"""`memcli cross` on planted clips: the matrix, what is tested on what, failures."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from memcli.app import run
from memcli.commands.experiment_options import source
from memcli.errors import UsageError
from memcli.experiments.options import Options, encoders_of
from tests import planted, tiny_hub


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hub.make_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "splits"
    planted.make_planted(folder, 20)
    return folder


@pytest.fixture(scope="module")
def plain(splits: Path) -> Path:
    """The same kind of clips without splits."""
    folder = splits.parent / "plain"
    table = planted.make_planted(folder, 12, seed=7)
    with table.open(newline="") as stream:
        rows = list(csv.reader(stream))
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows(row[:3] for row in rows)
    return folder


@pytest.fixture
def cross(encoder: Path, tmp_path: Path) -> Callable[..., int]:
    def command(model: str, *sources: str | Path, arguments: tuple[str, ...] = ()) -> int:
        named = [word for one in sources for word in ("--dataset", str(one))]
        return run(
            [
                *("cross", model, *named, "--output", str(tmp_path / "out")),
                *("--encoder", str(encoder), "--folds", "2", "--epochs", "1"),
                *("--offline", "--device", "cpu", "--workers", "1", *arguments),
            ]
        )

    return command


def spearman(path: Path) -> float:
    from scipy.stats import spearmanr

    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    truth, predicted = ([float(row[name]) for row in rows] for name in ("truth", "predicted"))
    return float(spearmanr(truth, predicted)[0])


def test_matrix(
    cross: Callable[..., int],
    splits: Path,
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cross("brr", f"csv={splits}", plain, arguments=("--note", "Planted.")) == 0
    page = capsys.readouterr().out
    assert "### SRCC of brr, trained on one dataset and tested on another" in page
    assert "### PLCC of brr" in page
    assert page.count("**Planted.**") == 2
    assert "| Trained on | csv 1 splits, dev split | csv 2 plain, all videos |" in page
    assert (
        "csv 1 splits: trained on its train split (16 videos), its dev split held out (4 videos)."
        in page
    )
    assert "Changed from the paper: folds 2." in page  # of csv 2; ridge has no epochs
    assert "csv 2 plain: cross-validated, then trained on 12 videos" in page
    out = tmp_path / "out"
    with (out / "figures.csv").open(newline="") as stream:
        found = {
            (row["row"], row["quantity"]): float(row["value"])
            for row in csv.DictReader(stream)
            if row["table"] == "srcc"
        }
    first, second = "csv 1 splits, dev split", "csv 2 plain, all videos"
    runs, measured = out / "runs", out / "measured"
    expected = {
        ("csv 1 splits", first): runs / "brr-csv-1-splits-official",
        ("csv 1 splits", second): measured / "brr-csv-1-splits-official-on-csv-2-plain-all",
        ("csv 2 plain", first): measured / "brr-csv-2-plain-folds-on-csv-1-splits-dev",
        ("csv 2 plain", second): runs / "brr-csv-2-plain-folds",
    }
    assert found == pytest.approx(
        {key: spearman(folder / "predictions.csv") for key, folder in expected.items()}
    )
    assert (out / "tables.md").read_text() == page.removesuffix("\n")


def test_again_nothing_is_computed(
    cross: Callable[..., int],
    splits: Path,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from memcli import evaluation, training

    assert cross("brr", splits, plain) == 0
    page = (tmp_path / "out" / "tables.md").read_text()
    for module, name in ((training, "train_model"), (evaluation, "measure_predictor")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("computed again"))
    assert cross("brr", splits, plain) == 0
    assert (tmp_path / "out" / "tables.md").read_text() == page


def test_a_run_made_anew_is_measured_anew(
    cross: Callable[..., int],
    splits: Path,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from memcli.train import provenance

    assert cross("brr", splits, plain) == 0
    out = tmp_path / "out"
    shutil.rmtree(out / "runs" / "brr-csv-1-splits-official")
    monkeypatch.setattr(provenance, "now", lambda: "2031-01-01T00:00:00+00:00")
    assert cross("brr", splits, plain) == 0
    files = sorted(out.glob("measured/*/metrics.json"))
    years = [json.loads(file.read_text())["run_created"][:4] for file in files]
    assert (years[0], years[1] < "2031") == ("2031", True)


def test_a_dataset_that_cannot_be_trained_on(
    cross: Callable[..., int],
    splits: Path,
    plain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("path,score\n" + "".join(f"gone{i}.mp4,0.{i}\n" for i in range(1, 9)))
    for number in range(1, 9):
        (tmp_path / f"gone{number}.mp4").write_bytes(b"no video")
    assert cross("brr", splits, plain, bad) == 1
    page = capsys.readouterr().out
    rows = {line.split(" | ")[0]: line for line in page.splitlines() if line.startswith("| csv")}
    assert rows["| csv 3 bad"] == "| csv 3 bad | failed | failed | failed |"
    assert "failed" in rows["| csv 1 splits"].split(" | ")[3]
    assert "failed" not in "".join(rows["| csv 1 splits"].split(" | ")[:3])
    assert "- csv 3 bad failed: " in page


@pytest.mark.parametrize(
    ("model", "told"),
    [("resmem", "its weights are published"), ("brrr", "did you mean 'brr'?")],
)
def test_models_that_cannot_be_crossed(
    cross: Callable[..., int],
    splits: Path,
    plain: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    told: str,
) -> None:
    assert cross(model, splits, plain) != 0
    assert told in capsys.readouterr().err


def test_one_dataset_is_not_enough(
    cross: Callable[..., int], splits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cross("brr", splits) == 2
    assert "at least two datasets" in capsys.readouterr().err
    assert cross("brr", splits, f"csv={splits}") == 2
    assert "named twice" in capsys.readouterr().err


def test_sources() -> None:
    assert source("videomem=./x=y") == ("videomem", Path("x=y"))
    assert source("./odd=name") == (None, Path("odd=name"))


def test_an_unknown_format_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="'nope' is no format") as caught:
        source("nope=./data")
    assert "memento10k" in str(caught.value)
    (tmp_path / "nope=data").mkdir()
    assert source("nope=data") == (None, Path("nope=data"))
    assert source("plain") == (None, Path("plain"))


def test_a_change_without_effect_is_not_noted(
    cross: Callable[..., int],
    splits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    second = tmp_path / "second"
    planted.make_planted(second, 10, seed=3)
    assert cross("brr", splits, second, arguments=("--seed", "4")) == 0
    page = capsys.readouterr().out
    assert page.count("Changed from the paper: seed 4.") == 2  # neither --folds nor --epochs


def test_encoders_stand_in_where_they_are_meant() -> None:
    clip, old = "openai/clip-vit-base-patch32", "distilbert/distilbert-base-uncased"
    options = Options({"": "V", clip: "C"}, text_encoder="T")
    assert encoders_of("vision", options) == ("V", None)
    assert encoders_of("text", options) == (None, "T")
    assert encoders_of("early-fusion", options) == ("V", "V")
    assert encoders_of("late-fusion", options) == ("V", "T")
    assert encoders_of("clip-text", options) == (None, "C")
    assert encoders_of("vit", options) == ("V", None)
    assert encoders_of("distilbert", Options({old: "D"}, text_encoder="T")) == (None, "D")
    assert encoders_of("clip-gru", Options()) == (None, None)


@pytest.mark.parametrize("videos", [10, 13, 24])
def test_planted_groups_are_on_one_side(
    videos: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planted, "render", lambda _clip, path, **_: path.write_bytes(b"clip"))
    table = planted.make_planted(tmp_path, videos, seed=5)
    with table.open(newline="") as stream:
        sides = {(row["group"], row["split"]) for row in csv.DictReader(stream)}
    assert len(sides) == len({group for group, _ in sides}) == (videos + 1) // 2
    assert {split for _, split in sides} == {"train", "dev"}
