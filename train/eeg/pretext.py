"""Self-supervised training of the window encoder: when in its epoch was a window recorded?

Source: 000_bcb79d7cf5a52fe8.txt, section 3.2, after Hyvarinen and Morioka's time-contrastive
learning. `tcl` tells the windows of an epoch, which do not overlap, from each other: one class per
window, cross-entropy. `tcl-regress` takes windows from anywhere and predicts their start relative
to the last possible one, 0 to 1, by least squares. `tcl-regress-exp` does the same and draws early
windows more often.

Left open in the paper and chosen here: the head of each task is one linear layer; as many windows
are drawn from an epoch as it has windows side by side, anew in each pass; and the unit of the
decay factor 500 is samples, at the paper's 100 Hz, so that a window 5 s later is drawn 1/e times as
often, and the last one of 11 s, at 10 s, e^-2 = 0.14 times. In milliseconds, windows after the
third second would be drawn less than once in 400 times, which is hardly what trains an encoder
that all eleven share; in seconds, all would be drawn alike. Another sampling rate keeps the time,
not the number of samples.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from memcli.spec import EegPrep, EegRecipe
from memcli.train.eeg.data import EegExamples
from memcli.train.eeg.loop import Batch, Fitted, Schedule, Tell, batches, fit
from memcli.train.eeg.network import EegModel, Member, z_score

PAPER_RATE_HZ = 100.0


class Pretext(nn.Module):
    """A member's encoder with the task's linear layer. Shares the encoder's weights."""

    def __init__(self, member: Member, prep: EegPrep, recipe: EegRecipe):
        super().__init__()
        self.encoder = member.encoder
        self.windows = prep.windows
        self.length = prep.window_samples
        self.task = recipe.pretext
        self.decay = recipe.decay_samples * prep.sfreq_hz / PAPER_RATE_HZ
        self.head = nn.Linear(member.embedding, prep.windows if self.task == "tcl" else 1)

    def forward(self, eeg: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and truth for all windows that are whole, K of them.

        eeg [B, C, N], samples [B]. `tcl`: logits [K, W] and indices int64 [K]; else positions,
        [K] and [K]. In eval mode, windows are taken at every half of their length, not drawn.
        """
        z = z_score(eeg, samples)
        starts = self._starts(samples)
        there = starts + self.length <= samples.view(-1, 1)
        at = starts.clamp(max=z.shape[2] - self.length).unsqueeze(2)
        at = (at + torch.arange(self.length, device=z.device)).flatten(1)
        cut = z.gather(2, at.unsqueeze(1).expand(-1, z.shape[1], -1))
        found = self.head(self.encoder(cut.unflatten(2, (-1, self.length))).transpose(1, 2))
        if self.task == "tcl":
            return found[there], (starts // self.length)[there]
        return found.squeeze(2)[there], (starts / (z.shape[2] - self.length))[there]

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy or mean squared error; 0 for a batch without a whole window."""
        found, truth = self(batch.eeg, batch.samples)
        if not len(truth):
            return found.sum()
        if self.task == "tcl":
            return functional.cross_entropy(found, truth)
        return functional.mse_loss(found, truth.to(found.dtype))

    def _starts(self, samples: Tensor) -> Tensor:
        """First samples of windows, int64 [B, K]."""
        count, device = self.windows, samples.device
        if self.task == "tcl":
            return (torch.arange(count, device=device) * self.length).expand(len(samples), -1)
        if not self.training:
            step = max(1, self.length // 2)
            last = (count - 1) * self.length
            return torch.arange(0, last + 1, step, device=device).expand(len(samples), -1)
        places = (samples - self.length + 1).clamp(min=1).view(-1, 1)
        drawn = torch.rand(len(samples), count, device=device)
        if self.task == "tcl-regress-exp":
            # The inverse of the distribution function of an exponential cut off after `places`.
            share = 1 - torch.exp(-places / self.decay)
            return (-self.decay * torch.log1p(-drawn * share)).long().clamp(max=places - 1)
        return (drawn * places).long().clamp(max=places - 1)


def pretrain(
    model: EegModel,
    prep: EegPrep,
    recipe: EegRecipe,
    train: EegExamples,
    validation: EegExamples | None,
    *,
    seed: int,
    device: str,
    tell: Tell,
) -> tuple[Fitted, dict[str, float]]:
    """Train the encoder of a model of one member in place.

    Returns how it went and, with `validation`, how well the task is done there (`score`). The
    labels are not looked at. Raises ModelError if the training diverges.
    """
    task = Pretext(model.members[0], prep, recipe)
    schedule = Schedule(
        recipe.pretext_epochs,
        recipe.batch_size,
        recipe.pretext_learning_rate,
        recipe.patience_epochs,
        recipe.factor,
    )
    fitted = fit(task, task.loss, train, validation, schedule, seed=seed, device=device, tell=tell)
    return fitted, score(task, validation, device) if validation is not None else {}


def score(task: Pretext, examples: EegExamples, device: str) -> dict[str, float]:
    """How well the task is done: `accuracy` beside `chance`, or `r2` of the position."""
    task = copy.deepcopy(task).to(device).eval()
    found: list[Tensor] = []
    truth: list[Tensor] = []
    with torch.inference_mode():
        for batch in batches(examples, 128, device):
            parts: Any = task(batch.eeg, batch.samples)
            found.append(parts[0].cpu())
            truth.append(parts[1].cpu())
    said, true = torch.cat(found), torch.cat(truth)
    if task.task == "tcl":
        accuracy = (said.argmax(1) == true).float().mean()
        return {"accuracy": float(accuracy), "chance": 1 / task.windows}
    rest = ((said - true) ** 2).mean() / true.var(unbiased=False)
    return {"r2": float(1 - rest)}
