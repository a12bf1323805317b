"""Where memcli keeps bundles, engine caches and samples: `$MEMCLI_HOME` or the user cache."""

from __future__ import annotations

import os
from pathlib import Path

from memcli.errors import UsageError

HOME_VARIABLE = "MEMCLI_HOME"


def home() -> Path:
    """The folder that holds everything memcli stores; not created here."""
    configured = os.environ.get(HOME_VARIABLE)
    if configured:
        return Path(configured).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("memcli", appauthor=False))


def bundles_dir() -> Path:
    """One folder per installed model."""
    return home() / "bundles"


def cache_dir(name: str) -> Path:
    """A folder whose loss costs only time, e.g. compiled engines."""
    return home() / "cache" / name


def make_dir(path: Path) -> Path:
    """Create `path` with its parents.

    Raises UsageError, naming the folder and the variable, where that is not allowed.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot create this folder: {error.strerror}",
            where=str(path),
            next_step=f"Choose another place: {HOME_VARIABLE}=DIR memcli ...",
        ) from error
    return path
