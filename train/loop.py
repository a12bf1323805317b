"""Trains one model on one set of examples, and predicts with it."""

from __future__ import annotations

import shutil
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memcli.spec import Recipe
from memcli.train.data import Examples, WholeVideos
from memcli.train.driver import (
    Earlier,
    Stopping,
    Tell,
    drive,
    earlier_part,
    no_tell,
    on_cpu,
    set_learning_rate,
)
from memcli.train.learner import Learner
from memcli.train.memory import InParts
from memcli.train.provenance import seeded
from memcli.train.ridge import fit_ridge
from memcli.train.trainer import Machine, halving, plainly, writing

_EVAL_ITEMS = 4096
"""Embeddings that a batch of validation holds; a head is small."""


@dataclass(frozen=True)
class FitSettings:
    """What a training needs beside the recipe."""

    seed: int = 0
    machine: Machine = field(default_factory=Machine)
    auto_batch: bool = False
    """Halve the batch size until it fits into memory."""
    logs: Path | None = None
    """Folder for TensorBoard."""


@dataclass(frozen=True)
class Fitted:
    """A trained model."""

    state: dict[str, Tensor]
    """State dict of the best epoch by the recipe's monitor, or of the last."""
    epochs: int
    """Epochs trained."""
    best_epoch: int
    """The epoch that `state` is of, counted from 1."""
    learning_rate: float
    learning_rate_from: str
    """`recipe`, `range test` or `fall-back`."""
    batch_size: int
    history: list[dict[str, float]]

    def summary(self) -> dict[str, Any]:
        """All but the weights, for run.json."""
        return {
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
            "learning_rate": self.learning_rate,
            "learning_rate_from": self.learning_rate_from,
            "batch_size": self.batch_size,
            "history": self.history,
        }


@dataclass(frozen=True)
class Predictions:
    """Scores of videos, float32 on the CPU."""

    score: Tensor
    """[N]"""
    branches: tuple[Tensor, ...]
    """Each [N]: (score,), or those of vision and text."""


def fit(
    model: nn.Module,
    train: Examples,
    validation: Examples | None,
    recipe: Recipe,
    settings: FitSettings,
    folder: Path,
    *,
    name: str = "fit",
    tell: Tell = no_tell,
) -> Fitted:
    """Train `model` in place by `recipe`; with `validation`, keep the best epoch by its monitor.

    `folder` takes the checkpoints; where it holds one of an earlier, interrupted call with the same
    arguments, the training goes on from there and ends as if it had not been interrupted. Two
    calls with the same arguments give the same weights on the same CPU.

    A recipe without learning rate has it found by a range test on `train`.
    Raises DeviceError with the batch size tried when memory does not suffice, ModelError if the
    training diverges or the checkpoint in `folder` is damaged or of another model, OutputError when
    the disk takes no more checkpoints or logs.
    """
    device = settings.machine.torch_device()
    if recipe.loss == "bayesian-ridge":
        fit_ridge(model, train)
        return Fitted(on_cpu(model.state_dict()), 0, 0, 0.0, "none", len(train), [])
    earlier = earlier_part(folder, model)
    batch_size = earlier.batch_size if earlier is not None else recipe.batch_size
    start = deepcopy(model.state_dict()) if settings.auto_batch else {}

    def attempt(batch_size: int) -> Fitted:
        sized = replace(recipe, batch_size=batch_size)
        return _fit(model, train, validation, sized, settings, folder, name, tell, earlier)

    def reset() -> None:
        nonlocal earlier
        earlier = None
        model.load_state_dict(start)
        model.zero_grad(set_to_none=True)
        shutil.rmtree(folder)
        folder.mkdir()

    with writing(folder), seeded(settings.seed), plainly():
        folder.mkdir(parents=True, exist_ok=True)
        return halving(attempt, batch_size, device, allowed=settings.auto_batch, reset=reset)


def _fit(
    model: nn.Module,
    train: Examples,
    validation: Examples | None,
    recipe: Recipe,
    settings: FitSettings,
    folder: Path,
    name: str,
    tell: Tell,
    earlier: Earlier | None,
) -> Fitted:
    model.train()
    learner = Learner(
        model,
        train,
        validation,
        recipe,
        seed=settings.seed,
        eval_batch=_eval_batch(train, recipe),
    )
    set_learning_rate(
        learner,
        recipe.learning_rate,
        settings.machine,
        folder,
        fine_tune=recipe.fine_tune,
        earlier=earlier,
    )
    driven = drive(
        learner,
        settings.machine,
        folder,
        Stopping(recipe.epochs, recipe.monitor, recipe.patience_epochs, recipe.first_stop_epoch),
        validates=validation is not None,
        logs=settings.logs,
        name=name,
        tell=tell,
        resume=earlier is not None,
    )
    return Fitted(
        state=driven.state,
        epochs=len(driven.history),
        best_epoch=driven.best_epoch,
        learning_rate=learner.learning_rate,
        learning_rate_from=learner.learning_rate_from,
        batch_size=recipe.batch_size,
        history=driven.history,
    )


def predict(
    model: nn.Module, examples: Examples, machine: Machine, *, batch_size: int | None = None
) -> Predictions:
    """Scores of whole videos: the mean over frames or captions, where the head works so.

    Where memory does not suffice for `batch_size` videos, fewer are scored at a time. Raises
    DeviceError when it does not suffice for one.
    """
    size = batch_size or _eval_batch(examples, None)
    device = machine.torch_device()
    model.to(device).eval()
    in_parts = InParts(model, device)
    scores: list[Tensor] = []
    branches: list[tuple[Tensor, ...]] = []
    try:
        with torch.inference_mode():
            for batch in WholeVideos(examples, size):
                score, parts = in_parts(batch[:3])
                scores.append(score.cpu())
                branches.append(tuple(one.cpu() for one in parts))
    finally:
        model.cpu()
    return Predictions(
        torch.cat(scores), tuple(torch.cat(one) for one in zip(*branches, strict=True))
    )


def _eval_batch(examples: Examples, recipe: Recipe | None) -> int:
    """Videos per batch of validation: many for a head, few where an encoder is behind it."""
    frames = examples.frames.count if examples.frames is not None else 0
    captions = examples.mask.shape[1] if examples.mask is not None else 0
    items = frames + captions or 1
    if recipe is not None and recipe.fine_tune:
        return max(1, recipe.batch_size // items)
    return max(1, _EVAL_ITEMS // items)
