"""Transformer over frames, or over frames and a caption (early fusion).

Source: 000_bcb79d7cf5a52fe8.txt, section 2.1: (A) sinusoidal positions, (B) 5 blocks of self
attention with 8 heads of 64 dimensions and a feed-forward network, on the embeddings projected to
512 values, (C) mean over the tokens, (D) one linear layer with sigmoid. For early fusion the
caption's embedding is appended to those of the frames before the projection.

Left open there and chosen here:
- the positions are added to the projected embeddings, not to those of the encoder: all blocks then
  have one width, and a caption with a projection of its own has a position like the frames;
- the feed-forward network is two linear layers with ReLU between (2048 units), and dropout is 0.1
  on the embedded tokens and on each sub-layer's output, both as in Vaswani et al., "Attention is
  all you need" (2017), sections 3.3 and 5.4, which the paper cites;
- the layer norm stands before each sub-layer and after the last block, not after each sub-layer as
  there: Adam at 5e-4 without warm-up, which is the paper's recipe, hardly trains the original
  arrangement. On planted embeddings (240 videos, 25 epochs, the sizes below) it reached SRCC 0.90
  on 60 others with a loss of the last batch of 0.0095, where the variance of the scores is 0.011;
  this one reached 0.99 and 0.0016. The reason is that of
  Xiong et al., "On layer normalization in the transformer architecture" (2020).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from memcli.errors import ModelError
from memcli.spec import MAX_FRAMES
from memcli.train.heads.scores import (
    MAX_DEPTH,
    MAX_WIDTH,
    Scores,
    in_range,
    mean_over_captions,
    needed,
    needed_dim,
)


def sinusoids(length: int, width: int) -> Tensor:
    """Positions [length, width]: sine in even columns, cosine in odd ones.

    Source: Vaswani et al. (2017), section 3.5: sin(p / 10000^(2i / width)) and its cosine.
    """
    positions = torch.arange(length, dtype=torch.float64)[:, None]
    columns = torch.arange(width, dtype=torch.float64)
    angles = positions / 10000.0 ** ((columns - columns % 2) / width)
    return torch.where(columns % 2 == 0, angles.sin(), angles.cos()).to(torch.float32)


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention, `heads` of width / heads dimensions."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]."""

        def split(values: Tensor) -> Tensor:
            return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        attended = functional.scaled_dot_product_attention(
            split(self.query(x)), split(self.key(x)), split(self.value(x))
        )
        mixed: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Self-attention and feed-forward network, each on normed input and added to it."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float):
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.attention_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feed_forward)
        self.reduce = nn.Linear(feed_forward, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        fed: Tensor = self.reduce(functional.relu(self.expand(self.feed_forward_norm(x))))
        return x + self.dropout(fed)


class Transformer(nn.Module):
    """`depth` blocks and a layer norm."""

    def __init__(self, depth: int, width: int, heads: int, feed_forward: int, dropout: float):
        """Raises ModelError for sizes that make no transformer."""
        super().__init__()
        in_range(width, "width", 1, MAX_WIDTH)
        in_range(depth, "depth", 1, MAX_DEPTH)
        in_range(heads, "heads", 1, width)
        in_range(feed_forward, "feed_forward", 1, MAX_WIDTH)
        in_range(dropout, "dropout", 0, 0.99)
        if width % heads:
            raise ModelError(f"the head's width of {width} cannot be split into {heads} heads")
        self.blocks = nn.Sequential(
            *(Block(width, heads, feed_forward, dropout) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]."""
        normed: Tensor = self.norm(self.blocks(x))
        return normed


class FusionTransformer(nn.Module):
    """Score of T frames, or of T frames and a caption as a sequence of T + 1 tokens.

    A video with several captions goes through once per caption; its score is the mean of those.
    Frames and captions share the projection, as in the paper, if their embeddings are of equal
    length; else the caption has one of its own, because the paper knows only equal lengths.
    """

    def __init__(
        self,
        frame_dim: int | None,
        text_dim: int | None,
        *,
        width: int = 512,
        depth: int = 5,
        heads: int = 8,
        feed_forward: int = 2048,
        dropout: float = 0.1,
    ):
        super().__init__()
        frame_dim = needed_dim(frame_dim, "frames", "FusionTransformer")
        self.transformer = Transformer(depth, width, heads, feed_forward, dropout)
        self.projection = nn.Linear(frame_dim, width)
        self.text_projection: nn.Linear | None = None
        if text_dim not in (None, frame_dim):
            self.text_projection = nn.Linear(text_dim, width)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(width, 1)
        # The longest video and its caption.
        self.register_buffer("positions", sinusoids(MAX_FRAMES + 1, width), persistent=False)

    def forward(
        self,
        frames: Tensor | None,
        captions: Tensor | None = None,
        caption_mask: Tensor | None = None,
    ) -> Scores:
        """Frames [B, T, Df], captions [B, C, Dt] or None, mask [B, C] or None -> Scores."""
        tokens = self.projection(needed(frames, "frames", "FusionTransformer"))
        if captions is None:
            score = self._score(tokens)
        else:
            project = self.text_projection or self.projection
            captions = project(captions)
            count = captions.shape[1]
            tokens = tokens.unsqueeze(1).expand(-1, count, -1, -1)
            sequences = torch.cat([tokens, captions.unsqueeze(2)], dim=2)
            per_caption = self._score(sequences.flatten(0, 1)).unflatten(0, (-1, count))
            score = mean_over_captions(per_caption, caption_mask)
        return Scores(score, None, (score,))

    def _score(self, tokens: Tensor) -> Tensor:
        """Projected tokens [N, T, width] -> [N]."""
        placed = self.dropout(tokens + self.positions[: tokens.shape[1]])
        return self.score(self.transformer(placed).mean(dim=1)).squeeze(-1).sigmoid()
