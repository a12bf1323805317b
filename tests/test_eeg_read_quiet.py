"""Silence of MNE: without a lock that one stuck file could hold."""

import logging
import threading
import time
import warnings
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from eeg_media import NAMES, raw_of, save_fif

from memcli.eeg import open_recording, quiet, read_epochs
from memcli.recognition.stages import Ended, Stages
from memcli.spec import EegPrep

mne = pytest.importorskip("mne")
PREP = EegPrep(NAMES[:2], duration_s=2)


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_each_thread_hears_its_own_and_the_terminal_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    both = threading.Barrier(2, timeout=10)
    found: dict[str, list[str]] = {}

    def speak(word: str) -> None:
        with quiet.quiet() as heard:
            both.wait()
            mne.utils.warn(word)
            warnings.warn(word, RuntimeWarning, stacklevel=1)
            both.wait()
        found[word] = heard

    other = in_thread(lambda: speak("there"))
    speak("here")
    other.join(10)
    assert found == {"here": ["here"], "there": ["there"]}
    assert capfd.readouterr() == ("", "")


def test_everything_is_as_before_once_nobody_is_within() -> None:
    logger = logging.getLogger("mne")
    before = (list(logger.handlers), list(logger.filters), logger.level, list(warnings.filters))
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with quiet.quiet():
            inside.set()
            leave.wait(10)

    with quiet.quiet():
        other = in_thread(stay)
        assert inside.wait(10)
    assert logger.filters
    leave.set()
    other.join(10)
    after = (list(logger.handlers), list(logger.filters), logger.level, list(warnings.filters))
    assert after == before
    with quiet.quiet() as outer, quiet.quiet() as inner:
        mne.utils.warn("word")
    assert (outer, inner) == ([], ["word"])


@pytest.mark.parametrize("where", ["opening", "reading"])
def test_a_file_that_hangs_does_not_stop_the_others(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network mount that is gone: MNE does not come back from one of the files."""
    monkeypatch.setattr(quiet, "_PATIENCE_S", 0.1)
    paths = [str(tmp_path / f"{name}_raw.fif") for name in ("stuck", "b", "c")]
    for path in paths:
        save_fif(Path(path), raw_of(NAMES[:2], 6, 256))
    release = threading.Event()
    owner, name = (mne.io, "read_raw_fif") if where == "opening" else (mne.io.BaseRaw, "get_data")
    real = getattr(owner, name)

    def slow(first, *args, **options):
        path = str(first if where == "opening" else first.filenames[0])
        if "stuck" in path:
            release.wait(30)
        return real(first, *args, **options)

    monkeypatch.setattr(owner, name, slow)

    def read(path: str) -> Generator[int, None, None]:
        with open_recording(path) as recording:
            yield from (epoch.index for epoch in read_epochs(recording, PREP))

    stages: Stages[str, int, int] = Stages(
        read, list, readers=2, queue_size=8, batch_size=2, stall_s=3.0
    )
    started = time.monotonic()
    try:
        ends = {one.source: one.error for one in stages.run(paths) if isinstance(one, Ended)}
    finally:
        release.set()
    assert [ends[path] for path in paths[1:]] == [None, None]
    assert "nothing could be read" in str(ends[paths[0]])
    assert time.monotonic() - started < 20
