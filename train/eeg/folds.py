"""Which epochs are held out together."""

from __future__ import annotations

from collections.abc import Sequence

from memcli.train.datasets.types import DatasetError


def epoch_folds(labels: Sequence[int], count: int, seed: int) -> list[list[int]]:
    """Positions of the epochs that each of `count` folds holds out, with equal shares of labels.

    The paper's folds, as far as it says: of epochs, so that every subject is on both sides. Raises
    DatasetError where a class has fewer epochs than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    fewest = min(sum(one == label for one in labels) for label in (0, 1))
    if fewest < count:
        raise DatasetError(
            f"{count} folds need at least {count} epochs of each label; one has {fewest}",
            next_step=f"Take fewer:  --folds {max(2, fewest)}",
        )
    folds = StratifiedKFold(count, shuffle=True, random_state=seed)
    return [held.tolist() for _, held in folds.split(labels, labels)]


def subject_folds(
    labels: Sequence[int], subjects: Sequence[str], count: int, seed: int
) -> list[list[int]]:
    """As `epoch_folds`, but a subject's epochs stay together: nobody is on both sides.

    Raises DatasetError for fewer subjects than folds, and where the rest of a fold, or the fold,
    would have one label only.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    there = len(set(subjects))
    if there < count:
        raise DatasetError(
            f"{count} folds of subjects need at least {count} subjects; there are {there}",
            next_step=f"Take fewer:  --folds {there}"
            if there > 1
            else "Hold out epochs:  --split epochs",
        )
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    found = [held.tolist() for _, held in folds.split(labels, labels, subjects)]
    for held in found:
        rest = set(range(len(labels))) - set(held)
        if min(len({labels[i] for i in held}), len({labels[i] for i in rest})) < 2:
            raise DatasetError(
                "subjects cannot be held out: then one side would have one label only",
                next_step="Hold out epochs:  --split epochs",
            )
    return found


def monitoring_part(
    train: Sequence[int], subjects: Sequence[str], labels: Sequence[int], seed: int
) -> tuple[list[int], list[int]]:
    """Of what a fold of subjects trains on, positions to train on and to say when to stop by.

    The latter are one of its subjects, drawn by `seed` among those with both labels; where there
    are fewer than three, a tenth of each label. So the held-out subjects are looked at only once.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    names = sorted({subjects[i] for i in train})
    both = [n for n in names if len({labels[i] for i in train if subjects[i] == n}) == 2]
    if len(names) >= 3 and both:
        chosen = both[int(rng.integers(len(both)))]
        monitor = {i for i in train if subjects[i] == chosen}
    else:
        monitor = set()
        for label in (0, 1):
            own = [i for i in train if labels[i] == label]
            monitor |= set(rng.permutation(own)[: max(1, len(own) // 10)].tolist())
    return [i for i in train if i not in monitor], sorted(monitor)
