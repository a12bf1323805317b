"""Which decoder a run gets, and what is said of it. NVDEC is the stand-in of `fake_nvdec`."""

import json
import re
import time

import numpy as np
import pytest
from fake_nvdec import make_api
from media import make_video
from tiny_bundle import TINY_PREP, make_tiny_bundle

from memcli.decoding import Probe, ProbeRequest, check_decoder, choose_decoder, is_jetson
from memcli.errors import DeviceError, MemcliError, MissingDependencyError, UsageError
from memcli.progress import closing_lines, opening_lines
from memcli.scoring import ScoreSettings
from memcli.table import TableOptions, score_to_table
from memcli.video import nvdec as nvdec_module

REQUEST = ProbeRequest(TINY_PREP, frames=4, sampling="exact", workers=2)


@pytest.fixture
def api(monkeypatch):
    fake = make_api()
    monkeypatch.setattr(nvdec_module, "load", lambda gpu: fake)
    return fake


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(3):
        make_video(folder / f"{number}.mp4", frames=16 + number, options={"g": "8", "bf": "2"})
    return folder


def choose(choice, folder=None, request=REQUEST, root=None, device="cuda:1"):
    paths = sorted(map(str, folder.iterdir())) if folder else []
    extra = {} if root is None else {"root": root}
    return choose_decoder(choice, request, device=device, paths=lambda: paths, **extra)


def slow_down(monkeypatch, api, seconds):
    decode = api.PyNvDecoder.Decode

    def slow(self, packet):
        time.sleep(seconds)
        return decode(self, packet)

    monkeypatch.setattr(api.PyNvDecoder, "Decode", slow)


def test_auto_without_a_gpu_is_the_cpu_and_says_why(folder, monkeypatch):
    def refuse(gpu):
        raise DeviceError("NVDEC needs an NVIDIA driver")

    monkeypatch.setattr(nvdec_module, "load", refuse)
    found = choose("auto", folder)
    assert (found.name, found.reason) == ("cpu", "NVDEC needs an NVIDIA driver")
    with pytest.raises(DeviceError, match="driver"):
        choose("nvdec", folder)
    assert choose("cpu", folder).reason == "as asked"


def test_nvdec_decodes_on_the_engines_gpu(folder, api):
    found = choose("nvdec", folder)
    assert found.name == "nvdec"
    assert "the same frames as the CPU for the first 3 videos" in found.reason
    assert {gpu for gpu, _ in api.decoders} == {1}


def test_auto_takes_the_faster(folder, api, monkeypatch):
    monkeypatch.setattr("memcli.decoding.probe", lambda *_: Probe(3, cpu_s=3.0, nvdec_s=1.0))
    found = choose("auto", folder)
    assert found.name == "nvdec"
    assert found.reason == "NVDEC decoded 3.0 videos/s and CPU 1.0 of the first 3"
    monkeypatch.setattr("memcli.decoding.probe", lambda *_: Probe(3, cpu_s=1.0, nvdec_s=3.0))
    assert choose("auto", folder).name == "cpu"


def test_the_probe_measures(folder, api, monkeypatch):
    slow_down(monkeypatch, api, 0.02)
    found = choose("auto", folder)
    assert found.name == "cpu"
    assert found.reason.startswith("CPU decoded ")


@pytest.mark.parametrize("choice", ["auto", "nvdec"])
def test_other_frames_are_refused(folder, api, monkeypatch, choice):
    pointer = api.DecodedFrame.GetPtrToPlane

    def spoilt(self, plane):
        self._data ^= 64
        return pointer(self, plane)

    monkeypatch.setattr(api.DecodedFrame, "GetPtrToPlane", spoilt)
    if choice == "nvdec":
        with pytest.raises(DeviceError, match=r"other frames than the CPU for 0\.mp4"):
            choose(choice, folder)
    else:
        found = choose(choice, folder)
        assert found.name == "cpu"
        assert "other frames" in found.reason


def test_videos_that_nvdec_does_not_take(tmp_path, api):
    folder = tmp_path / "videos"
    folder.mkdir()
    make_video(folder / "a.mp4", codec="mpeg4")
    (folder / "b.mp4").write_bytes(b"no video")
    assert choose("auto", folder).reason == "NVDEC takes none of the first videos"
    assert choose("nvdec", folder).name == "nvdec"


def test_key_frames_and_captions_need_no_nvdec(folder, api):
    keys = ProbeRequest(TINY_PREP, frames=4, sampling="keyframe", workers=2)
    assert choose("auto", folder, keys).name == "cpu"
    with pytest.raises(UsageError, match="key frames"):
        choose("nvdec", folder, keys)
    assert choose("nvdec", folder, None).reason == "the model looks at no frames"


@pytest.mark.parametrize("name", ["etc/nv_tegra_release", "proc/device-tree/model"])
def test_a_jetson_decodes_on_the_cpu(tmp_path, folder, api, name):
    root = tmp_path / "root"
    (root / name).parent.mkdir(parents=True)
    (root / name).write_text("NVIDIA Jetson AGX Orin Developer Kit\0")
    assert is_jetson(root)
    found = choose("auto", folder, root=root)
    assert found.name == "cpu"
    assert "Jetson" in found.reason
    with pytest.raises(DeviceError, match="Jetson"):
        choose("nvdec", folder, root=root)
    assert not is_jetson(tmp_path)


class Silent:
    def message(self, text): ...
    def begin(self, summary): ...
    def advance(self, row, summary): ...
    def end(self): ...


def score(folder, output, **settings):
    options = TableOptions(output)
    summary = score_to_table([folder], ScoreSettings(model="tiny", **settings), options, Silent())
    return summary, [json.loads(line) for line in output.read_text().splitlines()]


def test_rows_and_summary_name_the_decoder(folder, tmp_path, api, memcli_home):
    make_tiny_bundle(memcli_home)
    make_video(folder / "z.mp4", codec="mpeg4")
    summary, rows = score(folder, tmp_path / "a.jsonl", decoder="nvdec")
    assert [row["decoder"] for row in rows] == ["nvdec", "nvdec", "nvdec", "cpu"]
    assert summary.decoder == "nvdec"
    assert summary.decoded_by == {"nvdec": 3, "cpu": 1}
    assert any("decoder: nvdec (as asked;" in line for line in opening_lines(summary))
    assert any("1 video on the CPU" in line for line in closing_lines(summary))
    _, on_cpu = score(folder, tmp_path / "b.jsonl", decoder="cpu")
    assert {row["decoder"] for row in on_cpu} == {"cpu"}
    np.testing.assert_array_equal([row["score"] for row in rows], [row["score"] for row in on_cpu])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"decoder": "nvdec"}, "libcuda.so.1 is not here"),
        ({"decoder": "nvdec+gpu-resize"}, "libcuda.so.1 is not here"),
        ({"decoder": "nvdec+gpu-resize", "device": "cpu"}, "an engine that runs there, not on cpu"),
        ({"decoder": "nvdec", "sampling": "keyframe"}, "key frames alone"),
    ],
)
def test_what_cannot_be_had_is_refused_before_an_engine_is_opened(
    folder, tmp_path, memcli_home, monkeypatch, settings, said
):
    """Verifying engines takes seconds, and building one minutes."""

    def missing(name):
        raise OSError(name)

    def open_engine(*_, **__):
        raise AssertionError("an engine was opened")

    make_tiny_bundle(memcli_home)
    monkeypatch.setattr(nvdec_module.ctypes, "CDLL", missing)
    monkeypatch.setattr("memcli.engines.select.open_engine", open_engine)
    with pytest.raises(MemcliError, match=re.escape(said)) as caught:
        score(folder, tmp_path / "a.jsonl", **settings)
    assert "--decoder" in (caught.value.next_step or "")


def test_cuda_python_is_looked_for_before_an_engine_is_opened(api, monkeypatch):
    def missing(gpu):
        raise MissingDependencyError("cuda-python", purpose="it", install="pip install it")

    monkeypatch.setattr("memcli.engines.cuda.Cuda", missing)
    with pytest.raises(MissingDependencyError, match="cuda-python"):
        check_decoder("nvdec+gpu-resize", "exact", device="auto")
    check_decoder("nvdec", "exact", device="auto")
    check_decoder("auto", "keyframe", device="cpu")


def test_an_unknown_decoder_is_refused():
    with pytest.raises(UsageError, match="gpu"):
        ScoreSettings(model="tiny", decoder="gpu")
