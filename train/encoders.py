"""Pretrained encoders as modules: uint8 frames or token ids to embeddings.

`resolve` finds the checkpoint and what is to be known of it, `load_encoder` makes the module,
`frame_prep` and `text_prep` say how its inputs are prepared. Modules of one tower only: of a CLIP
checkpoint no more than the tower asked for is built.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memcli.errors import ModelError
from memcli.spec import EncoderSpec, FramePrep, Pooling, TextPrep
from memcli.text import printable
from memcli.train.checkpoints import Checkpoint, Report, first_line, locate, weight_files
from memcli.train.encoder_kinds import embedding_dim, quiet, tower_of, transformers
from memcli.train.frame_prep import frame_prep
from memcli.train.sentence import sentence_pooling
from memcli.train.text_prep import text_prep

__all__ = [
    "Checkpoint",
    "FrameEncoder",
    "TextEncoder",
    "frame_prep",
    "load_encoder",
    "resolve",
    "text_prep",
]

_README_BYTES = 64 << 10
_FOREIGN_OBJECTS = ("GLOBAL", "unsupported class", "unrecognized function", "Can only build")
"""In what torch says of pickled objects that it does not make."""


def resolve(
    spec: EncoderSpec,
    *,
    override: str | None = None,
    offline: bool = False,
    report: Report = lambda _: None,
) -> tuple[EncoderSpec, Checkpoint]:
    """The checkpoint of an encoder, and `spec` as it really is.

    `override` (`--encoder`) is a folder in the hub's format, `OWNER/NAME` or `OWNER/NAME@REVISION`.
    A sentence encoder is then pooled as its own modules say, another as `spec` does if its kind
    can, else as is usual for the kind. Raises ModelError if the files are not to be had or are of
    an unknown kind, UsageError for an override that names nothing.
    """
    checkpoint = locate(spec, override=override, offline=offline, report=report)
    _, tower = tower_of(checkpoint.folder, spec.tower)
    pooling = spec.pooling
    if override is not None:
        own = sentence_pooling(checkpoint.folder) if spec.tower == "text" else None
        usual = pooling if pooling in tower.classes else next(iter(tower.classes))
        pooling = usual if own is None else own
    found = replace(
        spec,
        repository=checkpoint.repository,
        revision=checkpoint.revision,
        dim=embedding_dim(checkpoint.folder, spec.tower, pooling),
        pooling=pooling,
        license=spec.license if override is None else _license(checkpoint.folder),
    )
    return found, checkpoint


def load_encoder(
    spec: EncoderSpec, checkpoint: Checkpoint, prep: FramePrep | TextPrep
) -> FrameEncoder | TextEncoder:
    """The encoder with its published weights in float32, in evaluation mode.

    `prep` is a FramePrep for the vision tower (its normalisation becomes part of the module) and a
    TextPrep for the text tower. Raises ModelError if the weights are damaged, not finite, not those
    of this architecture, or do not give embeddings of `spec.dim`.
    """
    kind, tower = tower_of(checkpoint.folder, spec.tower)
    name = tower.classes.get(spec.pooling)
    if name is None:
        raise ModelError(
            f"a {spec.tower} encoder of type {kind} has no pooling {spec.pooling!r}, "
            f"only {', '.join(tower.classes)}",
            where=str(checkpoint.folder),
        )
    model = _pretrained(name, checkpoint, spec.pooling)
    dim = embedding_dim(checkpoint.folder, spec.tower, spec.pooling)
    if dim != spec.dim:
        raise ModelError(
            f"gives embeddings of length {dim}, not {spec.dim}", where=checkpoint.repository
        )
    if spec.tower == "vision":
        if not isinstance(prep, FramePrep):
            raise TypeError("a vision encoder needs a FramePrep")
        return FrameEncoder(model, dim, spec.pooling, prep).eval()
    return TextEncoder(model, dim, spec.pooling, masked=tower.masked).eval()


class FrameEncoder(nn.Module):
    """Frames uint8 [N, H, W, 3] to embeddings float32 [N, D]."""

    tower = "vision"
    scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, dim: int, pooling: Pooling, prep: FramePrep):
        super().__init__()
        self.model = model
        self.dim = dim
        self.pooling = pooling
        # In the order and precision of the processors: x * scale, - mean, / std, in float32.
        self.register_buffer("scale", torch.tensor(prep.scale), persistent=False)
        self.register_buffer("mean", torch.tensor(prep.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(prep.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Embeddings of N prepared frames."""
        pixels = frames.permute(0, 3, 1, 2).to(torch.float32)
        pixels = (pixels * self.scale - self.mean) / self.std
        out = self.model(pixel_values=pixels)
        return _pooled(out, self.pooling, None).float()


class TextEncoder(nn.Module):
    """Token ids and mask int64 [N, L] to embeddings float32 [N, D]."""

    tower = "text"

    def __init__(self, model: nn.Module, dim: int, pooling: Pooling, *, masked: bool):
        super().__init__()
        self.model = model
        self.dim = dim
        self.pooling = pooling
        self._masked = masked

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings of N captions. Every row of the mask must have a 1."""
        mask = {"attention_mask": attention_mask} if self._masked else {}
        out = self.model(input_ids=input_ids, **mask)
        return _pooled(out, self.pooling, attention_mask).float()


def _pooled(out: Any, pooling: Pooling, mask: Tensor | None) -> Tensor:
    """The embedding [N, D] of a model's output."""
    if pooling in ("projection", "pooled"):
        projected = ("image_embeds", "text_embeds") if pooling == "projection" else ()
        for name in (*projected, "pooler_output"):
            found: Tensor | None = getattr(out, name, None)
            if found is not None:
                return found
        raise ModelError(
            f"this encoder was made without the layer of its pooling {pooling!r}",
            next_step="Name the checkpoint of another encoder: --encoder OWNER/NAME",
        )
    if pooling == "cls":
        return out.last_hidden_state[:, 0]
    assert mask is not None, "the mean is over tokens of text"
    weight = mask.unsqueeze(-1).to(out.last_hidden_state.dtype)
    # As sentence-transformers: the least divisor, 1e-9, and the least norm, 1e-12.
    mean = (out.last_hidden_state * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
    return nn.functional.normalize(mean, dim=-1, eps=1e-12)


def _pretrained(name: str, checkpoint: Checkpoint, pooling: Pooling) -> nn.Module:
    package = transformers()
    where = str(checkpoint.folder)
    kind = getattr(package, name, None)
    if kind is None:
        raise ModelError(
            f"transformers {package.__version__} has no {name}",
            where=where,
            next_step="Install a newer one: pip install --upgrade transformers",
        )
    options: dict[str, Any] = {}
    if name in ("ViTModel", "BertModel", "RobertaModel", "XLMRobertaModel", "MPNetModel"):
        options["add_pooling_layer"] = pooling == "pooled"
    try:
        with quiet():
            model, found = kind.from_pretrained(
                where,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=weight_files(checkpoint.folder)[0].suffix == ".safetensors",
                weights_only=True,
                # MPNet has no other than its own.
                attn_implementation="sdpa" if kind._supports_sdpa else "eager",
                output_loading_info=True,
                **options,
            )
    except pickle.UnpicklingError as error:
        what = "contains pickled objects that are not tensors"
        if not any(text in str(error) for text in _FOREIGN_OBJECTS):
            what = f"is damaged, or {what}"
        raise ModelError(
            what,
            where=str(weight_files(checkpoint.folder)[0]),
            next_step="Use a folder with model.safetensors.",
        ) from error
    except Exception as error:
        raise _unusable(f"cannot be loaded: {first_line(error)}", where) from error
    wrong = [*found["missing_keys"], *(str(row[0]) for row in found["mismatched_keys"])]
    wrong = [key for key in wrong if not key.endswith("position_ids")]
    if wrong:
        raise ModelError(
            f"has no weights for {len(wrong)} of the encoder's parts, the first being "
            f"{printable(wrong[0])}",
            where=where,
            next_step="Use the checkpoint of a whole encoder of this kind.",
        )
    for key, values in model.named_parameters():
        if not torch.isfinite(values).all():
            raise _unusable(f"are not all finite, the first being in {printable(key)}", where)
    return model.float()


def _unusable(why: str, where: str) -> ModelError:
    return ModelError(
        f"its weights {why}",
        where=where,
        next_step="Delete the folder's weights and fetch them again, or use another folder.",
    )


def _license(folder: Path) -> str:
    """The licence that the model card states, or that it states none."""
    try:
        with (folder / "README.md").open("rb") as file:
            card = file.read(_README_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return "licence not stated"
    head = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license:\s*(\S[^\n]{0,59})", head.group(1), re.MULTILINE) if head else None
    return printable(found.group(1).strip("\"' ")) if found else "licence not stated"
