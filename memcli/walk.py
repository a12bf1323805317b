"""Folders below a folder, for whoever looks for files of a kind in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Visited:
    """One folder."""

    path: str
    files: list[os.DirEntry[str]] = field(default_factory=list)
    """By name. Everything that is no folder."""
    folders: list[os.DirEntry[str]] = field(default_factory=list)
    """By name. What is taken out of this list is not entered."""
    problem: str | None = None
    """Why it cannot be searched."""
    denied: bool = False
    """Whether that is for want of permission."""


def walk(top: str) -> Iterator[Visited]:
    """`top` and the folders below it, sorted; links are followed, each folder is entered once."""
    seen: set[tuple[int, int]] = set()
    pending = [top]
    while pending:
        current = Visited(pending.pop())
        try:
            status = os.stat(current.path)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(current.path) as scan:
                for entry in sorted(scan, key=lambda entry: entry.name):
                    (current.folders if _is_dir(entry) else current.files).append(entry)
        except OSError as error:
            problem = f"this folder cannot be searched: {error.strerror}"
            yield Visited(current.path, problem=problem, denied=isinstance(error, PermissionError))
            continue
        yield current
        pending.extend(entry.path for entry in reversed(current.folders))


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False
