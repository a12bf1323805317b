"""Frames that are resized on the GPU are the CPU's, byte for byte, and stay there until the engine.

NVDEC, CUDA and ONNX Runtime's GPU build are stand-ins (`fake_nvdec`, `fake_tensorrt`, `fake_cuda`):
decoding and arithmetic are real, on the CPU. `tests/gpu/test_gpu_decode_resize.py` is the same on
a GPU.
"""

import ctypes
import json

import numpy as np
import pytest
from fake_cuda import FakeGpuBuild
from fake_nvdec import make_api
from fake_tensorrt import FakeCuda
from media import make_video, real_videos
from test_decoding import score
from test_nvdec import VIDEOS
from tiny_bundle import TINY_PREP, make_tiny_bundle

from memcli import gpu_resize
from memcli.decoding import ProbeRequest, choose_decoder
from memcli.engines import candidates, select
from memcli.engines import cuda as cuda_module
from memcli.engines import onnxruntime as engine_module
from memcli.engines.cuda import DeviceArray
from memcli.errors import DeviceError, UsageError
from memcli.gpu_resize import GpuResizer
from memcli.progress import closing_lines, opening_lines
from memcli.reading import Prepared, Reader
from memcli.spec import FramePrep
from memcli.video import nvdec as nvdec_module
from memcli.video import read_clip
from memcli.video.nvdec import Nvdec

PREPS = {
    "stretch": FramePrep(6, 48, 48, 32, 32),
    "shortest": FramePrep(6, 56, 56, 48, 40, filter="bicubic", fit="shortest"),
}
EIGHT_BITS = [name for name in VIDEOS if name != "ten bits"]
BOTH = "nvdec+gpu-resize"


class Machine:
    """Stand-ins for everything of a GPU."""

    def __init__(self, monkeypatch):
        self.api = make_api()
        self.ort = FakeGpuBuild()
        self.cuda = FakeCuda(devices=2)
        monkeypatch.setattr(nvdec_module, "load", lambda gpu: self.api)
        for module in (gpu_resize, engine_module, candidates, select):
            monkeypatch.setattr(module, "import_runtime", lambda name: self.ort)
        monkeypatch.setattr(cuda_module, "_import_runtime", lambda: self.cuda)


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def write(folder, name="b-frames", number=0, **options):
    suffix = "webm" if name == "vp9" else "mp4"
    return make_video(folder / f"{name}-{number}.{suffix}", **{**VIDEOS[name], **options})


def assert_same(path, gpu, prep, decoder=BOTH, **options):
    on_cpu = read_clip(path, prep, **options)
    clip = read_clip(path, prep, nvdec=gpu, **options)
    assert clip.decoder == decoder
    assert (clip.device_frames is not None) == (decoder == BOTH)
    np.testing.assert_array_equal(clip.host_frames(), on_cpu.frames)
    np.testing.assert_array_equal(clip.times_s, on_cpu.times_s)
    assert (clip.info, clip.frames_used) == (on_cpu.info, on_cpu.frames_used)
    return clip


@pytest.mark.parametrize("prep", PREPS.values(), ids=PREPS)
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_frames_are_those_of_the_cpu(tmp_path, machine, name, prep):
    assert_same(write(tmp_path, name), Nvdec(1, GpuResizer(prep, 1)), prep)


@pytest.mark.parametrize("frames", [1, 48, 60])
def test_any_number_of_frames(tmp_path, machine, frames):
    prep = PREPS["stretch"]
    assert_same(write(tmp_path), Nvdec(0, GpuResizer(prep)), prep, frames=frames)


def test_rows_that_the_gpu_pads(tmp_path, machine, monkeypatch):
    monkeypatch.setattr(machine.api.PyNvDecoder, "padding", 32)
    prep = PREPS["shortest"]
    assert_same(write(tmp_path), Nvdec(0, GpuResizer(prep)), prep)


def test_several_sizes_and_colours_share_a_resizer(tmp_path, machine):
    prep = PREPS["stretch"]
    gpu = Nvdec(0, GpuResizer(prep))
    paths = [write(tmp_path, number=width, width=width, frames=12) for width in range(64, 208, 16)]
    paths.append(write(tmp_path, "full range"))
    for path in [*paths, *paths]:
        assert_same(path, gpu, prep)


@pytest.mark.parametrize("name", ["ten bits", "turned"])
def test_what_the_gpu_does_not_resize_exactly_is_resized_on_the_cpu(tmp_path, machine, name):
    if name == "turned":
        from media import real_video

        path = real_video("rotated/decord__video_90.mov")
    else:
        path = write(tmp_path, name)
    prep = PREPS["stretch"]
    assert_same(path, Nvdec(0, GpuResizer(prep)), prep, decoder="nvdec")


def test_a_gpu_that_counts_otherwise_is_found_out(tmp_path, machine, monkeypatch):
    """With the 11 bits of TF32 the noise comes out otherwise, so the file stays with the CPU."""
    make_tables = gpu_resize.make_tables

    def rounded(*arguments):
        tables = make_tables(*arguments)
        tables.across[:] &= ~3  # of weights up to 2^13
        return tables

    monkeypatch.setattr(gpu_resize, "make_tables", rounded)
    prep = PREPS["stretch"]
    path = write(tmp_path, width=106)
    assert_same(path, Nvdec(0, GpuResizer(prep)), prep, decoder="nvdec")


def test_a_gpu_that_fails_leaves_the_file_to_the_cpu(tmp_path, machine, monkeypatch):
    prep = PREPS["stretch"]
    gpu = Nvdec(0, GpuResizer(prep))
    path = write(tmp_path)
    assert_same(path, gpu, prep)
    monkeypatch.setitem(gpu.resizer._session._fails, "run", RuntimeError("CUDA failure 2"))
    assert_same(path, gpu, prep, decoder="cpu")


def test_planes_of_another_layout_are_refused(tmp_path, machine, monkeypatch):
    cuda = machine.api.DecodedFrame.cuda
    monkeypatch.setattr(machine.api.DecodedFrame, "cuda", lambda self: cuda(self)[:1])
    prep = PREPS["stretch"]
    assert_same(write(tmp_path), Nvdec(0, GpuResizer(prep)), prep, decoder="cpu")


def test_nothing_but_the_gpu_may_run_the_graph(machine):
    GpuResizer(PREPS["stretch"], 1)
    (options,) = machine.ort.opened
    assert (options["device_id"], options["use_tf32"]) == ("1", "0")
    assert "enable_cuda_graph" not in options
    assert machine.ort.cpu_was_forbidden


def test_batches_are_gathered_on_the_gpu(tmp_path, machine):
    """Also with clips of the CPU among them."""
    prep = PREPS["stretch"]
    paths = [write(tmp_path), write(tmp_path, "ten bits"), write(tmp_path, number=1, frames=30)]
    reader = Reader(prep, 6, "exact", None, None)
    reader.nvdec = Nvdec(0, GpuResizer(prep))
    clips = [read_clip(path, prep, nvdec=reader.nvdec) for path in paths]
    assert [clip.decoder for clip in clips] == [BOTH, "nvdec", BOTH]
    frames = reader.feeds([Prepared(clip) for clip in clips])["frames"]
    assert isinstance(frames, DeviceArray)
    assert frames.shape == (3, 6, 32, 32, 3)
    raw = (ctypes.c_uint8 * frames.nbytes).from_address(frames.pointer)
    found = np.frombuffer(raw, np.uint8).reshape(frames.shape)
    np.testing.assert_array_equal(found, np.stack([read_clip(p, prep).frames for p in paths]))
    assert machine.cuda.copies == ["within", "in", "within"]
    host = reader.feeds([Prepared(clips[1])])["frames"]
    assert isinstance(host, np.ndarray)


REQUEST = ProbeRequest(TINY_PREP, frames=4, sampling="exact", workers=2)


def choose(folder, device="cuda:1"):
    paths = sorted(map(str, folder.iterdir()))
    return choose_decoder(BOTH, REQUEST, device=device, paths=lambda: paths)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(3):
        write(folder, number=number, frames=16 + number)
    return folder


def test_the_probe_compares_whole_clips(folder, machine):
    found = choose(folder)
    assert found.name == BOTH
    assert found.reason == "as asked; the same frames as the CPU for the first 3 videos"
    assert {gpu for gpu, _ in machine.api.decoders} == {1}


def test_other_frames_are_refused(folder, machine, monkeypatch):
    sync = machine.api.PyNvDecoder.SyncOnCUStream

    def spoilt(self):
        sync(self)
        for lent in self._lent:
            lent._data ^= 64

    monkeypatch.setattr(machine.api.PyNvDecoder, "SyncOnCUStream", spoilt)
    with pytest.raises(DeviceError, match="GPU's resize gives other frames") as raised:
        choose(folder)
    assert raised.value.next_step == "Use --decoder nvdec"


def test_an_engine_on_the_cpu_wants_frames_on_the_host(folder, machine):
    with pytest.raises(UsageError, match="for an engine that runs there, not on cpu"):
        choose(folder, device="cpu")


def test_without_cuda_it_is_an_error(folder, machine, monkeypatch):
    machine.cuda.devices = 0
    with pytest.raises(DeviceError, match="no NVIDIA GPU"):
        choose(folder, device="cuda")


def test_scores_rows_and_summary(folder, tmp_path, machine, memcli_home):
    """From the file to the score on stand-ins, with an engine that reads GPU memory."""
    make_tiny_bundle(memcli_home)
    write(folder, "ten bits")
    make_video(folder / "z.mp4", codec="mpeg4")
    gpu = {"engine": "onnxruntime", "device": "cuda", "batch_size": 2}
    summary, rows = score(folder, tmp_path / "a.jsonl", decoder=BOTH, **gpu)
    assert [row["decoder"] for row in rows] == [BOTH, BOTH, BOTH, "nvdec", "cpu"]
    assert summary.decoder == BOTH
    assert any(f"decoder: {BOTH} (as asked;" in line for line in opening_lines(summary))
    lines = closing_lines(summary)
    assert "decoder: 1 video on the CPU, which NVDEC does not take" in lines
    assert "decoder: 1 video by NVDEC but resized on the CPU" in lines
    assert "within" in machine.cuda.copies
    _, on_cpu = score(folder, tmp_path / "b.jsonl", decoder="cpu", **gpu)
    assert json.dumps([row["score"] for row in rows]) == json.dumps([r["score"] for r in on_cpu])


def test_the_benchmark_takes_frames_that_are_on_the_gpu(folder, machine, memcli_home):
    from memcli.benchmark import measure_scorer
    from memcli.engines.select import open_engine
    from memcli.inputs import collect
    from memcli.scoring import Scorer, ScoreSettings

    bundle = make_tiny_bundle(memcli_home)
    selection = open_engine(bundle, engine="onnxruntime", device="cuda")
    settings = ScoreSettings(model="tiny", decoder=BOTH, batch_size=2, workers=2)
    sources = list(collect([folder]).items)
    with Scorer(settings, bundle, selection) as scorer:
        scorer.choose_decoder(lambda: [source.path for source in sources])
        machine.cuda.copies.clear()
        found = measure_scorer(scorer, sources, repeat=1, name="tiny")
    assert found.engine.videos == found.end_to_end.videos == 3
    assert "within" in machine.cuda.copies


@pytest.mark.parametrize("path", real_videos("normal", "rotated", "vfr_or_odd_pts"))
def test_real_videos(path, machine):
    """Whatever is not resized on the GPU is decoded or resized on the CPU, and so says the clip."""
    prep = FramePrep(4, 64, 64, 64, 64)
    on_cpu = read_clip(path, prep)
    clip = read_clip(path, prep, nvdec=Nvdec(0, GpuResizer(prep)))
    np.testing.assert_array_equal(clip.host_frames(), on_cpu.frames)
    assert (clip.decoder == BOTH) == (clip.device_frames is not None)
