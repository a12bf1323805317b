"""Bayesian ridge regression in the place of a training loop."""

from __future__ import annotations

from torch import nn

from memcli.errors import ModelError
from memcli.train.data import Examples
from memcli.train.heads import RidgeHead, fit_bayesian_ridge


def fit_ridge(model: nn.Module, train: Examples) -> None:
    """Fit a RidgeHead in place to embeddings. Raises ModelError for another head."""
    if not isinstance(model, RidgeHead) or train.frames is None:
        raise ModelError("Bayesian ridge regression needs the head RidgeHead and frames")
    every = train.batch(train.positions())
    assert every.frames is not None
    model.set_coefficients(*fit_bayesian_ridge(every.frames.numpy(), every.scores.numpy()))
