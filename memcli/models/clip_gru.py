"""CLIP frames aggregated over time (MediaEval 2022), and the ablations of its table 1.

Source: 002_1ca569390f82ecec.txt, section 2. Frames are resized to a square whatever their shape
and are not cropped, as there. The paper takes every frame of a clip of three seconds and says
nothing of longer ones; here 16 frames are sampled (`--frames` takes more, up to 512), because
neighbouring frames of a short clip are nearly the same. What early stopping watches is left open
there: here it is the loss on the held-out videos. All rows "L/14" of the table use the 336-pixel
checkpoint that the paper names. The I3D rows are not here: that network has no weights for
memorability.
"""

from __future__ import annotations

from dataclasses import replace

from memcli.models import encoders
from memcli.spec import EncoderSpec, HeadSpec, ModelSpec, PublishedResult, Recipe

_SECTION = "002_1ca569390f82ecec.txt, section 2"
_TABLE = "002_1ca569390f82ecec.txt, table 1"
_RECIPE = Recipe(
    loss="l1",
    epochs=100,
    batch_size=8,
    learning_rate=1e-4,
    schedule="step",
    step_epochs=5,
    step_factor=0.95,
    monitor="val_loss",
    patience_epochs=5,
    shuffle_frames=True,
    folds=5,
)


def _spec(
    name: str,
    encoder: EncoderSpec,
    aggregator: str,
    predictor: str,
    *,
    plcc: float,
    srcc: float,
    more: tuple[PublishedResult, ...] = (),
) -> ModelSpec:
    side = 224 if encoder is encoders.CLIP_B32_POOLED else 336
    size = "B/32" if side == 224 else "L/14-336"
    dataset = "Memento10k, development set"
    return ModelSpec(
        name=name,
        summary=f"CLIP ViT-{size} frames, {aggregator} over time, {predictor} predictor"
        " (MediaEval 2022)",
        predicts="short-term memorability of the video, 0 to 1, as in its training scores",
        source=_SECTION,
        prep=replace(
            encoders.CLIP_PREP,
            frames=16,
            sampling="midpoints",
            fit="stretch",
            resize_width=side,
            resize_height=side,
            crop_width=side,
            crop_height=side,
        ),
        encoders=(encoder,),
        head=HeadSpec("TemporalHead", {"aggregator": aggregator, "predictor": predictor}),
        recipe=_RECIPE,
        trained_on="your training data (paper: Memento10k)",
        published=(
            PublishedResult(dataset, "SRCC", srcc, _TABLE),
            PublishedResult(dataset, "PLCC", plcc, _TABLE),
            *more,
        ),
        tolerances=encoders.TOLERANCES,
    )


def _cross(train: str, test: str, part: str, plcc: float, srcc: float) -> list[PublishedResult]:
    source = "002_1ca569390f82ecec.txt, table 2"
    where = f"{test}, {part}, trained on {train}"
    return [
        PublishedResult(where, "SRCC", srcc, source),
        PublishedResult(where, "PLCC", plcc, source),
    ]


_B32, _L14 = encoders.CLIP_B32_POOLED, encoders.CLIP_L14_336_POOLED

CLIP_GRU = _spec(
    "clip-gru",
    _L14,
    "gru-attention",
    "mlp",
    plcc=0.7132,
    srcc=0.7100,
    more=(
        *_cross("Memento10k", "VideoMem", "development set", 0.466, 0.452),
        *_cross("Memento10k", "VideoMem", "test set", 0.487, 0.470),
        *_cross("VideoMem", "Memento10k", "development set", 0.511, 0.507),
        *_cross("VideoMem", "Memento10k", "test set", 0.529, 0.523),
    ),
)

SPECS = (
    _spec("clip-b32-average", _B32, "average", "linear", plcc=0.7009, srcc=0.7000),
    _spec("clip-b32-gru", _B32, "gru", "linear", plcc=0.7052, srcc=0.7063),
    _spec("clip-l14-gru", _L14, "gru", "linear", plcc=0.7075, srcc=0.7079),
    CLIP_GRU,
    _spec("clip-l14-transformer", _L14, "transformer", "linear", plcc=0.7033, srcc=0.7038),
)
