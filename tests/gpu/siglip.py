"""SigLIP-B/16 with random weights, as a checkpoint, a bundle and a PyTorch module.

Speed does not depend on what the weights are, and numerics are compared between runtimes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from memcli.engines.bundle import Bundle
from tests import tiny_hub

MODEL = "vision"


def make_checkpoint(folder: Path) -> Path:
    """The published size (`google/siglip-base-patch16-224`) in the hub's format, 400 MB."""
    from transformers import SiglipConfig, SiglipModel

    small = tiny_hub.make_siglip(folder)
    config = json.loads((small / "config.json").read_text())
    text = config["text_config"] | {"projection_size": 768}
    # transformers' defaults for the vision tower are those of the published model.
    full = SiglipConfig(text_config=text, vision_config={})
    tiny_hub._save_model(SiglipModel, full, folder, 0)
    preparation = folder / "preprocessor_config.json"
    wanted = json.loads(preparation.read_text()) | {"size": {"height": 224, "width": 224}}
    preparation.write_text(json.dumps(wanted))
    return folder


def make_bundle(folder: Path, *, full_size: bool) -> tuple[Bundle, Path]:
    """The registry's `vision` model on that checkpoint (tiny without `full_size`), exported in
    fp32, and the checkpoint. The head is narrow: it takes a thousandth of the time."""
    helpers = str(Path(__file__).parent.parent)
    if helpers not in sys.path:  # which pytest adds, and `python -m` does not
        sys.path.append(helpers)
    from tiny_models import make_tiny_model

    checkpoint = folder / "siglip"
    if full_size:
        checkpoint.mkdir(parents=True)
        make_checkpoint(checkpoint)
    tiny = make_tiny_model(MODEL, folder)
    from memcli.export.trained import export_model

    bundle = export_model(
        tiny.model,
        tiny.spec,
        tokenizer=None,
        training={},
        made_by={"tests": "gpu"},
        license_text="random weights",
        target=folder / "bundle",
    )
    return bundle, checkpoint


def load_tower(checkpoint: Path, attention: str) -> Any:
    """The vision tower in PyTorch, with `attention` eager or sdpa."""
    from transformers import SiglipVisionModel

    tower = SiglipVisionModel.from_pretrained(checkpoint, attn_implementation=attention)
    return tower.eval()


def flops_per_frame(checkpoint: Path) -> float:
    """Multiplications and additions of one frame in the vision tower, matrix products only."""
    config = json.loads((checkpoint / "config.json").read_text())["vision_config"]
    width = config.get("hidden_size", 768)
    inner = config.get("intermediate_size", 3072)
    layers = config.get("num_hidden_layers", 12)
    image, patch = config.get("image_size", 224), config.get("patch_size", 16)
    tokens = (image // patch) ** 2
    layer = tokens * (4 * width * width + 2 * width * inner) + 2 * tokens * tokens * width
    embedding = tokens * 3 * patch * patch * width
    pooling = (2 * tokens + 2) * width * width + 2 * tokens * width + 2 * width * inner
    return 2.0 * (embedding + layers * layer + pooling)
