"""`memcli evaluate`: bundles and runs on a dataset, what is left out, what is written."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import make_planted
from tiny_bundle import make_text_bundle, make_tiny_bundle, text_score

from memcli.app import run as memcli

pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

FILES = {"metrics.json", "predictions.csv", "scatter.png", "calibration.png"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rendered clips with five captions each: a generic dataset."""
    return make_planted(tmp_path_factory.mktemp("planted"), 10)


def evaluate(*arguments: Any, code: int = 0) -> None:
    assert memcli(["evaluate", *map(str, arguments)]) == code


def metrics_of(folder: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return entry


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_bundle_is_measured_on_what_it_scores(
    memcli_home: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_bundle(memcli_home)
    out = tmp_path / "out"
    evaluate("tiny", "--dataset", "csv", "--data", planted, "--output", out)
    shown = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == FILES
    rows, entry = rows_of(out), metrics_of(out)
    assert len(rows) == 10
    truth, predicted = (np.array([float(row[k]) for row in rows]) for k in ("truth", "predicted"))
    assert entry["metrics"]["n"] == entry["videos"] == 10
    assert entry["metrics"]["plcc"]["value"] == pytest.approx(np.corrcoef(truth, predicted)[0, 1])
    assert entry["metrics"]["mae"]["value"] == pytest.approx(abs(truth - predicted).mean())
    assert entry["left_out"] == {}
    assert entry["cross_validation"] is None
    assert (entry["model"], entry["kind"], entry["dataset"]) == ("tiny", "bundle", "csv")
    assert (entry["headline"], entry["metrics_of"]) == ("metrics", "not known")
    assert "training videos" not in shown
    assert f"SRCC  {entry['metrics']['srcc']['value']:>8.4f}" in shown
    assert "10 of 10 videos" in shown
    assert "measured bundle" in shown

    scored = tmp_path / "scores.csv"
    command = ["score", str(planted.parent / "videos"), "--model", "tiny", "-q"]
    assert memcli([*command, "--output", str(scored)]) == 0
    with scored.open(newline="") as stream:
        by_path = {Path(row["path"]).name: float(row["score"]) for row in csv.DictReader(stream)}
    assert {Path(row["path"]).name: float(row["predicted"]) for row in rows} == by_path


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engine_and_precision_are_those_asked_for(
    memcli_home: Path, planted: Path, tmp_path: Path, engine: str
) -> None:
    make_tiny_bundle(memcli_home)
    out = tmp_path / "out"
    asked = ("--engine", engine, "--precision", "fp32", "--device", "cpu")
    evaluate("tiny", "--dataset", "csv", "--data", planted, "--output", out, *asked)
    assert f"({engine} " in metrics_of(out)["measured"]
    assert metrics_of(out)["measured"].endswith(", cpu, fp32)")


def test_folder_of_a_bundle_in_the_working_folder(
    memcli_home: Path, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_tiny_bundle(memcli_home)
    shutil.move(bundle.root, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    evaluate("mine", "--dataset", "csv", "--data", planted)
    assert {path.name for path in (tmp_path / "evaluation-tiny").iterdir()} == FILES


def test_split_and_json(
    memcli_home: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_bundle(memcli_home)
    out = tmp_path / "out"
    arguments = ["tiny", "--dataset", "csv", "--data", planted, "--output", out, "--json"]
    evaluate(*arguments, "--split", "dev")
    entry = json.loads(capsys.readouterr().out)
    assert entry == metrics_of(out)
    assert (entry["split"], entry["videos"]) == ("dev", 2)
    before = (out / "metrics.json").read_bytes()
    evaluate(*arguments, "--split", "train", code=2)
    error = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert "evaluation of something else" in json.dumps(error)
    assert (out / "metrics.json").read_bytes() == before


def test_captions_need_no_videos(memcli_home: Path, tmp_path: Path) -> None:
    make_text_bundle(memcli_home)
    captions = {f"v{i}.mp4": tuple("a dog " * (i + k) for k in range(1 + i % 2)) for i in range(6)}
    table = tmp_path / "data" / "clips.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "score", "caption"))
        for number, (name, texts) in enumerate(captions.items()):
            writer.writerows((name, 0.3 + 0.1 * number, text or "a") for text in texts)
    out = tmp_path / "out"
    evaluate("tiny-text", "--dataset", "csv", "--data", table, "--output", out)
    for row in rows_of(out):
        texts = [text.strip() or "a" for text in captions[Path(row["id"]).name]]
        assert float(row["predicted"]) == pytest.approx(text_score([texts])[0], abs=1e-5)
    assert metrics_of(out)["metrics"]["n"] == 6


def test_frames_and_captions_together(memcli_home: Path, planted: Path, tmp_path: Path) -> None:
    make_text_bundle(memcli_home, frames=True)
    out = tmp_path / "out"
    evaluate("tiny-fusion", "--dataset", "csv", "--data", planted, "--output", out)
    assert metrics_of(out)["metrics"]["n"] == 10


@pytest.fixture
def damaged(planted: Path, tmp_path: Path) -> Path:
    """The dataset with one video that does not decode and one that is not there."""
    folder = tmp_path / "damaged"
    shutil.copytree(planted.parent, folder)
    (folder / "videos" / "clip0003.mp4").write_bytes(b"this is no video" * 100)
    (folder / "videos" / "clip0005.mp4").unlink()
    return folder / planted.name


def test_what_cannot_be_scored_is_said_and_left_out(
    memcli_home: Path, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_bundle(memcli_home)
    out = tmp_path / "out"
    evaluate("tiny", "--dataset", "csv", "--data", damaged, "--output", out, code=1)
    rows = {Path(row["id"]).stem: row for row in rows_of(out)}
    assert rows["clip0005"]["error"] == "no video file"
    assert rows["clip0003"]["error"]
    assert rows["clip0003"]["predicted"] == ""
    assert rows["clip0000"]["error"] == ""
    entry = metrics_of(out)
    assert (entry["videos"], entry["metrics"]["n"], len(entry["left_out"])) == (10, 8, 2)
    shown = capsys.readouterr().out
    assert "8 of 10 videos" in shown
    assert "2 left out:" in shown


def test_nothing_that_can_be_scored_is_an_error(
    memcli_home: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_bundle(memcli_home)
    table = tmp_path / planted.name
    shutil.copy(planted, table)
    out = tmp_path / "out"
    evaluate("tiny", "--dataset", "csv", "--data", table, "--output", out, code=2)
    assert "not one of 10 videos can be scored" in capsys.readouterr().err
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("nothing-of-that-name", "--dataset", "csv"), "no model called", 3),
        (("vision", "--dataset", "csv"), "no trained head", 3),
        (("vision", "--run", "--dataset", "csv"), "not been trained", 3),
        (("tiny", "--dataset", "imagenet"), "unknown dataset", 2),
        (("tiny", "--dataset", "csv", "--target", "long-term"), "no long-term scores", 2),
        (("tiny", "--dataset", "csv", "--split", "test"), "Splits with scores: dev, train", 2),
        (("tiny", "--dataset", "csv", "--device", "quantum"), "quantum", 2),
        (("tiny", "--dataset", "csv", "--precision", "int8"), "installed at fp32, not at int8", 3),
        (("tiny", "--dataset", "csv", "--engine", "quantum"), "quantum", 2),
    ],
)
def test_bad_requests_say_what_is_wrong(
    memcli_home: Path,
    planted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
    code: int,
) -> None:
    make_tiny_bundle(memcli_home)
    out = tmp_path / "out"
    assert memcli(["evaluate", *arguments, "--data", str(planted), "--output", str(out)]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not out.exists() or not list(out.iterdir())


def test_folder_of_something_else_is_not_overwritten(
    memcli_home: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_bundle(memcli_home)
    out = tmp_path / "out"
    out.mkdir()
    for content in ("{}", "no JSON", "[1]", '{"model": "other"}', "[" * 100_000):
        (out / "metrics.json").write_text(content)
        evaluate("tiny", "--dataset", "csv", "--data", planted, "--output", out, code=2)
        assert "evaluation of something else" in capsys.readouterr().err
        assert (out / "metrics.json").read_text() == content


def test_names_from_outside_are_harmless(
    memcli_home: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_bundle(memcli_home)
    folder = tmp_path / "data"
    folder.mkdir()
    names = ["=1+1.mp4", "\x1b[31mred.mp4", "a,b.mp4", "@sum.mp4"]
    with (folder / "clips.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "score"))
        for number, name in enumerate(names):
            shutil.copy(planted.parent / "videos" / f"clip000{number}.mp4", folder / name)
            writer.writerow((name, 0.2 * (number + 1)))
    (folder / names[1]).write_bytes(b"no video")
    out = tmp_path / "out"
    evaluate("tiny", "--dataset", "csv", "--data", folder, "--output", out, code=1)
    shown = capsys.readouterr()
    text = (out / "predictions.csv").read_text()
    assert "\x1b" not in text + shown.out + shown.err
    assert not [row for row in rows_of(out) if row["id"].startswith(("=", "@"))]
    assert metrics_of(out)["metrics"]["n"] == 3


def test_bundle_of_the_same_dataset_is_warned_of(
    memcli_home: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_tiny_bundle(memcli_home)
    manifest = bundle.root / "manifest.json"
    entry = json.loads(manifest.read_text())
    entry["training"] = {"dataset": {"name": "csv", "target": "raw"}}
    manifest.write_text(json.dumps(entry))
    out = tmp_path / "out"
    evaluate("tiny", "--dataset", "csv", "--data", planted, "--output", out)
    shown = capsys.readouterr()
    assert "warning: this bundle was trained on csv, too" in shown.err
    lines = shown.out.splitlines()
    place = lines.index("videos that it may have been trained on:")
    assert lines[place - 2].startswith("no figures of held-out videos")
    assert lines[place + 2].startswith("SRCC")
    found = metrics_of(out)
    assert (found["headline"], found["metrics_of"]) == (None, "perhaps training videos")
    assert found["trained_on"] is None


def make_twins(folder: Path, planted: Path, captions: tuple[str, str]) -> Path:
    """A dataset in which two ids name one file; there is a third video."""
    (folder / "videos").mkdir(parents=True)
    for number in (0, 1):
        shutil.copy(planted.parent / "videos" / f"clip000{number}.mp4", folder / "videos")
    table = folder / "clips.csv"
    table.write_text(
        f"path,score,caption\nclip0000.mp4,0.2,{captions[0]}\n"
        f"videos/clip0000.mp4,0.4,{captions[1]}\nclip0001.mp4,0.6,a\n"
    )
    return table


def test_two_ids_of_one_file_both_have_its_score(
    memcli_home: Path, planted: Path, tmp_path: Path
) -> None:
    make_tiny_bundle(memcli_home)
    table = make_twins(tmp_path / "data", planted, ("a", "a dog"))
    out = tmp_path / "out"
    evaluate("tiny", "--dataset", "csv", "--data", table, "--output", out)
    predicted = {row["id"]: float(row["predicted"]) for row in rows_of(out)}
    assert predicted["clip0000.mp4"] == predicted["videos/clip0000.mp4"]
    assert predicted["clip0000.mp4"] != predicted["clip0001.mp4"]


def test_two_ids_of_one_file_have_captions_of_their_own(
    memcli_home: Path, planted: Path, tmp_path: Path
) -> None:
    make_text_bundle(memcli_home, frames=True)
    found = {}
    for name, captions in {
        "both": ("a", "a dog a dog"),
        "short": ("a", "a"),
        "long": ("a dog a dog", "a dog a dog"),
    }.items():
        out = tmp_path / name
        table = make_twins(tmp_path / f"data-{name}", planted, captions)
        evaluate("tiny-fusion", "--dataset", "csv", "--data", table, "--output", out)
        found[name] = {row["id"]: float(row["predicted"]) for row in rows_of(out)}
    first, second, third = "clip0000.mp4", "videos/clip0000.mp4", "clip0001.mp4"
    assert found["short"][first] == found["short"][second]
    assert found["both"][first] == found["short"][first]
    assert found["both"][second] == found["long"][second] != found["short"][second]
    assert found["both"][third] == found["short"][third]


def test_the_next_command_is_quoted_for_the_shell(
    memcli_home: Path, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_bundle(memcli_home)
    folder = tmp_path / "my data; echo"
    folder.mkdir()
    shutil.copy(planted, folder)
    evaluate("tiny", "--dataset", "csv", "--data", folder, "--output", tmp_path / "out", code=2)
    assert f"memcli dataset check '{folder}'" in capsys.readouterr().err


@pytest.mark.parametrize("order", [("early-fusion", "--run", "RUN"), ("--run", "RUN", "vision")])
def test_run_takes_no_folder(
    order: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my run").mkdir()
    words = [str(tmp_path / "my run") if word == "RUN" else word for word in order]
    assert memcli(["evaluate", *words, "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "--run takes no folder" in error
    assert f"memcli evaluate '{tmp_path}/my run' --data DIR" in error
    assert memcli(["evaluate", *words, "and", "more", "--data", str(tmp_path)]) == 2
    assert "unexpected extra argument" in capsys.readouterr().err
