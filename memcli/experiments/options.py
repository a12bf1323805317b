"""What all trainings of an experiment are given, and how a model takes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.errors import UsageError
from memcli.models import get_model
from memcli.text import printable
from memcli.training.settings import absolute_encoder

if TYPE_CHECKING:
    from memcli.train.run import Run

ON_MACHINE = ("device", "auto_batch", "workers", "offline")
"""What an interrupted experiment may go on with anew."""


@dataclass(frozen=True)
class Options:
    """What all trainings of an experiment are given. None: as the paper says."""

    encoders: Mapping[str, str] = field(default_factory=dict)
    """Another encoder for each repository that the registry names; "" stands for all that have a
    vision tower."""
    text_encoder: str | None = None
    """For all repositories of which only a text tower is used."""
    epochs: int | None = None
    adaptation_epochs: int | None = None
    """Of the contrastive adaptation."""
    folds: int | None = None
    head: Mapping[str, int | float | str] = field(default_factory=dict)
    """Hyper-parameters, given to every model whose head has them."""
    seed: int = 0
    device: str = "auto"
    auto_batch: bool = False
    """Halve a batch until it fits into memory."""
    workers: int | None = None
    offline: bool = False

    def to_dict(self) -> dict[str, Any]:
        """What decides about the result, ready for JSON."""
        entry = dataclasses.asdict(self)
        entry["encoders"] = {old: absolute_encoder(new) for old, new in self.encoders.items()}
        entry["text_encoder"] = absolute_encoder(self.text_encoder)
        return {k: v for k, v in entry.items() if k not in ON_MACHINE}

    def changes(self, runs: Sequence[Run]) -> list[str]:
        """What of some runs differs from the papers, in words: only what had an effect on one."""
        effective = {
            "epochs": any(run.settings["epochs"] is not None for run in runs),
            "epochs of the adaptation": any(run.adaptation for run in runs),
            "folds": any(run.dataset["split"] == "folds" for run in runs),
            "seed": bool(runs),
            **{key: any(key in run.settings["options"] for run in runs) for key in self.head},
        }
        given = {
            "epochs": self.epochs,
            "epochs of the adaptation": self.adaptation_epochs,
            "folds": self.folds,
            "seed": self.seed or None,
            **self.head,
        }
        return [
            f"{name} {value}"
            for name, value in given.items()
            if value is not None and effective[name]
        ]


def encoders_of(model: str, options: Options) -> tuple[str | None, str | None]:
    """What stands in for the vision (or only) and the text encoder of a model; None: its own."""
    from memcli.models import MODELS

    seen = {one.repository for spec in MODELS.values() for one in spec.encoders
            if one.tower == "vision"}  # fmt: skip

    def stand_in(repository: str) -> str | None:
        rest = options.encoders.get("") if repository in seen else options.text_encoder
        return options.encoders.get(repository, rest)

    spec = get_model(model)
    vision, text = spec.encoder("vision"), spec.encoder("text")
    return (
        stand_in(vision.repository) if vision is not None else None,
        stand_in(text.repository) if text is not None else None,
    )


def head_options(model: str) -> frozenset[str]:
    """The names of the hyper-parameters that the head of a model has."""
    from memcli.models.head_options import options_of

    head = get_model(model).head
    return frozenset(options_of(head)) if head is not None else frozenset()


def check_options(options: Options, models: Sequence[str]) -> None:
    """Raises UsageError for an option that concerns none of the models: most likely a slip."""
    for name in options.head:
        known = sorted(set().union(*(head_options(model) for model in models)))
        if name not in known:
            raise UsageError(
                f"no head here has an option {printable(name)!r}",
                where="--set",
                next_step=f"Options: {', '.join(known) or 'none'}.",
            )
    repositories = {one.repository for model in models for one in get_model(model).encoders}
    for name in filter(None, options.encoders):
        if name not in repositories:
            raise UsageError(
                f"no model here uses the encoder {printable(name)!r}",
                where="--encoder",
                next_step=f"Encoders: {', '.join(sorted(repositories))}.",
            )


def encoder_changes(runs: Sequence[Run]) -> list[str]:
    """Which encoders stand in for those of the papers, in words."""
    found = set()
    for run in runs:
        for used in run.encoders:
            own = get_model(run.model).encoder(used.tower)
            if own is not None and own.repository != used.repository:
                path = Path(used.repository)
                found.add((path.name if path.is_absolute() else str(path), own.repository))
    return [f"{new} in place of {old}" for new, old in sorted(found)]
