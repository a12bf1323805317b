"""Media for tests: where real files are, files made on the spot, and a slow reference reader."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from memcli.preprocess import FramePreparer
from memcli.spec import FramePrep

ROOT = Path(__file__).resolve().parent.parent
PREP = FramePrep(frames=16, resize_width=64, resize_height=64, crop_width=64, crop_height=64)
"""Small, to keep tests quick."""
SOUND_FOLDERS = (
    "normal",
    "portrait_square",
    "rotated",
    "interlaced",
    "tenbit",
    "vfr_or_odd_pts",
    "gif",
    "single_frame",
    "tiny",
)
"""Folders of the real data whose files decode without a fault."""
CUT_OFF = frozenset({"libwebm__blockgroup_block_ends_beyond_blockgroup.mkv"})
"""Of these the ones that are the first bytes of longer files: 11 kB of 299 MB, one whole frame."""


def data_folder() -> Path | None:
    """The folder of real videos, or None: $MEMCLI_TEST_DATA/videos, else ../shared/data/videos."""
    base = os.environ.get("MEMCLI_TEST_DATA")
    folder = (Path(base) if base else ROOT.parent / "shared" / "data") / "videos"
    return folder if folder.is_dir() else None


def real_videos(*folders: str) -> list[Any]:
    """Real files as pytest parameters with short ids; where there are none, one that skips."""
    base = data_folder()
    if base is None:
        reason = "no real videos: set MEMCLI_TEST_DATA or provide ../shared/data"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    files = sorted(f for name in folders for f in (base / name).glob("*") if f.is_file())
    return [pytest.param(f, id=f"{f.parent.name}/{f.name}") for f in files]


def real_video(name: str) -> Path:
    """One real file by "folder/name"; skips the test where the data is absent."""
    base = data_folder()
    if base is None:
        pytest.skip("no real videos: set MEMCLI_TEST_DATA or provide ../shared/data")
    return base / name


def full_decode(
    path: Path, prep: FramePrep = PREP, count: int = 16
) -> tuple[npt.NDArray[np.uint8], list[Fraction], list[int]]:
    """What `read_clip` must give, by the plainest way: decode everything, then choose.

    Returns frames [T, H, W, 3], the start of each in seconds after the first, and the position of
    each in the order of presentation. Shares with the package only how a frame is prepared.
    """
    preparer = FramePreparer(prep)
    prepared: list[tuple[int, int, npt.NDArray[np.uint8]]] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        base = Fraction(stream.time_base or 1)
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            for frame in frames:
                turn = frame.rotation % 360 if frame.rotation % 90 == 0 else 0
                stamp = frame.pts if frame.pts is not None else frame.dts
                if stamp is None:  # no clock in the file: frames are equally long
                    stamp = len(prepared) * frame.duration
                prepared.append((stamp, frame.duration or 0, preparer.prepare(frame, turn)))
    prepared.sort(key=lambda row: row[0])
    starts = [Fraction(row[0]) for row in prepared]
    end = starts[-1] + prepared[-1][1]
    chosen = []
    for i in range(count):
        instant = starts[0] + (end - starts[0]) * Fraction(2 * i + 1, 2 * count)
        chosen.append(max(k for k, start in enumerate(starts) if start <= instant or k == 0))
    images = np.stack([prepared[k][2] for k in chosen])
    return images, [(starts[k] - starts[0]) * base for k in chosen], chosen


def picture(number: int, width: int = 96, height: int = 64) -> npt.NDArray[np.uint8]:
    """RGB [height, width, 3] in which every frame number looks different, with edges and noise."""
    rng = np.random.default_rng(number)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[...] = (number * 37 % 256, number * 11 % 256, 255 - number * 23 % 256)
    left = number * 5 % max(1, width - 8)
    image[height // 4 : height // 2, left : left + 8] = 255
    image[height // 2 :] ^= rng.integers(0, 32, image[height // 2 :].shape, dtype=np.uint8)
    return image


def make_video(
    path: Path,
    *,
    frames: int = 48,
    rate: int = 25,
    width: int = 96,
    height: int = 64,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Iterable[int] | None = None,
    time_base: Fraction | None = None,
    container_options: dict[str, str] | None = None,
    prepare_stream: Callable[[Any], None] | None = None,
    image: Callable[[int, int, int], npt.NDArray[np.uint8]] = picture,
    format: str | None = None,  # noqa: A002 - PyAV's own name
) -> Path:
    """Write a video of `picture`s. `times` are the starts in ticks of `time_base`, for VFR."""
    stamps = list(times) if times is not None else list(range(frames))
    clock = time_base or Fraction(1, rate)
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = clock
        stream.codec_context.thread_count = 1
        if prepare_stream is not None:
            prepare_stream(stream)
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(image(number, width, height), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = stamp, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def remux(
    source: Path,
    target: Path,
    *,
    shift_s: Fraction = Fraction(0),
    skip_packets: int = 0,
) -> Path:
    """Copy the packets of a video unchanged but for the first `skip_packets` and their times.

    Shifted below zero, an MP4 gets an edit list that cuts off what comes before.
    """
    options = {"avoid_negative_ts": "disabled"} if shift_s < 0 else {}
    with (
        av.open(str(source)) as given,
        av.open(str(target), "w", options=options) as container,
    ):
        stream = container.add_stream_from_template(given.streams.video[0])
        packets = [p for p in given.demux(video=0) if p.size]
        for packet in packets[skip_packets:]:
            assert packet.pts is not None
            assert packet.dts is not None
            ticks = int(shift_s / packet.time_base)
            packet.pts += ticks
            packet.dts += ticks
            packet.stream = stream
            container.mux(packet)
    return target
