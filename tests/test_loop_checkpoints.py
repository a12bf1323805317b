"""Checkpoints that training goes on from, as anybody may have written them."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_loop import RECIPE, trained

from memcli.errors import ModelError
from memcli.train.trainer import BEST_FILE, LAST_FILE


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
            torch.save(content, tmp_path / BEST_FILE)

    with pytest.raises(ModelError, match=r"best\.ckpt: this checkpoint is of another model"):
        trained(tmp_path, recipe, tell=change)
