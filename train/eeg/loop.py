"""Trains a network on epochs by Adam, and predicts with it.

A loop of its own rather than Lightning's: a training takes seconds to minutes, so that nothing is
resumed inside of one, and a run goes on at the next fold. Source of rates and schedule:
000_bcb79d7cf5a52fe8.txt, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from memcli.errors import ModelError
from memcli.train.eeg.data import EegExamples
from memcli.train.eeg.network import EegScores
from memcli.train.provenance import seeded

Tell = Callable[[int, dict[str, float]], None]
_EVAL_BATCH = 128
_REDUCTIONS = 2
"""Of the learning rate; the next one would be to a rate that changes nothing."""


class Objective(Protocol):
    """What a training minimises."""

    def __call__(self, batch: Batch, /) -> Tensor:
        """The mean loss of a batch."""
        ...


@dataclass(frozen=True)
class Batch:
    """Epochs on the device that computes; the fields are those of `EegExamples`."""

    eeg: Tensor
    samples: Tensor
    labels: Tensor
    subject: Tensor


@dataclass(frozen=True)
class Schedule:
    """How long and how fast."""

    epochs: int
    batch_size: int
    learning_rate: float
    patience_epochs: int = 20
    """Without a better loss, after which the rate is multiplied by `factor`."""
    factor: float = 0.1
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Fitted:
    """What a training came to."""

    epochs: int
    best_epoch: int
    """Whose weights the network has, from 1: that of the lowest validation loss, or the last."""
    learning_rate: float
    """At the end."""
    history: list[dict[str, float]]

    def summary(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
            "learning_rate": self.learning_rate,
            "history": self.history,
        }


def cross_entropy(model: nn.Module) -> Objective:
    """Binary cross-entropy of a model's logits."""

    def loss(batch: Batch) -> Tensor:
        logits = model(batch.eeg, batch.samples, batch.subject).logits
        return functional.binary_cross_entropy_with_logits(logits, batch.labels)

    return loss


def fit(
    model: nn.Module,
    objective: Objective,
    train: EegExamples,
    validation: EegExamples | None,
    schedule: Schedule,
    *,
    seed: int,
    device: str,
    tell: Tell = lambda _epoch, _metrics: None,
) -> Fitted:
    """Train `model` in place, and leave it on the CPU.

    With `validation`, whose loss then steers the learning rate, it ends with the weights of the
    epoch with the lowest one; else the loss of the training does, and it ends with the last. It
    ends early where the rate has been reduced twice and would be again. The same arguments give
    the same weights on the same CPU. Raises ModelError if the training diverges.
    """
    order = torch.Generator().manual_seed(seed)
    history: list[dict[str, float]] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    with seeded(seed):
        model.to(device)
        optimizer = torch.optim.Adam(
            [one for one in model.parameters() if one.requires_grad],
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
        )
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=schedule.factor, patience=schedule.patience_epochs - 1, threshold=0
        )
        for number in range(1, schedule.epochs + 1):
            model.train()
            permuted = torch.randperm(len(train), generator=order)
            losses = []
            for batch in batches(train, schedule.batch_size, device, order=permuted):
                optimizer.zero_grad(set_to_none=True)
                value = objective(batch)
                value.backward()
                optimizer.step()
                losses.append(float(value.detach()) * len(batch.labels))
            told = {"train_loss": sum(losses) / len(train)}
            if validation is not None:
                told["val_loss"] = evaluate(model, objective, validation, device)
            steering = told.get("val_loss", told["train_loss"])
            if not math.isfinite(steering):
                raise ModelError(
                    f"the training diverged in epoch {number}: its loss is {steering}",
                    next_step="Try a lower rate:  --learning-rate 1e-5",
                )
            if validation is not None and (best is None or steering < best[0]):
                state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
                best = steering, number, state
            history.append(told)
            tell(number, told)
            plateau.step(steering)
            rate = optimizer.param_groups[0]["lr"]
            if rate < 0.5 * schedule.learning_rate * schedule.factor**_REDUCTIONS:
                break
        model.cpu().eval()
        if best is not None:
            model.load_state_dict(best[2])
    return Fitted(len(history), best[1] if best is not None else len(history), rate, history)


def evaluate(model: nn.Module, objective: Objective, examples: EegExamples, device: str) -> float:
    """The mean loss over examples, in eval mode."""
    model.eval()
    with torch.no_grad():
        return sum(
            float(objective(batch)) * len(batch.labels)
            for batch in batches(examples, _EVAL_BATCH, device)
        ) / len(examples)


def predict(model: nn.Module, examples: EegExamples, device: str) -> Tensor:
    """Logits before temperature, float32 [E] on the CPU; of a model of one member."""
    return _each(model, examples, device).logits


def scores(model: nn.Module, examples: EegExamples, device: str) -> Tensor:
    """Probabilities after temperature, float32 [E] on the CPU."""
    return _each(model, examples, device).score


def _each(model: nn.Module, examples: EegExamples, device: str) -> EegScores:
    model.to(device).eval()
    try:
        with torch.inference_mode():
            found = [
                model(batch.eeg, batch.samples, batch.subject)
                for batch in batches(examples, _EVAL_BATCH, device)
            ]
            return EegScores(*(torch.cat(part).cpu() for part in zip(*found, strict=True)))
    finally:
        model.cpu()


def batches(
    examples: EegExamples, size: int, device: str, *, order: Tensor | None = None
) -> Iterator[Batch]:
    """All examples, `size` at a time, in `order` or their own."""
    for start in range(0, len(examples), size):
        at = slice(start, start + size) if order is None else order[start : start + size]
        yield Batch(
            *(
                getattr(examples, name)[at].to(device)
                for name in ("eeg", "samples", "labels", "subject")
            )
        )
