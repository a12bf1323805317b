"""Videos without captions, and `memcli score` of them: for tests of several files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cli import table
from media import make_video

from memcli import app

CLIPS = ("a.mp4", "b.mp4", "c.mkv")
FAST = ("--engine", "onnxruntime", "--threads", "1")


def make_videos(folder: Path) -> Path:
    """Three in a new `folder`, of 5, 6 and 7 frames of 96 x 64."""
    folder.mkdir()
    for number, name in enumerate(CLIPS):
        make_video(folder / name, frames=5 + number)
    return folder


def run(videos: Path, model: str, *options: Any, output: Path | None = None) -> tuple[int, Any]:
    """Exit code, and rows by name."""
    place = output or videos.parent / f"{model}.csv"
    arguments = ["score", videos, "--model", model, *FAST, "--quiet", "-o", place, *options]
    code = app.run([os.fspath(one) if isinstance(one, Path) else str(one) for one in arguments])
    rows = table(place) if place.exists() else []
    return code, {Path(row["path"]).name: row for row in rows}
