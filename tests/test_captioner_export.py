"""`memcli export captioner`: what it installs, and that it installs nothing else."""

from __future__ import annotations

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
    ],
)
def test_checkpoints_that_are_something_else(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    import json

    folder = make_smolvlm(tmp_path / "other", Shape(layers=1))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(MemcliError, match=f"{words}|cannot load"):
        export("captioner", "--checkpoint", str(folder))
    assert not list(captioners_dir().glob("*"))
