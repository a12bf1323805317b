"""Cross-validation folds in which no video and no group stands on both sides."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

from memcli.text import plural
from memcli.train.datasets.types import DatasetError, Item, shown


def make_folds(items: Sequence[Item], count: int, seed: int) -> tuple[int, ...]:
    """The fold of each item, 0 to count - 1.

    If the items have folds of their own, these are used, numbered from 0 in their order. Otherwise
    they are drawn with `seed`: without groups by shuffling, fold sizes then differ by at most one;
    with groups the largest group goes first, each to the smallest fold so far, and sizes differ
    by at most the largest group. What belongs together is what `together` says. The same items,
    count and seed give the same folds.

    Raises DatasetError for fewer than two folds, fewer videos or groups than folds, folds of the
    dataset that are of another number, incomplete, or divide a group.
    """
    if count < 2:
        raise DatasetError(f"{plural(count, 'fold')} asked: cross-validation needs at least 2")
    if any(item.fold is not None for item in items):
        return _given(items, count)
    groups = together(items)
    distinct = list(dict.fromkeys(groups))
    if len(distinct) < count:
        grouped = f" in {plural(len(distinct), 'group')}" if len(distinct) < len(items) else ""
        raise DatasetError(
            f"{plural(len(items), 'labelled video')}{grouped}: too few for {count} folds",
            next_step="Ask for fewer folds, or add videos.",
        )
    import numpy as np
    from sklearn.model_selection import GroupKFold, KFold

    if len(distinct) == len(items):
        splits = KFold(count, shuffle=True, random_state=seed).split(np.zeros(len(items)))
    else:
        # GroupKFold itself draws nothing: which of several groups of one size goes where follows
        # from their order, which is shuffled here.
        order = list(range(len(distinct)))
        random.Random(seed).shuffle(order)  # noqa: S311 (a draw, not a secret)
        code = dict(zip(distinct, order, strict=True))
        codes = [code[group] for group in groups]
        splits = GroupKFold(count).split(np.zeros(len(items)), groups=codes)
    folds = [0] * len(items)
    for fold, (_, held_out) in enumerate(splits):
        for place in held_out:
            folds[place] = fold
    return tuple(folds)


def together(items: Sequence[Item]) -> list[int]:
    """A number for each item; items with the same one must stay on one side of every split.

    These are the items of one group, and those that name one video file.
    """
    parents = list(range(len(items)))

    def first(place: int) -> int:
        while parents[place] != place:
            parents[place] = place = parents[parents[place]]
        return place

    owners: dict[tuple[str, str], int] = {}
    for place, item in enumerate(items):
        for owner in _owners(item):
            a, b = first(owners.setdefault(owner, place)), first(place)
            parents[max(a, b)] = min(a, b)
    return [first(place) for place in range(len(items))]


def _owners(item: Item) -> list[tuple[str, str]]:
    """Its group and its file, as far as it has them."""
    owners = [("group", item.group)] if item.group is not None else []
    if item.path is not None:
        owners.append(("file", os.path.realpath(item.path)))
    return owners


def _given(items: Sequence[Item], count: int) -> tuple[int, ...]:
    lacking = [item for item in items if item.fold is None]
    if lacking:
        raise DatasetError(
            f"{plural(len(lacking), 'video')} without a fold, first {shown(lacking[0].id)};"
            f" {len(items) - len(lacking):,} have one",
            where=f"{lacking[0].file}:{lacking[0].line}",
            next_step="Give each labelled video a fold, or none.",
        )
    numbers = sorted({item.fold for item in items if item.fold is not None})
    if len(numbers) != count:
        raise DatasetError(
            f"{plural(len(numbers), 'fold')} in the dataset, {count} asked",
            where=items[0].file,
            next_step=f"Ask for {len(numbers)}, or leave the column out to have folds drawn.",
        )
    place = {number: fold for fold, number in enumerate(numbers)}
    folds = tuple(place[item.fold] for item in items if item.fold is not None)
    first: dict[tuple[str, str], tuple[Item, int]] = {}
    for item, fold in zip(items, folds, strict=True):
        for kind, name in _owners(item):
            other, its_fold = first.setdefault((kind, name), (item, fold))
            if its_fold != fold:
                raise DatasetError(
                    f"{kind} {shown(name)} is in fold {item.fold} here and in fold {other.fold}"
                    f" in line {other.line}",
                    where=f"{item.file}:{item.line}",
                    next_step="Give all videos of a group, and all rows of a file, one fold.",
                )
    return folds
