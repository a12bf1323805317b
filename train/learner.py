"""The Lightning module of a supervised training: losses, optimiser, schedule, validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memcli.spec import Recipe
from memcli.train.data import Batch, Examples, TrainingBatches, WholeVideos, epoch_seed
from memcli.train.driver import Resumable
from memcli.train.memory import InParts

LOSSES = {"mse": nn.functional.mse_loss, "l1": nn.functional.l1_loss}


class Learner(Resumable):
    """Trains `model`, a head on embeddings or a whole model on pixels and token ids.

    The loss is applied to each of the scores' branches and summed: the branches of a late fusion
    share no parameters, so each is trained as if alone. Validation is on whole videos: `val_loss`
    is the loss of the final score, `val_srcc` Spearman's correlation over videos (-1 where it is
    undefined, i.e. all predictions are equal).
    """

    def __init__(
        self,
        model: nn.Module,
        train: Examples,
        validation: Examples | None,
        recipe: Recipe,
        *,
        seed: int,
        eval_batch: int,
    ):
        super().__init__(model, batch_size=recipe.batch_size)
        self._data = (train, validation)
        self._recipe = recipe
        self._seed = seed
        self._eval_batch = eval_batch
        self._loss = LOSSES[recipe.loss]
        self._predicted: list[Tensor] = []
        self._in_parts: InParts | None = None

    def configure_optimizers(self) -> Any:
        """Adam, and the recipe's schedule by epochs."""
        recipe = self._recipe
        optimizer = torch.optim.Adam(self.trained_parameters(), lr=self.learning_rate)
        schedulers = torch.optim.lr_scheduler
        if recipe.schedule == "cosine":
            schedule = schedulers.CosineAnnealingLR(optimizer, T_max=recipe.epochs)
        elif recipe.schedule == "step":
            schedule = schedulers.StepLR(optimizer, recipe.step_epochs, recipe.step_factor)
        else:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule}}

    def train_dataloader(self) -> TrainingBatches:
        """This device's part of the batches."""
        return TrainingBatches(
            self._data[0],
            self._recipe,
            seed=self._seed,
            epoch=lambda: self.current_epoch,
            share=(self.trainer.global_rank, self.trainer.world_size),
        )

    def val_dataloader(self) -> WholeVideos | Sequence[Batch]:
        """Every device validates everything: all then decide the same, without exchange."""
        validation = self._data[1]
        return () if validation is None else WholeVideos(validation, self._eval_batch)

    def on_train_epoch_start(self) -> None:
        # Dropout depends on the epoch, not on what was drawn before: a resumed training goes on
        # as if it had not stopped.
        torch.manual_seed(epoch_seed(self._seed, self.current_epoch) + self.global_rank)

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        scores = self.model(batch.frames, batch.captions, batch.mask)
        loss = torch.stack([self._loss(one.float(), batch.scores) for one in scores.branches]).sum()
        self.note_loss(loss, len(batch.scores))
        return loss

    def validation_step(self, batch: Batch, _index: int) -> None:
        if self._in_parts is None:
            self._in_parts = InParts(self.model, str(self.device))
        self._predicted.append(self._in_parts(batch[:3])[0])

    def on_validation_epoch_end(self) -> None:
        from memcli.train.metrics import srcc

        predicted, self._predicted = torch.cat(self._predicted), []
        validation = self._data[1]
        assert validation is not None
        self.log("val_loss", self._loss(predicted, validation.scores.to(predicted.device)))
        found = srcc(validation.scores.double().numpy(), predicted.double().cpu().numpy())
        self.log("val_srcc", -1.0 if found is None else found)
