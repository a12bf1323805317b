"""VIDEM: commercials with memorability scores and features, MediaEval 2025 and 2026."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.train.datasets.draft import Draft, Entry
from memcli.train.datasets.tables import read_table
from memcli.train.datasets.tree import Tree
from memcli.train.datasets.types import Dataset, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUND_TRUTH = "devset_videolist_GT.csv"
_TEST_LISTS = ("testset_videolist.csv", "testset_videolist_.csv")


def load(root: Path, tree: Tree) -> Dataset:
    """`devset_videolist_GT.csv` with `id` (of YouTube) and `memorability_score`, features in
    `features/<Name>/<id>.npy` beside it, and `testset_videolist.csv`, whose videos have no score.

    Recognition was tested after 24 to 72 hours: the scores are long-term ones. The labelled set is
    the train split. Features of the test set, if any, are not read.
    """
    draft = Draft("videm", root, tree)
    path = tree.one(GROUND_TRUTH)
    if path is not None:
        for row in read_table(path, draft, ("id", "memorability_score")):
            entry = Entry(row["id"], "train", path, row.line, video=(row["id"],))
            if draft.add(entry):
                draft.score(entry, "long-term", row["memorability_score"], path, row.line)
    test = tree.one(*_TEST_LISTS)
    if test is not None:
        for row in read_table(test, draft, ("id",)):
            draft.add(Entry(row["id"], "test", test, row.line, video=(row["id"],)))
    features = _features(draft, path.parent, tree) if path is not None else {}
    return draft.finish(("long-term",), "long-term", features)


def _features(draft: Draft, folder: Path, tree: Tree) -> dict[str, Path]:
    """The usable folders of features beside the list of labelled videos, by name."""
    top = next((one for one in tree.features if one.parent == folder), None)
    if top is None:
        return {}
    found = {}
    for path in sorted(one for one in top.iterdir() if one.is_dir()):
        with os.scandir(path) as scan:
            files = {
                entry.name[: -len(".npy")]: Path(entry.path)
                for entry in scan
                if entry.name.endswith(".npy")
            }
        if files:
            found[path.name] = path
            _check_folder(draft, path, files)
    return found


def _check_folder(draft: Draft, folder: Path, files: dict[str, Path]) -> None:
    lengths: dict[str, int] = {}
    for entry in draft.entries("train"):
        file = files.get(entry.id)
        if file is None:
            what = f"{shown(entry.id)} has no feature in {folder.name}"
            draft.problem("missing-feature", what, entry.file, entry.line)
            continue
        try:
            array = open_feature(file)
        except (OSError, ValueError) as error:
            draft.problem("feature", f"not a usable .npy file: {shown(error)}", file)
            continue
        lengths[entry.id] = array.shape[-1]
        first = next(iter(lengths))
        if array.shape[-1] != lengths[first]:
            what = f"{array.shape[-1]} values long, but that of {shown(first)} has {lengths[first]}"
            draft.problem("feature", what, file)
    for name in sorted(set(files) - {entry.id for entry in draft.entries()}):
        what = f"a feature of {shown(name)}, which is in no list"
        draft.problem("unknown-video", what, files[name], severity="warning")


def open_feature(path: Path) -> NDArray[Any]:
    """A feature array of numbers, memory-mapped: [..., values].

    Raises OSError or ValueError for what is no such file: nothing in it is ever executed.
    """
    import numpy as np

    if path.exists() and not path.is_file():
        raise ValueError("not a plain file")  # a pipe would be waited for
    try:
        with np.errstate(over="ignore"):  # the sides of a shape that is too large
            array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        raise
    except Exception as error:  # numpy reads the header as Python text: TokenError and many more
        raise ValueError(f"its header is damaged: {type(error).__name__}") from error
    if array.ndim == 0 or array.size == 0 or array.dtype.kind not in "fiu":
        raise ValueError(f"{array.dtype} of shape {array.shape}, not a list of numbers")
    return array
