"""`memcli dataset check --dataset eeg`: all problems at once, raw recordings, without torch."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

mne = pytest.importorskip("mne")

from memcli.app import run as memcli  # noqa: E402
from memcli.errors import MissingDependencyError  # noqa: E402
from memcli.spec import EegPrep  # noqa: E402
from memcli.train.datasets import DatasetError  # noqa: E402
from memcli.train.eeg.reading import Source, read  # noqa: E402

CHANNELS = ("Fz", "Cz", "Pz")
PREP = EegPrep(channels=("?",), duration_s=3.0)


def arrays(path: Path, names: Sequence[str] = CHANNELS, epochs: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).normal(0, 10, (epochs, len(names), 300))
    label = np.arange(epochs) % 2
    np.savez(path, data=data, sfreq=100.0, ch_names=np.array(names), label=label)
    return path


def raw(path: Path, events: Sequence[str] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).normal(0, 1e-5, (3, 8000))
    made = mne.io.RawArray(data, mne.create_info(list(CHANNELS), 100.0, "eeg"), verbose=False)
    made.set_annotations(mne.Annotations(2.0 + 11 * np.arange(len(events)), 0, list(events)))
    made.save(path, verbose="error")
    return path


def table(path: Path, columns: str, rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns.split(","))
        writer.writerows(rows)
    return path


def check(folder: Path, *more: str) -> int:
    return memcli(["dataset", "check", str(folder), "--dataset", "eeg", *more])


def taken(folder: Path) -> tuple[tuple[str, ...], str]:
    found = read(Source(folder), PREP)
    return found.prep.channels, "\n".join(found.notes)


def test_the_channels_that_all_recordings_have_are_taken(tmp_path: Path) -> None:
    for stem, names in (("a", "Fz,Cz,Pz,Oz"), ("b", "C3,Oz,Pz,Cz"), ("c", "Pz,EEG OZ-REF,C3,C4")):
        arrays(tmp_path / f"{stem}.npz", names.split(","))
    channels, notes = taken(tmp_path)
    assert channels == ("Pz", "Oz")
    assert "2 channels common to all 3 recordings taken, 4 left out" in notes
    assert all(name in notes for name in ("Fz", "Cz", "C3", "C4"))


def test_of_other_systems_too(tmp_path: Path) -> None:
    arrays(tmp_path / "a.npz", ("E5", "E6", "E7", "Cz"))
    arrays(tmp_path / "b.npz", ("E6", "E5", "E8", "Cz"))
    channels, notes = taken(tmp_path)
    assert channels == ("E5", "E6", "Cz")
    assert "2 channels taken that are no electrodes by name: E5, E6;" in notes
    assert "2 left out that some of them lack: E7, E8;" in notes


@pytest.mark.parametrize(
    ("names", "said"),
    [(["Fz"], "no EEG channel is common"), (["Oz"], "only Oz common"), (["P3", "Fz"], "no EEG")],
)
def test_hardly_a_channel_in_common_is_refused(tmp_path: Path, names: list[str], said: str) -> None:
    for stem in "ab":
        arrays(tmp_path / f"{stem}.npz", ("Oz", "Cz", "Pz", "C3", "C4"))
    arrays(tmp_path / "c.npz", names)
    with pytest.raises(DatasetError, match=said) as caught:
        read(Source(tmp_path), PREP)
    assert "c.npz" in str(caught.value)
    assert "--channels" in str(caught.value)
    (tmp_path / "c.npz").unlink()
    assert taken(tmp_path)[0] == ("Oz", "Cz", "Pz", "C3", "C4")


def test_all_problems_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stem in ("fine", "other"):
        arrays(tmp_path / f"{stem}.npz")
    (tmp_path / "broken.fif").write_bytes(b"nothing")
    rows = [("fine.npz", 1, "s", "x"), ("fine.npz", 2, "s", 0), ("fine.npz", "z", "s", 1)]
    table(tmp_path / "labels.csv", "file,epoch,subject,label", [*rows, ("fine.npz", 2, "s", 1)])
    assert check(tmp_path) == 1
    told = capsys.readouterr().out
    places = ("broken.fif: ", "labels.csv:2: fine.npz, epoch 1: ", "labels.csv:4: ")
    for said in (*places, "labels.csv:5: names the same epoch a second time", "4 errors"):
        assert said in told
    assert check(tmp_path, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert len(report["problems"]) == 4
    assert (report["recordings"], report["epochs"]) == (2, 11)


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert check(tmp_path / "none") == check(tmp_path / "empty") == 2
    capsys.readouterr()
    arrays(tmp_path / "a" / "a.npz")
    assert check(tmp_path / "a") == 0
    assert "no problem found" in capsys.readouterr().out
    assert check(tmp_path / "a", "--decode") == 2
    assert check(tmp_path / "a", "--event", "(") == 2
    assert memcli(["dataset", "check", str(tmp_path / "a"), "--event", "clip"]) == 2
    assert "add  --dataset eeg" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.fif").write_bytes(b"nothing")
    assert check(tmp_path / "b") == 1


def test_raw_recordings_by_the_options_of_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("sub-01", "sub-02"):
        raw(tmp_path / "data" / f"{name}_raw.fif", ["clip/old", "clip/new", "other"] * 2)
    assert check(tmp_path / "data") == 1
    capsys.readouterr()
    assert check(tmp_path / "data", "--event", "clip", "--recognised", "old", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["epochs"], report["recognised"]) == (8, 4)
    assert report["subjects"] == {"01": 4, "02": 4}
    onsets = table(tmp_path / "on.csv", "onset_s,label", [(11 * i, i % 2) for i in range(4)])
    words = ("--onsets", str(onsets), "--channels", "Pz", "--json")
    assert check(tmp_path / "data", *words) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["channels"], report["epochs"]) == (["Pz"], 8)


def test_a_table_of_onsets_that_names_two_recordings_by_one_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [raw(tmp_path / "data" / folder / "a_raw.fif") for folder in "xy"]
    rows: list[tuple[Any, ...]] = [("a_raw.fif", 11 * i, i % 2) for i in range(4)]
    onsets = table(tmp_path / "on.csv", "file,onset_s,label", rows)
    assert check(tmp_path / "data", "--onsets", str(onsets)) == 1
    told = capsys.readouterr().out
    assert "may be any of 2 recordings" in told
    assert str(paths[1]) in told
    with pytest.raises(DatasetError, match="any of 2"):
        read(Source(tmp_path / "data", onsets=onsets), PREP)
    rows = [(path, 11 * i, i % 2) for path in (*paths, "b.fif") for i in range(4)]
    table(onsets, "file,onset_s,label", rows)
    capsys.readouterr()
    assert check(tmp_path / "data", "--onsets", str(onsets)) == 0
    assert "4 rows of no recording" in capsys.readouterr().out
    table(onsets, "file,onset_s,label", [(paths[0], "soon", 1), (paths[1], 0, 0)])
    assert check(tmp_path / "data", "--onsets", str(onsets)) == 1
    told = capsys.readouterr().out
    assert told.count("line 2: 'soon' is no onset in seconds") == 1


def test_the_check_needs_no_torch(tmp_path: Path) -> None:
    arrays(tmp_path / "a.npz")
    code = (
        "import sys, importlib.abc as abc\n"
        "class NoTorch(abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'lightning', 'sklearn'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from memcli.app import run\n"
        f"sys.exit(run(['dataset', 'check', {str(tmp_path)!r}, '--dataset', 'eeg']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no problem found" in done.stdout


def test_without_matplotlib_both_extras_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from memcli.experiments.eeg import MODEL, reproduce_eeg
    from memcli.training.eeg_settings import EegSettings

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError) as caught:
        reproduce_eeg(EegSettings(MODEL, str(tmp_path)), tmp_path / "out")
    assert "memcli[train,eeg]" in str(caught.value)


def test_every_row_says_that_there_is_no_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("torch")
    from memcli.experiments import eeg
    from memcli.experiments.files import page
    from memcli.training.eeg_settings import EegSettings

    split = {"auroc": 0.5, "auroc_std": 0.1, "held_out": {"n": 4}}
    metrics = {"splits": {"epochs": split, "subjects": {"absent": "one subject"}}}
    spec = SimpleNamespace(trained_on="six epochs")
    run = SimpleNamespace(dataset={"test_epochs": 0}, metrics=metrics, spec=spec)

    def found(self: Any, pretext: str, *, trains: bool) -> Any:
        return self.runs.setdefault(pretext, run)

    monkeypatch.setattr(eeg._Reproduction, "_run", found)
    text = page([eeg.reproduce_eeg(EegSettings(eeg.MODEL, str(tmp_path)), tmp_path / "out")])
    rows = [line.split("|") for line in text.splitlines() if line.startswith(("| No pre", "| TCL"))]
    assert len(rows) == 5
    assert {row[5].strip() for row in rows} == {"no test split"}
    assert {row[7].strip() for row in rows} == {"not defined"}
    assert rows[0][3].strip() == "0.500 ± 0.100"
    (note,) = (line for line in text.splitlines() if "that column is not obtained" in line)
    assert "\\" not in note
    records = (tmp_path / "out" / "figures.csv").read_text()
    assert records.count("no test split") == 5
