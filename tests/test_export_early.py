"""`memcli export`: what cannot end well ends before the work, and no evidence gets lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_tensorrt import FakeCuda, make_trt
from media import make_video
from tiny_bundle import make_tiny_bundle
from tiny_conv import content

from memcli.commands.export import command
from memcli.engines import tensorrt_flavour, tensorrt_plan
from memcli.engines.bundle import Bundle, read_bundle, write_manifest
from memcli.engines.tensorrt_flavour import Flavour
from memcli.errors import EngineError, MissingDependencyError, ModelError, UsageError
from memcli.export import precision as precision_module
from memcli.home import home
from memcli.models.encoders import TOLERANCES

pytest.importorskip("onnxruntime", reason="the gate's runtime")
RTX = ["--target", "tensorrt-rtx", "--target-capability"]


@pytest.fixture
def tiny() -> Bundle:
    engines = ("onnxruntime", "openvino", "tensorrt-rtx")
    bundle = make_tiny_bundle(home(), engines=engines)  # type: ignore[arg-type]
    write_manifest(replace(bundle, spec=replace(bundle.spec, tolerances=dict(TOLERANCES))))
    return read_bundle(bundle.root)


def export(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, ["tiny", *map(str, arguments)])


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """TensorRT-RTX without its wheels; gives what was asked of a build."""
    trt = make_trt(FakeCuda(), rtx=True)
    flavour = Flavour("tensorrt-rtx", "TensorRT-RTX", trt, "1.7", True, False, True)
    asked: list[dict[str, Any]] = []

    def build(bundle: Bundle, precision: str, **given: Any) -> Any:
        asked.append({"root": bundle.root, "precision": precision, **given})
        return SimpleNamespace(folder="somewhere")

    monkeypatch.setattr(tensorrt_flavour, "load_flavour", lambda _: flavour)
    monkeypatch.setattr(tensorrt_plan, "load_flavour", lambda _: flavour)
    monkeypatch.setattr(tensorrt_plan, "build_for_bundle", build)
    return asked


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*_: Any, **__: Any) -> None:
        raise AssertionError("a precision was made")

    monkeypatch.setattr(precision_module, "make_variant", make)


@pytest.mark.parametrize(
    ("arguments", "kind", "what"),
    [
        (["--fp8", *RTX, "8.6"], EngineError, "do not compute in fp8"),
        (["--fp16", *RTX, "9.9"], UsageError, "builds no engines for compute capability 9.9"),
        (["--fp16", *RTX, "ada"], UsageError, "not a compute capability: 'ada'"),
    ],
)
def test_targets_that_cannot_be_are_refused_before_the_work(
    tiny: Bundle, rtx: list[Any], monkeypatch: pytest.MonkeyPatch, arguments: list[str],
    kind: type[Exception], what: str,
) -> None:  # fmt: skip
    forbid(monkeypatch)
    before = content(tiny.root)
    result = export(*arguments, "--calibration", tiny.root)
    assert isinstance(result.exception, kind), result
    assert what in str(result.exception)
    assert (content(tiny.root), rtx) == (before, [])


def test_a_missing_runtime_is_said_before_the_work(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: str) -> None:
        raise MissingDependencyError("tensorrt", purpose="x", install="y")

    monkeypatch.setattr(tensorrt_flavour, "load_flavour", missing)
    forbid(monkeypatch)
    assert isinstance(export("--fp16", "--target", "tensorrt").exception, MissingDependencyError)


def test_an_engine_that_cannot_be_built_leaves_the_bundle(
    tiny: Bundle, rtx: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise EngineError("cannot parse the graph")

    monkeypatch.setattr(tensorrt_plan, "build_for_bundle", fail)
    before = content(tiny.root)
    result = export("--fp16", *RTX, "8.9")
    assert isinstance(result.exception, EngineError)
    assert content(tiny.root) == before
    assert [path.name for path in tiny.root.parent.iterdir()] == ["tiny"]


def test_what_is_installed_is_compiled_as_it_is(
    tiny: Bundle, rtx: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = export("--fp16", *RTX, "8.9")
    assert result.exit_code == 0, result
    made = read_bundle(tiny.root).variants["fp16"]
    assert rtx[0]["root"] != tiny.root, "before it was installed"
    forbid(monkeypatch)
    result = export("--fp16", *RTX, "8.6")
    assert result.exit_code == 0, result
    told = f"tiny fp16: as installed ({made.digest}), verified on 64 synthetic clips"
    assert told in result.output
    assert (rtx[1]["root"], rtx[1]["target_capability"]) == (tiny.root, "8.6")
    assert read_bundle(tiny.root).variants["fp16"] == made


@pytest.mark.parametrize("change", ["version", "damage", "asked"])
def test_fp16_is_made_again_where_it_may_be_another(
    tiny: Bundle, rtx: list[Any], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    export("--fp16", *RTX, "8.9")
    bundle = read_bundle(tiny.root)
    made = bundle.variants["fp16"]
    if change == "version":
        older = replace(made, made_by={**made.made_by, "memcli": "0.0.1"})
        write_manifest(replace(bundle, variants={**bundle.variants, "fp16": older}))
    elif change == "damage":
        bundle.graph_path(made).write_bytes(b"")
    forbid(monkeypatch)
    more = [] if change == "asked" else [*RTX, "8.9"]
    assert isinstance(export("--fp16", *more).exception, AssertionError)


def test_installed_int8_is_compiled_without_videos(
    tiny: Bundle, rtx: list[Any], tmp_path: Path
) -> None:
    assert "none were given" in str(export("--int8", *RTX, "8.9").exception), "none is installed"
    fp32 = tiny.variants["fp32"]
    variants = {**tiny.variants, "int8": replace(fp32, precision="int8")}
    write_manifest(replace(tiny, variants=variants))
    result = export("--int8", *RTX, "8.9")
    assert result.exit_code == 0, result
    assert "tiny int8: as installed" in result.output
    assert [one["precision"] for one in rtx] == ["int8"]
    result = export("--int8", "--output", tmp_path / "m.memcli")
    assert "none were given" not in str(result.exception), "packing needs no more"
    assert "none were given" in str(export("--int8").exception), "that asks for a new one"
    tiny.graph_path(fp32).write_bytes(b"")
    assert isinstance(export("--int8", *RTX, "8.9").exception, ModelError)


def test_evidence_on_real_videos_is_not_lost(tiny: Bundle, tmp_path: Path) -> None:
    for number in range(2):
        make_video(tmp_path / f"{number}.mp4", frames=6 + number)
    assert export("--fp16", "--calibration", tmp_path).exit_code == 0
    result = export("--fp16")
    assert result.exit_code == 0, result
    assert "the same graph as before: kept what was measured on 64 clips of 2" in result.output
    bundle = read_bundle(tiny.root)
    _, real = bundle.variants["fp16"].parity
    assert real["inputs"] == "clips of 2 videos"
    assert "64 clips of 2 videos" in (tiny.root / "PARITY.md").read_text()
    other = replace(bundle.variants["fp16"], files={**bundle.variants["fp16"].files, "x": "0"})
    write_manifest(replace(bundle, variants={**bundle.variants, "fp16": other}))
    result = export("--fp16")
    assert "the former graph was verified on 64 clips of 2 videos, this one is" in result.output
    assert len(read_bundle(tiny.root).variants["fp16"].parity) == 1


def test_missing_videos_are_said_before_another_precision_is_made(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch)
    error = export("--fp16", "--int8").exception
    assert "--int8 is verified on real videos, and none were given" in str(error)


@pytest.mark.parametrize("place", ["file", "/proc/out", "/proc/m.memcli", "nowhere/out"])
def test_places_that_cannot_be_written_are_said_first(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    forbid(monkeypatch)
    (tmp_path / "file").write_text("")
    result = export("--fp16", "--output", tmp_path / place)
    assert isinstance(result.exception, UsageError), result
    assert len(str(result.exception).splitlines()) <= 2
