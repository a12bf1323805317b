"""Heads: what turns embeddings of frames and captions into a score.

Every head is an `nn.Module` built from the lengths of the embeddings (None where the model has no
such encoder) and options, and called with

    forward(frames [B, T, Df] | None, captions [B, C, Dt] | None, caption_mask [B, C] | None)

which returns `Scores`. A caption is there where its mask is 1 (a mask of None: all are); a video's
score is the mean of its scores with each caption. B, T and C are dynamic in exported graphs.
"""

from __future__ import annotations

from torch import nn

from memcli.errors import ModelError
from memcli.spec import HeadSpec
from memcli.train.heads.linear import RegressionHead, RidgeHead, fit_bayesian_ridge
from memcli.train.heads.scores import Scores, option_defaults
from memcli.train.heads.temporal import TemporalHead
from memcli.train.heads.text import LateFusion, TextPerceptron
from memcli.train.heads.transformer import FusionTransformer

__all__ = [
    "HEADS",
    "FusionTransformer",
    "LateFusion",
    "RegressionHead",
    "RidgeHead",
    "Scores",
    "TemporalHead",
    "TextPerceptron",
    "fit_bayesian_ridge",
    "make_head",
    "option_defaults",
]

HEADS: dict[str, type[nn.Module]] = {
    head.__name__: head
    for head in (
        FusionTransformer,
        TextPerceptron,
        LateFusion,
        RidgeHead,
        RegressionHead,
        TemporalHead,
    )
}


def make_head(spec: HeadSpec, frame_dim: int | None, text_dim: int | None) -> nn.Module:
    """The head of a spec for embeddings of these lengths, with fresh weights.

    Raises ModelError for an unknown kind, an option that the kind does not have, a value of the
    wrong type or size, or an encoder that the kind needs and the model lacks.
    """
    kind = HEADS.get(spec.kind)
    if kind is None:
        raise ModelError(f"unknown head {spec.kind!r}", next_step=f"Known: {', '.join(HEADS)}.")
    options = option_defaults(kind)
    for name, value in spec.options.items():
        if name not in options:
            known = f"Options: {', '.join(options)}." if options else "It has none."
            raise ModelError(f"the head {spec.kind} has no option {name!r}", next_step=known)
        wanted = type(options[name])
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise ModelError(
                f"the option {name!r} of the head {spec.kind} is {value!r}, not of type"
                f" {wanted.__name__}"
            )
    return kind(frame_dim, text_dim, **spec.options)
