"""`--calibration N`: videos that the model was trained on; and what is said of other inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from media import make_video
from tiny_bundle import make_text_bundle, make_tiny_bundle

from memcli.commands.export import command
from memcli.engines.bundle import hash_files, read_bundle, verify_files, write_manifest
from memcli.errors import ModelError, UsageError
from memcli.exporting import ExportRequest, check_inputs, parse_calibration
from memcli.home import home
from memcli.models.encoders import TOLERANCES
from memcli.precisions import training_videos


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset of five videos, and what a run of `tiny` on it tells."""
    from memcli.train.run import Run

    rows = ["path,score"]
    for number in range(5):
        make_video(tmp_path / f"{number}.mp4", frames=6 + number)
        rows.append(f"{number}.mp4,0.{number}")
    (tmp_path / "scores.csv").write_text("\n".join(rows))
    folder = home() / "runs" / "tiny" / "one"
    folder.mkdir(parents=True)
    bundle = make_tiny_bundle(home())
    run = Run(
        folder,
        bundle.spec,
        dataset={"name": "csv", "root": str(tmp_path / "scores.csv"), "target": "raw"},
        seed=5,
        encoders=(),
        dims={},
        status="complete",
        files={},
        created="2026-01-31T10:15:00+00:00",
    )
    (folder / "run.json").write_text(json.dumps(run.to_dict()))
    (folder.parent / "latest").write_text("one\n")
    return tmp_path


def test_videos_of_the_training_are_spread_over_it(dataset: Path) -> None:
    found = training_videos("tiny", 3)
    assert found == [str(dataset / f"{number}.mp4") for number in (0, 2, 4)]
    with pytest.raises(UsageError, match="csv has 5 videos here, fewer than 6"):
        training_videos("tiny", 6)
    (dataset / "scores.csv").unlink()
    with pytest.raises(UsageError, match="tiny was trained on csv, which is no longer here"):
        training_videos("tiny", 3)


def test_without_a_run_a_number_is_refused_before_the_work() -> None:
    make_tiny_bundle(home())
    request = ExportRequest(("tiny",), ("int8",), calibration=30)
    with pytest.raises(UsageError, match="no training run on this machine tells which"):
        check_inputs(request, ("tiny",))


def test_export_takes_a_number(dataset: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the gate's runtime")
    bundle = read_bundle(home() / "bundles" / "tiny")
    write_manifest(replace(bundle, spec=replace(bundle.spec, tolerances=dict(TOLERANCES))))
    result = CliRunner().invoke(command, ["tiny", "--fp16", "--calibration", "3"])
    assert result.exit_code == 0, result
    _, real = read_bundle(bundle.root).variants["fp16"].parity
    assert real["inputs"] == "clips of 3 videos"


def test_numbers_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_calibration("64") == 64
    Path("64").mkdir()
    assert parse_calibration("64") == Path("64")
    for text in ("", "0", "513", "9" * 50, "-3", "x", "\u0663"):
        with pytest.raises(UsageError, match="--calibration"):
            parse_calibration(text)


def test_a_folder_without_videos(tmp_path: Path) -> None:
    make_tiny_bundle(home())
    result = CliRunner().invoke(command, ["tiny", "--int8", "--calibration", str(tmp_path)])
    assert "Name a folder that has videos in it" in str(result.exception)
    assert "score it" not in str(result.exception)


@pytest.mark.parametrize(
    ("published", "file", "step"),
    [
        (True, "fp32/model.onnx", "memcli models pull tiny"),
        (False, "fp32/model.onnx", "Export its training run again: memcli export tiny-text"),
        (True, "int8-12345678/model.onnx", "memcli export tiny --int8 --calibration DIR"),
        (True, "fp16-12345678/model.onnx", "memcli export tiny --fp16"),
    ],
)
def test_a_damaged_file_says_what_makes_it_again(published: bool, file: str, step: str) -> None:
    bundle = make_tiny_bundle(home()) if published else make_text_bundle(home())
    path = bundle.root / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((bundle.root / "fp32/model.onnx").read_bytes())
    files = bundle.variants["fp32"].files | hash_files(bundle.root, [file])
    path.write_bytes(b"")
    with pytest.raises(ModelError) as caught:
        verify_files(bundle, replace(bundle.variants["fp32"], files=files))
    assert step in str(caught.value)
    assert "NAME" not in str(caught.value)
