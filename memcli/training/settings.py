"""What a training is asked for, and who watches it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Protocol,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from memcli import extraction
from memcli.errors import ModelError

if TYPE_CHECKING:
    from memcli.train.run import Run

Split = Literal["folds", "official", "full"]
SPLITS: tuple[Split, ...] = ("folds", "official", "full")
MAX_MISSING = 0.05
_ENCODERS = ("encoder", "text_encoder")
_MACHINE = ("device", "workers", "offline", "save_every_s")


@dataclass(frozen=True)
class TrainSettings:
    """What a training is asked for. None: as the model's paper says."""

    model: str
    dataset: str
    data: Path
    target: str | None = None
    split: Split = "folds"
    """folds: cross-validation, then all videos; official: train and dev of the dataset; full: all
    videos, nothing held out."""
    folds: int | None = None
    encoder: str | None = None
    text_encoder: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    frames: int | None = None
    options: dict[str, int | float | str] = field(default_factory=dict)
    """Hyper-parameters of the head."""
    adaptation_epochs: int | None = None
    """At most this many of the contrastive adaptation."""
    choose_alpha: bool = False
    features: str | None = None
    """Precomputed features of the dataset instead of an encoder."""
    max_missing: float = MAX_MISSING
    """Share of videos that may be left out because they cannot be used."""
    seed: int = 0
    output: Path | None = None
    device: str = "auto"
    precision: Literal["32", "16", "bf16"] = "32"
    devices: int | None = None
    """None: one, or as many as the run had that is resumed."""
    auto_batch: bool = False
    workers: int | None = None
    offline: bool = False
    save_every_s: float = 60.0
    """Seconds between checkpoints that `--resume` goes on from."""

    def to_dict(self) -> dict[str, Any]:
        """For run.json: what decides about the result, without the machine."""
        entry = dataclasses.asdict(self)
        for name in (*_MACHINE, "output"):
            del entry[name]
        return entry | self.places()

    def places(self) -> dict[str, Any]:
        """Of `to_dict`, what says where dataset and encoders lie."""
        encoders = {name: absolute_encoder(getattr(self, name)) for name in _ENCODERS}
        return {"data": str(self.data.absolute())} | encoders

    def resumed(self, run: Run) -> TrainSettings:
        """The settings of an interrupted run, on the machine of these. Raises ModelError.

        Another number of devices shares the same batches, and `auto_batch` can be added. Where
        dataset and encoders lie now is taken from these, too, if they say so: `data` other than
        `Path()`, `encoder` and `text_encoder`.
        """
        kinds = get_type_hints(TrainSettings) | {"data": str}
        kept = kinds.keys() - {*_MACHINE, "output"}
        given = run.settings
        if given.keys() != kept or not all(_fits(given[name], kinds[name]) for name in kept):
            raise ModelError(
                "the settings in its run.json are of another version, or damaged",
                where=str(run.folder),
                next_step='Train anew, with what stands there under "settings":'
                f"  memcli train {run.model} --dataset NAME --data DIR ...",
            )
        own: dict[str, Any] = {name: getattr(self, name) for name in _MACHINE}
        own["devices"] = self.devices or given["devices"]
        own["auto_batch"] = self.auto_batch or given["auto_batch"]
        own["data"] = Path(given["data"]) if self.data == Path() else self.data.absolute()
        for name in _ENCODERS:
            own[name] = absolute_encoder(getattr(self, name)) or given[name]
        return TrainSettings(**(given | own))


def absolute_encoder(name: str | None) -> str | None:
    """A folder's absolute path, so that it is found from elsewhere, too; a hub's name as it is."""
    return str(Path(name).absolute()) if name and Path(name).is_dir() else name


def _fits(value: object, kind: Any) -> bool:
    """Whether a value from a file is of the annotated type of a field."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in parts)
    if origin is Literal:
        return value in parts
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, parts[1]) for one in value.values())
    return type(value) is kind or (kind is float and type(value) is int)


class Progress(extraction.Progress, Protocol):
    """Who watches a training."""

    def epoch(self, part: str, number: int, of: int, metrics: dict[str, float]) -> None:
        """An epoch of `part` (`fold 2 of 5`) is done."""
        ...


class NoProgress(extraction.NoProgress):
    """Says nothing."""

    def epoch(self, part: str, number: int, of: int, metrics: dict[str, float]) -> None: ...
