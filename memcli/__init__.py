"""memcli predicts how memorable videos are, on the hardware at hand.

The command line is `memcli` (see `memcli --help`); the same as a library:

    >>> from memcli import score
    >>> for row in score(["holiday.mp4", "archive/"]):
    ...     print(row.path, row.score)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["MemcliError", "Row", "__version__", "score"]

if TYPE_CHECKING:
    from memcli.api import score
    from memcli.errors import MemcliError
    from memcli.results import Row

_EXPORTS = {"score": "memcli.api", "Row": "memcli.results", "MemcliError": "memcli.errors"}


def __getattr__(name: str) -> Any:
    """Load a public name on first use: `import memcli` itself costs nothing."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'memcli' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)
