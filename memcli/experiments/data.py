"""The datasets of an experiment: what they are called in tables, and what is tested on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.errors import UsageError
from memcli.text import plural

if TYPE_CHECKING:
    from memcli.train.datasets import Dataset, Item

_PARTS = {"test": "test split", "dev": "dev split", "all": "all videos"}


@dataclass(frozen=True)
class Data:
    """A dataset under the name that tables show."""

    label: str
    dataset: Dataset
    target: str

    @property
    def slug(self) -> str:
        """The label for file names."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.label).strip("-")

    def split_items(self, split: str) -> tuple[Item, ...]:
        """The labelled videos of a split."""
        return self.dataset.labelled(self.target, split)

    @property
    def has_official_split(self) -> bool:
        """Whether there are labelled videos of both train and dev."""
        return bool(self.split_items("train") and self.split_items("dev"))

    def test_part(self) -> tuple[str, tuple[Item, ...]]:
        """What to test on: the labelled test split, else dev, else `all`; and its videos."""
        for split in ("test", "dev"):
            if items := self.split_items(split):
                return split, items
        return "all", self.dataset.labelled(self.target)

    def describe(self) -> str:
        """In words, for a note."""
        count = plural(len(self.dataset.labelled(self.target)), "labelled video")
        return f"{self.label} ({self.target} scores, {count})"

    def to_dict(self) -> dict[str, Any]:
        """Which data these are, ready for JSON."""
        rows = sorted(
            [item.id, item.scores.get(self.target), list(item.captions), item.split, item.group]
            for item in self.dataset.items
        )
        content = json.dumps(rows).encode("ascii")
        return {
            "label": self.label,
            "format": self.dataset.name,
            "root": str(self.dataset.root.absolute()),
            "target": self.target,
            "digest": hashlib.sha256(content).hexdigest(),
        }


def part_name(part: str) -> str:
    """`test`, `dev` or `all` in words."""
    return _PARTS[part]


def load_data(sources: Sequence[tuple[str | None, Path]], target: str | None) -> list[Data]:
    """The datasets of some (format or None, folder) pairs.

    A `target` is taken from every dataset that has such scores, the default from the others. Raises
    DatasetError for what is no dataset, has errors or has no labelled videos, UsageError for one
    folder given twice.
    """
    from memcli.train.datasets import DatasetError, detect, load_dataset, raise_on_errors

    loaded = []
    seen = set()
    for name, root in sources:
        name = name or detect(root)
        dataset = load_dataset(name, root)
        raise_on_errors(dataset, needs=())
        if (key := root.resolve()) in seen:
            raise UsageError("this dataset is named twice", where=str(root))
        seen.add(key)
        loaded.append(dataset)
    if target is not None and not any(target in dataset.targets for dataset in loaded):
        loaded[0].labelled(target)  # raises, naming the targets
    names = [dataset.name for dataset in loaded]
    found = []
    for number, dataset in enumerate(loaded):
        label = dataset.name
        if names.count(label) > 1:
            label = f"{label} {number + 1} {dataset.root.absolute().stem}"
        chosen = target if target in dataset.targets else None
        data = Data(label, dataset, chosen or dataset.default_target)
        if not dataset.labelled(data.target):
            raise DatasetError(f"no video has a {data.target} score", where=str(dataset.root))
        found.append(data)
    return found
