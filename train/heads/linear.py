"""Linear heads: layer norm with a linear layer and sigmoid, and Bayesian ridge regression.

Sources: 001_de183854d7703535.txt, section 3.3, equations 11 and 12, and section 4.1.2 (the score
of a video is the mean over its frames or captions); 000_bcb79d7cf5a52fe8.txt, section 3.1 (BRR).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from memcli.errors import MissingDependencyError, ModelError, UsageError
from memcli.train.heads.scores import Scores, mean_over_captions, needed, needed_dim


class RegressionHead(nn.Module):
    """sigmoid(w . LN(z) + b) of each frame or each caption; the score is their mean.

    Source: 001_de183854d7703535.txt, section 3.3, equation 11. A model reads either frames or
    captions with it, as there.
    """

    def __init__(self, frame_dim: int | None, text_dim: int | None):
        super().__init__()
        if frame_dim is not None and text_dim is not None:
            raise ModelError("RegressionHead reads frames or captions, not both")
        self.reads_frames = frame_dim is not None
        dim = needed_dim(
            frame_dim if text_dim is None else text_dim, "frames or captions", "RegressionHead"
        )
        self.norm = nn.LayerNorm(dim)
        self.score = nn.Linear(dim, 1)

    def forward(
        self,
        frames: Tensor | None,
        captions: Tensor | None = None,
        caption_mask: Tensor | None = None,
    ) -> Scores:
        """Frames [B, T, D], or captions [B, C, D] and mask [B, C] or None -> Scores."""
        if self.reads_frames:
            frame_scores = self._each(needed(frames, "frames", "RegressionHead"))
            score = frame_scores.mean(dim=1)
            return Scores(score, frame_scores, (score,))
        scores = self._each(needed(captions, "captions", "RegressionHead"))
        score = mean_over_captions(scores, caption_mask)
        return Scores(score, None, (score,))

    def _each(self, embeddings: Tensor) -> Tensor:
        """[B, N, D] -> [B, N]."""
        return self.score(self.norm(embeddings)).squeeze(-1).sigmoid()


class RidgeHead(nn.Module):
    """Linear function of the mean frame embedding, with coefficients of Bayesian ridge regression.

    Source: 000_bcb79d7cf5a52fe8.txt, section 3.1. What the ridge sees of 16 embeddings is left
    open there; here it is their mean, which has one coefficient per value of the embedding. The
    score is clipped to [0, 1]: a linear function leaves that range for unusual videos, and no
    memorability lies outside it. Until `set_coefficients` it says 0 for everything.
    """

    def __init__(self, frame_dim: int | None, text_dim: int | None):
        super().__init__()
        self.linear = nn.Linear(needed_dim(frame_dim, "frames", "RidgeHead"), 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def set_coefficients(self, coef: Any, intercept: float) -> None:
        """Take the coefficients [D] and the intercept of a fit; ModelError for another length."""
        values = torch.as_tensor(coef, dtype=torch.float32)
        if values.shape != (self.linear.in_features,):
            raise ModelError(
                f"RidgeHead takes {self.linear.in_features} coefficients, not an array of shape"
                f" {tuple(values.shape)}"
            )
        with torch.no_grad():
            self.linear.weight.copy_(values[None])
            self.linear.bias.fill_(float(intercept))

    def forward(
        self,
        frames: Tensor | None,
        captions: Tensor | None = None,
        caption_mask: Tensor | None = None,
    ) -> Scores:
        """Frames [B, T, D] -> Scores; captions are not looked at."""
        mean = needed(frames, "frames", "RidgeHead").mean(dim=1)
        score = self.linear(mean).squeeze(-1).clamp(0, 1)
        return Scores(score, None, (score,))


def fit_bayesian_ridge(features: Any, targets: Any) -> tuple[Any, float]:
    """Coefficients [D] and intercept of scikit-learn's BayesianRidge with its default settings.

    `features` [N, T, D] are frame embeddings, of which the mean over T is taken, as `RidgeHead`
    does; `targets` [N]. UsageError for fewer than two videos, other shapes, NaN or infinity;
    MissingDependencyError without scikit-learn.
    """
    import numpy as np

    try:
        from sklearn.linear_model import BayesianRidge
    except ImportError as error:
        raise MissingDependencyError(
            "scikit-learn",
            purpose="Bayesian ridge regression",
            install="pip install 'memcli[train]'",
        ) from error

    features = np.asarray(features)
    targets = np.asarray(targets, dtype=np.float64)
    if features.ndim != 3 or targets.shape != features.shape[:1] or len(targets) < 2:
        raise UsageError(
            "Bayesian ridge regression takes embeddings [N, T, D] and N scores of at least two"
            f" videos, not arrays of shapes {features.shape} and {targets.shape}"
        )
    means = features.mean(axis=1, dtype=np.float64)
    if not (np.isfinite(means).all() and np.isfinite(targets).all()):
        raise UsageError("the embeddings or scores for Bayesian ridge regression hold NaN")
    fitted = BayesianRidge().fit(means, targets)
    return fitted.coef_, float(fitted.intercept_)
