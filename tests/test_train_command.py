"""`memcli train`: options, the table, JSON, interrupts, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import planted
import pytest
import tiny_hub

from memcli.app import run as run_command
from memcli.train.run import read_run, runs_dir


@pytest.fixture(scope="session")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_hub.make_siglip(tmp_path_factory.mktemp("siglip")))


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    planted.make_planted(folder, 16)
    return folder


def arguments(model: str, clips: Path, siglip: str, *more: str) -> list[str]:
    data = ["--dataset", "csv", "--data", str(clips), "--encoder", siglip, "--device", "cpu"]
    return ["train", model, *data, *more]


def test_table_and_next_command(
    clips: Path, siglip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments("brr", clips, siglip, "--folds", "4")) == 0
    out, err = capsys.readouterr()
    run = read_run("brr")
    rows = [line.split() for line in out.splitlines() if line.startswith("fold ")]
    assert [row[2] for row in rows] == ["4"] * 4
    srcc = [entry["metrics"]["srcc"]["value"] for entry in run.folds]
    assert [float(row[3]) for row in rows] == pytest.approx(srcc, abs=5e-5)
    assert f"mean SRCC {run.metrics['mean_srcc']:.3f}" in out
    assert "published SRCC 0.243 (MovieMem" in out
    assert "other data, not comparable" in out
    assert out.splitlines()[-1] == "next: memcli export brr"
    assert "fold 4 of 4: SRCC" in err


def test_json(clips: Path, siglip: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json", "--epochs", "1", "--folds", "2", "--frames", "2", "--seed", "7"]
    narrow = [
        part
        for option in ("width=16", "depth=1", "heads=2", "feed_forward=16", "dropout=0")
        for part in ("--set", option)
    ]
    assert run_command(arguments("vision", clips, siglip, *options, *narrow)) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["status"] == "complete"
    assert found["seed"] == 7
    assert found["spec"]["prep"]["frames"] == 2
    assert found["spec"]["head"]["options"]["dropout"] == 0
    assert found["run"] == str(read_run("vision").folder)
    assert "history" not in found["folds"][0]
    events = [json.loads(line)["event"] for line in err.splitlines() if line.startswith("{")]
    assert {"message", "features", "epoch"} <= set(events)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["brr"], 2, "what to train on is missing"),
        (["brr", "--dataset", "nope", "--data", "."], 2, "unknown dataset"),
        (["brr", "--dataset", "csv", "--data", "/nowhere"], 2, "/nowhere"),
        (["visoin", "--dataset", "csv", "--data", "."], 3, "did you mean 'vision'"),
        (["brr", "--set", "x", "--dataset", "csv", "--data", "."], 2, "not KEY=VALUE"),
        (["brr", "--resume", "/nowhere"], 2, "/nowhere: no such folder"),
        (["brr", "--resume", "/nowhere", "--epochs", "3"], 2, "keeps its settings"),
    ],
)
def test_one_line_and_an_exit_code(
    more: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["train", *more]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_a_run_of_another_model_is_not_gone_on_with(
    clips: Path, siglip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "my run; echo"
    more = ["--split", "full", "--output", str(output)]
    assert run_command(arguments("brr", clips, siglip, *more)) == 0
    for line, message, advice in (
        (["train", "vision", "--resume", str(output)], "a run of brr, not of vision", "--resume"),
        (["train", "brr", "--resume", str(output)], "complete", "memcli export brr --run"),
    ):
        capsys.readouterr()
        assert run_command(line) == 2
        error = capsys.readouterr().err
        assert message in error
        assert f"{advice} '{output}'\n" in error


def test_ctrl_c_says_how_to_go_on(clips: Path, siglip: str, memcli_home: Path) -> None:
    narrow = ["--set", "width=16", "--set", "depth=1", "--set", "heads=2"]
    line = arguments("vision", clips, siglip, "--folds", "2", "--epochs", "100000", *narrow)
    environment = os.environ | {"MEMCLI_HOME": str(memcli_home), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "memcli", *line],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not list(runs_dir("vision").glob("*/logs/fold-1/*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    (folder,) = runs_dir("vision").iterdir()
    assert f"memcli train vision --resume {folder}" in err
    assert "Traceback" not in err
    assert out == ""
