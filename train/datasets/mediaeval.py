"""The CSV releases of MediaEval 2020 to 2022, which Memento10k and TRECVid share.

Per split a table of scores (`video_id`, `video_url`, annotation counts, scores) and one of
captions: wide (`video_id,description_0..description_4`) or long (`video_id,video_url,description`,
one row per caption). The test split has captions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from memcli.train.datasets.draft import Draft, Entry
from memcli.train.datasets.tables import Row, header, read_table
from memcli.train.datasets.tree import Tree
from memcli.train.datasets.types import shown

SCORES = {
    "train": ("train_scores.csv", "scores_v2.csv"),
    "dev": ("dev_scores.csv",),
    "test": ("test_scores.csv",),
}
_CAPTIONS = {
    "train": ("train_text_descriptions.csv", "text_descriptions.csv"),
    "dev": ("dev_text_descriptions.csv",),
    "test": ("test_text_descriptions.csv",),
}
_URLS = "test_urls.csv"


@dataclass(frozen=True)
class Release:
    """The lists of a release, by split; a release may lack any of them."""

    scores: Mapping[str, Path]
    captions: Mapping[str, Path]
    urls: Path | None
    """Unlabelled test videos (2020)."""


def find_release(tree: Tree) -> Release:
    """The lists below a folder. Raises DatasetError if one is there twice."""
    scores = {split: tree.one(*names) for split, names in SCORES.items()}
    captions = {split: tree.one(*names) for split, names in _CAPTIONS.items()}
    return Release(
        scores={split: path for split, path in scores.items() if path},
        captions={split: path for split, path in captions.items() if path},
        urls=tree.one(_URLS),
    )


def is_trecvid(release: Release) -> bool:
    """Whether the videos were also tested in the long term, which those of Memento10k were not."""
    columns = {name for path in release.scores.values() for name in header(path)}
    return bool(columns & {"scores_raw_long_term", "part_2_scores"})


def read_release(
    draft: Draft, release: Release, columns: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """Read all lists; `columns` names for each target the columns that may hold it.

    Returns the targets of which there is a column.
    """
    found = set()
    for split, path in release.scores.items():
        present = header(path)
        places = {
            target: next((name for name in names if name in present), None)
            for target, names in columns.items()
        }
        targets = {target: name for target, name in places.items() if name is not None}
        found |= set(targets)
        of_scores = () if targets else next(iter(columns.values()))[:1]
        for row in read_table(path, draft, ("video_id", "video_url", *of_scores)):
            entry = _entry(row, split, path)
            if draft.add(entry):
                for target, column in targets.items():
                    draft.score(entry, target, row[column], path, row.line)
    if release.urls is not None and "test" not in release.scores:
        for row in read_table(release.urls, draft, ("video_id", "video_url")):
            draft.add(_entry(row, "test", release.urls))
    for split, path in release.captions.items():
        _read_captions(draft, path, split)
    return tuple(target for target in columns if target in found)


def _entry(row: Row, split: str, path: Path) -> Entry:
    name = row["video_id"]
    base = row.get("video_url").rsplit("/", 1)[-1]
    names = tuple(dict.fromkeys(one for one in (base, unquote(base), name) if one))
    return Entry(name, split, path, row.line, video=names)


def _read_captions(draft: Draft, path: Path, split: str) -> None:
    """Captions of one split. Without a list of its videos, this is the list."""
    is_list = not draft.entries(split)
    columns = header(path)
    wide = [name for name in columns if name.startswith("description_")]
    described: dict[str, int] = {}
    for row in read_table(path, draft, ("video_id", *(wide[:1] or ("description",)))):
        name = row["video_id"]
        if is_list and name not in described and not draft.add(_entry(row, split, path)):
            continue
        entry = draft.listed(name, split, path, row.line)
        if entry is None:
            continue
        first = described.setdefault(name, row.line)
        if wide and first != row.line:
            what = f"captions of {shown(name)} again: they stand in line {first}"
            draft.problem("duplicate", what, path, row.line)
            continue
        for column in wide or ("description",):
            draft.caption(entry, row[column], path, row.line)
