"""A dataset while it is read: collects items and problems, then settles both."""

from __future__ import annotations

import math
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memcli.spec import MAX_CAPTION_LENGTH, MAX_CAPTIONS
from memcli.train.datasets.tree import Tree
from memcli.train.datasets.types import (
    Dataset,
    DatasetError,
    Item,
    Problem,
    Severity,
    lacks,
    shown,
)

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@dataclass
class Entry:
    """An item that may still get scores and captions."""

    id: str
    split: str | None
    file: Path
    line: int
    video: tuple[str, ...] = ()
    """Names that the video file may have, as `Tree.video` takes them."""
    paths: tuple[Path, ...] = ()
    """Places where it may be; looked at instead of searching for names."""
    fold: int | None = None
    group: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)


class Draft:
    """Collects what the lists of a dataset say."""

    def __init__(self, name: str, root: Path, tree: Tree | None = None) -> None:
        self.name = name
        self.root = root
        self._tree = tree
        self._problems: list[Problem] = []
        self._entries: dict[str, Entry] = {}

    def problem(
        self,
        kind: str,
        what: str,
        file: Path,
        line: int | None = None,
        severity: Severity = "error",
    ) -> None:
        """Note a problem."""
        self._problems.append(Problem(kind, what, str(file), line, severity))

    def add(self, entry: Entry) -> bool:
        """Take an item. False, and a problem, if it has no id or another that one."""
        if not entry.id:
            self.problem("value", "no name of a video", entry.file, entry.line)
            return False
        first = self._entries.setdefault(entry.id, entry)
        if first is not entry:
            same = "" if first.file == entry.file else f"{first.file.name}, "
            what = f"{shown(entry.id)} again: it stands in {same}line {first.line}"
            self.problem("duplicate", what, entry.file, entry.line)
        return first is entry

    def get(self, name: str) -> Entry | None:
        """The item of this id."""
        return self._entries.get(name)

    def listed(self, name: str, split: str, file: Path, line: int) -> Entry | None:
        """The item of this id, of this split; None, and a problem, if no list has it."""
        entry = self._entries.get(name)
        if entry is None or entry.split != split:
            what = f"{shown(name)} is in no list of the {split} videos"
            self.problem("unknown-video", what, file, line)
            return None
        return entry

    def entries(self, split: str | None = None) -> list[Entry]:
        """The items so far, of one split or all."""
        return [one for one in self._entries.values() if split is None or one.split == split]

    def score(self, entry: Entry, target: str, value: object, file: Path, line: int) -> None:
        """Give an item a score (a number, or text that is one), or note why it gets none."""
        label = f"{target} score of {shown(entry.id)}"
        if value is None or value == "":
            self.problem("score-missing", f"{label} is missing", file, line)
            return
        number = _number(value)
        if number is None:
            what = f"{label} is {shown(value)}, not a number"
            self.problem("score-number", what, file, line)
        elif not 0 <= number <= 1:
            what = f"{label} is {number:g}, not in [0, 1]"
            self.problem("score-range", what, file, line)
        else:
            entry.scores[target] = number

    def caption(self, entry: Entry, text: object, file: Path, line: int) -> None:
        """Give an item one more caption; blank ones and what is no text are left out."""
        if not isinstance(text, str):
            self.problem("value", f"a caption of {shown(entry.id)} is no text", file, line)
        elif len(text) > MAX_CAPTION_LENGTH:
            what = (
                f"a caption of {shown(entry.id)} is longer than {MAX_CAPTION_LENGTH:,} characters"
            )
            self.problem("value", what, file, line)
        elif len(entry.captions) == MAX_CAPTIONS:
            what = f"{shown(entry.id)} has more than {MAX_CAPTIONS} captions"
            self.problem("value", what, file, line)
        elif text.strip():
            entry.captions.append(text.strip())

    def finish(
        self,
        targets: Sequence[str],
        default_target: str,
        features: Mapping[str, Path] | None = None,
    ) -> Dataset:
        """The dataset. Raises DatasetError if no item is left."""
        if not self._entries:
            raise DatasetError(
                self._nothing(),
                where=str(self.root),
                next_step="See docs/datasets.md for what the lists of each dataset hold.",
            )
        paths, without = self._videos()
        self._report_missing("missing-video", without)
        self._report_missing("no-caption", [e for e in self.entries() if not e.captions])
        self._check_sides(paths)
        items = [
            Item(
                id=entry.id,
                path=paths[entry.id],
                scores=entry.scores,
                captions=tuple(entry.captions),
                split=entry.split,
                fold=entry.fold,
                group=entry.group,
                file=str(entry.file),
                line=entry.line,
            )
            for entry in self._entries.values()
        ]
        order = {"train": 0, "dev": 1, "test": 2, None: 3}
        items.sort(key=lambda item: order.get(item.split, 3))
        return Dataset(
            name=self.name,
            root=self.root,
            items=tuple(items),
            targets=tuple(targets),
            default_target=default_target,
            features=dict(features or {}),
            problems=tuple(self._problems),
        )

    def _nothing(self) -> str:
        first = [f"\n  {one.where}: {one.what}" for one in self._problems[:3]]
        return "no video is listed here" + "".join(first)

    def _videos(self) -> tuple[dict[str, Path | None], list[Entry]]:
        """The file of each item, and the items for which there is none at all."""
        paths: dict[str, Path | None] = {}
        without = []
        for entry in self._entries.values():
            candidates = self._candidates(entry)
            found = [(path, size) for path in candidates if (size := _size(path)) is not None]
            if not found:
                without.append(entry)
            elif not any(size for _, size in found):
                what = f"the video of {shown(entry.id)} is an empty file"
                self.problem("empty-video", what, entry.file, entry.line)
            if len(found) > 1 and not entry.paths:
                what = (
                    f"{shown(entry.id)} may be any of {', '.join(shown(path) for path, _ in found)}"
                )
                self.problem("ambiguous-video", what, entry.file, entry.line, "warning")
            paths[entry.id] = next((path for path, size in found if size), None)
        return paths, without

    def _candidates(self, entry: Entry) -> Sequence[Path]:
        if entry.paths or self._tree is None:
            return entry.paths
        return self._tree.video(entry.video, entry.file.parent)

    def _report_missing(self, kind: str, without: Iterable[Entry]) -> None:
        """Videos: a warning each where a split has none at all, since lists without videos are a
        legitimate download; an error each where others of the split have theirs. Captions: the
        same, but nothing is said of a split that has none."""
        by_split = defaultdict(list)
        for entry in without:
            by_split[entry.split].append(entry)
        sizes = Counter(entry.split for entry in self._entries.values())
        for split, lacking in by_split.items():
            complete = len(lacking) == sizes[split]
            if complete and kind == "no-caption":
                continue
            severity: Severity = "warning" if complete else "error"
            for entry in lacking:
                name = next((n for n in entry.video if n != entry.id), None)
                seeks = f": looked for {shown(name)}" if name and kind == "missing-video" else ""
                self.problem(kind, lacks(entry.id, kind) + seeks, entry.file, entry.line, severity)

    def _check_sides(self, paths: Mapping[str, Path | None]) -> None:
        """A group, and a video file whatever names it has, is on one side of the dataset's own
        splits and folds."""
        first: dict[tuple[str, str], Entry] = {}
        for entry in self._entries.values():
            path = paths[entry.id]
            file = None if path is None else os.path.realpath(path)
            for kind, name in (("group", entry.group), ("file", file)):
                if name is None:
                    continue
                other = first.setdefault((kind, name), entry)
                if (other.split, other.fold) != (entry.split, entry.fold):
                    what = (
                        f"{kind} {shown(name)} is in {_side(entry)} here and in {_side(other)}"
                        f" in line {other.line}"
                    )
                    self.problem("split", what, entry.file, entry.line)


def _side(entry: Entry) -> str:
    fold = "" if entry.fold is None else f"fold {entry.fold}"
    split = "" if entry.split is None else f"split {entry.split}"
    return ", ".join(filter(None, (split, fold))) or "no split"


def _number(value: object) -> float | None:
    """`value` as a number, which may be NaN or infinite; None if it is none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, str):
        if _NUMBER.fullmatch(value):
            return float(value)
        if value.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            return float(value)
    return None


def _size(path: Path) -> int | None:
    """Bytes of a regular file; None if there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
