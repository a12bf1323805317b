"""Every model of videos that is made by training, at a tiny size with random weights.

The specs are the registry's, with tiny checkpoints (`tiny_hub`) for their encoders and narrow
heads; all else, kinds and options above all, is as published.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tiny_hub

from memcli.models import MODELS, get_model
from memcli.spec import HeadSpec, ModelSpec

TRAINED = tuple(name for name, spec in MODELS.items() if spec.head is not None and not spec.eeg)
CHECKPOINT_KINDS = {
    "google/siglip-base-patch16-224": "siglip",
    "sentence-transformers/all-distilroberta-v1": "roberta",
    "openai/clip-vit-base-patch32": "clip",
    "openai/clip-vit-large-patch14-336": "clip",
    "google/vit-base-patch32-224-in21k": "vit",
    "distilbert/distilbert-base-uncased": "distilbert",
}
_NARROW: dict[str, int | float | str] = {
    "width": 32,
    "depth": 2,
    "heads": 4,
    "feed_forward": 64,
    "hidden": 8,
    "layers": 2,
    "text_width": 32,
}


@dataclass(frozen=True)
class TinyModel:
    """What `export_model` takes."""

    model: Any
    """MemorabilityModel."""
    spec: ModelSpec
    tokenizer: Path | None
    checkpoints: dict[str, Any]
    """`memcli.train.encoders.Checkpoint` by tower."""


def make_tiny_model(name: str, folder: Path, seed: int = 0) -> TinyModel:
    """The registry's model `name` on tiny checkpoints, made in `folder` where they are missing."""
    import torch

    from memcli.train import encoders
    from memcli.train.heads import make_head
    from memcli.train.model import MemorabilityModel

    spec = get_model(name)
    towers: dict[str, Any] = {}
    checkpoints: dict[str, Any] = {}
    resolved = []
    tokenizer = None
    for encoder in spec.encoders:
        kind = CHECKPOINT_KINDS[encoder.repository]
        place = folder / kind
        if not place.exists():
            place.mkdir(parents=True)
            tiny_hub.MAKERS[kind](place)
        found, checkpoint = encoders.resolve(encoder, override=str(place), offline=True)
        found = replace(found, pooling=encoder.pooling, license=encoder.license)
        found = replace(found, dim=_dim(checkpoint.folder, found))
        if encoder.tower == "vision":
            assert spec.prep is not None
            spec = replace(spec, prep=encoders.frame_prep(checkpoint, spec.prep))
            prep: Any = spec.prep
        else:
            text, tokenizer = encoders.text_prep(checkpoint)
            spec = replace(spec, text=text)
            prep = text
        towers[encoder.tower] = encoders.load_encoder(found, checkpoint, prep)
        checkpoints[encoder.tower] = checkpoint
        resolved.append(found)
    assert spec.head is not None
    spec = replace(spec, encoders=tuple(resolved), head=_narrow(spec.head))
    dims = {encoder.tower: encoder.dim for encoder in resolved}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = make_head(spec.head, dims.get("vision"), dims.get("text"))
        with torch.no_grad():
            for value in head.parameters():
                if value.ndim > 1:  # plain initialisation gives nearly the same score to all
                    value.normal_(std=1.5 * value.shape[-1] ** -0.5)
    model = MemorabilityModel(head, towers.get("vision"), towers.get("text")).eval()
    return TinyModel(model, spec, tokenizer, checkpoints)


def _dim(folder: Path, encoder: Any) -> int:
    from memcli.train.encoder_kinds import embedding_dim

    return embedding_dim(folder, encoder.tower, encoder.pooling)


def _narrow(head: HeadSpec) -> HeadSpec:
    """The head with small sizes where it has such options."""
    import inspect

    from memcli.train.heads import HEADS

    known = inspect.signature(HEADS[head.kind]).parameters
    return HeadSpec(head.kind, head.options | {k: v for k, v in _NARROW.items() if k in known})
