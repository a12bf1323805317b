"""What a run has to say of how it came about: versions, revision of the code, time, seed."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PACKAGES = (
    "memcli",
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "scikit-learn",
    "scipy",
    "numpy",
    "av",
)
_GIT_TIMEOUT_S = 10


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide about results, where installed."""
    found = {package: _version(package) for package in _PACKAGES}
    return {"python": platform.python_version()} | {k: v for k, v in found.items() if v}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def git_revision(folder: Path | None = None) -> str | None:
    """Commit of the working tree that this code runs from, with `-dirty` if it was changed.

    None where the code is installed rather than checked out, or there is no git. `folder` is the
    folder of the code; default: that of this file.
    """
    folder = folder or Path(__file__).resolve().parent
    # An environment inside somebody's repository is not that repository's code.
    if not _git(folder, "ls-files", "--", "."):
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return f"{commit}-dirty" if _git(folder, "status", "--porcelain") else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (fixed arguments)
            ["git", "-C", str(folder), *arguments],  # noqa: S607 (git is found where the user's is)
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def now() -> str:
    """UTC in ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch, numpy and random draw from `seed` inside, and from where they were afterwards."""
    from lightning import seed_everything
    from lightning.pytorch.utilities.seed import isolate_rng

    with isolate_rng():
        seed_everything(seed, verbose=False)
        yield
