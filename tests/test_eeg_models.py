"""An EEG model among models of videos: every command copes with it, or says what to use."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_eeg import NAME as TINY
from tiny_eeg import make_eeg_bundle

from memcli import store
from memcli.app import run
from memcli.commands.export import command as export
from memcli.engines.bundle import Bundle
from memcli.engines.candidates import known_record
from memcli.engines.loading import installed_runtimes
from memcli.engines.select import list_candidates, open_engine
from memcli.errors import ExitCode, UsageError
from memcli.exporting import ExportRequest, check_inputs

NAME = "eeg-cnn"


@pytest.fixture
def tiny(memcli_home: Path) -> Bundle:
    pytest.importorskip("onnxruntime", reason="the engine")
    return make_eeg_bundle(memcli_home)


def test_the_list_has_it(tiny: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    entries = {one["model"]: one for one in json.loads(capsys.readouterr().out)}
    assert entries[NAME]["input"] == "EEG, 32 channels, 11 s"
    assert entries[TINY]["input"] == "EEG, 4 channels, 2 s"
    assert entries[TINY]["installed"] == ["fp32"]
    assert run(["models"]) == 0
    assert NAME in capsys.readouterr().out


def test_show_says_what_it_takes(tiny: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "show", NAME]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "epochs 11 s from 0 s after the event, at 100 Hz, in 11 windows of 1 s" in shown
    assert "channels 32: Fp1 AF3" in shown
    assert "AUROC 0.628" in shown
    assert run(["models", "show", TINY]) == 0
    shown = capsys.readouterr().out
    assert f"channels    4: {' '.join(tiny.spec.eeg.channels)}" in shown
    assert "demonstration" not in shown


def test_show_marks_a_demonstration(memcli_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_eeg_bundle(memcli_home, demonstration=True)
    assert run(["models", "show", TINY]) == 0
    assert "probabilities mean nothing for people" in capsys.readouterr().out


SCORE = ["score", "film.mp4", "--model"]
EVALUATE = ["evaluate", "--dataset", "csv", "--data", "clips.csv"]
CROSS = ["cross", "--dataset", "csv=clips.csv", "--dataset", "csv=clips.csv"]


@pytest.mark.parametrize(
    ("words", "name"),
    [(SCORE, NAME), (SCORE, TINY), (EVALUATE, NAME), (EVALUATE, TINY), (CROSS, NAME)],
)
def test_commands_for_videos_refuse_it_in_one_line(
    words: list[str],
    name: str,
    tiny: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("scipy", reason="evaluate")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "film.mp4").write_bytes(b"none")
    (tmp_path / "clips.csv").write_text("path,score\nfilm.mp4,0.5\n")
    assert run([*words, name]) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert f"{name} is for EEG, not for videos" in error
    assert f"memcli eeg RECORDINGS --model {name}" in error
    assert "Traceback" not in error


def test_what_is_not_trained_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="the engine")
    assert run(["bench", "--model", NAME]) == ExitCode.NOT_USABLE
    error = capsys.readouterr().err
    assert f"memcli train {NAME} --data DIR" in error
    assert "memento10k" not in error


def test_bench_measures_epochs(tiny: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--model", TINY, "--engine", "onnxruntime", "--repeat", "2"]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["channels"], found["samples"], found["epochs"]) == (4, 200, 256)
    (speed,) = found["engines"]
    assert len(speed["seconds"]) == 2
    assert speed["epochs_per_s"] > 100
    assert run(words) == 0
    shown = capsys.readouterr().out
    assert "256 synthetic ones of 4 channels and 200 samples" in shown
    assert "epochs/s" in shown


@pytest.mark.parametrize("more", [["films"], ["--frames", "3"], ["--workers", "2"]])
def test_bench_refuses_what_only_videos_have(
    more: list[str], tiny: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *more, "--model", TINY]) == ExitCode.USAGE
    assert "is measured on synthetic epochs" in capsys.readouterr().err


def test_doctor_and_engines_tell_its_speed(
    tiny: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_engine(tiny, engine="onnxruntime").engine:
        pass
    assert run(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (entry,) = [one for one in report["models"]["installed"] if one["model"] == TINY]
    speeds = {one["engine"]: one["speed"] for one in entry["engines"]}
    assert speeds["onnxruntime"].endswith(" epochs/s")
    assert run(["doctor"]) == 0
    assert "epochs/s" in capsys.readouterr().out


def test_records_know_that_they_are_of_epochs(tiny: Bundle) -> None:
    for runtime in installed_runtimes():
        with open_engine(tiny, engine=runtime).engine:
            pass
        (candidate,) = list_candidates(tiny, engine=runtime, device="auto", precision="auto")
        version = importlib.import_module(runtime).__version__
        record = known_record(candidate, version)
        assert record is not None
        assert record.of == "epochs"


def test_light_files_are_refused(tiny: Bundle, tmp_path: Path) -> None:
    words = [TINY, "--light", "--output", str(tmp_path / "x.memcli")]
    result = CliRunner().invoke(export, words)
    assert isinstance(result.exception, UsageError), result
    assert not (tmp_path / "x.memcli").exists()


def test_packing_and_adding(tiny: Bundle, tmp_path: Path) -> None:
    packed = tmp_path / "x.memcli"
    assert run(["export", TINY, "--output", str(packed)]) == 0
    store.remove(TINY)
    added = store.add(packed)
    assert added.spec == tiny.spec
    assert added.variants == tiny.variants


def test_recordings_calibrate_eeg_models_only() -> None:
    def check(*models: str, **given: Any) -> None:
        check_inputs(ExportRequest(models, ("int8",), **given), models)

    check(NAME, calibration=Path())
    with pytest.raises(UsageError, match="no captions are read by"):
        check(NAME, captions=Path())
    with pytest.raises(UsageError, match="no frames are read by"):
        check("text", calibration=Path())
