"""What a dataset is once it has been read: items, their scores, and what is wrong with it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memcli.errors import UsageError
from memcli.text import plural, printable

TARGETS = ("short-term", "long-term", "raw", "normalized")
"""Scores a dataset may have.

`short-term` and `long-term` say how long after watching recognition was tested. `raw` (the share
of viewers who recognised the clip) and `normalized` (the same, brought to one delay) are the two
forms of one measurement. A dataset has some of these, and names its default.
"""

Severity = Literal["error", "warning"]

_SHOWN = 3


class DatasetError(UsageError):
    """A dataset is not there, not in a format we read, or not fit for what was asked."""


@dataclass(frozen=True)
class Item:
    """One video of a dataset."""

    id: str
    path: Path | None
    """The video file; None if it is not there, or empty."""
    scores: Mapping[str, float]
    """By target, each in [0, 1]; empty for an unlabelled test video."""
    captions: tuple[str, ...]
    split: str | None
    """"train", "dev" or "test"; None where the format has no splits."""
    fold: int | None
    group: str | None
    """Videos of one group (such as the clips of one film) stay on one side of every split."""
    file: str
    """The list that names it, and below the line there, counted from 1: for messages."""
    line: int


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a dataset."""

    kind: str
    """One of the keys of `KINDS`."""
    what: str
    """A sentence, safe to print."""
    file: str
    line: int | None
    """Line of the file, counted from 1; None for the file as a whole."""
    severity: Severity

    @property
    def where(self) -> str:
        """`file:line`, safe to print."""
        return printable(self.file if self.line is None else f"{self.file}:{self.line}")


KINDS = {
    "unreadable": "cannot be read",
    "encoding": "not UTF-8",
    "columns": "wrong columns",
    "no-rows": "a list without rows",
    "value": "wrong value",
    "duplicate": "named twice",
    "conflict": "contradicting rows",
    "score-missing": "no score",
    "score-number": "score is not a number",
    "score-range": "score outside [0, 1]",
    "no-caption": "no caption",
    "unknown-video": "not in the list of videos",
    "missing-video": "no video file",
    "empty-video": "empty video file",
    "ambiguous-video": "several video files of this name",
    "missing-feature": "no feature file",
    "feature": "unusable feature file",
    "split": "group or file on both sides of a split",
    "decode": "video does not decode",
}
"""Every kind of problem, and what it means in a few words."""


_OF_FILES = {"empty-video", "ambiguous-video", "decode"}
"""What is wrong with a video's file is of no matter to a model that only reads captions."""


@dataclass(frozen=True)
class Dataset:
    """A dataset in one of the formats of `memcli.train.datasets.DATASETS`."""

    name: str
    root: Path
    items: tuple[Item, ...]
    """In the order of the lists; train before dev before test."""
    targets: tuple[str, ...]
    default_target: str
    features: Mapping[str, Path]
    """Features that come with the dataset: name -> folder of `<id>.npy`; empty where none do."""
    problems: tuple[Problem, ...]

    def labelled(self, target: str, split: str | None = None) -> tuple[Item, ...]:
        """The items that have a score of `target`, of one split or of all.

        Raises DatasetError for a target that this dataset does not have.
        """
        if target not in self.targets:
            raise DatasetError(
                f"{self.name} has no {printable(target)} scores",
                where=str(self.root),
                next_step=f"Its targets: {', '.join(self.targets)}.",
            )
        return tuple(
            item
            for item in self.items
            if target in item.scores and (split is None or item.split == split)
        )


def raise_on_errors(
    dataset: Dataset, strict: bool = False, *, needs: Collection[str] | None = None
) -> None:
    """Raises DatasetError if the dataset has errors: the first three with file and line, and how
    many there are. With `strict`, warnings count as well.

    `needs` says what the model looks at, "videos", "captions", both or neither: then every
    labelled item must have just that, and what nobody looks at may be missing. Without it, missing
    videos and captions count as the dataset's problems say.
    """
    found = [one for one in dataset.problems if strict or one.severity == "error"]
    if needs is not None:
        unasked = {"missing-video", "no-caption"} | (set() if "videos" in needs else _OF_FILES)
        found = [one for one in found if one.kind not in unasked]
        found += _unmet(dataset, needs)
    if not found:
        return
    lines = [f"  {one.where}: {one.what}" for one in found[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(f"  and {len(found) - _SHOWN:,} more")
    raise DatasetError(
        "\n".join([f"{plural(len(found), 'problem')} in this dataset", *lines]),
        where=str(dataset.root),
        next_step=f"See them all:  memcli dataset check {shlex.quote(str(dataset.root))}"
        f" --dataset {dataset.name}",
    )


def _unmet(dataset: Dataset, needs: Collection[str]) -> list[Problem]:
    kinds = []
    for item in dataset.items:
        if item.scores and "videos" in needs and item.path is None:
            kinds.append((item, "missing-video"))
        if item.scores and "captions" in needs and not item.captions:
            kinds.append((item, "no-caption"))
    return [
        Problem(kind, lacks(item.id, kind), item.file, item.line, "error") for item, kind in kinds
    ]


def lacks(video: str, kind: str) -> str:
    """That a video has no file ("missing-video") or no caption ("no-caption")."""
    return f"{shown(video)} has no {'video file' if kind == 'missing-video' else 'caption'}"


def shown(text: object, length: int = 60) -> str:
    """Foreign text for a message: quoted, on one line, harmless to a terminal, not too long."""
    line = printable(str(text)[: length + 1])
    return f"'{line}'" if len(line) <= length else f"'{line[:length]}...'"
