"""VideoMem: MediaEval 2018 and 2019, and the dataset as its owner distributes it."""

from __future__ import annotations

from pathlib import Path

from memcli.text import unhyphenated
from memcli.train.datasets.draft import Draft, Entry
from memcli.train.datasets.tables import read_table, read_text
from memcli.train.datasets.tree import Tree
from memcli.train.datasets.types import Dataset, shown

GROUND_TRUTH = ("ground-truth_dev-set.csv", "dev-set_ground-truth.csv")
_CAPTIONS = {
    "train": ("dev-set_video-captions.txt", "dev-set_videos-captions.txt"),
    "test": (
        "test-set_videos-captions.txt",
        "test-set_video-captions.txt",
        "test-set-1_video-captions.txt",
    ),
}
_COLUMNS = {"short-term": "short-term_memorability", "long-term": "long-term_memorability"}


def load(root: Path, tree: Tree) -> Dataset:
    """`ground-truth_dev-set.csv` with captions in `dev-set_video-captions.txt`; the videos of
    `test-set_videos-captions.txt` are unlabelled.

    The labelled set, officially "dev-set", is the train split here: it is the only one to train
    on. A caption is words joined by hyphens; they become spaces.
    """
    draft = Draft("videomem", root, tree)
    path = tree.one(*GROUND_TRUTH)
    if path is not None:
        for row in read_table(path, draft, ("video", *_COLUMNS.values())):
            entry = Entry(row["video"], "train", path, row.line, video=_names(row["video"]))
            if draft.add(entry):
                for target, column in _COLUMNS.items():
                    draft.score(entry, target, row[column], path, row.line)
    for split, names in _CAPTIONS.items():
        captions = tree.one(*names)
        if captions is not None:
            _read_captions(draft, captions, split)
    return draft.finish(tuple(_COLUMNS), "short-term")


def _names(video: str) -> tuple[str, ...]:
    """The file as listed, or the same video in another container."""
    return (video, video.rsplit(".", 1)[0])


def _read_captions(draft: Draft, path: Path, split: str) -> None:
    """Lines of a video, a tab and a caption; CRLF, no header."""
    is_list = not draft.entries(split)
    described: dict[str, int] = {}
    for line, text in enumerate((read_text(path, draft) or "").split("\n"), 1):
        video, tab, caption = text.strip().partition("\t")
        video = video.strip()
        if not video:
            continue
        if not tab:
            draft.problem("columns", "no tab between video and caption", path, line)
            continue
        first = described.setdefault(video, line)
        if first != line:
            what = f"caption of {shown(video)} again: it stands in line {first}"
            draft.problem("duplicate", what, path, line)
            continue
        if is_list:
            draft.add(Entry(video, split, path, line, video=_names(video)))
        entry = draft.listed(video, split, path, line)
        if entry is not None:
            draft.caption(entry, unhyphenated(caption), path, line)
