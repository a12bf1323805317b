"""Which epochs are held out together.

Several people may have seen one video, or one person several times. Folds of epochs, and folds of
subjects, do not look at that: epochs of one video are on both sides. A model that tells videos from
each other may so look better than it is at recognition, where the share of people who recognise a
clip differs from clip to clip. `video_folds` keeps a video's epochs together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memcli.train.datasets.types import DatasetError

if TYPE_CHECKING:
    import numpy as np


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
    return _group_folds(labels, subjects, count, seed, "subjects")


def video_folds(
    labels: Sequence[int], videos: Sequence[str | None], count: int, seed: int
) -> list[list[int]]:
    """As `epoch_folds`, but a video's epochs stay together, whoever saw it.

    Everybody may be on both sides. Raises DatasetError as `subject_folds`, and where an epoch's
    video is not known (None).
    """
    known = [one for one in videos if one is not None]
    if len(known) < len(videos):
        raise DatasetError(
            f"{len(videos) - len(known):,} of {len(videos):,} epochs do not say of which video"
            " they are",
            next_step="Give them a column `video`, or hold out epochs:  --split epochs",
        )
    return _group_folds(labels, known, count, seed, "videos")


def _group_folds(
    labels: Sequence[int], groups: Sequence[str], count: int, seed: int, what: str
) -> list[list[int]]:
    from sklearn.model_selection import StratifiedGroupKFold

    there = len(set(groups))
    if there < count:
        raise DatasetError(
            f"{count} folds of {what} need at least {count} {what}; there are {there}",
            next_step=f"Take fewer:  --folds {there}"
            if there > 1
            else "Hold out epochs:  --split epochs",
        )
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    found = [held.tolist() for _, held in folds.split(labels, labels, groups)]
    for held in found:
        rest = set(range(len(labels))) - set(held)
        if min(len({labels[i] for i in held}), len({labels[i] for i in rest})) < 2:
            raise DatasetError(
                f"{what} cannot be held out: then one side would have one label only",
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
        monitor = _tenth(train, labels, rng)
    return [i for i in train if i not in monitor], sorted(monitor)


def monitoring_videos(
    train: Sequence[int], videos: Sequence[str | None], labels: Sequence[int], seed: int
) -> tuple[list[int], list[int]]:
    """As `monitoring_part`, of what a fold of videos trains on.

    The latter are videos, drawn by `seed` until they have a tenth of the epochs and both labels;
    where the rest would lack a label, a tenth of each label.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    names = sorted({str(videos[i]) for i in train})
    monitor: set[int] = set()
    for place in rng.permutation(len(names)).tolist():
        if 10 * len(monitor) >= len(train) and len({labels[i] for i in monitor}) == 2:
            break
        monitor |= {i for i in train if videos[i] == names[place]}
    if len({labels[i] for i in train if i not in monitor}) < 2:
        monitor = _tenth(train, labels, rng)
    return [i for i in train if i not in monitor], sorted(monitor)


def _tenth(train: Sequence[int], labels: Sequence[int], rng: np.random.Generator) -> set[int]:
    found: set[int] = set()
    for label in (0, 1):
        own = [i for i in train if labels[i] == label]
        found |= set(rng.permutation(own)[: max(1, len(own) // 10)].tolist())
    return found
