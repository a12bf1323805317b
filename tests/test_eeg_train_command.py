"""`memcli train eeg-cnn`, `memcli dataset planted-eeg` and `memcli reproduce eeg`, end to end."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("mne")
pytest.importorskip("pandas")
pytest.importorskip("lightning")
pytest.importorskip("sklearn")

from memcli.app import run as memcli  # noqa: E402
from memcli.train.eeg.loading import Source, load  # noqa: E402
from memcli.train.eeg.loop import scores  # noqa: E402
from memcli.train.eeg.planted import Planted, write_planted  # noqa: E402
from memcli.train.run import load_model, read_run  # noqa: E402
from memcli.training import eeg_fitting  # noqa: E402
from memcli.training.eeg_fitting import known_subjects  # noqa: E402

QUICK = ["--folds", "2", "--epochs", "2", "--set", "filters=4", "--set", "embedding=2"]


PLANTED = Planted(("Cz", "Pz"), subjects=3, epochs=8, sfreq_hz=100.0, test_share=0.25)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(PLANTED, tmp_path_factory.mktemp("planted") / "data")


def train(data: Path, output: Path, *more: str) -> int:
    return memcli(["train", "eeg-cnn", "--data", str(data), "--output", str(output), *QUICK, *more])


def predictions(path: Path) -> dict[str, tuple[int, float]]:
    with path.open() as stream:
        return {r["id"]: (int(r["fold"]), float(r["predicted"])) for r in csv.DictReader(stream)}


def test_a_run_holds_models_that_say_what_the_run_says(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert train(data, output, "--subject-conditioning") == 0
    told = capsys.readouterr().out
    for part in ("epochs held out", "subjects held out", "majority", "demonstration", "test"):
        assert part in told
    run = read_run(output)
    assert run.dataset["demonstration"] is True
    assert run.spec.eeg is not None
    assert run.spec.eeg.channels == ("Cz", "Pz")
    assert run.spec.eeg.subjects == ("sub-01", "sub-02", "sub-03")
    assert [entry["fold"] for entry in run.folds] == [1, 2]
    found = load(Source(data), run.spec.eeg)
    examples = known_subjects(run.spec.eeg, found.examples, found.subjects)
    said = predictions(output / "predictions.csv")
    assert len(said) == len(examples)
    for fold in (1, 2):
        own = [i for i, name in enumerate(examples.ids) if said[name][0] == fold]
        model = load_model(run, report=print, fold=fold)
        predicted = scores(model, examples.subset(own), "cpu")
        expected = [said[examples.ids[i]][1] for i in own]
        assert predicted.tolist() == pytest.approx(expected, abs=1e-5)
    strangers = predictions(output / "predictions-subjects.csv")
    by_subject = {name.split(":")[0]: fold for name, (fold, _) in strangers.items()}
    assert all(by_subject[name.split(":")[0]] == fold for name, (fold, _) in strangers.items())
    model = load_model(run, report=print)
    assert float(model.members[0].temperature) == pytest.approx(run.metrics["temperature"])
    assert not (output / "work").exists()


def test_the_ensemble_is_the_folds_models(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert train(data, output, "--ensemble", "--split", "subjects") == 0
    run = read_run(output)
    assert run.spec.head is not None
    assert run.spec.head.options["members"] == 2
    examples = load(Source(data), run.spec.eeg).examples  # type: ignore[arg-type]
    whole = scores(load_model(run, report=print), examples, "cpu")
    parts = [scores(load_model(run, report=print, fold=k), examples, "cpu") for k in (1, 2)]
    torch.testing.assert_close(whole, torch.stack(parts).mean(0))


def test_an_interrupted_training_goes_on_and_ends_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(data, tmp_path / "whole") == 0
    real, calls = eeg_fitting.EegFitting._fold, 0

    def fails(*given: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(eeg_fitting.EegFitting, "_fold", fails)
    assert train(data, tmp_path / "cut") == 130
    assert read_run(tmp_path / "cut", unfinished=True).status == "training"
    resume = ["train", "eeg-cnn", "--resume", str(tmp_path / "cut")]
    assert memcli([*resume, "--epochs", "3"]) == 2
    assert memcli(resume) == 0
    assert calls == 5  # the first fold was not trained again
    runs = [read_run(tmp_path / name) for name in ("whole", "cut")]
    assert runs[0].files == runs[1].files
    assert runs[0].metrics == runs[1].metrics


def test_folds_of_videos(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    assert train(data, output, "--split", "videos") == 0
    told = capsys.readouterr().out
    assert "videos held out" in told
    assert "6 of 6 videos have several epochs" in told
    assert "--split videos keeps" not in told
    run = read_run(output)
    assert list(run.metrics["splits"]) == ["videos", "epochs", "subjects"]
    fold_of: dict[str, set[int]] = {}
    for name, (fold, _) in predictions(output / "predictions.csv").items():
        fold_of.setdefault(name.split(":")[1], set()).add(fold)  # each has the same videos
    assert len(fold_of) == 6
    assert all(len(folds) == 1 for folds in fold_of.values())


def test_videos_on_both_sides_are_spoken_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for stem in "abcd":
        named = {"label": np.arange(4) % 2, "video": np.array([f"v{i}" for i in range(4)])}
        named["ch_names"] = np.array(["Cz", "Pz"])
        eeg = rng.normal(0, 9, (4, 2, 1100))
        np.savez(tmp_path / f"{stem}.npz", data=eeg, sfreq=100.0, **named)
    assert train(tmp_path, tmp_path / "run", "--subject-conditioning") == 2
    assert "no recording says whose it is" in capsys.readouterr().err
    assert train(tmp_path, tmp_path / "run") == 0
    told = capsys.readouterr()
    assert "4 of 4 videos have several epochs" in told.out
    assert "--split videos keeps them together" in told.out
    assert "4 recordings do not say whose they are" in told.err


def test_reproduce_shows_no_figures_of_other_data(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = shutil.copytree(data, tmp_path / "data")
    command = ["reproduce", "eeg", "--data", str(place), "-o", str(tmp_path / "out"), *QUICK]
    assert memcli([*command, "--models", "none"]) == 0
    before = {
        line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines()
        if "|" in line
    }["No pre-training"]  # fmt: skip
    shutil.rmtree(place)
    write_planted(replace(PLANTED, seed=5), place)
    assert memcli([*command, "--models", "none"]) == 1
    told = capsys.readouterr().out
    assert before not in told
    assert "the data has changed" in told


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", "eeg-cnn", "--channels", "T3,T7", "--data", "."], "named twice: T3, T7"),
        (["train", "eeg-cnn", "--split", "videos", "--folds", "9", "--data", "."], "9 videos"),
        (["train", "vision", "--split", "videos", "--data", "."], "no such split"),
        (["train", "eeg-cnn", "--frames", "8", "--data", "."], "--frames"),
        (["train", "eeg-cnn", "--split", "official", "--data", "."], "no such split"),
        (["train", "vision", "--pretext", "tcl", "--data", "."], "--pretext"),
        (["train", "vision", "--baseline", "riemann", "--data", "."], "--baseline"),
        (["train", "vision", "--split", "subjects", "--data", "."], "no such split"),
        (["train", "eeg-cnn"], "what to train on is missing"),
        (["train", "eeg-cnn", "--data", ".", "--set", "width=3"], "no option"),
        (["train", "eeg-cnn", "--data", ".", "--set", "filters=0"], "option"),
        (["train", "eeg-cnn", "--data", ".", "--high-pass", "60"], "half the rate"),
        (["train", "eeg-cnn", "--data", ".", "--high-pass", "30", "--low-pass", "2"], "no band"),
        (["train", "eeg-cnn", "--data", ".", "--event", "("], "regular expression"),
        (["train", "eeg-cnn", "--data", ".", "--pretext-epochs", "3"], "no pre-training"),
        (["train", "eeg-cnn", "--data", "./none"], "no such file"),
        (["reproduce", "eeg", "--data", ".", "--second", "csv=."], "--second"),
        (["reproduce", "eeg", "--data", ".", "--models", "vision"], "no row"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    command: list[str], said: str, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    command = [str(data) if word == "." else word for word in command]
    assert memcli(command) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


def test_more_folds_of_subjects_than_subjects(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "eeg-cnn", "--data", str(data), "--split", "subjects", "--folds", "5"]
    assert memcli(command) == 2
    assert "at least 5 subjects; there are 3" in capsys.readouterr().err


def test_the_table_of_the_paper(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "eeg", "--data", str(data), "-o", str(tmp_path / "out"), *QUICK]
    assert memcli([*command, "--models", "tcl-regress,tcl-regress-ensemble"]) == 0
    told = capsys.readouterr().out
    for row in ("0.628 ± 0.015", "0.614 ± 0.010", "0.634 ± 0.024", "0.612", "0.634 ± 0.016"):
        assert row in told
    rows = {
        line.split("|")[1].strip(): line.split("|") for line in told.splitlines() if "|" in line
    }
    assert "±" in rows["TCL-regress"][3]
    assert "(" in rows["TCL-regress ensemble"][5]
    assert "not run" in rows["TCL"][3]
    assert "Planted data" in told
    assert (tmp_path / "out" / "table-2.png").stat().st_size > 1000
    run = read_run(tmp_path / "out" / "runs" / "tcl-regress")
    assert run.folds[0]["pretext"]["epochs"] == 2
    assert memcli([*command, "--models", "tcl-regress"]) == 0  # finds it
    assert read_run(run.folder).created == run.created
    assert memcli([*command, "--seed", "1", "--models", "tcl-regress"]) == 1


def test_planted_data_by_its_command(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    plain = ["dataset", "planted-eeg", str(first), "--subjects", "1", "--epochs", "3"]
    assert memcli([*plain, "--channels", "Cz,Pz", "--sfreq", "128"]) == 0
    like = ["dataset", "planted-eeg", str(second), "--subjects", "1", "--epochs", "3"]
    assert memcli([*like, "--like", str(first / "sub-01-epo.fif")]) == 0
    described = [json.loads((one / "dataset.json").read_text()) for one in (first, second)]
    assert described[0] == described[1]
    assert described[1]["planted"]["sfreq_hz"] == 128
    assert memcli(plain) == 2
