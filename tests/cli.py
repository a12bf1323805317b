"""Runs the command line as a user does, in a process of its own, or in this one."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from memcli.results import MEASURED_COLUMNS


def memcli_command(*arguments: str | os.PathLike[str]) -> list[str]:
    """The words that run memcli with this interpreter."""
    return [sys.executable, "-m", "memcli", *map(os.fspath, arguments)]


def memcli(
    *arguments: str | os.PathLike[str], cwd: Path, stdin: bytes | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run memcli to its end."""
    done = subprocess.run(
        memcli_command(*arguments),
        cwd=cwd,
        input=stdin,
        capture_output=True,
        env={**os.environ, **env},
        timeout=120,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def memcli_here(*arguments: str | os.PathLike[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has loaded already what a new one would load first.

    For tests of what a command says and writes, not of its process.
    """
    from memcli.app import run

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    before = Path.cwd()
    os.chdir(cwd)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = run([*map(os.fspath, arguments)])
    finally:
        os.chdir(before)
    told = []
    for stream in (out, err):
        stream.flush()
        told.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(arguments, code, *told)


_BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not for scoring")
sys.meta_path.insert(0, Blocked())
"""


def without_torch(folder: Path) -> dict[str, str]:
    """Environment of a process that cannot import torch or transformers; uses the new `folder`."""
    return without(folder, "torch", "transformers")


def without(folder: Path, *packages: str) -> dict[str, str]:
    """Environment of a process that cannot import some packages; uses the new `folder`."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"BLOCKED = {packages!r}\n{_BLOCK}")
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    }


def table(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV table without the columns that no two runs share."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows: Sequence[dict[str, Any]] = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if k not in MEASURED_COLUMNS} for row in rows]
