"""What is refused, with which code and words; and that names are nothing but names."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from memcli.errors import VideoError, VideoErrorCode
from memcli.video import DecodeLimits, read_clip
from tests.media import PREP, ROOT, data_folder, make_video, picture, real_video

Code = VideoErrorCode


def refusal(path: Path | str | bytes, **arguments: object) -> VideoError:
    """The error of a file that must be refused: one plain line that names the file."""
    with pytest.raises(VideoError) as caught:
        read_clip(path, PREP, **arguments)  # type: ignore[arg-type]
    error = caught.value
    assert "\n" not in error.what
    assert "Errno" not in error.what
    assert "avcodec" not in error.what
    assert error.where == os.fsdecode(path)
    return error


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "video.mp4")


def test_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.mp4").code == Code.MISSING
    assert refusal(tmp_path / "no" / "folder.mp4").code == Code.MISSING
    assert refusal(str(tmp_path / "nul\0.mp4")).code == Code.MISSING
    assert refusal(tmp_path / ("x" * 300)).code == Code.MISSING
    (tmp_path / "broken-link.mp4").symlink_to(tmp_path / "gone.mp4")
    assert refusal(tmp_path / "broken-link.mp4").code == Code.MISSING
    (tmp_path / "file").write_bytes(b"x")
    assert refusal(tmp_path / "file" / "below.mp4").code == Code.MISSING


def test_permission(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.mp4"
    shutil.copy(video, secret)
    secret.chmod(0)
    if os.access(secret, os.R_OK):  # the superuser reads everything: let the system say no

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    assert refusal(secret).code == Code.PERMISSION


def test_what_is_not_a_file_never_blocks(tmp_path: Path) -> None:
    (tmp_path / "directory.mp4").mkdir()
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "a.mp4").symlink_to(tmp_path / "b.mp4")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "a.mp4")
    begin = time.monotonic()
    assert "directory" in refusal(tmp_path / "directory.mp4").what
    assert "pipe" in refusal(tmp_path / "fifo.mp4").what
    assert "circle" in refusal(tmp_path / "a.mp4").what
    for path in (tmp_path / "directory.mp4", tmp_path / "fifo.mp4", tmp_path / "a.mp4"):
        assert refusal(path).code == Code.NOT_A_FILE
    for device in ("/dev/zero", "/dev/stdin"):
        if Path(device).is_char_device() or Path(device).is_fifo():
            assert refusal(device).code == Code.NOT_A_FILE
    assert time.monotonic() - begin < 2


def test_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.mp4")
        assert refusal("s.mp4").code == Code.NOT_A_FILE


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    assert refusal(tmp_path / "empty.mp4").code == Code.EMPTY


@pytest.mark.parametrize(
    "content",
    [
        b"Just some text.\n" * 50,
        b"\0" * 5000,
        np.random.default_rng(1).bytes(20_000),
        b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n%s\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile '%s'\n",
        b"v=0\r\no=- 0 0 IN IP4 ::1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\n",
        b"<?xml version='1.0'?><MPD><BaseURL>%s</BaseURL></MPD>",
        b"1\n00:00:01,000 --> 00:00:02,000\nsubtitle\n",
        b"%PDF-1.7\n1 0 obj\n",
        b"PK\x03\x04" + b"\0" * 200,
    ],
    ids=["text", "zeros", "noise", "hls", "concat", "sdp", "dash", "srt", "pdf", "zip"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ""])
def test_not_media(content: bytes, suffix: str, video: Path, tmp_path: Path) -> None:
    """Playlists that name a sound video beside them must not open it."""
    shutil.copy(video, tmp_path / "video.mp4")
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content.replace(b"%s", b"video.mp4"))
    assert refusal(path).code == Code.NOT_MEDIA


@pytest.mark.parametrize("place", [b"mdat", b"moov"])
@pytest.mark.parametrize("faststart", [False, True])
def test_an_mp4_without_its_index(place: bytes, faststart: bool, tmp_path: Path) -> None:
    options = {"movflags": "faststart"} if faststart else None
    data = make_video(tmp_path / "sound.mp4", container_options=options).read_bytes()
    path = tmp_path / "cut.mp4"
    start = data.index(place)
    length = int.from_bytes(data[start - 4 : start], "big")
    path.write_bytes(data[: start + length // 2])
    if faststart and place == b"mdat":  # the index comes first and is there
        assert read_clip(path, PREP).damage
        return
    error = refusal(path)
    assert error.code == Code.DAMAGED
    assert "its index (moov) is not all there: the file is cut short" in error.what


def test_a_recording_that_was_never_finished(tmp_path: Path) -> None:
    data = bytearray(make_video(tmp_path / "sound.mp4").read_bytes())
    start = data.index(b"mdat")
    data[start - 4 : start] = bytes(4)  # up to the end of the file
    path = tmp_path / "open.mp4"
    path.write_bytes(data[: data.index(b"moov") - 4])
    assert "was never finished" in refusal(path).what


def test_an_mp4_with_a_damaged_index(tmp_path: Path) -> None:
    data = make_video(tmp_path / "sound.mp4").read_bytes()
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data.replace(b"moov", b"\xff" * 4))
    assert "its header is damaged" in refusal(path).what


def test_a_reference_to_another_file_is_not_followed(video: Path, tmp_path: Path) -> None:
    """A playlist with an absolute address, in every spelling FFmpeg knows."""
    for address in (f"file:{video}", str(video), f"fd:{video}", "fd:", "http://127.0.0.1:1/x.ts"):
        path = tmp_path / "list.m3u8"
        path.write_text(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{address}\n#EXT-X-ENDLIST\n"
        )
        assert refusal(path).code == Code.NOT_MEDIA


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame(format="fltp", layout="stereo", samples=1024)
        frame.sample_rate = 44100
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for i in range(20):
            frame.pts = i * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert refusal(path).code == Code.NO_VIDEO


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "tiff", "gif", "ppm"])
def test_still_pictures(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.mp4"  # the content counts, not the name
    Image.fromarray(picture(1)).save(path, format=kind)
    assert refusal(path).code == Code.IMAGE
    assert refusal(path, sampling="keyframe").code == Code.IMAGE


@pytest.mark.skipif(data_folder() is None, reason="no real videos: set MEMCLI_TEST_DATA")
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("audio_only/mp4parse__afconvert-aac-0.5s.mp4", Code.NO_VIDEO),
        ("audio_only/mp4parse__bipbop_cbcs_audio_init.mp4", Code.NO_VIDEO),
        ("audio_only/mp4parse__opus_audioinit.mp4", Code.NO_VIDEO),
        ("audio_only/mp4parse__sine-3s-xhe-aac-44khz-mono.mp4", Code.NO_VIDEO),
        ("audio_only/torchcodec__nasa_13013.mp4.audio.mp3", Code.NO_VIDEO),
        ("audio_only/torchcodec__nasa_13013.mp4.audio_44100.mp3", Code.NO_VIDEO),
        ("broken/libwebm__chapters_truncated_chapter_string.mkv", Code.DAMAGED),
        ("broken/libwebm__fixed_lacing_bad_lace_size.mkv", Code.DAMAGED),
        ("broken/libwebm__invalid_vp9_bitstream-bug_1416.webm", Code.TOO_LARGE),
        ("broken/libwebm__primarychromaticity_fieldtoolarge.webm", Code.DAMAGED),
        ("broken/mp4parse__bipbop_480wp_1001kbps-cenc-video-key1-init.mp4", Code.DAMAGED),
        ("broken/mp4parse__bipbop_nonfragment_header.mp4", Code.DAMAGED),
        ("broken/mp4parse__chunk_out_of_range.mp4", Code.DAMAGED),
        ("broken/mp4parse__short-cenc.mp4", Code.UNSUPPORTED),
        ("broken/mp4parse__test_case_1185230.mp4", Code.DAMAGED),
    ],
)
def test_real_files_that_cannot_be_scored(name: str, code: VideoErrorCode) -> None:
    path = real_video(name)
    assert refusal(path).code == code
    assert refusal(path, sampling="keyframe").code == code


def test_unknown_codec(video: Path, tmp_path: Path) -> None:
    path = tmp_path / "unknown.mp4"
    data = video.read_bytes()
    assert data.count(b"avc1") >= 1
    path.write_bytes(data.replace(b"avc1", b"zzzz"))
    assert refusal(path).code == Code.UNSUPPORTED


def test_frames_over_the_limit_are_refused_before_decoding(video: Path, tmp_path: Path) -> None:
    made = [make_video(tmp_path / name) for name in ("a.ts", "b.mkv", "c.avi", "d.h264")]
    for path in (video, *made):
        error = refusal(path, limits=DecodeLimits(max_pixels=96 * 64 - 1))
        assert error.code == Code.TOO_LARGE
        assert "96 × 64" in error.what
        assert read_clip(path, PREP, limits=DecodeLimits(max_pixels=96 * 64)).info.width == 96


def test_too_many_frames(video: Path) -> None:
    assert refusal(video, limits=DecodeLimits(max_packets=10)).code == Code.TOO_LARGE


HOSTILE = [
    *(b"-i.mp4", b"new\nline.mp4", b"http:__x.mp4", b"file:x.mp4", b"fd:0", b"pipe:", b" "),
    *(b"a%03d.mp4", b"%03d.png", b"caf\xe9.mp4", b"\xff\xfe", b"concat:a|b", b"sub,x=1.mp4"),
    *("видео 映像 🎬.mp4".encode(), b"x.m3u8", b"x.txt", b"data:video;base64,AAAA"),
    *(b"\x1b[31m.mp4", b"'\"$(x);&.mp4"),
]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
@pytest.mark.parametrize("kind", [bytes, os.fsdecode, lambda n: Path(os.fsdecode(n))])
def test_a_name_is_only_a_name(
    name: bytes,
    kind: Callable[[bytes], object],
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = read_clip(video, PREP).frames
    shutil.copy(os.fsencode(video), name)
    clip = read_clip(kind(name), PREP)  # type: ignore[arg-type]
    np.testing.assert_array_equal(clip.frames, expected)


def test_a_pattern_does_not_match_other_files(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        Image.fromarray(picture(number)).save(f"{number:03d}.png")
    assert refusal("%03d.png").code == Code.MISSING


def test_no_descriptor_stays_open(video: Path, tmp_path: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("needs /proc to count descriptors")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(video.read_bytes()[:700])
    before = len(list(folder.iterdir()))
    for _ in range(5):
        read_clip(video, PREP)
        read_clip(video, PREP, sampling="keyframe")
        refusal(bad)
    assert len(list(folder.iterdir())) == before


def test_ffmpeg_is_silent(video: Path, tmp_path: Path) -> None:
    """Damage makes FFmpeg talk; a command line's screen is not the place."""
    data = bytearray(video.read_bytes())
    for place in range(len(data) // 3, len(data) // 2, 40):
        data[place] ^= 0xFF
    path = tmp_path / "bad.mp4"
    path.write_bytes(data)
    program = (
        "import sys\n"
        "from memcli.errors import VideoError\n"
        "from memcli.spec import FramePrep\n"
        "from memcli.video import read_clip\n"
        "try:\n    read_clip(sys.argv[1], FramePrep(16, 64, 64, 64, 64))\n"
        "except VideoError:\n    pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, cwd=ROOT, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")
