"""What a run of `memcli eeg` is asked for, and opening the model that it asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memcli.eeg import EpochOptions
from memcli.eeg.channels import check_montage
from memcli.eeg.events import matcher
from memcli.eeg.onsets import check_onsets
from memcli.errors import MissingDependencyError, UsageError
from memcli.models import MODELS
from memcli.spec import EegPrep, ModelSpec, Precision

if TYPE_CHECKING:
    from memcli.engines.base import EngineName
    from memcli.engines.bundle import Bundle
    from memcli.recognition.recogniser import Recogniser

DEFAULT_MODEL = "eeg-cnn"
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class EegSettings:
    """How to score. `auto` and None mean: choose well, and say what was chosen."""

    model: str = DEFAULT_MODEL
    options: EpochOptions = field(default_factory=EpochOptions)
    """How epochs are found, and what is done about trouble."""
    sfreq_hz: float | None = None
    """Of .npy and .npz files that do not say."""
    channels: tuple[str, ...] | None = None
    """Names of the channels of such files, in order."""
    threshold: float = DEFAULT_THRESHOLD
    """From this probability on an epoch counts as recognised."""
    engine: EngineName | Literal["auto"] = "auto"
    device: str = "auto"
    precision: Precision | Literal["auto"] = "auto"
    threads: int | None = None
    """Threads of a CPU engine; None: all cores."""
    batch_size: int | None = None
    """Epochs per engine call."""
    readers: int | None = None
    """Recordings that are read at the same time."""
    offline: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for numbers that make no sense, before anything is opened."""
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold is {self.threshold}; it is a probability, 0 to 1")
        for name in ("sfreq_hz", "threads", "batch_size", "readers"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"{name} is {value}; it must be more than 0")

    def identity(self) -> dict[str, Any]:
        """What of these settings all rows of one table must have in common."""
        options = self.options
        return {
            "event": options.event,
            "onsets": None if options.onsets is None else _digest(options.onsets),
            "on_missing": options.on_missing,
            "on_dead": options.on_dead,
            "on_bad": options.on_bad,
            "on_short": options.on_short,
            "unit": options.unit,
            "montage": options.montage,
            "subject": options.subject,
            "sfreq_hz": self.sfreq_hz,
            "channels": None if self.channels is None else list(self.channels),
            "threshold": self.threshold,
        }


def _digest(path: Path) -> str:
    """SHA-256 of a table of onsets. Raises UsageError if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UsageError(
            f"the onsets cannot be read: {error.strerror or error}", where=str(path)
        ) from error


def check_options(settings: EegSettings, recordings: Sequence[str] | None) -> tuple[str, ...]:
    """What is to be told of the options, once, before a recording is opened.

    `recordings` are all that the table of onsets may be about; None: there are others. Raises
    UsageError for options that are wrong whatever the recordings hold: events, montage, onsets.
    """
    options = settings.options
    if options.event is not None:
        matcher(options.event)
    if options.montage is not None:
        check_montage(options.montage)
    return () if options.onsets is None else check_onsets(options.onsets, recordings)


def check_reading() -> None:
    """Raise MissingDependencyError unless recordings can be read here."""
    try:
        import mne  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "mne", purpose="reading EEG", install="pip install 'memcli[eeg]'"
        ) from None


def eeg_prep(spec: ModelSpec) -> EegPrep:
    """How a model's epochs are prepared. Raises UsageError for a model of videos."""
    if spec.eeg is None:
        raise UsageError(
            f"{spec.name} is a model for videos, not for EEG",
            next_step=f"Score videos: memcli score VIDEOS --model {spec.name}\n"
            f"Or recordings: memcli eeg RECORDING --model {DEFAULT_MODEL}",
        )
    return spec.eeg


def open_bundle(settings: EegSettings) -> Bundle:
    """The installed model of these settings, or the bundle of a folder.

    Raises UsageError for a model of videos, ModelError if it is not installed or damaged.
    """
    from memcli.store import find, is_installed

    if settings.model in MODELS and not is_installed(settings.model):
        eeg_prep(MODELS[settings.model])  # before anything is said about installing it
    bundle = find(settings.model)
    eeg_prep(bundle.spec)
    return bundle


def open_recogniser(settings: EegSettings, report: Callable[[str], None]) -> Recogniser:
    """Open the model on the engine that fits `settings`.

    Raises UsageError, ModelError, EngineError, DeviceError or MissingDependencyError.
    """
    from memcli.engines.candidates import TENSORRT
    from memcli.engines.loading import installed_runtimes, installed_tensorrt, no_runtime_error
    from memcli.engines.select import open_engine
    from memcli.recognition.recogniser import Recogniser

    check_reading()
    bundle = open_bundle(settings)
    if not installed_runtimes() and not any(map(installed_tensorrt, TENSORRT)):
        raise no_runtime_error()
    selection = open_engine(
        bundle,
        engine=settings.engine,
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        report=report,
    )
    return Recogniser(settings, bundle, selection)
