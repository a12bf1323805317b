"""Going on with an interrupted training: the same result, what may have moved, what is refused."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import planted
import pytest
import tiny_hub
from test_training import NARROW, Watch, settings, table

from memcli.app import run as run_command
from memcli.commands.train import _settings, command
from memcli.errors import DeviceError, ModelError, OutputError, UsageError
from memcli.models import get_model
from memcli.train.datasets import DatasetError
from memcli.train.run import MODEL_FILE, Run, load_model, read_run
from memcli.training import TrainSettings, train_model
from memcli.training.resume import helps, train_anew

CLIPS = 10
MACHINE = TrainSettings("brr", "", Path(), device="cpu")


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    planted.make_planted(folder, CLIPS)
    return folder


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"siglip": str(tiny_hub.make_siglip(tmp_path_factory.mktemp("siglip")))}


@pytest.fixture
def movable(clips: Path, hub: dict[str, str], tmp_path: Path) -> TrainSettings:
    """Of a training that may be interrupted, with a dataset and an encoder of its own."""
    shutil.copytree(clips, tmp_path / "data")
    shutil.copytree(hub["siglip"], tmp_path / "encoder")
    encoder = str(tmp_path / "encoder")
    return settings("brr", tmp_path / "data", encoder=encoder, output=tmp_path / "run", seed=3)


class AfterTheFirstFold(Watch):
    """Interrupts there."""

    def message(self, text: str) -> None:
        super().message(text)
        if text.startswith("fold 1"):
            raise KeyboardInterrupt


def interrupted(wanted: TrainSettings) -> Path:
    """The folder of a run that was."""
    with pytest.raises(KeyboardInterrupt):
        train_model(wanted, AfterTheFirstFold())
    assert wanted.output is not None
    return wanted.output


def refused(run: Path, machine: TrainSettings = MACHINE) -> str:
    """The error of going on with a run, which says nothing of going on."""
    watch = Watch()
    with pytest.raises(UsageError) as caught:
        train_model(machine, watch, resume=run)
    assert not any("--resume" in one for one in watch.messages)
    assert "--resume" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("stop_at", [("fold 2 of 2", 2), ("all videos", 2)])
def test_resumed_is_as_uninterrupted(
    clips: Path, hub: dict[str, str], tmp_path: Path, stop_at: tuple[str, int]
) -> None:
    wanted = settings(
        "vision", clips, encoder=hub["siglip"], epochs=3, options=NARROW, save_every_s=0.0
    )
    whole = train_model(wanted)
    watch = Watch(stop_at)
    output = tmp_path / "my run"
    with pytest.raises(KeyboardInterrupt):
        train_model(replace(wanted, output=output), watch)
    assert any(f"memcli train vision --resume '{output}'" in text for text in watch.messages)
    assert read_run("vision").folder == whole.folder
    again = Watch()
    resumed = train_model(TrainSettings("vision", "", Path(), device="cpu"), again, resume=output)
    assert again.epochs[0] == stop_at
    assert ("fold 1 of 2", 1) not in again.epochs
    assert resumed.metrics == whole.metrics
    assert resumed.settings == whole.settings
    names = (MODEL_FILE, "fold-1.safetensors", "fold-2.safetensors")
    assert [resumed.files[name] for name in names] == [whole.files[name] for name in names]
    for name in ("predictions.csv", "split.csv"):
        assert (output / name).read_text() == (whole.folder / name).read_text()
    assert read_run("vision").folder == output


@pytest.mark.parametrize("column", ["score", "group", "video"])
def test_a_changed_dataset_is_not_gone_on_with(
    clips: Path, hub: dict[str, str], tmp_path: Path, column: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(clips, data)
    wanted = settings("brr", data, encoder=hub["siglip"], output=tmp_path / "run")

    run = interrupted(wanted)
    rows = table(data / "planted.csv")
    if column == "video":
        with (data / rows[0]["path"]).open("ab") as stream:
            stream.write(b"more")
    for row in rows:
        if row["path"] == rows[0]["path"] and column != "video":
            row[column] = "0.5"
    with (data / "planted.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    said = refused(run)
    assert "the dataset has changed since this training began" in said
    assert (
        f"memcli train brr --dataset csv --data {data} --folds 2 --encoder {hub['siglip']}" in said
    )


def test_precision_and_encoder_of_a_run_are_kept_when_it_is_resumed_elsewhere(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "siglip").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    wanted = settings("vision", clips, encoder="models/siglip", text_encoder="owner/name")
    entry = json.loads(json.dumps(replace(wanted, precision="bf16", devices=2).to_dict()))
    run = Run(Path(), get_model("vision"), {}, 0, (), {}, "training", settings=entry)
    found = TrainSettings("vision", "", Path()).resumed(run)
    assert (found.precision, found.devices, found.auto_batch) == ("bf16", 2, False)
    assert found.encoder == str(tmp_path / "models" / "siglip")
    assert found.text_encoder == "owner/name"
    other = TrainSettings("vision", "", Path(), devices=1, auto_batch=True).resumed(run)
    assert (other.devices, other.auto_batch) == (1, True)


def test_settings_in_a_run_are_plain_json(clips: Path) -> None:
    wanted = settings("vision", clips, options=NARROW, encoder="x", output=Path("y"))
    entry = json.loads(json.dumps(wanted.to_dict()))
    assert "device" not in entry
    run = Run(Path(), get_model("vision"), {}, 0, (), {}, "training", settings=entry)
    machine = TrainSettings("vision", "", Path(), device="cpu", workers=3)
    found = machine.resumed(run)
    assert found == replace(wanted, output=None, device="cpu", workers=3, data=clips.absolute())
    strange: dict[str, Any] = {
        "more": 1, "data": 3, "epochs": "3", "seed": None, "folds": True, "options": {"a": []},
        "model": ["vision"], "split": "half", "max_missing": "5", "learning_rate": [],
    }  # fmt: skip
    for broken in ({}, *(entry | {name: value} for name, value in strange.items())):
        with pytest.raises(ModelError, match="another version, or damaged"):
            machine.resumed(replace(run, settings=broken))


def test_a_dataset_and_an_encoder_that_moved_are_named(
    movable: TrainSettings, tmp_path: Path
) -> None:
    whole = train_model(replace(movable, output=tmp_path / "whole"))
    run = interrupted(movable)
    (tmp_path / "data").rename(tmp_path / "other data")
    (tmp_path / "encoder").rename(tmp_path / "other encoder")
    data, encoder = tmp_path / "other data", str(tmp_path / "other encoder")
    said = refused(run)
    assert f"the dataset of this run was at {movable.data}\n" in said
    assert "Put it back, or name it:  --data DIR" in said
    said = refused(run, replace(MACHINE, data=data))
    assert f"the encoder folder {movable.encoder} of this run is gone\n" in said
    assert "--encoder FOLDER" in said
    found = train_model(replace(MACHINE, data=data, encoder=encoder), resume=run)
    predictions = (run / "predictions.csv").read_text()
    assert predictions == (whole.folder / "predictions.csv").read_text()
    assert found.files == whole.files
    # It is where it lies now that the run has from now on.
    assert found.dataset["root"] == found.settings["data"] == str(data)
    assert found.settings["encoder"] == found.encoders[0].folder == encoder
    load_model(read_run(run), report=print)


def test_another_dataset_or_encoder_in_their_place_is_refused(
    movable: TrainSettings, clips: Path, tmp_path: Path
) -> None:
    run = interrupted(movable)
    other = tiny_hub.make_siglip(tmp_path / "other", seed=1)
    planted.make_planted(tmp_path / "others", CLIPS, seed=1)
    said = refused(run, replace(MACHINE, encoder=str(other)))
    assert said.startswith(f"{other}: the vision encoder is not the one that this training began")
    assert f"--encoder {other} --seed 3" in said
    said = refused(run, replace(MACHINE, data=tmp_path / "others"))
    assert said.startswith(f"{tmp_path / 'others'}: the dataset has changed")
    assert read_run(run, unfinished=True).settings["encoder"] == movable.encoder
    # Weights that changed where they are.
    shutil.copy(other / "model.safetensors", tmp_path / "encoder")
    assert "the vision encoder is not the one" in refused(run)


def test_a_dataset_that_changed_before_its_videos_were_noted(clips: Path, tmp_path: Path) -> None:
    """The contrastive adaptation comes first; what it has seen must not be another dataset."""
    encoder = str(tiny_hub.make_clip(tmp_path / "clip"))
    wanted = settings("fclip-text", clips, encoder=encoder, output=tmp_path / "run", epochs=1)
    with pytest.raises(KeyboardInterrupt):
        train_model(replace(wanted, adaptation_epochs=2), Watch(stop_at=("adaptation", 1)))
    planted.make_planted(tmp_path / "others", CLIPS, seed=1)
    said = refused(tmp_path / "run", replace(MACHINE, data=tmp_path / "others"))
    assert "the dataset has changed" in said


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), True),
        (OutputError("disk full"), True),
        (DeviceError("no memory"), True),
        (MemoryError(), True),
        (DatasetError("changed"), False),
        (UsageError("gone"), False),
        (ModelError("diverged"), False),
    ],
)
def test_going_on_is_advised_where_it_helps(error: BaseException, expected: bool) -> None:
    assert helps(error) is expected
    of_interrupt = ModelError("cannot be loaded")
    of_interrupt.__cause__ = KeyboardInterrupt()
    assert helps(of_interrupt)


def test_the_command_to_train_anew_gives_the_same_settings(tmp_path: Path) -> None:
    data, encoder = tmp_path / "my data", tmp_path / "my encoder"
    data.mkdir()
    encoder.mkdir()
    wanted = TrainSettings(
        "late-fusion",
        "csv",
        data,
        target="raw",
        split="official",
        folds=3,
        encoder=str(encoder),
        text_encoder="owner/name@main",
        epochs=4,
        batch_size=5,
        learning_rate=1e-5,
        frames=6,
        options={"width": 16, "alpha": 0.25},
        choose_alpha=True,
        max_missing=0.07,
        seed=8,
        precision="bf16",
        devices=2,
        auto_batch=True,
    )
    for one in (wanted, TrainSettings("brr", "csv", data, devices=1)):
        program, name, *words = shlex.split(train_anew(one))
        assert (program, name) == ("memcli", "train")
        with command.make_context("train", words) as context:
            given: dict[str, Any] = dict(context.params)
            del given["as_json"]
            with context.scope():
                found = _settings(given.pop("model"), given.pop("resume"), given)
        assert found == one
    adapted = TrainSettings("fclip-text", "csv", data, adaptation_epochs=2, features="x")
    assert train_anew(adapted).endswith(" --adaptation-epochs 2 --features x")


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_folder_with_a_run_of_another_model_says_whose_it_is(
    movable: TrainSettings, unfinished: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = interrupted(movable) if unfinished else train_model(movable).folder
    line = f"train vision --dataset csv --data {movable.data} --device cpu --output {run}"
    capsys.readouterr()
    assert run_command(line.split()) == 2
    error = capsys.readouterr().err
    assert f"holds {'an unfinished' if unfinished else 'a complete'} run of brr" in error
    assert "--output DIR" in error
    assert "memcli train vision --resume" not in error
    assert (f"memcli train brr --resume {run}\n" in error) is unfinished


def test_the_command_takes_where_things_lie_now(
    movable: TrainSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = interrupted(movable)
    for name in ("data", "encoder"):
        (tmp_path / name).rename(tmp_path / f"moved-{name}")
    monkeypatch.chdir(tmp_path / "moved-data")
    words = ["train", "brr", "--resume", str(run), "--device", "cpu", "--data", "."]
    assert run_command([*words, "--seed", "1"]) == 2
    assert "--seed: a resumed training keeps its settings" in capsys.readouterr().err
    assert run_command(words) == 2
    assert "is gone" in capsys.readouterr().err
    assert run_command([*words, "--encoder", "../moved-encoder"]) == 0
