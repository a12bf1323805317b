"""Kinds of encoders that no model of the registry uses, and that can be named: they load."""

from pathlib import Path
from typing import Any

import pytest

from memcli.errors import ModelError
from memcli.spec import EncoderSpec, FramePrep, Pooling, TextPrep

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers

from memcli.train.checkpoints import Checkpoint
from memcli.train.encoders import load_encoder

_LAYERS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_WORDS: dict[str, Any] = {**_LAYERS, "vocab_size": 50, "max_position_embeddings": 40}
_PICTURE: dict[str, Any] = {"image_size": 32, "patch_size": 8}


def saved(folder: Path, name: str, **config: Any) -> Any:
    """A random model of transformers, saved in `folder`."""
    torch.manual_seed(0)
    kind = getattr(transformers, f"{name}Model")
    model = kind(getattr(transformers, f"{name}Config")(**config)).eval()
    model.save_pretrained(folder)
    return model


def loaded(folder: Path, tower: str, pooling: Pooling) -> Any:
    spec = EncoderSpec(tower, "x", None, 32, "MIT", pooling)  # type: ignore[arg-type]
    prep = TextPrep(16, 1) if tower == "text" else FramePrep(1, 32, 32, 32, 32)
    return load_encoder(spec, Checkpoint(folder, "x", None, "0"), prep)


@pytest.mark.parametrize("name", ["MPNet", "XLMRoberta"])
def test_other_text_encoders(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, name, **_WORDS)
    ids = torch.randint(2, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        found = loaded(tmp_path, "text", "cls")(ids, mask)
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "pooled"])
def test_dinov2_with_registers(tmp_path: Path, pooling: Pooling) -> None:
    layers = {key: value for key, value in _LAYERS.items() if key != "intermediate_size"}
    model = saved(tmp_path, "Dinov2WithRegisters", **layers, **_PICTURE)
    frames = torch.randint(
        0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        found = loaded(tmp_path, "vision", pooling)(frames)
        out = model(pixel_values=frames.permute(0, 3, 1, 2) / 255)
    expected = out.last_hidden_state[:, 0] if pooling == "cls" else out.pooler_output
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_without_the_layer_of_its_pooling(tmp_path: Path) -> None:
    saved(
        tmp_path,
        "Siglip",
        text_config={**_WORDS, "projection_size": 32},
        vision_config={**_LAYERS, **_PICTURE, "vision_use_head": False},
    )
    encoder = loaded(tmp_path, "vision", "projection")
    with pytest.raises(ModelError, match="without the layer"):
        encoder(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
