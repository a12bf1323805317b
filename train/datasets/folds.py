"""Cross-validation folds in which no video and no group stands on both sides."""

from __future__ import annotations

import random
from collections.abc import Sequence

from memcli.text import plural
from memcli.train.datasets.types import DatasetError, Item, shown


def make_folds(items: Sequence[Item], count: int, seed: int) -> tuple[int, ...]:
    """The fold of each item, 0 to count - 1.

    If the items have folds of their own, these are used, numbered from 0 in their order. Otherwise
    they are drawn with `seed`: without groups by shuffling, fold sizes then differ by at most one;
    with groups the largest group goes first, each to the smallest fold so far, and sizes differ
    by at most the largest group. An item without a group is a group of its own. The same
    items, count and seed give the same folds.

    Raises DatasetError for fewer than two folds, fewer videos or groups than folds, folds of the
    dataset that are of another number, incomplete, or divide a group.
    """
    if count < 2:
        raise DatasetError(f"{plural(count, 'fold')} asked: cross-validation needs at least 2")
    if any(item.fold is not None for item in items):
        return _given(items, count)
    groups = [item.group if item.group is not None else ("video", item.id) for item in items]
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
    first: dict[str, tuple[Item, int]] = {}
    for item, fold in zip(items, folds, strict=True):
        if item.group is None:
            continue
        other, its_fold = first.setdefault(item.group, (item, fold))
        if its_fold != fold:
            raise DatasetError(
                f"group {shown(item.group)} is in fold {item.fold} here and in fold {other.fold}"
                f" in line {other.line}",
                where=f"{item.file}:{item.line}",
                next_step="Give all videos of a group one fold.",
            )
    return folds
