"""Peers that other people wrote, on the same epochs and folds.

EEGNet, ShallowFBCSPNet and Deep4Net are braindecode's, trained by the same loop; xDAWN, Riemannian
tangent space and logistic regression are pyriemann's and scikit-learn's. All see what the model
sees: epochs at the model's rate, with its z-score.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memcli.errors import MissingDependencyError, ModelError
from memcli.spec import EegPrep, EegRecipe
from memcli.train.eeg.data import EegExamples
from memcli.train.eeg.loop import Schedule, Tell, cross_entropy, fit, predict
from memcli.train.eeg.network import EegScores, z_score
from memcli.train.provenance import seeded

INSTALL = "pip install 'memcli[eeg-baselines]'"


@dataclass(frozen=True)
class Peer:
    """A baseline."""

    title: str
    network: str | None
    """Name of a class in `braindecode.models`; None: xDAWN and tangent space."""
    learning_rate: float = 0.0
    weight_decay: float = 0.0
    """As in braindecode's examples, which have none for EEGNet: 1e-3 there."""


PEERS = {
    "eegnet": Peer("EEGNet (braindecode)", "EEGNet", 1e-3),
    "shallow": Peer("ShallowFBCSPNet (braindecode)", "ShallowFBCSPNet", 6.25e-4),
    "deep4": Peer("Deep4Net (braindecode)", "Deep4Net", 1e-2, 5e-4),
    "riemann": Peer("xDAWN + tangent space + logistic regression (pyriemann)", None),
}


def require(names: tuple[str, ...]) -> None:
    """Raise MissingDependencyError unless all of these baselines can be had."""
    for name in names:
        if PEERS[name].network is None:
            _riemann_parts()
        else:
            _network_class(name)


def held_out_scores(
    name: str,
    train: EegExamples,
    validation: EegExamples,
    held_out: EegExamples,
    prep: EegPrep,
    recipe: EegRecipe,
    *,
    seed: int,
    device: str,
    tell: Tell,
) -> list[float]:
    """Train the peer called `name` and return its probabilities for `held_out`.

    `validation` says which epoch of a network is the best; it may be `held_out` itself. The
    tangent space does not look at it. Raises ModelError for epochs that a network cannot take.
    """
    peer = PEERS[name]
    if peer.network is None:
        return _riemann(train, held_out, seed)
    with seeded(seed):
        model = Network(name, prep)
    schedule = Schedule(
        recipe.epochs,
        recipe.batch_size,
        peer.learning_rate,
        recipe.patience_epochs,
        recipe.factor,
        peer.weight_decay,
    )
    fit(
        model,
        cross_entropy(model),
        train,
        validation,
        schedule,
        seed=seed,
        device=device,
        tell=tell,
    )
    found: list[float] = torch.sigmoid(predict(model, held_out, device)).tolist()
    return found


class Network(nn.Module):
    """A network of braindecode behind the model's z-score, with one output."""

    def __init__(self, name: str, prep: EegPrep):
        super().__init__()
        kind = _network_class(name)
        channels, samples = prep.epoch_shape()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.net = kind(n_chans=channels, n_outputs=1, n_times=samples, sfreq=prep.sfreq_hz)
        except ValueError as error:
            raise ModelError(
                f"{PEERS[name].title} takes no epochs of {channels} x {samples} samples: {error}"
            ) from error

    def forward(self, eeg: Tensor, samples: Tensor, subject: Tensor | None = None) -> EegScores:
        """As the model's, without shares of windows."""
        logits = self.net(z_score(eeg, samples)).flatten()
        return EegScores(torch.sigmoid(logits), logits.new_zeros(len(logits), 0), logits)


def _riemann(train: EegExamples, held_out: EegExamples, seed: int) -> list[float]:
    xdawn, tangent, regression, pipeline = _riemann_parts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence and of ill-conditioned matrices
        model = pipeline(
            xdawn(nfilter=4, estimator="oas", xdawn_estimator="oas"),
            tangent(),
            regression(max_iter=1000, random_state=seed),
        )
        model.fit(_arrays(train), train.labels.numpy().astype(int))
        found: list[float] = model.predict_proba(_arrays(held_out))[:, 1].tolist()
    return found


def _arrays(examples: EegExamples) -> Any:
    """float64 [E, C, N]. A trace of noise keeps the covariances of flat channels invertible."""
    import numpy as np

    z = z_score(examples.eeg, examples.samples).numpy().astype(np.float64)
    return z + np.random.default_rng(0).normal(0, 1e-6, z.shape)


def _network_class(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from braindecode import models
    except (ImportError, OSError) as error:  # OSError: a torchaudio built for another torch
        raise MissingDependencyError(
            "braindecode",
            purpose=f"the baseline {name} (braindecode cannot be imported: {error})",
            install=INSTALL + "\nIt needs a torchaudio that fits your torch, see pytorch.org.",
        ) from error
    return getattr(models, str(PEERS[name].network))


def _riemann_parts() -> tuple[Any, Any, Any, Any]:
    try:
        from pyriemann.estimation import XdawnCovariances
        from pyriemann.tangentspace import TangentSpace
    except ImportError as error:
        raise MissingDependencyError(
            "pyriemann", purpose="the baseline riemann", install=INSTALL
        ) from error
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return XdawnCovariances, TangentSpace, LogisticRegression, make_pipeline
