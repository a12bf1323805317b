"""Checkpoints that training goes on from, as anybody may have written them."""

from __future__ import annotations

import math
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import RECIPE, Scripted, scripted_examples, trained
from tiny_examples import DIM, examples

from memcli.errors import ModelError, OutputError
from memcli.spec import HeadSpec
from memcli.train.heads import make_head
from memcli.train.loop import FitSettings, fit
from memcli.train.trainer import BEST_FILES, LAST_FILE, Machine


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["garbage", "pickle", "torch", "other"])
def test_a_bad_checkpoint_is_refused_and_never_executed(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / LAST_FILE
    if kind == "garbage":
        path.write_bytes(b"PK\3\4 nothing")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "torch":
        torch.save({"state_dict": Evil()}, path)
    else:
        torch.save({"state_dict": {"model.other": torch.zeros(1)}}, path)
    with pytest.raises(ModelError, match="checkpoint"):
        trained(tmp_path)
    assert not (tmp_path / "executed").exists()


def interrupted(folder: Path) -> Path:
    """What an interrupt after the second epoch leaves."""

    def interrupt(epoch: int, _: dict[str, float]) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(folder, tell=interrupt)
    return folder / LAST_FILE


ENTRY = {"epoch": 1, "train_loss": 0.1}
CHANGES: dict[str, tuple[str, object]] = {
    "no history": ("history", None),
    "a history of text": ("history", "nan"),
    "an entry that is none": ("history", ["nan", "nan"]),
    "a loss of text": ("history", [ENTRY | {"train_loss": "nan"}, ENTRY | {"epoch": 2}]),
    "a loss that is a tensor": ("history", [ENTRY | {"val_loss": torch.zeros(3)}]),
    "no loss": ("history", [{"epoch": 1}]),
    "something else": ("history", [ENTRY | {"other": 1.0}]),
    "epochs that do not follow": ("history", [ENTRY, ENTRY]),
    "a rate that is none": ("learning_rate", math.nan),
    "a rate of nowhere": ("learning_rate_from", "elsewhere"),
    "no batch": ("batch_size", 0),
    "a batch that is true": ("batch_size", True),
    "weights that are none": ("state_dict", {"model.score.weight": 1, "model.score.bias": 2}),
    "a list of weights": ("state_dict", [1, 2]),
    "no optimiser": ("optimizer_states", None),
    "no loops": ("loops", None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_of_somebody_else_is_refused(tmp_path: Path, change: str) -> None:
    path = interrupted(tmp_path)
    content = torch.load(path, weights_only=True)
    name, value = CHANGES[change]
    content[name] = value
    if value is None:
        del content[name]
    torch.save(content, path)
    with pytest.raises(ModelError, match="this checkpoint is of another model") as error:
        trained(tmp_path)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("content", [{}, {"state_dict": {}, "epoch": 0}, {"epoch": "1"}])
def test_the_best_weights_of_somebody_else_are_refused(
    tmp_path: Path, content: dict[str, object]
) -> None:
    recipe = replace(RECIPE, monitor="val_loss", learning_rate=1e-12)

    def change(epoch: int, _: dict[str, float]) -> None:
        if epoch == recipe.epochs:
            (path,) = tmp_path.glob(BEST_FILES)
            torch.save(content, path)

    with pytest.raises(ModelError, match=r"best-0\.ckpt: this checkpoint is of another model"):
        trained(tmp_path, recipe, tell=change)


SPARSE = replace(RECIPE, unit="video", batch_size=64, epochs=8, monitor="val_loss")


def best_at(*epochs: int) -> Scripted:
    """A model that is better at each of these epochs than ever before."""
    return Scripted(lambda epoch: 0.5 + 0.05 * epoch if epoch in epochs else 0.4)


@pytest.mark.parametrize("moved", [False, True])
def test_a_resumed_training_has_the_best_weights_of_its_own_course(
    tmp_path: Path, moved: bool
) -> None:
    """The newest state to resume is of epoch 3; epoch 5, the best one, was forgotten."""
    folder = tmp_path / "run"

    def spare(epoch: int, _: dict[str, float]) -> None:
        if epoch == 4:
            kept = [path.name for path in folder.glob(BEST_FILES)]
            assert kept == ["best-1.ckpt"]
        if epoch == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), written_after(3):
        trained(folder, SPARSE, scripted_examples(), best_at(2, 5), tell=spare)
    assert sorted(path.name for path in folder.glob(BEST_FILES)) == ["best-1.ckpt", "best-4.ckpt"]
    if moved:
        folder = folder.rename(tmp_path / "elsewhere")
    _, fitted = trained(folder, SPARSE, scripted_examples(), best_at(2), machine=Machine("cpu"))
    assert fitted.best_epoch == 2
    assert fitted.state["calls"] == 2
    assert [path.name for path in folder.glob(BEST_FILES)] == ["best-1.ckpt"]


@contextmanager
def written_after(epoch: int) -> Iterator[None]:
    """Checkpoints to resume from are written at the end of this epoch only."""
    from memcli.train.trainer import LastCheckpoint

    whole = LastCheckpoint.on_train_epoch_end

    def sparse(self: LastCheckpoint, trainer: Any, module: Any) -> None:
        if trainer.current_epoch + 1 == epoch:
            whole(self, trainer, module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_epoch_end", sparse)
        yield


@pytest.mark.parametrize("lost", ["file", "name"])
def test_best_weights_that_are_gone_are_said(tmp_path: Path, lost: str) -> None:
    def interrupt(epoch: int, _: dict[str, float]) -> None:
        if epoch == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, SPARSE, scripted_examples(), best_at(2), tell=interrupt)
    (best,) = tmp_path.glob(BEST_FILES)
    if lost == "file":
        best.unlink()
    else:
        content = torch.load(tmp_path / LAST_FILE, weights_only=True)
        for state in content["callbacks"].values():
            if "best_model_path" in state:
                state["best_model_path"] = "/etc/hostname"
        torch.save(content, tmp_path / LAST_FILE)
    with pytest.raises(ModelError, match="are not beside it"):
        trained(tmp_path, SPARSE, scripted_examples(), best_at(2))


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("part", ["checkpoint", "logs", "range test"])
def test_a_full_disk_is_said_and_leaves_whole_files(tmp_path: Path, part: str) -> None:
    recipe = replace(RECIPE, monitor="val_loss", epochs=300 if part == "logs" else 12)
    work, logs = tmp_path / "work", tmp_path / "logs" if part == "logs" else None
    machine = Machine("cpu", save_every_s=60 if part == "logs" else 0)
    if part == "range test":
        recipe = replace(recipe, learning_rate=None)
    elif part == "logs":
        recipe = replace(recipe, monitor=None)
    data = examples()
    torch.manual_seed(0)
    head = make_head(HeadSpec("RegressionHead"), DIM, None)

    def run() -> None:
        sides = data.subset(range(40)), data.subset(range(40, len(data)))
        fit(head, *sides, recipe, FitSettings(3, machine, logs=logs), work)

    with files_up_to(900), pytest.raises(OutputError, match="File too large") as error:
        run()
    assert "--resume" in str(error.value)
    assert str(work) in str(error.value)
    assert list(work.iterdir()) == []
