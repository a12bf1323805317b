"""The EEG model: z-score, one-second windows, one CNN for all of them, a linear classifier.

Source: 000_bcb79d7cf5a52fe8.txt, section 2.2 and figure 1b. The paper gives the windows, the shared
encoder g, the concatenation of its embeddings, dropout 0.5, the linear layer and the sigmoid. It
leaves the layers of g open; chosen here: three convolutions over time, the first two with batch
normalisation, ReLU and average pooling, so that a window of 100 samples has 5 positions left, which
the third joins into the embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from memcli.errors import ModelError
from memcli.spec import EegPrep, ModelSpec

_POOLS = (4, 5)
_KERNELS = (9, 5)
_OPTIONS: dict[str, int | float] = {
    "filters": 64,
    "embedding": 32,
    "dropout": 0.5,
    "members": 1,
    "subject_dropout": 0.25,
}
KIND = "WindowCnn"
"""Of the spec's head."""


class EegScores(NamedTuple):
    """What the model says of B epochs of W windows."""

    score: Tensor
    """[B], 0 to 1: the mean of the members' probabilities, after their temperatures."""
    contributions: Tensor
    """[B, W]: what each window adds to the logit after temperature, the classifier's bias shared
    equally; they sum up to it, so that sigmoid(sum) is the score of a single model. Of an
    ensemble, the mean of the members'."""
    logits: Tensor
    """[B], before temperature, which is what the loss is applied to; the mean of the members'."""


class EegModel(nn.Module):
    """An ensemble of `members` classifiers (usually one) behind one z-score.

    Raises ModelError for a spec of another model, an option that it does not have, or a size that
    cannot be.
    """

    def __init__(self, spec: ModelSpec):
        super().__init__()
        if spec.eeg is None or spec.head is None or spec.head.kind != KIND:
            raise ModelError(f"{spec.name} is no EEG model of the kind {KIND}")
        options = _checked(dict(spec.head.options))
        self.samples = spec.eeg.samples
        self.subjects = len(spec.eeg.subjects)
        self.members = nn.ModuleList(
            Member(spec.eeg, options) for _ in range(int(options["members"]))
        )

    def forward(self, eeg: Tensor, samples: Tensor, subject: Tensor | None = None) -> EegScores:
        """Scores of epochs.

        eeg: float32 [B, C, N] in microvolts; samples: int64 [B], how many of the N are there, the
        rest being padding; subject: int64 [B], 0 for somebody unknown, i for the i-th of the
        spec's subjects; None: all unknown. Only a model with subjects looks at it.
        """
        windows = self.windows(z_score(eeg, samples))
        found = [member(windows, subject) for member in self.members]
        scores, contributions, logits = (torch.stack(part) for part in zip(*found, strict=True))
        return EegScores(scores.mean(0), contributions.mean(0), logits.mean(0))

    def windows(self, z: Tensor) -> Tensor:
        """[B, C, N] to windows that do not overlap, [B, C, W, N / W]."""
        return z.unflatten(2, (self.members[0].windows, -1))


class Member(nn.Module):
    """One classifier: the encoder g and the linear layer h."""

    def __init__(self, prep: EegPrep, options: dict[str, int | float]):
        super().__init__()
        self.windows = prep.windows
        self.embedding = int(options["embedding"])
        self.encoder = WindowEncoder(
            len(prep.channels), prep.window_samples, int(options["filters"]), self.embedding
        )
        self.dropout = nn.Dropout(options["dropout"])
        self.classifier = nn.Linear(self.windows * self.embedding, 1)
        self.register_buffer("temperature", torch.ones(1))
        self.conditioning = (
            SubjectConditioning(len(prep.subjects), self.embedding, options["subject_dropout"])
            if prep.subjects
            else None
        )

    def forward(self, windows: Tensor, subject: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Windows [B, C, W, n] to score [B], contributions [B, W] and logits [B]."""
        z = self.encoder(windows)
        if self.conditioning is not None and subject is not None:
            z = self.conditioning(z, subject)
        z = self.dropout(z)
        # h(z) = w z + b, window by window: the parts of the sum are the windows' shares in it.
        weight = self.classifier.weight.view(1, self.embedding, self.windows)
        shares = (z * weight).sum(1) + self.classifier.bias / self.windows
        logits = shares.sum(1)
        return torch.sigmoid(logits / self.temperature), shares / self.temperature, logits


class WindowEncoder(nn.Module):
    """g: a window of C channels and n samples to an embedding.

    Convolutions over time only, with a kernel of height 1: the windows lie side by side in the
    other axis, never see each other, and share the weights.
    """

    def __init__(self, channels: int, samples: int, filters: int, embedding: int):
        super().__init__()
        positions = samples // _POOLS[0] // _POOLS[1]
        if positions < 1:
            raise ModelError(
                f"windows of {samples} samples are too short for this model",
                next_step=f"It needs at least {_POOLS[0] * _POOLS[1]}.",
            )
        layers: list[nn.Module] = []
        width = channels
        for kernel, pool in zip(_KERNELS, _POOLS, strict=True):
            layers += [
                nn.Conv2d(width, filters, (1, kernel), padding=(0, kernel // 2), bias=False),
                nn.BatchNorm2d(filters),
                nn.ReLU(),
                nn.AvgPool2d((1, pool)),
            ]
            width = filters
        self.layers = nn.Sequential(*layers, nn.Conv2d(filters, embedding, (1, positions)))

    def forward(self, windows: Tensor) -> Tensor:
        """[B, C, W, n] to [B, D', W]."""
        return self.layers(windows).squeeze(3)


class SubjectConditioning(nn.Module):
    """A learned scale and shift of the embeddings for each subject, none for anybody else.

    Beyond the paper, whose section 4 names subject conditioning as a way on. In training, a subject
    is taken for an unknown one with probability `dropout`, so that the model without conditioning
    is trained, too: that is the fall-back for people it has not seen.
    """

    def __init__(self, subjects: int, embedding: int, dropout: float):
        super().__init__()
        self.probability = dropout
        self.affine = nn.Embedding(subjects + 1, 2 * embedding, padding_idx=0)
        nn.init.zeros_(self.affine.weight)

    def forward(self, z: Tensor, subject: Tensor) -> Tensor:
        """Embeddings [B, D', W] of subjects [B]."""
        if self.training:
            subject = subject * (torch.rand(subject.shape, device=z.device) >= self.probability)
        scale, shift = self.affine(subject).unsqueeze(2).chunk(2, dim=1)
        return z * (1 + scale) + shift


def z_score(eeg: Tensor, samples: Tensor) -> Tensor:
    """(x - mean) / standard deviation of each epoch and channel over the samples that are there.

    eeg [B, C, N], samples int64 [B]; padding and channels without any change become 0. The
    deviation is the population's, as numpy's and scipy's default is.
    """
    there = torch.arange(eeg.shape[2], device=eeg.device) < samples.view(-1, 1, 1)
    count = samples.view(-1, 1, 1).clamp(min=1).to(eeg.dtype)
    # Less the first sample before anything is added up: an amplifier's offset is a thousand times
    # the signal, and a channel that stays the same is then 0 exactly.
    shifted = torch.where(there, eeg - eeg[:, :, :1], 0.0)
    centred = torch.where(there, shifted - shifted.sum(2, keepdim=True) / count, 0.0)
    deviation = ((centred * centred).sum(2, keepdim=True) / count).sqrt()
    return torch.where(deviation > 0, centred / deviation.clamp(min=1e-12), 0.0)


def _checked(given: dict[str, int | float | str]) -> dict[str, int | float]:
    """The head's options with defaults. Raises ModelError."""
    options = dict(_OPTIONS)
    for name, value in given.items():
        if name not in options:
            raise ModelError(
                f"the head {KIND} has no option {name!r}",
                next_step=f"Options: {', '.join(options)}.",
            )
        wanted = type(options[name])
        if isinstance(value, str) or (type(value) is not wanted and wanted is int):
            raise ModelError(
                f"the option {name!r} of the head {KIND} is {value!r}, not of type"
                f" {wanted.__name__}"
            )
        least, most = (0.0, 0.99) if wanted is float else (1, 4096)
        if not least <= value <= most:
            raise ModelError(f"the option {name!r} of the head {KIND} is {value}, not in range")
        options[name] = value
    return options
