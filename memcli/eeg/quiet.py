"""MNE without its voice: nothing reaches the terminal, what it warned of can be told."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from memcli.text import printable

_LOCK = threading.RLock()  # warning filters and MNE's log level are the whole process's
_UNINTERESTING = (
    "does not conform to MNE naming",
    "deprecated",
    "ot setting position",
    "No coordinate information",
    "Data will be preloaded",
    "The search_str was",
    "participants.tsv",
    "scans.tsv",
)
_LENGTH = 240


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Within it MNE neither logs nor warns; the list it gives fills with the warnings' texts."""
    import mne

    heard: list[str] = []
    with _LOCK, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger = logging.getLogger("mne")
        logger.addFilter(_drop)  # it logs what it warns of where any handler writes to a file
        with mne.utils.use_log_level("WARNING"):  # with "ERROR" it would not warn either
            try:
                yield heard
            finally:
                logger.removeFilter(_drop)
                heard += [str(warning.message) for warning in caught]


def _drop(_record: logging.LogRecord) -> bool:
    return False


def notes(heard: list[str]) -> tuple[str, ...]:
    """What is worth telling of MNE's warnings: one line each, each once."""
    lines: dict[str, None] = {}
    for text in heard:
        if not any(word in text for word in _UNINTERESTING):
            line = printable(" ".join(text.split()))
            lines.setdefault(line if len(line) <= _LENGTH else f"{line[:_LENGTH]}…")
    return tuple(lines)
