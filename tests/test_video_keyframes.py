"""Key frame sampling: the right key frames, little read, much faster."""

import time
from pathlib import Path

import av
import numpy as np
import pytest

from memcli.preprocess import FramePreparer
from memcli.spec import FramePrep
from memcli.video import keyframes, read_clip
from tests.media import CUT_OFF, PREP, make_video, real_videos

X264 = {"preset": "veryfast", "g": "10", "bf": "2", "sc_threshold": "0"}


def naive(path: Path, prep: FramePrep, count: int = 16) -> tuple[list[np.ndarray], list[float]]:
    """Decode all, keep key frames, choose the nearest to each midpoint (the earlier of two)."""
    preparer = FramePreparer(prep)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        base = container.streams.video[0].time_base
    frames.sort(key=lambda f: f.pts)
    start = frames[0].pts
    end = frames[-1].pts + frames[-1].duration
    keys = [f for f in frames if f.key_frame]
    chosen = []
    for i in range(count):
        instant = start + (2 * i + 1) * (end - start) // (2 * count)
        chosen.append(min(keys, key=lambda f: (abs(f.pts - instant), f.pts)))
    return [preparer.prepare(f) for f in chosen], [float((f.pts - start) * base) for f in chosen]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.flv", "fragmented.mp4"])
def test_the_nearest_key_frames_are_shown(name: str, tmp_path: Path) -> None:
    options = X264 | ({"bf": "0"} if name == "a.avi" else {})
    pieces = {"movflags": "frag_keyframe+empty_moov"} if name == "fragmented.mp4" else None
    path = make_video(tmp_path / name, frames=200, options=options, container_options=pieces)
    clip = read_clip(path, PREP, sampling="keyframe")
    frames, times = naive(path, PREP)
    # Headers round the length (Matroska to milliseconds), so an instant half way between two key
    # frames may go to the other one; with these lengths none is within a millisecond of it.
    np.testing.assert_allclose(clip.times_s, times, atol=0.1)
    np.testing.assert_array_equal(clip.frames, np.stack(frames))
    assert clip.frames_used == len(set(times))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_the_index_is_used(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("all packets were read")

    monkeypatch.setattr(keyframes, "_by_scan", refuse)
    path = make_video(tmp_path / name, frames=200, options=X264)
    assert read_clip(path, PREP, sampling="keyframe").frames_used == 16


@pytest.mark.parametrize("path", real_videos("normal", "rotated", "tenbit", "single_frame"))
def test_real_media(path: Path) -> None:
    clip = read_clip(path, PREP, sampling="keyframe")
    exact = read_clip(path, PREP)
    assert clip.frames.shape == exact.frames.shape
    assert clip.damage == exact.damage
    assert (clip.damage is not None) == (path.name in CUT_OFF)
    assert (np.diff(clip.times_s) >= 0).all()
    assert clip.info.width == exact.info.width
    assert clip.info.rotation == exact.info.rotation


def test_an_animated_gif_falls_back_to_exact(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.gif", codec="gif", pix_fmt="rgb8", rate=10)
    np.testing.assert_array_equal(
        read_clip(path, PREP, sampling="keyframe").frames, read_clip(path, PREP).frames
    )


def test_four_times_as_fast_as_exact(tmp_path: Path) -> None:
    """Measured 7 to 8 times (tests/benchmarks/decode.py); the best of three of each counts."""
    path = make_video(
        tmp_path / "long.mp4",
        frames=750,
        width=320,
        height=240,
        options={"preset": "ultrafast", "g": "25", "bf": "0"},
    )
    best = {}
    for sampling in ("exact", "keyframe"):
        taken = []
        for _ in range(3):
            begin = time.process_time()
            read_clip(path, PREP, sampling=sampling)  # type: ignore[arg-type]
            taken.append(time.process_time() - begin)
        best[sampling] = min(taken)
    assert best["exact"] >= 4 * best["keyframe"]
