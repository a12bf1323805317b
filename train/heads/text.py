"""Perceptron on caption embeddings, and its weighted mean with the transformer on frames.

Source: 000_bcb79d7cf5a52fe8.txt, section 2.1: "a 4-layer perceptron (with ReLUs and final
sigmoid)" on the caption's embedding; late fusion m = alpha * m_V + (1 - alpha) * m_T.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from memcli.train.heads.scores import (
    MAX_WIDTH,
    Scores,
    in_range,
    mean_over_captions,
    needed,
    needed_dim,
    option_defaults,
)
from memcli.train.heads.transformer import FusionTransformer


class TextPerceptron(nn.Module):
    """Four linear layers with ReLU between them and a sigmoid at the end, for each caption.

    The score is the mean over a video's captions. The widths are left open in the paper: here
    512, 256 and 128, halving from layer to layer (`text_width` is the first of them).
    """

    def __init__(self, frame_dim: int | None, text_dim: int | None, *, text_width: int = 512):
        super().__init__()
        text_dim = needed_dim(text_dim, "captions", "TextPerceptron")
        in_range(text_width, "text_width", 4, MAX_WIDTH)
        widths = (text_dim, text_width, text_width // 2, text_width // 4)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1), nn.Sigmoid())

    def forward(
        self,
        frames: Tensor | None,
        captions: Tensor | None = None,
        caption_mask: Tensor | None = None,
    ) -> Scores:
        """Captions [B, C, Dt], mask [B, C] or None -> Scores; frames are not looked at."""
        captions = needed(captions, "captions", "TextPerceptron")
        score = mean_over_captions(self.layers(captions).squeeze(-1), caption_mask)
        return Scores(score, None, (score,))


class LateFusion(nn.Module):
    """alpha times the score of the frames plus (1 - alpha) times that of the captions.

    A video without a caption has the frames' score alone.

    Both branches are trained on their own loss, as in the paper, where the two are models of
    their own and alpha is fixed afterwards (0.7, by cross-validation). Beside `alpha`, its options
    are those of its parts.
    """

    parts = (FusionTransformer, TextPerceptron)

    def __init__(
        self, frame_dim: int | None, text_dim: int | None, *, alpha: float = 0.7, **options: Any
    ):
        super().__init__()
        in_range(alpha, "alpha", 0, 1)
        self.alpha = alpha
        of_text = {
            name: options.pop(name) for name in option_defaults(TextPerceptron) if name in options
        }
        self.vision = FusionTransformer(
            needed_dim(frame_dim, "frames", "LateFusion"), None, **options
        )
        self.text = TextPerceptron(None, needed_dim(text_dim, "captions", "LateFusion"), **of_text)

    def forward(
        self,
        frames: Tensor | None,
        captions: Tensor | None = None,
        caption_mask: Tensor | None = None,
    ) -> Scores:
        """Frames [B, T, Df], captions [B, C, Dt], mask [B, C] or None -> Scores, two branches."""
        vision = self.vision(needed(frames, "frames", "LateFusion")).score
        text = self.text(None, captions, caption_mask).score
        score = self.alpha * vision + (1 - self.alpha) * text
        if caption_mask is not None:
            score = torch.where(caption_mask.amax(dim=1) > 0, score, vision)
        return Scores(score, None, (vision, text))
