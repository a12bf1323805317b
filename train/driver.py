"""Drives one Lightning training: learning rate, callbacks, resuming, the best weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L  # noqa: N812 (its usual name)
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from memcli.errors import ModelError
from memcli.train.range_test import FALLBACK_FROZEN, FALLBACK_TUNED, find_learning_rate
from memcli.train.trainer import (
    LAST_FILE,
    BestCheckpoint,
    LastCheckpoint,
    LateEarlyStopping,
    Logs,
    Machine,
    make_trainer,
    quieten,
)

Tell = Callable[[int, dict[str, float]], None]
Monitor = Literal["val_srcc", "val_loss"]
_MODES = {"val_srcc": "max", "val_loss": "min"}
_RATES_FROM = ("recipe", "range test", "fall-back")
_LIGHTNING: dict[str, type] = {
    "pytorch-lightning_version": str,
    "global_step": int,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}
"""What Lightning resumes from, beside the weights."""


def no_tell(_epoch: int, _metrics: dict[str, float]) -> None:
    """Nobody watches."""


class Resumable(L.LightningModule):
    """A Lightning module whose training can be resumed, with the epochs' metrics so far."""

    def __init__(self, model: nn.Module, *, batch_size: int):
        super().__init__()
        self.model = model
        self.batch_size = batch_size
        self.learning_rate = FALLBACK_FROZEN
        self.learning_rate_from = "recipe"
        """`recipe`, `range test` or `fall-back`."""
        self.probing = False
        """During a range test, which is meant to diverge at its end."""
        self.tell: Tell = no_tell
        """Called after each epoch with its number and its metrics, on one device only."""
        self.history: list[dict[str, float]] = []
        self._sums: list[Tensor] = []

    def setup(self, stage: str) -> None:
        """Called in each process."""
        if self.trainer.world_size > 1:
            quieten()

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the optimiser changes."""
        return [one for one in self.parameters() if one.requires_grad]

    def note_loss(self, loss: Tensor, samples: int) -> None:
        """Note the mean loss of a step on so many samples of this device."""
        self._sums.append(loss.detach().double() * samples)
        self._sums.append(torch.full_like(self._sums[-1], samples))

    def on_train_epoch_end(self) -> None:
        """Note the epoch's metrics: `train_loss` is the mean over samples, of all devices.

        Raises ModelError if it is no longer finite.
        """
        losses, self._sums = self._sums, []
        if self.probing:
            return
        sums = torch.stack(losses).view(-1, 2).sum(0)
        total, samples = self.trainer.strategy.reduce(sums, reduce_op="sum")
        loss = (total / samples).float()
        if not torch.isfinite(loss):
            raise ModelError(
                f"the training diverged in epoch {self.current_epoch + 1}: its loss is"
                f" {float(loss)} with the learning rate {self.learning_rate:g}",
                next_step=self.when_diverged(),
            )
        self.log("train_loss", loss)
        found = self.trainer.callback_metrics
        metrics = {name: float(found[name]) for name in _MODES if name in found}
        metrics = {"train_loss": float(loss)} | metrics
        self.history.append({"epoch": self.current_epoch + 1} | metrics)
        self.tell(self.current_epoch + 1, metrics)

    def when_diverged(self) -> str:
        """What to do then: a resumed training would keep its rate."""
        return (
            "Train anew (memcli train without --resume) with a lower one:"
            f"  --learning-rate {self.learning_rate / 10:g}"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Plain types only: checkpoints are read with `weights_only=True`."""
        for name in ("history", "learning_rate", "learning_rate_from", "batch_size"):
            checkpoint[name] = getattr(self, name)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = [dict(one) for one in checkpoint["history"]]


@dataclass(frozen=True)
class Stopping:
    """What decides on the best epoch and on the end."""

    epochs: int
    monitor: Monitor | None = None
    """None: the last epoch is the model."""
    patience: int = 0
    """Epochs without improvement until the end; 0: all epochs are trained."""
    first_epoch: int = 0
    """Patience begins after this epoch."""


@dataclass(frozen=True)
class Driven:
    """What came of it."""

    state: dict[str, Tensor]
    """State dict of the module's model, best epoch, on the CPU."""
    best_epoch: int
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Earlier:
    """What an interrupted training began with; the rest of it goes on with the same."""

    batch_size: int
    learning_rate: float
    learning_rate_from: str


def earlier_part(folder: Path, model: nn.Module) -> Earlier | None:
    """What an interrupted training left in `folder`; None if nothing.

    Raises ModelError for a file that is damaged or of another model.
    """
    path = folder / LAST_FILE
    if not path.exists():
        return None
    content = read_checkpoint(path)
    if not _fits(content, model) or not _is_ours(content):
        raise _refused(path, "of another model or version")
    return Earlier(content["batch_size"], content["learning_rate"], content["learning_rate_from"])


def _fits(content: dict[str, Any], model: nn.Module) -> bool:
    """Whether the checkpoint's weights are those of this model."""
    own, found = model.state_dict(), content.get("state_dict")
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        return False
    state = _own(found)
    return set(state) == set(own) and all(
        isinstance(state[key], Tensor) and state[key].shape == own[key].shape for key in own
    )


def _is_ours(content: dict[str, Any]) -> bool:
    """Whether what `Resumable` and Lightning add to the weights is there, and of its type."""
    history = content.get("history")
    return (
        isinstance(history, list)
        and all(map(_is_entry, history))
        and [entry["epoch"] for entry in history] == list(range(1, len(history) + 1))
        and _is_positive(content.get("learning_rate"), float)
        and _is_positive(content.get("batch_size"), int)
        and content.get("learning_rate_from") in _RATES_FROM
        and all(isinstance(content.get(name), kind) for name, kind in _LIGHTNING.items())
    )


def _is_entry(entry: object) -> bool:
    """Whether this is an epoch of a history."""
    return (
        isinstance(entry, dict)
        and type(entry.get("epoch")) is int
        and _is_number(entry.get("train_loss"))
        and set(entry) <= {"epoch", "train_loss", *_MODES}
        and all(map(_is_number, entry.values()))
    )


def _is_number(value: object) -> bool:
    """A validation loss of mixed precision may overflow, so it need not be finite."""
    return type(value) in (int, float)


def _is_positive(value: Any, kind: object) -> bool:
    return type(value) is kind and 0 < value < math.inf


def set_learning_rate(
    module: Resumable,
    rate: float | None,
    machine: Machine,
    folder: Path,
    *,
    fine_tune: bool,
    earlier: Earlier | None,
) -> None:
    """Give the module the rate of its earlier part, the given one, or that of a range test."""
    if earlier is not None:
        module.learning_rate = earlier.learning_rate
        module.learning_rate_from = earlier.learning_rate_from
        return
    if rate is not None:
        module.learning_rate = rate
        return
    single = replace(machine, devices=1)
    module.probing = True
    try:
        found, _ = find_learning_rate(
            module, lambda **options: make_trainer(single, limit_val_batches=0, **options), folder
        )
    finally:
        module.probing = False
    module.learning_rate_from = "range test" if found else "fall-back"
    module.learning_rate = found or (FALLBACK_TUNED if fine_tune else FALLBACK_FROZEN)


def drive(
    module: Resumable,
    machine: Machine,
    folder: Path,
    stopping: Stopping,
    *,
    validates: bool,
    logs: Path | None,
    name: str,
    tell: Tell,
    resume: bool,
) -> Driven:
    """Train the module, from the checkpoint in `folder` if `resume`; best weights at the end."""
    monitor = stopping.monitor if validates else None
    best = BestCheckpoint(folder, monitor=monitor, mode=_MODES.get(monitor or "", "min"))
    if machine.devices == 1:  # the watcher cannot be sent to other processes
        module.tell = tell
    callbacks: list[Callback] = []
    if monitor is not None:
        callbacks.append(best)
        if stopping.patience:
            callbacks.append(
                LateEarlyStopping(
                    monitor,
                    mode=_MODES[monitor],
                    patience=stopping.patience,
                    first_epoch=stopping.first_epoch,
                )
            )
    last = folder / LAST_FILE
    callbacks.append(LastCheckpoint(folder, machine.save_every_s, best))
    trainer = make_trainer(
        machine,
        max_epochs=stopping.epochs,
        callbacks=callbacks,
        enable_checkpointing=True,
        logger=Logs(logs, name) if logs is not None else False,
        limit_val_batches=1.0 if validates else 0,
    )
    module.model.train()
    trainer.fit(module, **({"ckpt_path": last, "weights_only": True} if resume else {}))
    history = module.history if trainer.world_size == 1 else read_checkpoint(last)["history"]
    state, best_epoch = module.model.state_dict(), len(history)
    if monitor is not None and best.best_model_path:
        path = Path(best.best_model_path)
        content = read_checkpoint(path)
        if not _fits(content, module.model) or type(content.get("epoch")) is not int:
            raise _refused(path, "of another model or version")
        state, best_epoch = _own(content["state_dict"]), content["epoch"] + 1
        module.model.load_state_dict(state)
    module.model.cpu().eval()
    return Driven(on_cpu(state), best_epoch, history)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors and plain values; nothing in it can be executed. Raises ModelError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises on damaged files is not listed anywhere
        raise _refused(path, "damaged") from error
    if not isinstance(content, dict):
        raise _refused(path, "damaged")
    return content


def on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state dict in memory."""
    return {key: value.detach().cpu().clone() for key, value in state.items()}


def _own(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("model."): value for key, value in state.items()}


def _refused(path: Path, what: str) -> ModelError:
    return ModelError(
        f"this checkpoint is {what}",
        where=str(path),
        next_step="Delete it: the training of this part then begins again.",
    )
