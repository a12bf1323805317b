"""Frames that a GPU decodes and resizes are the CPU's, byte for byte, and engines read
them in place: `test_gpu_resize` with everything real."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media import make_video
from test_nvdec import VIDEOS
from tiny_bundle import TINY_PREP, make_tiny_bundle

from memcli.decoding import ProbeRequest, choose_decoder
from memcli.engines.select import open_engine
from memcli.gpu_resize import GpuResizer
from memcli.reading import Prepared, Reader
from memcli.spec import FramePrep
from memcli.video import read_clip
from memcli.video.nvdec import GPU_RESIZE, Nvdec

pytestmark = pytest.mark.gpu

PREPS = {
    "224": FramePrep(16, 224, 224, 224, 224),
    "384 bicubic": FramePrep(16, 384, 384, 384, 384, filter="bicubic"),
    "shortest": FramePrep(16, 256, 256, 224, 224, fit="shortest"),
}
SIZES = [(640, 360), (1280, 720), (1920, 1080), (718, 402), (360, 640)]


@pytest.fixture(scope="module", params=PREPS)
def prep(request: Any) -> FramePrep:
    return PREPS[request.param]


@pytest.fixture(scope="module")
def gpu(prep: FramePrep) -> Nvdec:
    pytest.importorskip("PyNvVideoCodec")
    return Nvdec(0, GpuResizer(prep))


def write(folder: Path, name: str, width: int = 640, height: int = 360) -> Path:
    options: dict[str, Any] = {"frames": 60, "width": width, "height": height, **VIDEOS[name]}
    if "times" in options:
        options.pop("frames")
    suffix = "webm" if name == "vp9" else "mp4"
    return make_video(folder / f"{name}-{width}.{suffix}", **options)


def assert_same(path: Path, gpu: Nvdec, prep: FramePrep, decoder: str = GPU_RESIZE) -> None:
    on_cpu = read_clip(path, prep)
    clip = read_clip(path, prep, nvdec=gpu)
    assert clip.decoder == decoder
    np.testing.assert_array_equal(clip.times_s, on_cpu.times_s)
    np.testing.assert_array_equal(clip.host_frames(), on_cpu.frames)


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_are_those_of_the_cpu(
    tmp_path: Path, gpu: Nvdec, prep: FramePrep, name: str
) -> None:
    decoder = "nvdec" if name == "ten bits" else GPU_RESIZE
    assert_same(write(tmp_path, name), gpu, prep, decoder)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(tmp_path: Path, gpu: Nvdec, prep: FramePrep, size: tuple[int, int]) -> None:
    assert_same(write(tmp_path, "b-frames", *size), gpu, prep)


def test_several_threads(tmp_path: Path, gpu: Nvdec, prep: FramePrep) -> None:
    paths = [write(tmp_path, "b-frames", *size) for size in SIZES[:2]]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda path: assert_same(path, gpu, prep), paths * 8))


def test_the_engine_reads_them_on_the_gpu(tmp_path: Path) -> None:
    pytest.importorskip("PyNvVideoCodec")
    paths = [write(tmp_path, name) for name in ("b-frames", "ten bits", "hevc")]
    request = ProbeRequest(TINY_PREP, TINY_PREP.frames, "exact", workers=2)
    bundle = make_tiny_bundle(tmp_path / "home")
    decoding = choose_decoder(
        "nvdec+gpu-resize", request, device="cuda:0", paths=lambda: [str(path) for path in paths]
    )
    reader = Reader(TINY_PREP, TINY_PREP.frames, "exact", None, None)
    with open_engine(bundle, engine="onnxruntime", device="cuda:0").engine as engine:
        clips = [read_clip(path, TINY_PREP) for path in paths]
        expected = engine.run(reader.feeds([Prepared(clip) for clip in clips]))["score"]
        reader.nvdec = decoding.nvdec
        clips = [read_clip(path, TINY_PREP, nvdec=reader.nvdec) for path in paths]
        assert [clip.decoder for clip in clips] == [GPU_RESIZE, "nvdec", GPU_RESIZE]
        found = engine.run(reader.feeds([Prepared(clip) for clip in clips]))["score"]
    np.testing.assert_array_equal(found, expected)
