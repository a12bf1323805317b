"""Memento10k: the authors' JSON release and the CSV release of MediaEval 2021 and 2022."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from memcli.train.datasets.draft import Draft, Entry
from memcli.train.datasets.mediaeval import Release, is_trecvid, read_release
from memcli.train.datasets.tables import read_objects
from memcli.train.datasets.tree import Tree
from memcli.train.datasets.types import Dataset, DatasetError

JSON_LISTS = {
    "train": "memento_train_data.json",
    "dev": "memento_val_data.json",
    "test": "memento_test_data.json",
}
_COLUMNS = {
    "raw": ("scores_raw_short_term",),
    "normalized": ("scores_normalized_short_term",),
}


def load_json(root: Path, tree: Tree) -> Dataset:
    """`memento_{train,val,test}_data.json`: lists of objects with `filename`, `mem_score` and
    `captions`; the val split is called dev here. The videos lie beside them or in a folder such
    as `videos_final/`.

    `mem_score` is taken as the normalised score: its published mean over the train split,
    0.80099205, is that of `scores_normalized_short_term` in the CSV release, not of the raw score.
    """
    draft = Draft("memento10k", root, tree)
    for split, name in JSON_LISTS.items():
        path = tree.one(name)
        if path is not None:
            _read_list(draft, path, split)
    return draft.finish(("normalized",), "normalized")


def _read_list(draft: Draft, path: Path, split: str) -> None:
    for line, value in read_objects(path, draft):
        filename = value.get("filename")
        if not isinstance(filename, str):
            draft.problem("value", "an object without a filename", path, line)
            continue
        name = PurePosixPath(filename.strip()).name
        entry = Entry(name, split, path, line, video=(name,))
        if not draft.add(entry):
            continue
        score = value.get("mem_score")
        if split != "test" or score is not None:
            draft.score(entry, "normalized", score, path, line)
        captions = value.get("captions")
        for text in captions if isinstance(captions, list) else []:
            draft.caption(entry, text, path, line)


def load_csv(root: Path, tree: Tree, release: Release) -> Dataset:
    """`{training_set/train,dev_set/dev}_scores.csv` and `*_text_descriptions.csv`."""
    if is_trecvid(release):
        raise DatasetError(
            "these are TRECVid's scores: they have a long-term column",
            where=str(root),
            next_step="Name the dataset:  --dataset trecvid",
        )
    draft = Draft("memento10k", root, tree)
    targets = read_release(draft, release, _COLUMNS)
    default = "normalized" if "normalized" in targets else "raw"
    return draft.finish(targets or ("normalized",), default)
