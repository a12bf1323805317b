"""Sampling "endpoints" through every way of decoding: first, middle and last frame."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from memcli.preprocess import FramePreparer
from memcli.video import read_clip
from memcli.video.source import frame_rotation
from tests.media import PREP, make_video, real_videos

ENDPOINTS = replace(PREP, frames=3, sampling="endpoints")


def all_frames(path: Path) -> list[tuple[Fraction, npt.NDArray[np.uint8]]]:
    """Everything that decodes, in order of presentation: start in seconds and prepared frame."""
    preparer = FramePreparer(ENDPOINTS)
    rows = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            assert frame.pts is not None
            assert frame.time_base is not None
            image = preparer.prepare(frame, frame_rotation(frame))
            rows.append((frame.pts * Fraction(frame.time_base), image))
    return sorted(rows, key=lambda row: row[0])


def check(path: Path, count: int, places: list[int]) -> None:
    rows = all_frames(path)
    clip = read_clip(path, replace(ENDPOINTS, frames=count))
    times = [float(rows[k][0] - rows[0][0]) for k in places]
    np.testing.assert_allclose(clip.times_s, times, atol=1e-9)
    for got, k in zip(clip.frames, places, strict=True):
        np.testing.assert_array_equal(got, rows[k][1])


def test_first_middle_and_last(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=49, options={"g": "12", "bf": "2"})
    check(path, 3, [0, 24, 48])
    check(path, 1, [24])
    check(path, 2, [0, 48])
    check(path, 5, [0, 12, 24, 36, 48])


def test_the_middle_is_between_the_starts(tmp_path: Path) -> None:
    """Of 50 frames the middle, 24.5, shows frame 24; with the last one's end it would be 25."""
    check(make_video(tmp_path / "a.mp4", frames=50), 3, [0, 24, 49])


def test_the_middle_is_that_of_time(tmp_path: Path) -> None:
    """Variable frame rate: of starts 0, 1, 2, 50, 100 the one shown at 50."""
    clock = Fraction(1, 100)
    path = make_video(tmp_path / "a.mkv", times=[0, 1, 2, 50, 100], time_base=clock)
    check(path, 3, [0, 3, 4])


def test_a_single_frame(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=1)
    clip = read_clip(path, ENDPOINTS)
    assert clip.frames_used == 1
    assert clip.times_s.tolist() == [0, 0, 0]


def test_a_file_that_must_be_decoded_as_a_whole(tmp_path: Path) -> None:
    """Cut off: the last frame that decodes is the last."""
    whole = make_video(tmp_path / "a.ts", frames=60, codec="mpeg2video", options={"g": "12"})
    path = tmp_path / "cut.ts"
    content = bytearray(whole.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 300] = b"\x00" * 300
    path.write_bytes(content)
    clip = read_clip(path, ENDPOINTS)
    assert clip.damage is not None
    assert clip.times_s[0] == 0
    assert clip.info.duration_s is not None
    assert clip.times_s[2] == pytest.approx(clip.info.duration_s - 1 / 25, abs=1e-3)
    # Starts lie 1/25 apart, so the frame shown in the middle started less than that before it.
    assert 0 <= clip.times_s[2] / 2 - clip.times_s[1] < 3 / 25


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
def test_key_frames_nearest_to_the_endpoints(tmp_path: Path, name: str) -> None:
    """Key frames at 0, 10, 20, 30, 40 of 49: the nearest to 0, 24 and 48."""
    options = {"g": "10", "keyint_min": "10", "sc_threshold": "0", "bf": "0"}
    path = make_video(tmp_path / name, frames=49, options=options)
    rows = all_frames(path)
    clip = read_clip(path, ENDPOINTS, sampling="keyframe")
    times = [float(rows[k][0] - rows[0][0]) for k in (0, 20, 40)]
    np.testing.assert_allclose(clip.times_s, times, atol=2e-3)
    for got, k in zip(clip.frames, (0, 20, 40), strict=True):
        np.testing.assert_array_equal(got, rows[k][1])


@pytest.mark.parametrize("path", real_videos("vfr_or_odd_pts", "rotated"))
def test_real_files_show_their_first_and_last_frame(path: Path) -> None:
    rows = all_frames(path)
    middle = (rows[0][0] + rows[-1][0]) / 2
    check(path, 3, [0, max(k for k, row in enumerate(rows) if row[0] <= middle), len(rows) - 1])
