"""Which commit of the hub a training used, where the registry pins none."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import planted
import pytest
import tiny_hub
from huggingface_hub import errors
from test_training import Watch, settings

from memcli.models import MODELS, get_model
from memcli.train.run import load_model, read_run, runs_dir
from memcli.training import TrainSettings, train_model

CLIPS = 10


class Hub:
    """Stands for snapshot_download: commits of one repository, the last of them the newest."""

    def __init__(self, folder: Path, repository: str):
        self._folder = folder / "snapshots"
        self._repository = repository
        self.newest = ""

    def commit(self, revision: str, seed: int) -> None:
        tiny_hub.make_vit(self._folder / revision, seed)
        self.newest = revision

    def __call__(
        self, repository: str, *, revision: str | None, local_files_only: bool, **_: object
    ) -> str:
        assert repository == self._repository
        if local_files_only and revision is None:
            raise errors.LocalEntryNotFoundError("the newest is not known here")
        return str(self._folder / (revision or self.newest))


def test_the_newest_is_recorded_and_kept_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memcli_home: Path
) -> None:
    planted.make_planted(tmp_path / "data", CLIPS)
    (encoder,) = get_model("vit").encoders
    assert encoder.revision is None
    hub = Hub(tmp_path, encoder.repository)
    hub.commit("a" * 40, seed=1)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    wanted = settings("vit", tmp_path / "data", epochs=2, learning_rate=0.01)
    with pytest.raises(KeyboardInterrupt):
        train_model(wanted, Watch(stop_at=("fold 2 of 2", 1)))
    hub.commit("b" * 40, seed=2)
    (folder,) = (path for path in runs_dir("vit").iterdir() if path.is_dir())
    run = train_model(wanted, resume=folder)
    entry = json.loads((run.folder / "run.json").read_text())
    assert [one["revision"] for one in entry["encoders"]] == ["a" * 40]
    assert [one["revision"] for one in entry["spec"]["encoders"]] == ["a" * 40]
    load_model(read_run("vit"), report=print)  # of that commit: its digest is compared
    again = train_model(wanted)
    assert again.encoders[0].revision == "b" * 40


def test_a_repository_that_was_named_is_kept_to_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted.make_planted(tmp_path / "data", CLIPS)
    hub = Hub(tmp_path, "owner/name")
    hub.commit("a" * 40, seed=1)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    output = tmp_path / "run"
    wanted = settings(
        "vit", tmp_path / "data", encoder="owner/name", epochs=2, learning_rate=0.01, output=output
    )
    with pytest.raises(KeyboardInterrupt):
        train_model(wanted, Watch(stop_at=("fold 2 of 2", 1)))
    hub.commit("b" * 40, seed=2)
    machine = TrainSettings("vit", "", Path(), device="cpu", offline=True)  # as it is in the cache
    run = train_model(machine, resume=output)
    assert [one.revision for one in run.encoders] == ["a" * 40]
    assert [one.repository for one in run.encoders] == ["owner/name"]
    assert run.settings["encoder"] == "owner/name"
    load_model(read_run(output), report=print)


def test_all_others_are_pinned() -> None:
    free = {one.repository for spec in MODELS.values() for one in spec.encoders if not one.revision}
    assert free == {"google/vit-base-patch32-224-in21k"}
