"""What is decided before a training: the spec with the user's changes, and who is held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from memcli.errors import ModelError, UsageError
from memcli.models import get_model
from memcli.models.head_options import options_of
from memcli.spec import ModelSpec, Recipe
from memcli.text import printable
from memcli.train.datasets import Dataset, DatasetError, Item
from memcli.train.datasets.folds import make_folds
from memcli.training.settings import SPLITS, TrainSettings

_NOT_OF: dict[type, str] = {
    int: "not a whole number",
    float: "not a number",
    str: "none of its values",
}


def make_spec(settings: TrainSettings) -> ModelSpec:
    """The registry's spec with what the settings change. Raises UsageError for contradictions."""
    registered = get_model(settings.model)
    check_options(registered, settings.options)
    spec = with_options(registered, settings.options)
    recipe = cast(Recipe, spec.recipe)
    if settings.split not in SPLITS:
        raise UsageError(f"no split {settings.split!r}", next_step=f"One of: {', '.join(SPLITS)}")
    if settings.choose_alpha and (spec.head is None or spec.head.kind != "LateFusion"):
        raise UsageError(f"{spec.name} has no alpha to choose", where="--choose-alpha")
    if settings.choose_alpha and settings.split == "full":
        raise UsageError("choosing alpha needs held-out videos", where="--choose-alpha")
    if settings.features is not None and (spec.text is not None or recipe.fine_tune):
        raise UsageError(
            f"{spec.name} cannot be trained on precomputed features",
            where="--features",
            next_step="Models of frames with a frozen encoder can: vision, brr, clip-gru.",
        )
    if settings.features is not None:
        for name in ("encoder", "text_encoder", "frames"):
            if getattr(settings, name) is not None:
                raise UsageError(
                    "precomputed features take the place of encoder and frames",
                    where=f"--{name.replace('_', '-')}",
                    next_step="Leave it out, or leave --features out.",
                )
    changes: dict[str, Any] = {
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "folds": settings.folds,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    for name, value in given.items():
        if recipe.loss == "bayesian-ridge" and name != "folds":
            raise UsageError(
                f"{spec.name} is fitted in one step: there is nothing that this could change",
                where=f"--{name.replace('_', '-')}",
            )
        if not value > 0:
            raise UsageError(f"{value:g} is not positive", where=f"--{name.replace('_', '-')}")
    return replace(spec, recipe=replace(recipe, **given))


def check_options(spec: ModelSpec, options: Mapping[str, int | float | str]) -> None:
    """Raises UsageError for an option that the model's head does not have, or of another type.

    Which numbers are possible, the head itself says.
    """
    if spec.head is None or not options:
        return
    known = options_of(spec.head)
    has = ", ".join(f"{name}={value}" for name, (_, value) in known.items())
    listed = f"Its options: {has}\nWhat they mean:  memcli models show {spec.name}"
    for name, value in options.items():
        if name not in known:
            raise UsageError(
                f"the head of {spec.name} has no option {printable(name)!r}",
                where="--set",
                next_step=listed if known else "It has none.",
            )
        one, _ = known[name]
        kind = type(one.default)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UsageError(
                f"'{printable(str(value))}' is {_NOT_OF[kind]}",
                where=f"--set {name}",
                next_step=f"Possible: {one.values}",
            )


def with_options(spec: ModelSpec, options: Mapping[str, int | float | str]) -> ModelSpec:
    """The spec with other hyper-parameters of its head; the head itself refuses wrong ones.

    Raises ModelError for a model that is not trained.
    """
    if spec.head is None or spec.recipe is None:
        raise ModelError(
            f"{spec.name} is not trained here: its weights are published",
            next_step=f"Fetch it:  memcli models pull {spec.name}",
        )
    return replace(spec, head=replace(spec.head, options={**spec.head.options, **options}))


def official_items(items: Sequence[Item], dataset: Dataset) -> tuple[Item, ...]:
    """The items of the official splits train and dev. Raises DatasetError without both."""
    found = tuple(item for item in items if item.split in ("train", "dev"))
    if {item.split for item in found} != {"train", "dev"}:
        raise DatasetError(
            f"{dataset.name} has no labelled videos of both splits, train and dev, here",
            where=str(dataset.root),
            next_step="Cross-validate instead:  --split folds",
        )
    return found


def held_out(items: Sequence[Item], settings: TrainSettings, recipe: Recipe) -> list[list[int]]:
    """The positions of the items that each fold holds out; one fold, dev, of an official split.

    Raises DatasetError for too few videos.
    """
    if settings.split == "full":
        return []
    if settings.split == "official":
        held = [[i for i, item in enumerate(items) if item.split == "dev"]]
        if len(held[0]) in (0, len(items)):
            raise DatasetError(
                "no videos are left to train on, or none to validate on",
                next_step="Cross-validate instead:  --split folds",
            )
        return held
    held = [[] for _ in range(recipe.folds)]
    for position, fold in enumerate(make_folds(items, recipe.folds, settings.seed)):
        held[fold].append(position)
    return held
