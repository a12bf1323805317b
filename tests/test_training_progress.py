"""What a training says on the way when nobody sits at a terminal."""

from __future__ import annotations

import time

import pytest

from memcli.extraction import Counts
from memcli.training import progress
from memcli.training.progress import TextTraining


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> TextTraining:
    """One that is due at every step."""
    monkeypatch.setattr(progress, "_LOG_INTERVAL_S", 0.0)
    return TextTraining()


def test_every_stage_has_a_last_line(
    watcher: TextTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = Counts("caption", total=95, cached=5)
    watcher.begin(counts)
    counts.done = 59
    watcher.advance(counts)
    counts.done, counts.failed = 89, 1
    watcher.advance(counts)
    watcher.end()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "features of 95 captions, 5 in the cache"
    assert lines[1].startswith("64 of 95 captions, 0 failed, ")
    assert lines[2].startswith("95 of 95 captions, 1 failed, ")
    assert len(lines) == 3


def test_a_stage_with_nothing_to_do_has_one_line(
    watcher: TextTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    watcher.begin(Counts("video", total=4, cached=4))
    watcher.end()
    assert capsys.readouterr().err == "features of 4 videos, 4 in the cache\n"


@pytest.mark.parametrize(("elapsed_s", "told"), [(1.0, False), (20.0, True)])
def test_time_left_is_told_after_some_work_only(
    watcher: TextTraining, capsys: pytest.CaptureFixture[str], elapsed_s: float, told: bool
) -> None:
    counts = Counts("video", total=30, cached=0, started=time.monotonic() - elapsed_s)
    watcher.begin(counts)
    counts.done = 20
    watcher.advance(counts)
    line = capsys.readouterr().err.splitlines()[-1]
    assert ("left" in line) == told
    if told:  # a second for each: never rounded down to none
        assert line.endswith(("10 s left", "11 s left"))


def test_the_last_epoch_is_always_told(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = TextTraining()
    for number in (1, 2, 3):
        watcher.epoch("all videos", number, 3, {"loss": 0.5})
    assert capsys.readouterr().err == "all videos: epoch 3 of 3, loss 0.5000\n"
