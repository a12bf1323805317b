"""TRECVid 2019 videos with memorability scores: MediaEval 2020 and 2021."""

from __future__ import annotations

from pathlib import Path

from memcli.train.datasets.draft import Draft
from memcli.train.datasets.mediaeval import Release, read_release
from memcli.train.datasets.tree import Tree
from memcli.train.datasets.types import Dataset

_COLUMNS = {
    "short-term": ("scores_raw_short_term", "part_1_scores"),
    "long-term": ("scores_raw_long_term", "part_2_scores"),
    "normalized": ("scores_normalized_short_term",),
}


def load(root: Path, tree: Tree, release: Release) -> Dataset:
    """The 2021 release (`{train,dev}_scores.csv`, `*_text_descriptions.csv`) and that of 2020
    (`scores_v2.csv`, `dev_scores.csv`, `test_urls.csv`, `text_descriptions.csv`...).

    In 2020 the columns of scores are called part_1 (minutes later) and part_2 (24 to 72 hours).
    `normalized` is the short-term score brought to one delay, 2021 only.
    """
    draft = Draft("trecvid", root, tree)
    targets = read_release(draft, release, _COLUMNS)
    return draft.finish(targets or ("short-term",), "short-term")
