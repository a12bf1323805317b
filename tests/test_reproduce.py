"""`memcli reproduce` on planted clips with tiny random encoders: tables, resuming, failures."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from memcli.app import run
from memcli.errors import UsageError
from memcli.experiments.lock import held
from memcli.experiments.reproduce import ReproduceSettings, reproduce
from memcli.training.settings import NoProgress
from tests import planted, tiny_hub

VIDEOS = 20
QUICK = ("--epochs", "1", "--folds", "2", "--offline", "--device", "cpu", "--workers", "1")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for name in ("siglip", "clip", "roberta"):
        (folder / name).mkdir()
        tiny_hub.MAKERS[name](folder / name)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    planted.make_planted(folder, VIDEOS)
    return folder


@pytest.fixture
def early(hub: Path, data: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs `memcli reproduce early-fusion` on the tiny encoders; returns the exit code."""

    def command(*arguments: str, data: Path = data, output: Path = tmp_path / "out") -> int:
        return run(
            [
                *("reproduce", "early-fusion", "--data", str(data), "--output", str(output)),
                *("--encoder", str(hub / "siglip"), "--text-encoder", str(hub / "roberta")),
                *("--set", "depth=1", "--set", "width=16", "--set", "feed_forward=16"),
                *QUICK,
                *arguments,
            ]
        )

    return command


def figures(folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """figures.csv by model, quantity and source."""
    with (folder / "figures.csv").open(encoding="utf-8", newline="") as stream:
        return {(r["model"], r["quantity"], r["source"]): r for r in csv.DictReader(stream)}


def predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def spearman(rows: list[dict[str, str]]) -> float:
    from scipy.stats import spearmanr

    truth, predicted = ([float(row[name]) for row in rows] for name in ("truth", "predicted"))
    return float(spearmanr(truth, predicted)[0])


def created(folder: Path) -> dict[str, str]:
    runs = (folder / "runs").iterdir()
    return {one.name: json.loads((one / "run.json").read_text())["created"] for one in runs}


def test_early_fusion_table(
    early: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert early("--models", "brr,text", "--note", "Planted *signal*.") == 0
    out = tmp_path / "out"
    page = capsys.readouterr().out
    assert "**Planted \\*signal\\*.**" in page
    assert "Obtained on csv (raw scores, 20 labelled videos)." in page
    assert "on MovieMem: other data, so the two cannot be compared." in page
    assert "the dev split, after training on the train split only" in page
    assert "siglip in place of google/siglip-base-patch16-224" in page
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")]
    names = ["vision", "text", "early-fusion", "late-fusion", "brr"]
    assert rows == ["| Model", "| ---", *(f"| {name}" for name in names)]
    assert "| vision | 0.362 ± 0.10 | not run | 0.224 | not run |" in page
    assert "Published: Ganesh, Huijben, " in page
    assert ".txt" not in page
    assert (out / "tables.md").read_text().replace(
        "\n![table-1: published and obtained](table-1.png)\n", ""
    ) == page.removesuffix("\n")
    assert (out / "table-1.png").read_bytes().startswith(b"\x89PNG")
    found = figures(out)
    for model in ("text", "brr"):
        held_out = predictions(out / "runs" / f"{model}-csv-folds")
        assert len(held_out) == VIDEOS
        folds = [spearman([r for r in held_out if r["fold"] == fold]) for fold in ("1", "2")]
        mean = found[model, "SRCC, cross-validation", "obtained"]
        assert float(mean["value"]) == pytest.approx(statistics.fmean(folds))
        assert float(mean["std"]) == pytest.approx(statistics.stdev(folds))
        dev = predictions(out / "runs" / f"{model}-csv-official")
        assert len(dev) == VIDEOS // 5
        test = found[model, "SRCC, test", "obtained"]
        assert float(test["value"]) == pytest.approx(spearman(dev))
    assert found["text", "SRCC, test", "published"]["value"] == "0.16"


def test_labelled_test_split_is_what_is_tested_on(
    early: Callable[..., int], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "with-test.csv"
    text = (data / "planted.csv").read_text().replace(",dev,", ",test,")
    table.write_text(text.replace("videos/", f"{data}/videos/"))
    assert early("--models", "brr", "--dataset", "moviemem", data=table) == 0
    page = capsys.readouterr().out
    assert "the test split, after training on all other videos" in page
    assert "MediaEval 2025, on MovieMem." in page
    out = tmp_path / "out"
    assert [one.name for one in (out / "runs").iterdir()] == ["brr-moviemem-folds"]
    rows = predictions(out / "measured" / "brr-moviemem-folds-on-moviemem-test")
    assert len(rows) == VIDEOS // 5
    test = figures(out)["brr", "SRCC, test", "obtained"]
    assert float(test["value"]) == pytest.approx(spearman(rows))
    assert test["videos"] == str(VIDEOS // 5)


def test_complete_rows_are_not_trained_again(
    early: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert early("--models", "brr") == 0
    first = created(out)
    assert early("--models", "brr,text") == 0
    second = created(out)
    assert {name: second[name] for name in first} == first
    assert set(second) - set(first) == {"text-csv-official", "text-csv-folds"}

    from memcli import training

    monkeypatch.setattr(training, "train_model", lambda *_, **__: pytest.fail("trained again"))
    page = (out / "tables.md").read_text()
    assert early("--models", "brr,text") == 0
    assert (out / "tables.md").read_text() == page


def test_rows_of_earlier_calls_are_shown(
    early: Callable[..., int], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Row by row, with a test split: complete rows as they were, one begun as not run."""
    table = tmp_path / "with-test.csv"
    text = (data / "planted.csv").read_text().replace(",dev,", ",test,")
    table.write_text(text.replace("videos/", f"{data}/videos/"))
    out = tmp_path / "out"
    assert early("--models", "brr", data=table) == 0
    brr = {key: row for key, row in figures(out).items() if key[0] == "brr"}
    assert early("--models", " text,", data=table) == 0
    page = capsys.readouterr().out
    found = figures(out)
    assert {key: found[key] for key in brr} == brr
    assert brr["brr", "SRCC, test", "obtained"]["status"] == "ok"
    assert found["text", "SRCC, test", "obtained"]["status"] == "ok"
    assert found["vision", "SRCC, test", "obtained"]["reason"] == "not run"
    assert "siglip in place of" in page  # brr's encoder: the notes are of all rows shown

    path = out / "runs" / "brr-csv-folds" / "run.json"
    entry = json.loads(path.read_text())
    for changes in ({"status": "training"}, {"settings": {**entry["settings"], "seed": 7}}):
        path.write_text(json.dumps(entry | changes))
        assert early("--models", "text", data=table) == 0
        found = figures(out)
        assert found["brr", "SRCC, test", "obtained"]["reason"] == "not run"
        assert found["text", "SRCC, test", "obtained"]["status"] == "ok"
    path.write_text(json.dumps(entry))
    shutil.rmtree(out / "measured" / "brr-csv-folds-on-csv-test")
    assert early("--models", "text", data=table) == 0
    found = figures(out)
    assert found["brr", "SRCC, test", "obtained"]["reason"] == "not run"
    assert found["brr", "SRCC, cross-validation", "obtained"]["status"] == "ok"


def test_two_at_once_are_refused(
    early: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with held(out):
        assert early("--models", "brr") == 2
    error = capsys.readouterr().err
    assert f"{out}: another memcli is at work in this folder" in error
    assert [one.name for one in out.iterdir()] == [".lock"]
    with held(out), pytest.raises(UsageError, match="at work"), held(out):
        pass
    assert early("--models", "brr") == 0  # neither what it left nor the lock of a dead one is held


def test_an_interrupted_row_goes_on(hub: Path, data: Path, tmp_path: Path) -> None:
    class Interrupting(NoProgress):
        def message(self, text: str) -> None:
            if text.startswith("fold 1 of 2:"):
                raise KeyboardInterrupt

    from memcli.experiments.options import Options

    options = Options({"": str(hub / "siglip")}, folds=2, device="cpu", workers=1)
    settings = ReproduceSettings(
        "early-fusion", data, tmp_path / "out", models=("brr",), options=options
    )
    with pytest.raises(KeyboardInterrupt):
        reproduce(settings, Interrupting())
    path = tmp_path / "out" / "runs" / "brr-csv-folds" / "run.json"
    before = json.loads(path.read_text())
    assert (before["status"], len(before["folds"])) == ("training", 1)
    (table,) = reproduce(settings)
    after = json.loads(path.read_text())
    assert (after["status"], len(after["folds"])) == ("complete", 2)
    assert after["created"] == before["created"]
    (row,) = [row for row in table.rows if row.model == "brr"]
    assert row.obtained["SRCC, cross-validation"].value is not None


def test_a_failing_row_does_not_stop_the_others(
    early: Callable[..., int], hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = f"sentence-transformers/all-distilroberta-v1={tmp_path / 'nowhere'}"
    assert early("--models", "text,brr", "--encoder", missing) == 1
    page = capsys.readouterr().out
    rows = {line.split(" | ")[0]: line for line in page.splitlines() if line.startswith("| ")}
    assert rows["| text"] == "| text | 0.301 ± 0.03 | failed | 0.160 | failed |"
    assert "failed" not in rows["| brr"]
    (note,) = [line for line in page.splitlines() if line.startswith("- text failed: ")]
    assert "nowhere" in note
    record = figures(tmp_path / "out")["text", "SRCC, test", "obtained"]
    assert record["status"] == "failed"
    assert "nowhere" in record["reason"]


def test_an_unforeseen_error_is_a_failed_row_too(
    early: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from memcli import training

    original: Any = training.train_model

    def broken(settings: Any, *rest: Any, **named: Any) -> Any:
        if settings.model == "text":
            raise ValueError("broken | inside")
        return original(settings, *rest, **named)

    monkeypatch.setattr(training, "train_model", broken)
    assert early("--models", "text,brr") == 1
    page = capsys.readouterr().out
    assert "- text failed: internal error (ValueError: broken \\| inside)" in page
    assert "| brr | 0.243 ± 0.07 | failed" not in page


def test_a_figure_is_kept_when_the_rest_of_its_row_fails(
    early: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from memcli import training

    original: Any = training.train_model

    def broken(settings: Any, *rest: Any, **named: Any) -> Any:
        if settings.split == "official":
            raise ValueError("broken inside")
        return original(settings, *rest, **named)

    monkeypatch.setattr(training, "train_model", broken)
    assert early("--models", "brr") == 1
    found = figures(tmp_path / "out")
    assert found["brr", "SRCC, test", "obtained"]["status"] == "failed"
    assert found["brr", "SRCC, cross-validation", "obtained"]["status"] == "ok"
    assert "broken inside" in capsys.readouterr().out


def test_a_run_of_other_settings_is_not_taken_for_the_row(
    early: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert early("--models", "brr") == 0
    path = tmp_path / "out" / "runs" / "brr-csv-folds" / "run.json"
    entry = json.loads(path.read_text())
    entry["settings"]["seed"] = 7
    path.write_text(json.dumps(entry))
    assert early("--models", "brr") == 1
    assert "this run was made with other settings" in capsys.readouterr().out
    path.write_text("{}")
    assert early("--models", "brr") == 1
    assert "not a run.json" in capsys.readouterr().out


def test_other_settings_or_data_are_refused(
    early: Callable[..., int],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert early("--models", "brr") == 0
    before = (tmp_path / "out" / "figures.csv").read_bytes()
    assert early("--models", "brr", "--seed", "1") == 2
    assert "made with other options" in capsys.readouterr().err
    copied = tmp_path / "copied"
    shutil.copytree(data, copied)
    assert early("--models", "brr", data=copied) == 2
    assert "made with other data" in capsys.readouterr().err
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    assert early("--models", "brr", output=tmp_path / "used") == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "out" / "figures.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--models", "vit"), "'vit' is no row of this paper"),
        (("--models", ""), "--models: no row is named"),
        (("--models", " ,"), "--models: no row is named"),
        (("--second", "nope=x"), "'nope' is no format of a dataset"),
        (("--set", "layers=2"), "no head here has an option 'layers'"),
        (("--encoder", "openai/other=x"), "no model here uses the encoder 'openai/other'"),
        (("--second", "csv=x"), "only clip-gru has a table of two datasets"),
        (("--target", "long-term"), "csv has no long-term scores"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(
    early: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    told: str,
) -> None:
    assert early(*arguments) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_fclip_tables(
    hub: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = run(
        [
            *("reproduce", "fclip", "--data", str(data), "--models", "fclip-text"),
            *("--output", str(out), "--encoder", f"openai/clip-vit-base-patch32={hub / 'clip'}"),
            *("--adaptation-epochs", "2"),
            *QUICK,
        ]
    )
    assert code == 0
    page = capsys.readouterr().out
    assert "| 5 - FCLIP-Based | fclip-text | 2e-03 |" in page
    found = figures(out)
    entry = json.loads((out / "runs" / "fclip-text-csv-folds" / "run.json").read_text())
    srcc = found["fclip-text", "SRCC", "obtained"]
    assert float(srcc["value"]) == pytest.approx(entry["metrics"]["mean_srcc"])
    assert float(srcc["low"]) == pytest.approx(entry["metrics"]["interval"][0])
    assert srcc["videos"] == str(VIDEOS)
    rates = [fold["learning_rate"] for fold in entry["folds"]]
    rate = found["fclip-text", "Learning rate", "obtained"]["value"]
    assert float(rate) == pytest.approx(statistics.median(rates))
    assert page.count("Changed from the paper: epochs 1, epochs of the adaptation 2, folds 2.") == 1
    assert page.count("Changed from the paper: epochs of the adaptation 2.") == 1
    losses = entry["adaptation"]
    with (out / "figures.csv").open(newline="") as stream:
        tests = {
            row["row"]: row["value"]
            for row in csv.DictReader(stream)
            if (row["table"], row["quantity"], row["source"])
            == ("table-5", "Test loss", "obtained")
        }
    assert float(tests["0"]) == pytest.approx(losses["loss_before"])
    assert float(tests["2"]) == pytest.approx(losses["history"][1]["val_loss"])
    assert tests["3"] == ""
    assert losses["loss_before"] != pytest.approx(losses["history"][0]["val_loss"])


def test_clip_gru_tables(
    hub: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = tmp_path / "second"
    planted.make_planted(second, 10, seed=3)
    out = tmp_path / "out"
    arguments = [
        *("reproduce", "clip-gru", "--data", str(data), "--second", f"csv={second}"),
        *("--output", str(out), "--encoder", str(hub / "clip"), "--set", "layers=1"),
        *QUICK,
    ]
    assert run(arguments) == 0
    page = capsys.readouterr().out
    assert (
        "| I3D (pretrained on Charades) | - | linear | – | not here | 0.5647 | not here |" in page
    )
    assert "| Memento10k | VideoMem, test set | 0.487 | not tested here | 0.470 |" in page
    found = figures(out)
    dev = predictions(out / "runs" / f"clip-gru-csv-1-{data.name}-official")
    assert float(found["clip-gru", "SRCC", "obtained"]["value"]) == pytest.approx(spearman(dev))
    measured = out / "measured"
    label = f"csv-1-{data.name}".replace("_", "-")
    there = predictions(measured / f"clip-gru-{label}-official-on-csv-2-second-dev")
    assert len(there) == 2
    assert len(list(measured.iterdir())) == 2
    assert (out / "table-2.png").is_file()


def test_clip_gru_needs_its_splits(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "no-splits.csv"
    lines = (data / "planted.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    table.write_text("\n".join(f"{data}/{row[0]},{row[1]}" if i else "path,score"
                               for i, row in enumerate(rows[::5])) + "\n")  # fmt: skip
    assert (
        run(["reproduce", "clip-gru", "--data", str(table), "--output", str(tmp_path / "o")]) == 2
    )
    assert "train and dev" in capsys.readouterr().err
