"""Damaged files give a clip that says so, or a reason; never a crash, and never for ever."""

import os
import random
import time
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memcli.errors import VideoError, VideoErrorCode
from memcli.video import Clip, DecodeCancelledError, keyframes, read_clip, types, whole
from memcli.video import clip as clip_module
from memcli.video.builder import ClipBuilder
from tests.media import PREP, make_video, picture, real_video

X264 = {"preset": "veryfast", "g": "12", "bf": "2", "sc_threshold": "0"}
CONTAINERS = ("mp4", "mkv", "ts", "avi")


def read(path: Path, **arguments: object) -> Clip | None:
    """A well-formed clip, or None for a well-formed refusal."""
    try:
        clip = read_clip(path, PREP, **arguments)  # type: ignore[arg-type]
    except VideoError as error:
        refusal = error
    else:
        return _well_formed(clip)
    assert refusal.code != VideoErrorCode.INTERNAL
    assert "Errno" not in refusal.what
    return None


def _well_formed(clip: Clip) -> Clip:
    assert clip.frames.shape == (16, *PREP.frame_shape())
    assert (np.diff(clip.times_s) >= 0).all()
    assert clip.times_s[0] >= 0
    assert 1 <= clip.frames_used <= 16
    return clip


@pytest.fixture(scope="module", params=CONTAINERS)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / f"sound.{request.param}"
    options = X264 | ({"bf": "0"} if request.param == "avi" else {})
    moov_first = {"movflags": "faststart"} if request.param == "mp4" else None
    return make_video(path, frames=60, options=options, container_options=moov_first)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
def test_cut_off(sound: Path, share: float, tmp_path: Path) -> None:
    data = sound.read_bytes()
    path = tmp_path / sound.name
    path.write_bytes(data[: max(1, int(len(data) * share))])
    whole = read_clip(sound, PREP)
    for sampling in ("exact", "keyframe"):
        clip = read(path, sampling=sampling)
        if share >= 0.5:
            assert clip is not None, "half of the video is there"
            assert clip.info.width == 96
    exact = read(path)
    if exact is not None and share < 0.9:
        assert exact.info.duration_s is not None
        assert exact.info.duration_s < (whole.info.duration_s or 0)


SIZED: dict[str, dict[str, Any]] = {
    "index-first.mp4": {"options": X264, "container_options": {"movflags": "faststart"}},
    "index-last.mp4": {"options": X264},
    "fragments.mp4": {
        "options": X264,
        "container_options": {"movflags": "frag_keyframe+empty_moov"},
    },
    "a.mkv": {"options": X264},
    "live.mkv": {"options": X264, "container_options": {"live": "1"}},
    "a.webm": {"codec": "libvpx", "options": {"g": "12"}},
    "a.avi": {"codec": "mpeg4", "options": {"g": "12"}},
    "a.flv": {"options": X264},
}
"""Files whose headers state how long they, or at least their parts, are."""


@pytest.fixture(scope="module", params=SIZED)
def sized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sized") / request.param
    return make_video(path, frames=60, **SIZED[request.param])


@pytest.mark.parametrize("sampling", ["exact", "keyframe"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.6, 0.75, 0.9, 0.97, 0.999])
def test_what_ends_early_never_passes_for_whole(
    sized: Path, share: float, sampling: str, tmp_path: Path
) -> None:
    data = sized.read_bytes()
    path = tmp_path / sized.name
    path.write_bytes(data[: int(len(data) * share)])
    clip = read(path, sampling=sampling)
    if clip is not None:
        assert clip.damage is not None
        assert clip.damage.startswith("the file ends early: ")
        assert f"{path.stat().st_size:,} of " in clip.damage
    else:
        assert share < 0.5 or sized.name == "index-last.mp4"
    assert read_clip(sized, PREP, sampling=sampling).damage is None  # type: ignore[arg-type]


def _patched(path: Path, place: int, content: bytes) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:place] + content + data[place + len(content) :])


@pytest.mark.parametrize("unknown", [b"\0\0\0\0", b"\xff\xff\xff\xff"])
def test_an_avi_that_was_never_finished_states_no_size(unknown: bytes, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", codec="mpeg4")
    _patched(path, 4, unknown)
    assert read_clip(path, PREP).damage is None


def test_an_avi_whose_size_counts_its_header_is_whole(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", codec="mpeg4")
    _patched(path, 4, path.stat().st_size.to_bytes(4, "little"))
    assert read_clip(path, PREP).damage is None


def test_later_chunks_of_a_long_avi_count(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", codec="mpeg4")
    with path.open("ab") as stream:
        stream.write(b"RIFF" + (1000).to_bytes(4, "little") + b"AVIX" + bytes(500))
    damage = read_clip(path, PREP).damage
    assert damage is not None
    assert "ends early" in damage


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\xff" * 9, b"appended by a camera", b"free"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_what_follows_a_whole_file_is_not_damage(name: str, tail: bytes, tmp_path: Path) -> None:
    options = X264 | ({"bf": "0"} if name == "a.avi" else {})
    path = make_video(tmp_path / name, options=options)
    path.write_bytes(path.read_bytes() + tail)
    assert read_clip(path, PREP).damage is None


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("sampling", ["exact", "keyframe"])
def test_missing_frames_where_the_size_says_nothing(
    sampling: str, large: bool, tmp_path: Path
) -> None:
    """An mdat box "up to the end of the file", and one whose size takes 64 bits."""
    path = make_video(
        tmp_path / "a.mp4", frames=60, options=X264, container_options={"movflags": "faststart"}
    )
    data = path.read_bytes()
    place = data.index(b"mdat") - 4
    length = int.from_bytes(data[place : place + 4], "big")
    if large:  # FFmpeg leaves room for it: an empty box `free` in front
        assert data[place - 4 : place] == b"free"
        head = b"\0\0\0\1mdat" + (length + 8).to_bytes(8, "big")
        _patched(path, place - 8, head)
    else:
        _patched(path, place, bytes(4))
    assert read_clip(path, PREP, sampling=sampling).damage is None  # type: ignore[arg-type]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 9 // 10])
    damage = read_clip(path, PREP, sampling=sampling).damage  # type: ignore[arg-type]
    assert damage is not None
    assert ("ends early" in damage) == large


@pytest.mark.parametrize("share", [0.5, 0.75, 0.97])
def test_what_is_left_of_an_mp4_is_shown_as_in_the_whole(share: float, tmp_path: Path) -> None:
    sound = make_video(
        tmp_path / "a.mp4", frames=60, options=X264, container_options={"movflags": "faststart"}
    )
    data = sound.read_bytes()
    path = tmp_path / "b.mp4"
    path.write_bytes(data[: int(len(data) * share)])
    clip = read(path)
    assert clip is not None
    np.testing.assert_array_equal(
        clip.frames[0], read_clip(sound, PREP, frames=1000).frames[_slot(clip)]
    )


def _slot(clip: Clip) -> int:
    """Of 1000 midpoints of 60 frames at 25 per second, one that shows the clip's first frame."""
    return int((clip.times_s[0] + 0.02) / (60 / 25) * 1000)


def test_a_hole_in_the_middle_is_bridged(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=120, options=X264 | {"g": "10", "bf": "0"})
    expected = read_clip(path, PREP)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = bytes(600)
    path.write_bytes(data)
    clip = read(path)
    assert clip is not None
    assert clip.damage is not None
    same = [(a == b).all() for a, b in zip(clip.frames, expected.frames, strict=True)]
    assert sum(same) >= 12, "only the group with the hole may differ"


def test_real_file_half_missing() -> None:
    clip = read(real_video("broken/decord__corrupted.mp4"))
    assert clip is not None
    assert clip.damage is not None
    assert "Errno" not in clip.damage


@pytest.mark.parametrize("name", ["derived", "broken"])
def test_every_damaged_real_file(name: str) -> None:
    folder = real_video(name)
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        for sampling in ("exact", "keyframe"):
            read(path, sampling=sampling)


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bits(sound: Path, seed: int, tmp_path: Path) -> None:
    """In headers (first seeds) and anywhere; the seeds are fixed so that a failure comes again."""
    rng = random.Random(seed)
    data = bytearray(sound.read_bytes())
    reach = min(len(data), 600) if seed < 4 else len(data)
    for _ in range(rng.choice([1, 3, 20, 200])):
        data[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    path = tmp_path / sound.name
    path.write_bytes(data)
    for sampling in ("exact", "keyframe"):
        clip = read(path, sampling=sampling)
        if clip is not None:
            again = read(path, sampling=sampling, threads=2)
            assert again is not None
            assert again.frames_used == clip.frames_used


@pytest.mark.parametrize("seed", range(4))
def test_shuffled_pieces(sound: Path, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    data = sound.read_bytes()
    pieces = [data[i : i + 512] for i in range(0, len(data), 512)]
    head, tail = pieces[:2], pieces[2:]
    rng.shuffle(tail)
    path = tmp_path / sound.name
    path.write_bytes(b"".join(head + tail))
    read(path)


def test_damage_does_not_depend_on_threads() -> None:
    path = real_video("broken/decord__corrupted.mp4")
    first, second = read_clip(path, PREP), read_clip(path, PREP, threads=4)
    np.testing.assert_array_equal(first.frames, second.frames)
    assert first.damage == second.damage


@pytest.mark.parametrize("sampling", ["exact", "keyframe"])
def test_deadline(sampling: str, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", options=X264)
    with pytest.raises(VideoError) as caught:
        read_clip(path, PREP, sampling=sampling, deadline=time.monotonic() - 1)  # type: ignore[arg-type]
    assert caught.value.code == VideoErrorCode.TIMEOUT
    assert caught.value.where == str(path)
    clip = read_clip(path, PREP, deadline=time.monotonic() + 60)
    np.testing.assert_array_equal(clip.frames, read_clip(path, PREP).frames)


def test_a_deadline_stops_a_decode_under_way(tmp_path: Path) -> None:
    path = make_video(
        tmp_path / "long.mp4",
        frames=400,
        width=640,
        height=480,
        options={"preset": "ultrafast", "g": "400", "bf": "0"},
        image=lambda n, w, h: np.broadcast_to(picture(n % 7, 32, 1)[:, :1], (h, w, 3)).copy(),
    )
    begin = time.monotonic()
    read_clip(path, PREP)
    whole_s = time.monotonic() - begin
    begin = time.monotonic()
    with pytest.raises(VideoError) as caught:
        read_clip(path, PREP, deadline=time.monotonic() + whole_s / 10)
    assert caught.value.code == VideoErrorCode.TIMEOUT
    assert time.monotonic() - begin < whole_s / 2 + 0.2


def test_the_deadline_holds_in_both_passes_of_a_whole_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on a second with every look at it."""
    path = make_video(tmp_path / "a.mp4", options=X264)
    monkeypatch.setattr(clip_module, "_trusted_timeline", lambda *_: None)
    looks = 0
    second_pass = 0
    decode_numbers = whole.decode_numbers

    def monotonic() -> float:
        nonlocal looks
        looks += 1
        return float(looks)

    def mark(*arguments: Any) -> None:
        nonlocal second_pass
        second_pass = looks
        decode_numbers(*arguments)

    monkeypatch.setattr(types, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(whole, "decode_numbers", mark)
    read_clip(path, PREP, deadline=1e6)
    end = looks
    assert second_pass > 48, "a look per frame in the first pass"
    assert end - second_pass > 46, "and in the second, up to the last frame shown"
    for late in (second_pass // 2, second_pass - 1, second_pass + 3, (second_pass + end) // 2):
        looks = 0
        with pytest.raises(VideoError) as caught:
            read_clip(path, PREP, deadline=late)
        assert caught.value.code == VideoErrorCode.TIMEOUT
        assert looks <= late + 1, "the first look behind the deadline is the last"


@pytest.mark.parametrize("left", [0, 1, 20])
def test_a_second_pass_that_gives_fewer_frames(
    left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a read error of a network mount: never a clip with unwritten frames."""
    path = make_video(tmp_path / "a.mp4", options=X264)
    monkeypatch.setattr(clip_module, "_trusted_timeline", lambda *_: None)
    frames_of = whole._frames
    passes = 0

    def frames(*arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        return islice(frames_of(*arguments), left if passes == 2 else None)

    monkeypatch.setattr(whole, "_frames", frames)
    with pytest.raises(VideoError) as caught:
        read_clip(path, PREP)
    assert passes == 2
    assert caught.value.code == VideoErrorCode.READ
    assert caught.value.what == "the file gave fewer frames when it was read again"


@pytest.mark.parametrize("way", ["exact", "keyframe by index", "keyframe by scan"])
def test_no_path_gives_a_clip_with_unwritten_frames(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "a.mp4", options=X264)
    put = ClipBuilder.put

    def but_the_last(self: ClipBuilder, frame: Any, slots: list[int], video: Any) -> None:
        put(self, frame, [slot for slot in slots if slot != 15] or [0], video)

    monkeypatch.setattr(ClipBuilder, "put", but_the_last)
    if way == "keyframe by scan":
        monkeypatch.setattr(keyframes, "_by_index", lambda *_: None)
    with pytest.raises(VideoError) as caught:
        read_clip(path, PREP, sampling="exact" if way == "exact" else "keyframe")
    assert caught.value.code == VideoErrorCode.READ


@pytest.mark.parametrize("change", ["cut", "rewritten", "grown"])
@pytest.mark.parametrize("way", ["exact", "whole", "keyframe"])
def test_a_file_that_changes_while_it_is_read(
    way: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "a.mp4", frames=60, options=X264)
    if way == "whole":
        monkeypatch.setattr(clip_module, "_trusted_timeline", lambda *_: None)
    data = path.read_bytes()
    content = {
        "cut": data[: len(data) // 2],
        "rewritten": data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
        "grown": data + data,
    }[change]
    os.utime(path, (0, 0))  # a clock of files may not tell writes of one moment apart
    put = ClipBuilder.put

    def change_first(*arguments: Any) -> None:
        path.write_bytes(content)  # into the same file, as `cp` and a download do
        put(*arguments)

    monkeypatch.setattr(ClipBuilder, "put", change_first)
    with pytest.raises(VideoError) as caught:
        read_clip(path, PREP, sampling="keyframe" if way == "keyframe" else "exact")
    assert caught.value.code == VideoErrorCode.READ
    assert caught.value.what == "the file changed while it was read"
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("sampling", "after"),
    [("exact", 0), ("exact", 1), ("exact", 5), ("keyframe", 0), ("keyframe", 3)],
)
def test_cancelled(sampling: str, after: int, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", options=X264)
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > after

    with pytest.raises(DecodeCancelledError):
        read_clip(path, PREP, sampling=sampling, cancelled=cancelled)  # type: ignore[arg-type]


def test_absurd_timestamps(tmp_path: Path) -> None:
    """A thousand hours between two frames: honoured, in no more time or memory than any file."""
    path = make_video(
        tmp_path / "a.mkv",
        times=[0, 40, 3_600_000_000],
        time_base=Fraction(1, 1000),
        options={"bf": "0"},
    )
    begin = time.monotonic()
    clip = read_clip(path, PREP)
    assert time.monotonic() - begin < 5
    assert clip.times_s.max() == pytest.approx(0.04)
    assert clip.info.duration_s == pytest.approx(3_600_000, rel=1e-3)


def test_headers_that_lie_about_the_length() -> None:
    path = real_video("single_frame/libwebm__blockgroup_block_ends_beyond_blockgroup.mkv")
    for sampling in ("exact", "keyframe"):
        clip = read(path, sampling=sampling)
        assert clip is not None
        assert clip.frames_used == 1


def test_whole_decoding_gives_the_same_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fall-back for damage, on a file without any."""
    path = make_video(tmp_path / "a.mp4", frames=90, options=X264)
    expected = read_clip(path, PREP)
    monkeypatch.setattr(clip_module, "_trusted_timeline", lambda *_: None)
    clip = read_clip(path, PREP)
    np.testing.assert_array_equal(clip.frames, expected.frames)
    np.testing.assert_array_equal(clip.times_s, expected.times_s)
    assert (clip.info, clip.damage) == (expected.info, None)
