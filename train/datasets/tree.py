"""The files of a dataset's folder, looked through once."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from memcli.train.datasets.types import DatasetError

_SUFFIXES = "3gp avi flv gif m4v mkv mov mp4 mpeg mpg ogv webm wmv"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _SUFFIXES.split())
_USUAL = frozenset({"videos", "video", "videos_final", "sources", "clips"})
_DEPTH = 5
_LIST_DEPTH = 4
_MAX_FILES = 1_000_000


class Tree:
    """Where files lie below a folder, by name, and by name without suffix for videos.

    Hidden folders and folders of features are not entered; links to folders are followed, each
    folder is entered once, five levels deep. Raises DatasetError if there is no such folder, or
    more than a million files.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.features: list[Path] = []
        """Folders called features, in order of their paths."""
        self._by_name: defaultdict[str, list[str]] = defaultdict(list)
        self._by_stem: defaultdict[str, list[str]] = defaultdict(list)
        self._count = 0
        if not root.is_dir():
            what = "not a folder" if os.path.lexists(root) else "no such folder"
            raise DatasetError(what, where=str(root), next_step="Check the spelling of the path.")
        self._walk(str(root))
        self.features.sort()

    def _walk(self, top: str) -> None:
        visited = set()
        pending = [(top, 0)]
        while pending:
            folder, depth = pending.pop()
            try:
                status = Path(folder).stat()
                if (status.st_dev, status.st_ino) in visited:
                    continue
                visited.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as scan:
                    for entry in scan:
                        if _is_dir(entry):
                            if self._enters(entry) and depth < _DEPTH:
                                pending.append((entry.path, depth + 1))
                        else:
                            self._add(entry)
            except OSError as error:
                if depth == 0:
                    what = f"this folder cannot be searched: {error.strerror}"
                    raise DatasetError(what, where=folder) from error

    def _enters(self, entry: os.DirEntry[str]) -> bool:
        if entry.name.lower() in ("features", "feature"):
            self.features.append(Path(entry.path))
            return False
        return not entry.name.startswith(".")

    def _add(self, entry: os.DirEntry[str]) -> None:
        self._count += 1
        if self._count > _MAX_FILES:
            raise DatasetError(
                f"more than {_MAX_FILES:,} files here",
                where=str(self.root),
                next_step="Name the dataset's own folder.",
            )
        self._by_name[entry.name].append(entry.path)
        stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 (Path costs 2 s per 100,000)
        if suffix.lower() in VIDEO_SUFFIXES:
            self._by_stem[_plain(stem)].append(entry.path)

    def named(self, name: str) -> list[Path]:
        """Regular files called `name`, at most three folders down, nearest to the top first."""
        paths = [Path(path) for path in self._by_name.get(name, ())]
        top = len(self.root.parts)
        near = [path for path in paths if len(path.parts) - top <= _LIST_DEPTH and path.is_file()]
        return sorted(near, key=lambda path: (len(path.parts), str(path)))

    def one(self, *names: str) -> Path | None:
        """The one file called by one of `names`; None if there is none.

        Raises DatasetError if several folders have one: these are several datasets.
        """
        found = [path for name in names for path in self.named(name)]
        if len(found) > 1:
            raise DatasetError(
                f"several lists of one kind: {', '.join(map(str, found[:3]))}",
                where=str(self.root),
                next_step="Name the folder of one dataset, with one copy of each list.",
            )
        return found[0] if found else None

    def video(self, names: tuple[str, ...], near: Path) -> list[Path]:
        """Files that may be the video called by the first of `names` that any file has, the most
        likely first; those that are equally likely, and no others.

        A name with a suffix is a file name; one without is that of a video of any suffix, with or
        without leading zeros. Of several files, those near the list (`near`, its folder) and in a
        folder called videos or the like are more likely.
        """
        for name in names:
            paths = self._by_name.get(name) or self._by_stem.get(_plain(name))
            if paths is None:
                continue
            if len(paths) == 1:
                return [Path(paths[0])]
            ranks = {path: _likelihood(Path(path), near) for path in paths}
            best = min(ranks.values())
            return [Path(path) for path in sorted(paths) if ranks[path] == best]
        return []


def _plain(stem: str) -> str:
    return (stem.lstrip("0") or "0") if stem.isdecimal() else stem


def _likelihood(path: Path, near: Path) -> tuple[int, int]:
    """Small for likely places."""
    common = len(Path(os.path.commonpath([path, near])).parts)
    return -common, path.parent.name.lower() not in _USUAL


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False
