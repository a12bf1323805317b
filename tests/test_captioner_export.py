"""`memcli export captioner`: what it installs, and that it installs nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from memcli.captioning.bundle import captioners_dir, read_captioner
from memcli.captioning.captioner import Captioner
from memcli.errors import DeviceError, MemcliError, ModelError, ParityError, UsageError
from tests.tiny_smolvlm import Shape, make_smolvlm

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_smolvlm(tmp_path_factory.mktemp("hub") / "SmolVLM2-Tiny-Video-Instruct")


def export(*words: str) -> str:
    from memcli.commands.export import command

    done = CliRunner().invoke(command, list(words))
    if done.exception is not None:
        raise done.exception
    return str(done.output)


def test_the_command_installs_what_was_asked_for(checkpoint: Path) -> None:
    output = export("captioner", "--checkpoint", str(checkpoint), "--fp32", "--fp16", "--int8")
    assert "smolvlm2-tiny (fp32): 100.0% of " in output
    clip = np.zeros((2, 20, 30, 3), np.uint8)
    for name, precision in (
        ("smolvlm2-tiny", "fp32"),
        ("smolvlm2-tiny-fp16", "fp16"),
        ("smolvlm2-tiny-int8", "int8"),
    ):
        bundle = read_captioner(captioners_dir() / name)
        assert bundle.precision == precision
        assert bundle.frames == 8
        assert bundle.parity["tokens"] >= 3
        assert bundle.parity["agreement"] >= 0.8
        assert bundle.repository == "SmolVLM2-Tiny-Video-Instruct"  # no path of this machine
        if precision == "fp16":
            with pytest.raises(DeviceError, match="fp16"):
                Captioner.open(name)
        else:
            with Captioner.open(name, threads=1) as captioner:
                assert len(captioner.caption([clip])) == 1
    sizes = {
        p: (captioners_dir() / n / "decoder.bin").stat().st_size
        for n, p in (("smolvlm2-tiny", "fp32"), ("smolvlm2-tiny-int8", "int8"))
    }
    assert sizes["int8"] < 0.5 * sizes["fp32"]


def test_a_captioner_that_differs_is_not_installed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memcli.export import captioner as module

    def wrong(graph: Any, value: str, name: str, weight: Any) -> str:
        changed = weight if "layers.1.self_attn.q_proj" not in name else -weight
        return str(graph.op("MatMul", value, graph.weight(f"{name}.T", changed)))

    monkeypatch.setitem(module.PRODUCTS, "fp32", wrong)
    with pytest.raises(ParityError, match="tokens"):
        export("captioner", "--checkpoint", str(checkpoint))
    assert not list(captioners_dir().glob("*"))


def test_numbers_that_are_none_are_not_installed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two rows of NaN the largest is the first on both sides, so the tokens agree."""
    import shutil

    from safetensors.torch import load_file, save_file

    from memcli.export import captioner as module

    def wrong(graph: Any, value: str, name: str, weight: Any) -> str:
        product = graph.op("MatMul", value, graph.weight(f"{name}.T", weight))
        if name == "lm_head":
            product = graph.op("Mul", product, graph.constant(float("nan"), "float32"))
        return str(product)

    monkeypatch.setitem(module.PRODUCTS, "fp32", wrong)
    with pytest.raises(ParityError, match="NaN"):
        export("captioner", "--checkpoint", str(checkpoint))
    folder = tmp_path / "broken"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.text_model.layers.0.mlp.up_proj.weight"
    weights[name][3, 5] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{name} .* infinite"):
        export("captioner", "--checkpoint", str(folder))
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks weights: {name}"):
        export("captioner", "--checkpoint", str(folder))
    assert not list(captioners_dir().glob("*"))


@pytest.mark.parametrize(
    "misread",
    [
        {"image_mean": [0.4, 0.5, 0.5]},
        {"image_std": [0.5, 0.5, 0.6]},
        {"rescale_factor": 1 / 254},
        {"do_normalize": False},
        {"resample": 3},
    ],
)
def test_preparation_is_compared_with_the_checkpoints_own(
    checkpoint: Path, misread: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if our reading of the file found something else in it than transformers'."""
    pytest.importorskip("PIL")
    from memcli.export import captioner_settings as module

    read = module.read_json

    def wrong(path: Path) -> dict[str, Any]:
        return read(path) | (misread if path.name == "preprocessor_config.json" else {})

    monkeypatch.setattr(module, "read_json", wrong)
    with pytest.raises(ParityError, match="differs from transformers'"):
        export("captioner", "--checkpoint", str(checkpoint))
    assert not list(captioners_dir().glob("*"))


def test_prompts_beyond_the_models_positions_are_refused(tmp_path: Path) -> None:
    from memcli.export.captioner import export_captioner
    from memcli.export.captioner_checkpoint import locate_captioner
    from tests.tiny_smolvlm import _change

    folder = make_smolvlm(tmp_path / "short", Shape(layers=1, splitting=True, stops=0))
    config = json.loads((folder / "config.json").read_text())
    text = {**config["text_config"], "max_position_embeddings": 150}
    _change(folder / "config.json", text_config=text)
    found = locate_captioner(str(folder))
    target = tmp_path / "out"
    with pytest.raises(ModelError, match=r"4 frames, each in 2 x 2 tiles and whole.* 150"):
        export_captioner(found, frames=4, max_new_tokens=16, target=target)
    with pytest.raises(ModelError, match="max_position_embeddings"):
        export_captioner(found, frames=2, max_new_tokens=100, target=target)
    assert export_captioner(found, frames=2, max_new_tokens=16, target=target).frames == 2
    with pytest.raises(ModelError, match=r"40 frames, question.* 150"):
        export_captioner(found, frames=40, splitting=False, target=target)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["captioner", "resmem"], UsageError),
        (["captioner", "--bf16"], UsageError),
        (["captioner", "--light"], UsageError),
        (["captioner", "--target", "openvino"], UsageError),
        (["captioner", "--checkpoint", "a/b", "--size", "256m"], UsageError),
        (["captioner", "--checkpoint", "/no/such/folder"], UsageError),
        (["captioner", "--offline"], ModelError),
        (["resmem", "--size", "256m"], SystemExit),
    ],
)
def test_wrong_requests_are_refused(
    words: list[str],
    error: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(error):
        export(*words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llava"}, "no SmolVLM2"),
        ({"scale_factor": 4}, "tokens for an image"),
        ({"image_token_id": 5}, "token of an image is 5"),
    ],
)
def test_checkpoints_that_are_something_else(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = make_smolvlm(tmp_path / "other", Shape(layers=1))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(MemcliError, match=f"{words}|cannot load"):
        export("captioner", "--checkpoint", str(folder))
    assert not list(captioners_dir().glob("*"))
