"""MNE without its voice: nothing reaches the terminal, what it warned of can be told.

No lock is held while MNE reads: a file that hangs must hold up no other.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from memcli.text import printable

_UNINTERESTING = (
    "does not conform to MNE naming",
    "deprecated",
    "ot setting position",
    "No coordinate information",
    "Data will be preloaded",
    "The search_str was",
    "Did not find any eeg.json",
    "participants.tsv",
    "scans.tsv",
)
_LENGTH = 240
_PATIENCE_S = 20.0
"""Much longer than any file takes to open, much shorter than until a reader counts as stuck."""

_here = threading.local()
"""`heard`: the list of the thread that is within `quiet`."""


class _Silence:
    """Warning filters, MNE's log level and its handlers: the whole process's, set by the first
    thread that comes and put back by the last one that leaves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for the switching alone
        self._inside = 0
        self._undo = ExitStack()

    def enter(self) -> None:
        import mne

        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            self._undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            # With "ERROR" it would not warn; it logs what it warns of if a handler is for a file.
            self._undo.enter_context(mne.utils.use_log_level("WARNING"))
            logger = logging.getLogger("mne")
            handler = logging.FileHandler(os.devnull, delay=True)
            logger.addHandler(handler)
            logger.addFilter(_hear)
            self._undo.callback(logger.removeHandler, handler)
            self._undo.callback(logger.removeFilter, _hear)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._undo.close()


_SILENCE = _Silence()


def _hear(record: logging.LogRecord) -> bool:
    """Keep what MNE says for the thread that made it say so; let others' pass."""
    heard: list[str] | None = getattr(_here, "heard", None)
    if heard is None:
        return True
    heard.append(record.getMessage())
    return False


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Within it MNE neither logs nor warns; the list it gives fills with the warnings' texts.

    Of this thread alone. Threads do not wait for each other.
    """
    before = getattr(_here, "heard", None)
    heard: list[str] = []
    _SILENCE.enter()
    _here.heard = heard
    try:
        yield heard
    finally:
        _here.heard = before
        _SILENCE.leave()


class _Turn:
    """One thread at a time, unless the one whose turn it is does not come back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        lock = self._lock
        while not lock.acquire(timeout=_PATIENCE_S):
            if self._lock is lock:
                self._lock = threading.Lock()  # the others leave the one that hangs behind, too
            lock = self._lock
        try:
            yield
        finally:
            lock.release()


in_turn = _Turn()
"""To open a file: while MNE opens one it changes its log level for the whole process, so that
another thread might miss a warning. A file that hangs holds up the next by 20 s, none for ever."""


def notes(heard: list[str]) -> tuple[str, ...]:
    """What is worth telling of MNE's warnings: one line each, each once."""
    lines: dict[str, None] = {}
    for text in heard:
        if not any(word in text for word in _UNINTERESTING):
            line = printable(" ".join(text.split()).split(" The search strings were")[0])
            lines.setdefault(line if len(line) <= _LENGTH else f"{line[:_LENGTH]}…")
    return tuple(lines)
