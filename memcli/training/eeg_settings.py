"""What a training of an EEG model is asked for, as JSON can hold it, and the spec that it makes."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from memcli.eeg.names import repeated
from memcli.errors import ModelError, UsageError
from memcli.models import get_model
from memcli.spec import EegPrep, ModelSpec
from memcli.text import printable
from memcli.training.plan import check_options
from memcli.typed import parsed

if TYPE_CHECKING:
    from memcli.train.eeg.reading import Source

Pretext = Literal["none", "tcl", "tcl-regress", "tcl-regress-exp"]
EegSplit = Literal["epochs", "subjects", "videos"]
MEASURED_SPLITS: tuple[EegSplit, ...] = ("epochs", "subjects")
"""Whatever split is asked for."""
BASELINES = ("eegnet", "shallow", "deep4", "riemann")


@dataclass(frozen=True)
class EegSettings:
    """None: as the registry says."""

    model: str
    data: str
    """A recording, a folder of them or a BIDS root."""
    pretext: Pretext = "none"
    ensemble: bool = False
    """The model is the folds' models, whose probabilities are averaged."""
    split: EegSplit = "epochs"
    """What the folds keep apart whose models are kept; `MEASURED_SPLITS` are measured, too."""
    baselines: tuple[str, ...] = ()
    subject_conditioning: bool = False
    channels: tuple[str, ...] = ()
    high_pass_hz: float | None = None
    low_pass_hz: float | None = None
    average_reference: bool = False
    event: str | None = None
    onsets: str | None = None
    recognised: str | None = None
    on_missing: Literal["fail", "interpolate"] = "fail"
    folds: int | None = None
    epochs: int | None = None
    pretext_epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    options: dict[str, int | float | str] = field(default_factory=dict)
    """Hyper-parameters of the head."""
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For run.json."""
        return dataclasses.asdict(self)

    @classmethod
    def of_run(cls, settings: object, where: str) -> EegSettings:
        """Those of a run.json. Raises ModelError."""
        try:
            return cast(EegSettings, parsed(cls, settings, "settings"))
        except ValueError as error:
            raise ModelError(
                f"the settings in its run.json are of another version, or damaged: {error}",
                where=where,
                next_step="Train anew, without --resume.",
            ) from error


def make_eeg_spec(settings: EegSettings) -> ModelSpec:
    """The registry's spec with what the settings change. Raises UsageError for contradictions."""
    spec = get_model(settings.model)
    if spec.eeg is None or spec.eeg_recipe is None or spec.head is None:
        raise UsageError(f"{spec.name} is no EEG model")
    check_options(spec, settings.options)
    for name in settings.baselines:
        if name not in BASELINES:
            raise UsageError(
                f"no baseline {printable(name)!r}", next_step=f"One of: {', '.join(BASELINES)}"
            )
    for option in ("event", "recognised"):
        _check_expression(getattr(settings, option), option)
    changes: dict[str, Any] = {
        "epochs": settings.epochs,
        "pretext_epochs": settings.pretext_epochs,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "folds": settings.folds,
    }
    for name, value in changes.items():
        if value is not None and not value > 0:
            raise UsageError(f"{value:g} is not positive", where=f"--{name.replace('_', '-')}")
    if settings.pretext == "none" and settings.pretext_epochs is not None:
        raise UsageError("there is no pre-training", where="--pretext-epochs")
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(
        spec,
        eeg=_prep(spec.eeg, settings),
        eeg_recipe=replace(
            spec.eeg_recipe, pretext=settings.pretext, split=settings.split, **given
        ),
        head=replace(spec.head, options={**spec.head.options, **settings.options}),
    )


def source_of(settings: EegSettings) -> Source:
    """Where the settings' epochs are and how they are read."""
    from memcli.train.eeg.reading import Source

    return Source(
        Path(settings.data),
        settings.channels,
        settings.event,
        Path(settings.onsets) if settings.onsets is not None else None,
        settings.recognised,
        settings.on_missing,
    )


def _check_expression(text: str | None, option: str) -> None:
    try:
        re.compile(text or "")
    except re.error as error:
        raise UsageError(f"no regular expression: {error}", where=f"--{option}") from error


def _prep(prep: EegPrep, settings: EegSettings) -> EegPrep:
    """How recordings are read; the channels are not known before they are."""
    for name in ("high_pass_hz", "low_pass_hz"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < prep.sfreq_hz / 2:
            raise UsageError(
                f"{value:g} Hz is not between 0 and {prep.sfreq_hz / 2:g}, half the rate of the"
                " model's input",
                where=f"--{name.removesuffix('_hz').replace('_', '-')}",
            )
    if (settings.high_pass_hz or 0) >= (settings.low_pass_hz or prep.sfreq_hz):
        raise UsageError("this and --low-pass leave no band", where="--high-pass")
    if twice := next(iter(repeated(settings.channels).values()), None):
        raise UsageError(
            f"one channel is named twice: {printable(', '.join(twice))}", where="--channels"
        )
    return replace(
        prep,
        high_pass_hz=settings.high_pass_hz,
        low_pass_hz=settings.low_pass_hz,
        reference="average" if settings.average_reference else "recorded",
    )


def same_data(settings: EegSettings, data: Path | None) -> EegSettings:
    """The settings with the place where the data lies now, if that is said."""
    return settings if data is None else replace(settings, data=str(data.absolute()))
