"""Frames of `read_clip` against a full decode: the same frame for every target, bit for bit.

Pixels are compared without tolerance: the same decoder and scaler run on the same packets, so
any difference means a wrong frame or a frame decoded without what it refers to.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from memcli.video import Clip, DecodeLimits, read_clip
from memcli.video import clip as clip_module
from memcli.video.files import open_descriptor
from memcli.video.gops import PlanFailedError, decode_targets
from memcli.video.source import open_video
from memcli.video.timeline import scan
from memcli.video.types import Guard
from tests.media import (
    CUT_OFF,
    PREP,
    SOUND_FOLDERS,
    full_decode,
    make_video,
    real_video,
    real_videos,
    remux,
)


def assert_exact(path: Path, count: int = 16, **arguments: Any) -> Clip:
    clip = read_clip(path, PREP, frames=count, **arguments)
    frames, starts, chosen = full_decode(path, PREP, count)
    np.testing.assert_array_equal(clip.frames, frames)
    np.testing.assert_allclose(clip.times_s, [float(s) for s in starts], rtol=0, atol=1e-9)
    assert clip.frames_used == len(set(chosen))
    assert clip.frames.flags.c_contiguous
    assert clip.frames.dtype == np.uint8
    return clip


@pytest.fixture
def no_whole_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test in which the selective path gave up: correct, but at twice a full decode."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the file was decoded as a whole")

    monkeypatch.setattr(clip_module, "_read_whole", refuse)


X264 = {"preset": "veryfast", "sc_threshold": "0"}
MADE: dict[str, Callable[[Path], Path]] = {
    "one-group.mp4": lambda p: make_video(p, options=X264 | {"g": "250"}),
    "b-frames.mp4": lambda p: make_video(
        p, frames=120, options=X264 | {"g": "25", "bf": "3", "x264-params": "b-pyramid=normal"}
    ),
    "b-frames.mkv": lambda p: make_video(p, frames=120, options=X264 | {"g": "25", "bf": "4"}),
    "open-gop.mp4": lambda p: make_video(
        p, frames=120, options=X264 | {"x264-params": "open-gop=1:keyint=15:bframes=3:b-adapt=0"}
    ),
    "open-gop.ts": lambda p: make_video(
        p, frames=120, options=X264 | {"x264-params": "open-gop=1:keyint=15:bframes=3:b-adapt=0"}
    ),
    "open-gop-hevc.mp4": lambda p: make_video(
        p,
        frames=90,
        codec="libx265",
        options={
            "preset": "ultrafast",
            "x265-params": "open-gop=1:keyint=12:bframes=4:log-level=0",
        },
    ),
    "temporal-layers-hevc.mp4": lambda p: make_video(
        p,
        frames=90,
        codec="libx265",
        options={"preset": "ultrafast", "x265-params": "temporal-layers=3:bframes=4:log-level=0"},
    ),
    "intra-refresh.mp4": lambda p: make_video(
        p, frames=120, options=X264 | {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}
    ),
    "starts-late.ts": lambda p: make_video(p, frames=60, options=X264 | {"g": "12"}),
    "vfr.mp4": lambda p: make_video(
        p,
        times=[i * i * 7 + i for i in range(60)],
        time_base=Fraction(1, 1000),
        options=X264 | {"g": "20"},
    ),
    "huge-gap.mkv": lambda p: make_video(
        p, times=[0, 40, 80, 3_600_000_000], time_base=Fraction(1, 1000), options=X264 | {"bf": "0"}
    ),
    "ten-bit.mp4": lambda p: make_video(
        p, codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": "log-level=0"}
    ),
    "interlaced.mp4": lambda p: make_video(
        p, options=X264 | {"g": "12", "x264-params": "interlaced=1:tff=1"}
    ),
    "interlaced.mpg": lambda p: make_video(
        p, codec="mpeg2video", options={"flags": "+ildct+ilme", "g": "12", "bf": "2"}
    ),
    "mpeg4-b-frames.avi": lambda p: make_video(
        p, frames=90, codec="mpeg4", options={"bf": "2", "g": "12", "b": "400k"}
    ),
    "mpeg2.ts": lambda p: make_video(
        p, frames=90, codec="mpeg2video", options={"bf": "2", "g": "12"}
    ),
    "vp9.webm": lambda p: make_video(
        p, frames=60, codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime"}
    ),
    "mjpeg.mov": lambda p: make_video(p, codec="mjpeg", pix_fmt="yuvj420p"),
    "lossless.mkv": lambda p: make_video(p, codec="ffv1", pix_fmt="yuv444p"),
    "animated.gif": lambda p: make_video(p, codec="gif", pix_fmt="rgb8", rate=10),
    "alpha.mov": lambda p: make_video(p, codec="png", pix_fmt="rgba"),
    "one-pixel.mp4": lambda p: make_video(p, frames=3, width=1, height=1, pix_fmt="yuv444p"),
    "odd-size.mp4": lambda p: make_video(p, width=33, height=17, pix_fmt="yuv444p"),
    "two-frames.mp4": lambda p: make_video(p, frames=2),
    "one-frame.mp4": lambda p: make_video(p, frames=1),
}


@pytest.mark.parametrize("name", MADE)
def test_made_media(name: str, tmp_path: Path) -> None:
    path = MADE[name](tmp_path / name)
    clip = assert_exact(path)
    assert clip.damage is None
    assert_exact(path, threads=3)


@pytest.mark.parametrize(
    "name",
    [
        *("one-group.mp4", "b-frames.mp4", "b-frames.mkv", "open-gop.mp4", "open-gop.ts"),
        *("open-gop-hevc.mp4", "starts-late.ts", "vfr.mp4", "mpeg2.ts"),
        *("vp9.webm", "animated.gif", "interlaced.mpg"),
    ],
)
@pytest.mark.usefixtures("no_whole_decode")
def test_only_what_is_needed_is_decoded(name: str, tmp_path: Path) -> None:
    assert_exact(MADE[name](tmp_path / name))


@pytest.mark.parametrize("path", real_videos(*SOUND_FOLDERS))
@pytest.mark.usefixtures("no_whole_decode")
def test_real_media(path: Path) -> None:
    assert (assert_exact(path).damage is not None) == (path.name in CUT_OFF)


@pytest.mark.parametrize("count", [1, 2, 7, 33])
def test_any_number_of_frames(count: int, tmp_path: Path) -> None:
    assert_exact(MADE["b-frames.mp4"](tmp_path / "video.mp4"), count)


def test_hidden_frames_are_never_targets() -> None:
    """VP8 packets may hold a frame that is only referred to, with a timestamp of its own."""
    path = real_video("normal/mdn__stream-of-water.webm")
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    assert any(not memoryview(p)[0] & 0x10 for p in packets), "nothing hidden: proves nothing"
    assert_exact(path, 200)


def test_leading_frames_of_an_open_group_are_in_the_file(tmp_path: Path) -> None:
    path = MADE["open-gop.mp4"](tmp_path / "video.mp4")
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    keys = [i for i, p in enumerate(packets) if p.is_keyframe]
    assert any(packets[i + 1].pts < packets[i].pts for i in keys[1:])


@pytest.mark.usefixtures("no_whole_decode")
def test_an_edit_list_cuts_frames_off(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "a.mp4", frames=60, options=X264 | {"g": "60", "bf": "2"})
    path = remux(whole, tmp_path / "b.mp4", shift_s=Fraction(-1))
    with av.open(str(path)) as container:
        assert any(p.is_discard for p in container.demux(video=0)), "the cut is not in the file"
    clip = assert_exact(path)
    assert clip.info.duration_s == pytest.approx(60 / 25 - 1)
    assert clip.times_s[0] < 0.1


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "libx265"])
def test_a_recording_that_starts_anywhere(codec: str, tmp_path: Path) -> None:
    """Cut out of a broadcast: it begins with frames whose references are lost."""
    options = {
        "libx264": X264 | {"x264-params": "open-gop=1:keyint=15:bframes=3:b-adapt=0"},
        "mpeg2video": {"bf": "2", "g": "12"},
        "libx265": {"x265-params": "open-gop=1:keyint=12:bframes=4:log-level=0"},
    }[codec]
    whole = make_video(tmp_path / "a.ts", frames=90, codec=codec, options=options)
    for skip in (1, 5, 12, 13, 14, 17):
        assert_exact(remux(whole, tmp_path / f"{skip}.ts", skip_packets=skip))


def test_missing_timestamps(tmp_path: Path) -> None:
    """A raw stream has none; the container's guess is all there is."""
    path = make_video(tmp_path / "raw.h264", options=X264 | {"bf": "2"}, format="h264")
    assert assert_exact(path).frames_used == 16


def test_the_size_changes_in_mid_stream(tmp_path: Path) -> None:
    parts = [
        make_video(tmp_path / f"{w}.h264", frames=24, width=w, height=h, format="h264")
        for w, h in ((96, 64), (64, 96))
    ]
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    clip = assert_exact(path)
    assert (clip.info.width, clip.info.height) == (96, 64)
    assert clip.frames_used == 16


def test_a_container_that_calls_every_frame_a_key_frame_is_found_out(tmp_path: Path) -> None:
    """Starting at a frame that is none would show garbage; most demuxers check it themselves."""
    path = make_video(tmp_path / "a.mp4", frames=60, options=X264 | {"g": "60", "bf": "0"})
    guard = Guard()
    with (
        open_descriptor(path) as fd,
        open_video(fd, DecodeLimits(), guard, threads=1) as video,
    ):
        packets = scan(video, DecodeLimits(), guard)
        packets.key[:] = bytes([1]) * len(packets)
        pts = packets.pts[30]
        assert pts is not None
        with pytest.raises(PlanFailedError):
            decode_targets(video, packets, {30: pts}, lambda *_: None, guard)


@pytest.mark.parametrize("name", ["b-frames.mp4", "b-frames.mkv", "open-gop.ts", "vfr.mp4"])
@pytest.mark.usefixtures("no_whole_decode")
def test_a_file_too_large_to_keep_in_memory(name: str, tmp_path: Path) -> None:
    path = MADE[name](tmp_path / name)
    assert_exact(path, limits=DecodeLimits(max_packet_bytes=1000))


@pytest.mark.parametrize("path", real_videos("normal", "vfr_or_odd_pts"))
def test_threads_and_memory_do_not_change_real_frames(path: Path) -> None:
    clip = read_clip(path, PREP)
    for other in (
        read_clip(path, PREP, threads=4),
        read_clip(path, PREP, limits=DecodeLimits(max_packet_bytes=1)),
    ):
        np.testing.assert_array_equal(clip.frames, other.frames)
        np.testing.assert_array_equal(clip.times_s, other.times_s)


needs_matrix = pytest.mark.skipif(
    not hasattr(VideoStream, "set_display_rotation"),
    reason="this PyAV cannot write a display matrix (18 and later can)",
)


@needs_matrix
@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_rotation_metadata_is_applied(angle: int, tmp_path: Path) -> None:
    def turn(stream: Any) -> None:
        stream.set_display_rotation(angle)

    upright = make_video(tmp_path / "a.mp4", options=X264)
    turned = make_video(tmp_path / "b.mp4", options=X264, prepare_stream=turn)
    clip = assert_exact(turned)
    assert clip.info.rotation == angle
    size = (64, 96) if angle % 180 else (96, 64)
    assert (clip.info.width, clip.info.height) == size
    # The square PREP makes turning before and after scaling the same but for rounding of 1.
    expected = np.rot90(read_clip(upright, PREP).frames, angle // 90, axes=(1, 2))
    assert np.abs(expected.astype(int) - clip.frames).max() <= 1


@needs_matrix
def test_other_angles_are_ignored(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", prepare_stream=lambda s: s.set_display_rotation(30))
    with av.open(str(path)) as container:
        assert abs(next(container.decode(video=0)).rotation) in (29, 30)
    assert assert_exact(path).info.rotation == 0
