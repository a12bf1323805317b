"""`memcli export` of several precisions, models and targets."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_bundle import TEXT_PREP, make_text_bundle, make_tiny_bundle, text_spec, write_tokenizer

from memcli import exporting, store
from memcli.commands.export import command
from memcli.compiling import EngineOptions, parse_batch
from memcli.engines import cuda, tensorrt_flavour, tensorrt_plan
from memcli.engines.bundle import Bundle, read_bundle
from memcli.engines.files import locked
from memcli.engines.tensorrt_profile import LOW_MEMORY, BuildOptions
from memcli.errors import MemcliError, ModelError, ParityError, UsageError
from memcli.export.calibration import CalibrationClips
from memcli.export.calibration_captions import CalibrationCaptions, without_calibration
from memcli.export.cases import make_real_feeds
from memcli.exporting import ExportRequest, check_request, models_of
from memcli.home import bundles_dir, home
from memcli.models.encoders import TOLERANCES
from memcli.tokens import Tokeniser

pytest.importorskip("onnxruntime", reason="the gate's runtime")


def give_tolerances(name: str) -> None:
    from memcli.engines.bundle import write_manifest

    bundle = read_bundle(bundles_dir() / name)
    write_manifest(replace(bundle, spec=replace(bundle.spec, tolerances=dict(TOLERANCES))))


def test_several_precisions_of_all_installed_models_and_a_folder(tmp_path: Path) -> None:
    make_tiny_bundle(home())
    make_text_bundle(home())
    for name in ("tiny", "tiny-text"):
        give_tolerances(name)
    result = CliRunner().invoke(command, ["--fp16", "--bf16", "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result
    for name in ("tiny", "tiny-text"):
        bundle = read_bundle(bundles_dir() / name)
        assert set(bundle.variants) == {"fp32", "fp16", "bf16"}
        assert f"{name} fp16: max |difference|" in result.output
        assert f"{name} bf16: max |difference|" in result.output
        table = (bundle.root / "PARITY.md").read_text()
        assert "| fp16 | gate | fp32 graph | synthetic clips |" in table
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["tiny-text.memcli", "tiny.memcli"]


def test_one_model_that_fails_does_not_stop_the_others() -> None:
    make_tiny_bundle(home())  # it defines no tolerance for fp16
    make_text_bundle(home())
    give_tolerances("tiny-text")
    result = CliRunner().invoke(command, ["tiny", "tiny-text", "--fp16"])
    assert isinstance(result.exception, ModelError)
    assert "tiny fp16: failed: tiny defines no tolerance for fp16" in result.output
    assert set(read_bundle(bundles_dir() / "tiny").variants) == {"fp32"}
    assert set(read_bundle(bundles_dir() / "tiny-text").variants) == {"fp32", "fp16"}


def test_each_failure_is_told_in_full_once() -> None:
    """What to do about it has a line of its own; the first failure is the error of the command."""
    make_tiny_bundle(home())
    result = CliRunner().invoke(command, ["nosuch", "neither", "tiny", "--fp16"])
    assert isinstance(result.exception, ModelError)
    assert "nosuch" in str(result.exception)
    assert result.exception.next_step
    lines = result.output.splitlines()
    failed = [line for line in lines if ": failed: " in line]
    assert [line.split()[0] for line in failed] == ["nosuch", "neither", "tiny"]
    first, second = map(lines.index, failed[:2])
    assert second == first + 1
    assert lines[second + 1].startswith("  ")
    assert "\\n" not in result.output


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (ExportRequest(target="openvino", precisions=("fp16",)), "OpenVINO does not execute fp16"),
        (ExportRequest(target_capability="8.9"), "--target-capability is for TensorRT-RTX"),
        *(
            (
                ExportRequest(target="tensorrt-rtx", target_capability=one),
                "not a compute capability",
            )
            for one in ("", "8", "sm89", "8.9.1", "-8.9", "\u0668.\u0669")
        ),
        (ExportRequest(("a", "b"), run=Path()), "a run is of one model"),
        (ExportRequest(("a", "b"), output=Path("x.memcli")), "several models do not go into one"),
        (ExportRequest(("a",), output=Path("x.zip")), "a packed model has another ending"),
        (ExportRequest(run=Path(), precisions=("int8",)), "--run makes fp32"),
        (ExportRequest(precisions=("fp16",), method="mse"), "--method is how int8 and fp8 choose"),
        (ExportRequest(method="mse"), "--method is how int8 and fp8 choose"),
        (ExportRequest(calibration=Path()), "--calibration is for precisions that are made"),
        (ExportRequest(precisions=("fp32",), captions=Path()), "--captions is for precisions"),
        (ExportRequest(engine=EngineOptions(level=0)), "--level is for compiled engines"),
        (
            ExportRequest(target="openvino", engine=EngineOptions(layer_names=True)),
            "--layer-names is for compiled engines",
        ),
        (
            ExportRequest(target="tensorrt", engine=EngineOptions(batch=(4, 2, 8))),
            "least, usual and most must be in order",
        ),
    ],
)
def test_what_makes_no_sense(request_: ExportRequest, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_request(request_)
    assert what in str(caught.value)


def test_one_file_for_all_installed_models_is_refused() -> None:
    make_tiny_bundle(home())
    make_text_bundle(home())
    with pytest.raises(MemcliError, match="several models are installed: tiny, tiny-text"):
        models_of(ExportRequest(precisions=("fp16",), output=Path("x.memcli")))


@pytest.fixture
def tiny() -> Bundle:
    bundle = make_tiny_bundle(home())
    give_tolerances("tiny")
    return read_bundle(bundle.root)


def fail(*_: Any, **__: Any) -> list[str]:
    raise ParityError("the graph is not the model")


@pytest.mark.parametrize("output", ["m.memcli", "out"])
def test_after_a_failed_fp32_the_old_model_is_not_taken_for_the_new(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.setattr(exporting, "_find_run", lambda *_: None)
    monkeypatch.setattr(exporting, "_export_run", fail)
    new, target = tmp_path / "new", tmp_path / output
    new.mkdir()
    asked = ["tiny", "--run", str(new), "--fp32", "--fp16", "-o", str(target)]
    result = CliRunner().invoke(command, asked)
    assert isinstance(result.exception, ParityError)
    assert "tiny fp32: failed: the graph is not the model" in result.output
    assert "tiny: not made: fp16; nothing was packed" in result.output
    assert set(read_bundle(tiny.root).variants) == {"fp32"}
    assert not target.exists()


def test_a_model_whose_last_precision_fails_is_not_packed_and_the_next_one_is(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_text_bundle(home())
    give_tolerances("tiny-text")
    real = exporting.make_precision

    def of_text_only(bundle: Bundle, precision: Any, *more: Any) -> list[str]:
        return (
            fail()
            if (bundle.model, precision) == ("tiny", "bf16")
            else real(bundle, precision, *more)
        )

    monkeypatch.setattr(exporting, "make_precision", of_text_only)
    result = CliRunner().invoke(
        command, ["tiny", "tiny-text", "--fp16", "--bf16", "-o", str(tmp_path / "out")]
    )
    assert isinstance(result.exception, ParityError)
    assert "tiny: nothing was packed" in result.output
    assert set(read_bundle(tiny.root).variants) == {"fp32", "fp16"}, "what passed is kept"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny-text.memcli"]


def test_one_failed_step_also_says_that_nothing_was_packed(tmp_path: Path) -> None:
    make_tiny_bundle(home())  # it defines no tolerance for fp16
    result = CliRunner().invoke(command, ["tiny", "--fp16", "-o", str(tmp_path / "m.memcli")])
    assert isinstance(result.exception, ModelError)
    assert result.output == "tiny: nothing was packed\n"


def test_a_model_that_is_not_installed_comes_from_the_run_that_was_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[tuple[str, Path | None]] = []
    monkeypatch.setattr(exporting, "_find_run", lambda *told: found.append(told))
    monkeypatch.setattr(exporting, "_export_run", lambda *_: [])
    request = ExportRequest(("clip-vision",), run=Path("new"))
    with pytest.raises(ModelError, match="no trained head"):
        exporting._installed(request, "clip-vision", lambda _: None)
    assert found == [("clip-vision", Path("new"))]


@pytest.mark.parametrize(
    ("models", "options", "what"),
    [
        (["tiny"], ["--captions"], "no captions are read by tiny"),
        (["tiny-text"], ["--calibration"], "no frames are read by tiny-text"),
        (["tiny", "tiny-fusion"], ["--captions"], "--captions are of videos, and none were"),
        (["resmem"], ["--captions"], "no captions are read by resmem"),
    ],
)
def test_inputs_that_no_model_takes(
    tmp_path: Path, models: list[str], options: list[str], what: str
) -> None:
    make_tiny_bundle(home())
    make_text_bundle(home())
    make_text_bundle(home(), frames=True)
    file = tmp_path / "captions.csv"
    file.write_text("path,caption\na.mp4,a dog\n")
    values = {"--captions": str(file), "--calibration": str(tmp_path)}
    given = [part for one in options for part in (one, values[one])]
    result = CliRunner().invoke(command, [*models, "--fp16", "--offline", *given])
    assert isinstance(result.exception, UsageError)
    assert what in result.exception.what


def test_of_several_models_those_without_use_for_an_input_go_without(tmp_path: Path) -> None:
    make_tiny_bundle(home())
    make_text_bundle(home())
    for name in ("tiny", "tiny-text"):
        give_tolerances(name)
    file = tmp_path / "captions.csv"
    lines = [f"{i}.mp4,{'a ' * (i % 7)}dog {i}" for i in range(128)]
    file.write_text("\n".join(["path,caption", *lines]))
    result = CliRunner().invoke(command, ["--fp16", "--captions", str(file)])
    assert result.exit_code == 0, result
    assert "tiny reads no captions: made without --captions" in result.output
    assert "on 128 captions of videos" in result.output


def test_fp16_is_gated_on_real_clips_where_videos_are_given(tiny: Bundle, tmp_path: Path) -> None:
    from media import make_video

    for number in range(3):
        make_video(tmp_path / f"{number}.mp4", frames=6 + number)
    result = CliRunner().invoke(command, ["tiny", "--fp16", "--calibration", str(tmp_path)])
    assert result.exit_code == 0, result
    _, real = read_bundle(tiny.root).variants["fp16"].parity
    assert (real["clips"], real["inputs"], real["real"]) == (64, "clips of 3 videos", True)
    table = (tiny.root / "PARITY.md").read_text()
    assert "rests on 64 synthetic clips and 64 clips of 3 videos." in table
    assert "No real input" not in table


def test_clips_and_their_captions_stay_together() -> None:
    clips = [np.full((1, 1, 1, 3), shade, np.uint8) for shade in range(100)]
    names = [str(shade) for shade in range(100)]
    texts = tuple((name,) for name in names)
    found, captions = without_calibration(
        CalibrationClips(clips[:30], clips[30:], names[:30], names[30:]),
        CalibrationCaptions(texts[:30], texts[30:], "captions"),
    )
    assert captions is not None
    assert (len(found.holdout), len(found.calibration), found.holdout_videos) == (64, 0, 64)
    for clip, path, text in zip(found.holdout, found.holdout_paths, captions.holdout, strict=True):
        assert (str(clip[0, 0, 0, 0]), (path,)) == (path, text)


def test_each_clip_is_compared_with_its_own_captions(tmp_path: Path) -> None:
    spec = text_spec("both", frames=True)
    tokenizer = tmp_path / "tokenizer.json"
    write_tokenizer(tokenizer)
    clips = [np.full((4, 48, 48, 3), shade, np.uint8) for shade in (10, 200)]
    captions = [("a dog", "dog"), ("a a a",)]
    feeds = make_real_feeds(spec, tokenizer, clips, captions)
    for one, clip, texts in zip(feeds, clips, captions, strict=True):
        expected = Tokeniser(TEXT_PREP, tokenizer).encode([texts])
        np.testing.assert_array_equal(one["frames"][0], clip)
        np.testing.assert_array_equal(one["input_ids"], expected.input_ids)
        np.testing.assert_array_equal(one["attention_mask"], expected.attention_mask)
    assert len(make_real_feeds(spec, tokenizer, clips, [])) == 2, "synthetic ones"
    with pytest.raises(UsageError, match="captions of 1 videos, but 2 videos"):
        make_real_feeds(spec, tokenizer, clips, captions[:1])


BUILD = ["--batch", "1:4:8", "--workspace", "256", "--level", "5", "--layer-names"]


@pytest.mark.parametrize(
    ("small", "asked", "ranges", "options"),
    [
        (False, [], None, None),
        (False, BUILD, {"batch": (1, 4, 8)}, BuildOptions(256 << 20, 5, layer_names=True)),
        (True, ["--level", "4"], None, replace(LOW_MEMORY, level=4)),
        (True, ["--batch", "1:1:1"], {"batch": (1, 1, 1)}, None),
    ],
)
def test_options_of_a_build_reach_it(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, small: bool, asked: list[str],
    ranges: object, options: object,
) -> None:  # fmt: skip
    from types import SimpleNamespace

    told: dict[str, Any] = {}

    def build(*_: Any, **given: Any) -> Any:
        told.update(given)
        return SimpleNamespace(folder="somewhere")

    facts = SimpleNamespace(is_small=small, capability="8.9")
    flavour = SimpleNamespace(builds_for_capability=False)
    monkeypatch.setattr(tensorrt_plan, "build_for_bundle", build)
    monkeypatch.setattr(tensorrt_flavour, "load_flavour", lambda _: flavour)
    monkeypatch.setattr(cuda, "Cuda", lambda: SimpleNamespace(facts=lambda: facts))
    result = CliRunner().invoke(command, ["tiny", "--target", "tensorrt", *asked])
    assert result.exit_code == 0, result
    assert "tiny fp32: engine for tensorrt in somewhere" in result.output
    assert (told["ranges"], told["options"]) == (ranges, options)


@pytest.mark.parametrize("text", ["", "1:2", "1:2:3:4", "a:2:3", "-1:2:3", "1:2:99999999"])
def test_batches_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="not a range of batches"):
        parse_batch(text)


def test_a_pack_holds_what_the_manifest_names(tiny: Bundle, tmp_path: Path) -> None:
    (tiny.root / "fp16-00000000").mkdir()
    for name in ("fp16-00000000/model.onnx", "stray", "PARITY.md", "LICENSE.weights.txt"):
        (tiny.root / name).write_text("x")
    store.pack(tiny, tmp_path / "m.memcli")
    assert sorted(zipfile.ZipFile(tmp_path / "m.memcli").namelist()) == [
        "LICENSE.weights.txt",
        "PARITY.md",
        "fp32/model.onnx",
        "manifest.json",
    ]


def test_a_damaged_model_is_not_packed(tiny: Bundle, tmp_path: Path) -> None:
    graph = tiny.root / "fp32/model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="SHA-256 differs"):
        store.pack(tiny, tmp_path / "m.memcli")
    assert list(tmp_path.iterdir()) == []


def test_a_pack_waits_for_changes(tiny: Bundle, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor
    from concurrent.futures import TimeoutError as NotYet

    with ThreadPoolExecutor(1) as pool:
        with locked(tiny.root):
            run = pool.submit(store.pack, tiny, tmp_path / "m.memcli")
            with pytest.raises(NotYet):
                run.result(0.5)
        run.result(20)
    assert (tmp_path / "m.memcli").is_file()


def test_folders_of_variants_that_are_none_are_cleared(tiny: Bundle) -> None:
    for name in ("fp16-00000000", "int8-1", "notes"):
        (tiny.root / name).mkdir()
    assert CliRunner().invoke(command, ["tiny", "--fp16"]).exit_code == 0
    left = {path.name for path in tiny.root.iterdir() if path.is_dir()}
    (made,) = (Path(name).parts[0] for name in read_bundle(tiny.root).variants["fp16"].files)
    assert left == {"fp32", "notes", made}
