"""CLIP frame embeddings aggregated over time, then a linear layer or a perceptron.

Source: 002_1ca569390f82ecec.txt, section 2 (the Bi-GRU attention and the MLP) and "Ablation
study" with table 1 (the other aggregators and predictors).

Left open there and chosen here:
- the linear layer before the temporal average reduces to 128 values, as many as a Bi-GRU state;
- the Bi-GRU without attention gives the mean of its states over time;
- the transformer: embeddings reduced to 128, two blocks of 4 heads with 512 feed-forward units,
  mean over time. It has no positions: training shuffles the frames, so their order says nothing;
- "each linear layer is followed by a ReLU" holds for the first two layers of the MLP: on the last
  one, which has the sigmoid, it would keep every score above 0.5.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from memcli.errors import ModelError
from memcli.train.heads.gru import BiGru
from memcli.train.heads.scores import MAX_DEPTH, MAX_WIDTH, Scores, in_range, needed, needed_dim
from memcli.train.heads.transformer import Transformer

AGGREGATORS = ("average", "gru", "gru-attention", "transformer")
PREDICTORS = ("linear", "mlp")

_TRANSFORMER_DEPTH, _TRANSFORMER_HEADS, _FEED_FORWARD_FACTOR = 2, 4, 4
_MLP_WIDTHS = (512, 128)


class Average(nn.Module):
    """Linear reduction of each frame, then the mean over time: [B, T, D] -> [B, dim]."""

    def __init__(self, frame_dim: int, dim: int):
        super().__init__()
        self.dim = dim
        self.reduce = nn.Linear(frame_dim, dim)

    def forward(self, frames: Tensor) -> Tensor:
        """[B, T, D] -> [B, dim]."""
        return self.reduce(frames).mean(dim=1)


class GruAttention(nn.Module):
    """One weight per frame from the states of a Bi-GRU: e_v = 1/T sum of e_t * w_t.

    Source: 002_1ca569390f82ecec.txt, equation 1. The weights are those of the linear layer as
    they are: not positive, nor adding up to one.
    """

    def __init__(self, frame_dim: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        self.dim = frame_dim
        self.gru = BiGru(frame_dim, hidden, layers, dropout)
        self.weight = nn.Linear(self.gru.dim, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """[B, T, D] -> [B, D]."""
        return (frames * self.weight(self.gru.states(frames))).mean(dim=1)


class ReducedTransformer(nn.Module):
    """Linear reduction of each frame, transformer blocks, mean over time."""

    def __init__(self, frame_dim: int, dim: int, dropout: float):
        super().__init__()
        self.dim = dim
        self.reduce = nn.Linear(frame_dim, dim)
        self.transformer = Transformer(
            _TRANSFORMER_DEPTH, dim, _TRANSFORMER_HEADS, _FEED_FORWARD_FACTOR * dim, dropout
        )

    def forward(self, frames: Tensor) -> Tensor:
        """[B, T, D] -> [B, dim]."""
        return self.transformer(self.reduce(frames)).mean(dim=1)


class TemporalHead(nn.Module):
    """L2-normalised frame embeddings, an aggregator over time, a predictor with sigmoid.

    `hidden` units per direction, `layers` and `dropout` are those of the GRU; the other
    aggregators have 2 * hidden units.
    """

    def __init__(
        self,
        frame_dim: int | None,
        text_dim: int | None,
        *,
        aggregator: str = "gru-attention",
        predictor: str = "mlp",
        hidden: int = 64,
        layers: int = 6,
        dropout: float = 0.2,
    ):
        super().__init__()
        frame_dim = needed_dim(frame_dim, "frames", "TemporalHead")
        in_range(hidden, "hidden", 2, MAX_WIDTH // 8)
        in_range(layers, "layers", 1, MAX_DEPTH)
        in_range(dropout, "dropout", 0, 0.99)
        self.aggregator: Average | BiGru | GruAttention | ReducedTransformer
        if aggregator == "average":
            self.aggregator = Average(frame_dim, 2 * hidden)
        elif aggregator == "gru":
            self.aggregator = BiGru(frame_dim, hidden, layers, dropout)
        elif aggregator == "gru-attention":
            self.aggregator = GruAttention(frame_dim, hidden, layers, dropout)
        elif aggregator == "transformer":
            self.aggregator = ReducedTransformer(frame_dim, 2 * hidden, dropout)
        else:
            raise _unknown("aggregator", aggregator, AGGREGATORS)
        widths: tuple[int, ...] = (self.aggregator.dim,)
        if predictor == "mlp":
            widths += _MLP_WIDTHS
        elif predictor != "linear":
            raise _unknown("predictor", predictor, PREDICTORS)
        layers_of_predictor: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers_of_predictor += [nn.Linear(before, after), nn.ReLU()]
        self.predictor = nn.Sequential(*layers_of_predictor, nn.Linear(widths[-1], 1), nn.Sigmoid())

    def forward(
        self,
        frames: Tensor | None,
        captions: Tensor | None = None,
        caption_mask: Tensor | None = None,
    ) -> Scores:
        """Frames [B, T, D] -> Scores; captions are not looked at."""
        frames = functional.normalize(needed(frames, "frames", "TemporalHead"), dim=-1)
        score = self.predictor(self.aggregator(frames)).squeeze(-1)
        return Scores(score, None, (score,))


def _unknown(option: str, value: str, known: tuple[str, ...]) -> ModelError:
    return ModelError(
        f"TemporalHead knows no {option} {value!r}", next_step=f"Known: {', '.join(known)}."
    )
