"""A GPU's NVDEC gives the frames of the CPU, byte for byte: `test_nvdec` with the real one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media import make_video
from test_nvdec import PREP, VIDEOS

from memcli.video import read_clip
from memcli.video.nvdec import Nvdec

pytestmark = pytest.mark.gpu

SIZE = {"width": 640, "height": 360, "frames": 120}
"""NVDEC has a least size, which the small clips of other tests are under."""


@pytest.fixture(scope="module")
def gpu() -> Nvdec:
    pytest.importorskip("PyNvVideoCodec")
    return Nvdec()


def write(folder: Path, name: str, number: int = 0) -> Path:
    options: dict[str, Any] = {**SIZE, **VIDEOS[name]}
    if "times" in options:
        options.pop("frames")
    return make_video(folder / f"{name}-{number}.{'webm' if name == 'vp9' else 'mp4'}", **options)


def assert_same(path: Path, gpu: Nvdec, frames: int = 16) -> None:
    cpu_clip = read_clip(path, PREP, frames=frames)
    gpu_clip = read_clip(path, PREP, frames=frames, nvdec=gpu)
    assert gpu_clip.decoder == "nvdec"
    np.testing.assert_array_equal(gpu_clip.times_s, cpu_clip.times_s)
    np.testing.assert_array_equal(gpu_clip.frames, cpu_clip.frames)


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_are_those_of_the_cpu(tmp_path: Path, gpu: Nvdec, name: str) -> None:
    assert_same(write(tmp_path, name), gpu)


def test_every_frame_of_a_clip(tmp_path: Path, gpu: Nvdec) -> None:
    assert_same(write(tmp_path, "open groups"), gpu, frames=SIZE["frames"])


def test_decoders_are_used_again(tmp_path: Path, gpu: Nvdec) -> None:
    paths = [write(tmp_path, name, number) for number in range(2) for name in ("b-frames", "hevc")]
    for path in [*paths, *paths]:
        assert_same(path, gpu)


def test_several_threads(tmp_path: Path, gpu: Nvdec) -> None:
    from concurrent.futures import ThreadPoolExecutor

    path = write(tmp_path, "b-frames")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: assert_same(path, gpu), range(16)))
