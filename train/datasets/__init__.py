"""Datasets of memorability scores in their official formats.

`load_dataset` reads one and says what is wrong with it; `detect` tells which format a folder has.
The formats are described, with how to obtain each dataset, in docs/datasets.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from memcli.text import printable
from memcli.train.datasets import generic, memento10k, trecvid, videm, videomem
from memcli.train.datasets.mediaeval import find_release, is_trecvid
from memcli.train.datasets.tree import Tree
from memcli.train.datasets.types import (
    KINDS,
    TARGETS,
    Dataset,
    DatasetError,
    Item,
    Problem,
    raise_on_errors,
)

__all__ = [
    "DATASETS",
    "KINDS",
    "TARGETS",
    "Dataset",
    "DatasetError",
    "Item",
    "Problem",
    "detect",
    "load_dataset",
    "raise_on_errors",
    "same_format",
]

DATASETS = {
    "memento10k": "10,000 clips of 3 s with five captions each: JSON, or MediaEval 2021/22 CSV",
    "videomem": "10,000 clips of 7 s with short- and long-term scores: MediaEval 2018/19",
    "trecvid": "TRECVid 2019 clips with short- and long-term scores: MediaEval 2020/21",
    "videm": "commercials with features and long-term scores: MediaEval 2025/26",
    "moviemem": "film excerpts with long-term scores: one CSV with path,score and a group (film)",
    "csv": "anything else: one CSV with path,score[,caption][,split][,fold][,group]",
}
"""Name -> what it is, in one line."""

_GENERIC = ("csv", "moviemem")
"""Two names of one format."""
_MEDIAEVAL = ("train_scores.csv", "scores_v2.csv", "dev_scores.csv")
_LISTS = {
    "memento10k": (*memento10k.JSON_LISTS.values(), "train_scores.csv", "dev_scores.csv"),
    "videomem": videomem.GROUND_TRUTH,
    "trecvid": _MEDIAEVAL,
    "videm": (videm.GROUND_TRUTH,),
}


def same_format(name: str, other: str) -> bool:
    """Whether a folder that is read as `name` could have been read as `other`."""
    return name == other or {name, other} <= set(_GENERIC)


def load_dataset(name: str, root: Path) -> Dataset:
    """Read the dataset `name` (of `DATASETS`) in the folder `root`; of the generic form, `root`
    may be the table itself.

    Faulty rows do not stop it: each becomes one of the dataset's `problems`. Raises DatasetError
    for an unknown name, and if `root` holds nothing of this dataset.
    """
    if name not in DATASETS:
        raise DatasetError(
            f"unknown dataset {printable(name)!r}",
            next_step=f"Datasets: {', '.join(DATASETS)}.",
        )
    if name in _GENERIC:
        _check_exists(root)
        return generic.load(name, root, "long-term" if name == "moviemem" else "raw")
    tree = Tree(root)
    if not _holds(tree, _LISTS[name]):
        raise DatasetError(
            f"nothing of {name} here: looked for {', '.join(_LISTS[name])}",
            where=str(root),
            next_step="See docs/datasets.md for how to obtain it and where each file goes.",
        )
    if name == "videomem":
        return videomem.load(root, tree)
    if name == "videm":
        return videm.load(root, tree)
    if name == "memento10k" and _holds(tree, memento10k.JSON_LISTS.values()):
        if _holds(tree, _MEDIAEVAL):
            raise DatasetError(
                "JSON lists and CSV lists of scores here: two releases",
                where=str(root),
                next_step="Name the folder of one of them.",
            )
        return memento10k.load_json(root, tree)
    release = find_release(tree)
    load = trecvid.load if name == "trecvid" else memento10k.load_csv
    return load(root, tree, release)


def detect(root: Path) -> str:
    """Which of `DATASETS` lies in `root`, a folder or a generic table.

    `moviemem` is told apart from `csv` by its user only. Raises DatasetError, naming what was
    looked for, if it is none.
    """
    _check_exists(root)
    if root.is_file():
        generic.find_table(root)
        return "csv"
    tree = Tree(root)
    found = [name for name in ("videomem", "videm") if _holds(tree, _LISTS[name])]
    if _holds(tree, memento10k.JSON_LISTS.values()):
        found.append("memento10k")
    if _holds(tree, _MEDIAEVAL):
        name = "trecvid" if is_trecvid(find_release(tree)) else "memento10k"
        found += [name] if name not in found else []
    if len(found) > 1:
        raise DatasetError(
            f"several datasets here: {', '.join(sorted(found))}",
            where=str(root),
            next_step="Name the folder of one, or say which with --dataset.",
        )
    if found:
        return found[0]
    if generic.tables_in(root) or len(generic.nearly_tables_in(root)) == 1:
        generic.find_table(root)
        return "csv"
    looked = dict.fromkeys(file for files in _LISTS.values() for file in files)
    raise DatasetError(
        f"no dataset here: looked for {', '.join(looked)} and a CSV table with path and score"
        f"{generic.faults_in(root)}",
        where=str(root),
        next_step="See docs/datasets.md for how to obtain each and where each file goes.",
    )


def _holds(tree: Tree, files: Iterable[str]) -> bool:
    return any(tree.named(file) for file in files)


def _check_exists(root: Path) -> None:
    if not root.exists():
        raise DatasetError(
            "no such file or folder", where=str(root), next_step="Check the spelling of the path."
        )
