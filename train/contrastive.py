"""Contrastive adaptation of a pair of encoders to frames and captions (FCLIP).

Source: 001_de183854d7703535.txt, sections 3.2, 4.1.1 and 4.3. Both towers are trained on pairs of a
frame and a caption of one video; a batch has at most one frame and one caption of a video, so that
each has exactly one match in it. Adam, batches of 32, the rate divided by ten after three epochs
without improvement of the validation loss, the end after six, the epoch of lowest validation loss.

The loss, equations 5 and 6: binary cross entropy of similarities s with one-hot labels, in both
directions. Equation 6 takes logarithms of values in (0, 1), which cosines are not; table 5 calls
the loss "Cross Entropy", and its value before training (1.94 for batches of 32) is neither that of
sigmoids of scaled cosines (about 15) nor that of the cosines themselves (about 0.2). So here the
similarities become probabilities by CLIP's own softmax over the batch, at CLIP's temperature, and
the loss is the cross entropy of these with the one-hot labels, mean of both directions.

Left open there: the most epochs (100 here; early stopping comes before), and the temperature, which
stays at CLIP's trained value.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from memcli.train.data import Examples, epoch_generator, epoch_seed
from memcli.train.driver import (
    Driven,
    Resumable,
    Stopping,
    Tell,
    drive,
    earlier_part,
    no_tell,
    set_learning_rate,
)
from memcli.train.loop import FitSettings
from memcli.train.provenance import seeded
from memcli.train.trainer import halving, plainly, writing

BATCH_SIZE = 32
MAX_EPOCHS = 100
PATIENCE_EPOCHS = 6
_PLATEAU_EPOCHS, _PLATEAU_FACTOR = 3, 0.1
LOGIT_SCALE = 100.0
"""1 / temperature: the value to which CLIP's training was allowed to raise it, and did."""
_NEVER = 1 << 30
_VALIDATION_EPOCH = 0


class PairBatch(NamedTuple):
    """B matching pairs, or a device's share of them."""

    frames: Tensor
    """uint8 [B, H, W, 3]"""
    input_ids: Tensor
    """int64 [B, L]"""
    mask: Tensor
    """int64 [B, L]"""
    pairs: int
    """B of all devices together; what their shares have beyond it is padding."""


class Towers(nn.Module):
    """The two encoders that are adapted together."""

    def __init__(self, vision: nn.Module, text: nn.Module):
        super().__init__()
        self.vision = vision
        self.text = text

    def forward(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Embeddings of frames and captions, float32 [B, D] each."""
        return self.vision(batch.frames), self.text(batch.input_ids, batch.mask)


def contrastive_loss(frames: Tensor, captions: Tensor, scale: float = LOGIT_SCALE) -> Tensor:
    """The loss of B embeddings [B, D] of frames and of their captions, in the same order."""
    normalize = nn.functional.normalize
    logits = scale * normalize(frames, dim=-1) @ normalize(captions, dim=-1).T
    match = torch.arange(len(logits), device=logits.device)
    entropy = nn.functional.cross_entropy
    return (entropy(logits, match) + entropy(logits.T, match)) / 2


def pair_rounds(
    frames: int, present: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """All pairs of an epoch, int64 [B, 3] (video, frame, caption), no video twice in a batch.

    `present` bool [N, C] says which captions there are. Every frame of a video is paired with every
    caption of it, once an epoch. An epoch is made of rounds; each round has one pair of every video
    that has any left. A last pair alone in its round is left out: it has nothing to differ from.
    """
    pairs = []
    for video, captions in enumerate(present):
        caption = captions.nonzero().flatten()
        own = torch.cartesian_prod(torch.arange(frames), caption).reshape(-1, 2)
        own = own[torch.randperm(len(own), generator=generator)]
        pairs.append(torch.cat([torch.full((len(own), 1), video), own], dim=1))
    for number in range(max(map(len, pairs), default=0)):
        round_ = torch.stack([own[number] for own in pairs if number < len(own)])
        order = round_[torch.randperm(len(round_), generator=generator)]
        yield from (batch for batch in order.split(batch_size) if len(batch) > 1)


class PairBatches:
    """Batches of an epoch for Lightning. With several devices `batch_size` is that of all together.

    `share` says which part of each batch is ours: (rank, of how many). Pair k is row k // ranks of
    rank k % ranks. All shares of a batch are of one length, so that embeddings can be exchanged:
    where the pairs do not suffice for that, the first of them are there once more.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        *,
        seed: int,
        epoch: Callable[[], int],
        share: tuple[int, int] = (0, 1),
    ):
        assert examples.frames is not None
        self._examples = examples
        self._frames = examples.frames.count
        self._present = examples.present()
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = epoch
        self._rank, self._ranks = share
        counts = self._frames * self._present.sum(1)
        sizes = [int((counts > number).sum()) for number in range(int(counts.max()))]
        self._length = sum(size // batch_size + (size % batch_size > 1) for size in sizes)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[PairBatch]:
        generator = epoch_generator(self._seed, self._epoch())
        rounds = pair_rounds(self._frames, self._present, self._batch_size, generator)
        for pairs in rounds:
            padded = torch.arange(-(-len(pairs) // self._ranks) * self._ranks) % len(pairs)
            video, frame, caption = pairs[padded[self._rank :: self._ranks]].unbind(1)
            batch = self._examples.batch(video, frame=frame, caption=caption)
            assert batch.frames is not None
            assert batch.captions is not None
            assert batch.mask is not None
            yield PairBatch(batch.frames[:, 0], batch.captions[:, 0], batch.mask[:, 0], len(pairs))


def joined(shares: Tensor, pairs: int) -> Tensor:
    """The embeddings [pairs, D] of a batch from those of each rank's share [ranks, rows, D]."""
    return shares.transpose(0, 1).flatten(0, 1)[:pairs]


class PairLearner(Resumable):
    """Trains the towers. `val_loss` is the mean over the pairs of the monitoring videos."""

    def __init__(
        self,
        towers: Towers,
        train: Examples,
        monitor: Examples,
        *,
        batch_size: int,
        seed: int,
    ):
        super().__init__(towers, batch_size=batch_size)
        self._data = (train, monitor)
        self._seed = seed
        self._losses: list[Tensor] = []

    def configure_optimizers(self) -> Any:
        """Adam, and the rate divided by ten in the third epoch in a row without a lower loss."""
        optimizer = torch.optim.Adam(self.trained_parameters(), lr=self.learning_rate)
        plateau = ReduceLROnPlateau(
            optimizer,
            factor=_PLATEAU_FACTOR,
            patience=_PLATEAU_EPOCHS - 1,  # torch acts in the epoch after its patience
            threshold=0,  # as early stopping counts
            eps=0,
        )
        schedule = {"scheduler": plateau, "monitor": "val_loss", "frequency": _NEVER}
        return optimizer if self.probing else {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        # Lightning keeps the schedule in its checkpoints, but would take the step after the epoch's
        # checkpoint was written: a resumed training would be one step behind.
        if isinstance(plateau := self.lr_schedulers(), ReduceLROnPlateau):
            plateau.step(float(self.trainer.callback_metrics["val_loss"]))

    def when_diverged(self) -> str:
        """What to do then: no option gives the rate, but the range test sees other batches."""
        return "Train anew (memcli train without --resume) with another seed:  --seed N"

    def train_dataloader(self) -> PairBatches:
        return PairBatches(
            self._data[0],
            self.batch_size,
            seed=self._seed,
            epoch=lambda: self.current_epoch,
            share=(self.trainer.global_rank, self.trainer.world_size),
        )

    def val_dataloader(self) -> PairBatches:
        """The same batches in every epoch and on every device."""
        return PairBatches(
            self._data[1], self.batch_size, seed=self._seed, epoch=lambda: _VALIDATION_EPOCH
        )

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(epoch_seed(self._seed, self.current_epoch) + self.global_rank)

    def training_step(self, batch: PairBatch, _index: int) -> Tensor:
        embeddings = self.model(batch)
        if self.trainer.world_size > 1:
            # Each pair differs from the whole batch's others. Every device computes this loss; the
            # gradients that come back through the exchange and their mean are those of one device.
            shares = self.all_gather(embeddings, sync_grads=True)
            embeddings = [joined(one, batch.pairs) for one in shares]
        loss = contrastive_loss(*embeddings)
        self.note_loss(loss, batch.pairs)
        return loss

    def validation_step(self, batch: PairBatch, _index: int) -> None:
        self._losses.append(contrastive_loss(*self.model(batch)) * batch.pairs)
        self._losses.append(torch.tensor(float(batch.pairs), device=self.device))

    def on_validation_epoch_end(self) -> None:
        found, self._losses = torch.stack(self._losses), []
        self.log("val_loss", found[::2].sum() / found[1::2].sum())


def loss_before(learner: PairLearner, device: str) -> float:
    """The loss on the monitoring videos with the weights as they are: epoch 0 of table 5."""
    total, pairs = 0.0, 0
    learner.model.to(device).eval()
    try:
        with torch.inference_mode():
            for batch in learner.val_dataloader():
                frames, input_ids, mask = (one.to(device) for one in batch[:3])
                moved = PairBatch(frames, input_ids, mask, batch.pairs)
                total += float(contrastive_loss(*learner.model(moved))) * batch.pairs
                pairs += batch.pairs
    finally:
        learner.model.cpu().train()
    return total / pairs


@dataclass(frozen=True)
class Adapted:
    """Both towers after the adaptation."""

    vision: dict[str, Tensor]
    text: dict[str, Tensor]
    summary: dict[str, Any]
    """epochs, best_epoch, learning_rate, learning_rate_from, batch_size, history, loss_before."""


def adapt(
    vision: nn.Module,
    text: nn.Module,
    train: Examples,
    monitor: Examples,
    settings: FitSettings,
    folder: Path,
    *,
    tell: Tell = no_tell,
    batch_size: int = BATCH_SIZE,
    max_epochs: int = MAX_EPOCHS,
    learning_rate: float | None = None,
) -> Adapted:
    """Adapt two encoders of one embedding space, in place, to the frames and captions of `train`.

    `train` and `monitor` hold pixels and token ids; scores are not looked at. `folder` takes
    checkpoints, from which an interrupted adaptation goes on. A learning rate of None is found by a
    range test. Raises DeviceError, ModelError and OutputError as `memcli.train.loop.fit`.
    """
    device = settings.machine.torch_device()
    towers = Towers(vision, text)
    earlier = earlier_part(folder, towers)
    if earlier is not None:
        batch_size = earlier.batch_size
    start = deepcopy(towers.state_dict()) if settings.auto_batch else {}

    def attempt(size: int) -> tuple[PairLearner, Driven, float]:
        towers.train()
        learner = PairLearner(towers, train, monitor, batch_size=size, seed=settings.seed)
        before = loss_before(learner, device)
        set_learning_rate(
            learner, learning_rate, settings.machine, folder, fine_tune=True, earlier=earlier
        )
        driven = drive(
            learner,
            settings.machine,
            folder,
            Stopping(max_epochs, "val_loss", PATIENCE_EPOCHS),
            validates=True,
            logs=settings.logs,
            name="adaptation",
            tell=tell,
            resume=earlier is not None,
        )
        return learner, driven, before

    def reset() -> None:
        nonlocal earlier
        earlier = None
        towers.load_state_dict(start)
        towers.zero_grad(set_to_none=True)
        shutil.rmtree(folder)
        folder.mkdir()

    with writing(folder), seeded(settings.seed), plainly():
        folder.mkdir(parents=True, exist_ok=True)
        learner, driven, before = halving(
            attempt, batch_size, device, allowed=settings.auto_batch, reset=reset, least=2
        )
    parts: dict[str, dict[str, Tensor]] = {"vision": {}, "text": {}}
    for key, value in driven.state.items():
        tower, _, name = key.partition(".")
        parts[tower][name] = value
    summary = {
        "epochs": len(driven.history),
        "best_epoch": driven.best_epoch,
        "learning_rate": learner.learning_rate,
        "learning_rate_from": learner.learning_rate_from,
        "batch_size": learner.batch_size,
        "history": driven.history,
        "loss_before": before,
    }
    return Adapted(parts["vision"], parts["text"], summary)
