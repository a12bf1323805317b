"""NVDEC chooses and prepares the same frames as the CPU. The GPU is a stand-in (`fake_nvdec`) that
decodes real streams in software; `tests/gpu/test_nvdec.py` is the same on a GPU."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from fake_nvdec import make_api
from media import make_video, remux

from memcli.errors import DeviceError
from memcli.spec import FramePrep
from memcli.video import nvdec as nvdec_module
from memcli.video import read_clip
from memcli.video.annexb import starts_afresh
from memcli.video.nvdec import Nvdec

PREP = FramePrep(frames=6, resize_width=48, resize_height=48, crop_width=32, crop_height=32)
VIDEOS = {
    "b-frames": {"options": {"g": "8", "bf": "3"}},
    "one group": {"options": {"g": "250", "bf": "2"}},
    "open groups": {"options": {"g": "8", "bf": "2", "x264-params": "open-gop=1"}},
    "full range": {"pix_fmt": "yuvj420p", "options": {"g": "8"}},
    "hevc": {"codec": "libx265", "options": {"x265-params": "keyint=8:log-level=none"}},
    "ten bits": {
        "codec": "libx265",
        "pix_fmt": "yuv420p10le",
        "options": {"x265-params": "keyint=8:log-level=none"},
    },
    "vp9": {"codec": "libvpx-vp9", "options": {"g": "8", "cpu-used": "8", "deadline": "realtime"}},
    "variable": {
        "times": [number * number for number in range(48)],
        "time_base": Fraction(1, 1000),
        "options": {"g": "8", "bf": "2"},
    },
}


@pytest.fixture
def api(monkeypatch):
    fake = make_api()
    monkeypatch.setattr(nvdec_module, "load", lambda gpu: fake)
    return fake


def assert_same(path, gpu, **options):
    cpu_clip = read_clip(path, PREP, **options)
    gpu_clip = read_clip(path, PREP, nvdec=gpu, **options)
    np.testing.assert_array_equal(gpu_clip.frames, cpu_clip.frames)
    np.testing.assert_array_equal(gpu_clip.times_s, cpu_clip.times_s)
    assert (gpu_clip.info, gpu_clip.frames_used, gpu_clip.damage) == (
        cpu_clip.info,
        cpu_clip.frames_used,
        cpu_clip.damage,
    )
    assert cpu_clip.decoder == "cpu"
    return gpu_clip


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_are_those_of_the_cpu(tmp_path, api, name):
    suffix = "webm" if name == "vp9" else "mp4"
    path = make_video(tmp_path / f"a.{suffix}", **VIDEOS[name])
    clip = assert_same(path, Nvdec())
    assert clip.decoder == "nvdec"
    assert api.decoders


@pytest.mark.parametrize("frames", [1, 3, 48, 60])
def test_any_number_of_frames(tmp_path, api, frames):
    path = make_video(tmp_path / "a.mp4", options={"g": "8", "bf": "2"})
    assert assert_same(path, Nvdec(), frames=frames).decoder == "nvdec"


def test_start_below_zero_with_an_edit_list(tmp_path, api):
    source = make_video(tmp_path / "a.mp4", options={"g": "8", "bf": "2"})
    path = remux(source, tmp_path / "b.mp4", shift_s=Fraction(-1, 5))
    assert_same(path, Nvdec())  # on the CPU: its first key frame is not shown


def test_transport_streams_carry_their_parameter_sets(tmp_path, api):
    path = make_video(tmp_path / "a.ts", options={"g": "8", "bf": "2"})
    assert_same(path, Nvdec())


def test_packets_that_do_not_fit_memory_are_read_again(tmp_path, api):
    from memcli.video import DecodeLimits

    path = make_video(tmp_path / "a.mp4", options={"g": "8", "bf": "2"})
    clip = assert_same(path, Nvdec(), limits=DecodeLimits(max_packet_bytes=2000))
    assert clip.decoder == "nvdec"


def test_a_decoder_serves_files_of_the_same_encoder(tmp_path, api):
    paths = [
        make_video(tmp_path / f"{n}.mp4", frames=20 + n, options={"g": "8", "bf": "2"})
        for n in range(3)
    ]
    other = make_video(tmp_path / "other.mp4", width=128, options={"g": "8", "bf": "2"})
    gpu = Nvdec()
    for path in [*paths, other, *paths]:
        assert assert_same(path, gpu).decoder == "nvdec"
    assert len(api.decoders) == 2


def test_at_most_four_decoders_are_kept(tmp_path, api):
    gpu = Nvdec()
    for number in range(6):
        path = make_video(tmp_path / f"{number}.mp4", frames=8, width=64 + 16 * number)
        assert_same(path, gpu)
    assert len(gpu._sessions()) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "mpeg4"},
        {"pix_fmt": "yuv444p"},
        {"width": 95, "pix_fmt": "yuv444p"},
        {"options": {"x264-params": "interlaced=1"}},
    ],
    ids=["codec", "chroma", "odd size", "interlaced"],
)
def test_what_nvdec_does_not_give_exactly_is_decoded_on_the_cpu(tmp_path, api, options):
    path = make_video(tmp_path / "a.mp4", **options)
    assert assert_same(path, Nvdec()).decoder == "cpu"
    assert not api.decoders


def test_key_frames_alone_are_decoded_on_the_cpu(tmp_path, api):
    path = make_video(tmp_path / "a.mp4", options={"g": "8"})
    assert assert_same(path, Nvdec(), sampling="keyframe").decoder == "cpu"


def test_a_codec_that_the_gpu_lacks(tmp_path, api):
    def refuse(**options):
        raise RuntimeError("Codec not supported on this GPU")

    api.CreateDecoder = refuse
    path = make_video(tmp_path / "a.mp4")
    assert assert_same(path, Nvdec()).decoder == "cpu"


def test_a_decoder_that_failed_is_not_used_again(tmp_path, api, monkeypatch):
    path = make_video(tmp_path / "a.mp4", options={"g": "8", "bf": "2"})
    gpu = Nvdec()
    decode = api.PyNvDecoder.Decode
    calls = []

    def fail_late(self, packet):
        calls.append(1)
        if len(calls) == 12:
            raise RuntimeError("cuvidDecodePicture returned 999")
        return decode(self, packet)

    monkeypatch.setattr(api.PyNvDecoder, "Decode", fail_late)
    assert assert_same(path, gpu).decoder == "cpu"
    assert not gpu._sessions()
    assert assert_same(path, gpu).decoder == "nvdec"


def test_frames_of_another_size_are_noticed(tmp_path, api, monkeypatch):
    monkeypatch.setattr(api.DecodedFrame, "framesize", lambda self: 96 * 64)
    path = make_video(tmp_path / "a.mp4")
    assert assert_same(path, Nvdec()).decoder == "cpu"


def test_frames_that_nvdec_does_not_give_are_noticed(tmp_path, api, monkeypatch):
    monkeypatch.setattr(api.DecodedFrame, "getPTS", lambda self: -1)
    path = make_video(tmp_path / "a.mp4")
    assert assert_same(path, Nvdec()).decoder == "cpu"


def test_no_driver_is_said(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(nvdec_module.ctypes, "CDLL", missing)
    with pytest.raises(DeviceError, match="driver"):
        Nvdec()


@pytest.mark.parametrize(("result", "count", "said"), [(100, 0, "start"), (0, 1, "no GPU 1")])
def test_no_gpu_is_said(monkeypatch, result, count, said):
    def get_count(pointer):
        pointer._obj.value = count
        return 0

    driver = SimpleNamespace(cuInit=lambda flags: result, cuDeviceGetCount=get_count)
    monkeypatch.setattr(nvdec_module.ctypes, "CDLL", lambda name: driver)
    with pytest.raises(DeviceError, match=said):
        Nvdec(gpu=1)


IDR, SLICE = b"\0\0\0\1\x65abc", b"\0\0\1\x41abc"
RECOVERY_NOW, RECOVERY_LATER = b"\0\0\1\x06\x06\x01\x84\x80", b"\0\0\1\x06\x06\x01\x48\x80"


@pytest.mark.parametrize(
    ("codec", "data", "expected"),
    [
        ("h264", b"\0\0\1\x67sps" + IDR, True),
        ("h264", SLICE, False),
        ("h264", SLICE + IDR, False),
        ("h264", RECOVERY_NOW + SLICE, True),
        ("h264", RECOVERY_LATER + SLICE, False),
        ("h264", b"\0\0\1\x06\x05\x02ab\x06\x01\x84\x80" + SLICE, True),
        ("h264", b"\0\0\1\x06\xff", False),
        ("h264", b"", False),
        ("hevc", b"\0\0\1\x40\x01vps\0\0\1\x26\x01idr", True),
        ("hevc", b"\0\0\1\x02\x01trail", False),
        ("vp9", b"whatever", True),
    ],
)
def test_where_decoding_can_start(codec, data, expected):
    assert starts_afresh(codec, data) is expected
