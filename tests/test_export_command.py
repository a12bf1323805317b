"""`memcli export` of training runs, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cli import memcli
from click.testing import CliRunner
from tiny_bundle import make_tiny_bundle

from memcli.commands.export import command
from memcli.engines.bundle import Bundle, read_bundle, write_manifest
from memcli.errors import MemcliError, ModelError, UsageError
from memcli.home import bundles_dir, home
from memcli.spec import TextPrep


def refuse(*arguments: str) -> MemcliError:
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, MemcliError), result
    return result.exception


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run of `clip-vision` on a tiny checkpoint, as training leaves it."""
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    pytest.importorskip("transformers", reason="the encoders")
    from safetensors.torch import save_file
    from tiny_models import make_tiny_model

    from memcli.train.run import MODEL_FILE, EncoderUse, Run

    tiny = make_tiny_model("clip-vision", tmp_path / "hub")
    folder = home() / "runs" / "clip-vision" / "one"
    folder.mkdir(parents=True)
    weights = {f"head.{name}": value for name, value in tiny.model.head.state_dict().items()}
    save_file(weights, folder / MODEL_FILE)
    checkpoint = tiny.checkpoints["vision"]
    run = Run(
        folder,
        tiny.spec,
        dataset={"name": "toy", "root": str(tmp_path), "target": "raw", "videos": 4},
        seed=5,
        encoders=(
            EncoderUse(
                "vision",
                checkpoint.repository,
                None,
                checkpoint.digest,
                str(checkpoint.folder),
            ),
        ),
        dims={"frame": tiny.spec.encoders[0].dim},
        status="complete",
        files={MODEL_FILE: hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest()},
        created="2026-01-31T10:15:00+00:00",
    )
    (folder / "run.json").write_text(json.dumps(run.to_dict()))
    (folder.parent / "latest").write_text("one\n")
    return folder


@pytest.mark.slow
def test_latest_run_is_exported_packed_and_listed(run_folder: Path, tmp_path: Path) -> None:
    done = memcli(
        "export", "clip-vision", "--fp32", "-o", "packed.memcli", "--offline", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "clip-vision is installed, in fp32, from" in done.stdout
    assert "max |difference|" in done.stderr
    assert (tmp_path / "packed.memcli").is_file()
    installed = read_bundle(bundles_dir() / "clip-vision")
    assert installed.training["seed"] == 5
    assert installed.training["dataset"] == {"name": "toy", "target": "raw", "videos": 4}
    assert installed.spec.trained_on == "toy"
    assert "trained by the user" in (installed.root / "LICENSE.weights.txt").read_text()
    manifest = (installed.root / "manifest.json").read_text()
    assert str(tmp_path) not in manifest
    assert str(home()) not in manifest


@pytest.mark.slow
def test_a_named_run_is_exported(run_folder: Path) -> None:
    (run_folder.parent / "latest").unlink()
    result = CliRunner().invoke(command, ["--run", str(run_folder), "--offline"])
    assert result.exit_code == 0, result
    assert "Use it: memcli score VIDEOS --model clip-vision" in result.output
    assert (bundles_dir() / "clip-vision" / "manifest.json").is_file()


def test_a_run_of_another_model_is_refused(run_folder: Path) -> None:
    error = refuse("early-fusion", "--run", str(run_folder))
    assert isinstance(error, UsageError)
    assert error.what == "this is a run of clip-vision, not of early-fusion"
    error = refuse("clip-vision", "--run", str(run_folder), "--int8")
    assert "--run makes fp32" in error.what
    assert not bundles_dir().exists()


def test_changed_weights_are_refused(run_folder: Path) -> None:
    weights = run_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    error = refuse("clip-vision", "--offline")
    assert isinstance(error, ModelError)
    assert "changed since the training" in error.what
    assert not (bundles_dir() / "clip-vision").exists()


@pytest.mark.parametrize("more", [[], ["--fp32"]])
def test_a_model_without_a_run_says_how_to_get_one(more: list[str]) -> None:
    error = refuse("early-fusion", *more)
    assert error.exit_code == 3
    assert str(error) == (
        "early-fusion has no trained head on this machine.\n"
        "  Train one:    memcli train early-fusion --dataset memento10k --data DIR\n"
        "  Or install:   memcli models add FILE.memcli\n"
        "  Or use the offline default:  memcli score VIDEOS --model resmem"
    )


@pytest.mark.parametrize("arguments", [[], ["resmem"], ["resmem", "--fp32"]])
def test_published_models_have_no_run(arguments: list[str]) -> None:
    error = refuse(*arguments)
    assert isinstance(error, UsageError)
    assert error.what == "nothing to do: resmem is published in fp32"


def test_unknown_models_and_folders_without_a_run(tmp_path: Path) -> None:
    assert "did you mean 'early-fusion'?" in refuse("early-fusio").what
    assert "there is no run in this folder" in refuse("--run", str(tmp_path)).what


@pytest.fixture
def reads_captions() -> Bundle:
    """An installed bundle whose spec says that its model reads captions."""
    bundle = make_tiny_bundle(home())
    spec = replace(bundle.spec, text=TextPrep(max_tokens=8, pad_id=0), frame_scores=False)
    file = "fp32/tokenizer.json"
    (bundle.root / file).write_text("{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    fp32 = bundle.variants["fp32"]
    variant = replace(fp32, files={**fp32.files, file: digest})
    write_manifest(replace(bundle, spec=spec, variants={"fp32": variant}))
    return read_bundle(bundle.root)


def test_int8_of_a_model_that_reads_captions_needs_videos_too(
    reads_captions: Bundle, tmp_path: Path
) -> None:
    error = refuse("tiny", "--int8", "--calibration", str(tmp_path))
    assert isinstance(error, UsageError)
    assert "no video" in error.what
    assert set(read_bundle(reads_captions.root).variants) == {"fp32"}


def test_int8_of_a_frame_model_needs_videos() -> None:
    make_tiny_bundle(home())
    error = refuse("tiny", "--int8")
    assert "verified on real videos, and none were given" in error.what
