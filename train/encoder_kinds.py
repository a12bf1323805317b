"""The kinds of encoders that can be used, by `model_type` of their configuration.

One row per kind: which towers and poolings it has, the dimension of each, and the transformers
class that loads it. An encoder of a known kind works by being named (`--encoder`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcli.errors import MissingDependencyError, ModelError
from memcli.spec import Pooling
from memcli.text import printable
from memcli.train.checkpoints import first_line, read_json


@dataclass(frozen=True)
class Tower:
    """How one tower of a kind is loaded."""

    classes: Mapping[Pooling, str]
    """Per pooling it has, the default first, the transformers class."""
    masked: bool = True
    """Text: whether the encoder is told which tokens are padding. SigLIP's are trained not to be
    told (2303.15343, and transformers' documentation of both generations)."""
    fixed_length: bool = False
    """Text: always padded to the most tokens, as in training."""


@dataclass(frozen=True)
class Kind:
    """One architecture."""

    vision: Tower | None = None
    text: Tower | None = None

    def tower(self, name: str) -> Tower | None:
        """The tower of that name, if it has one."""
        return self.vision if name == "vision" else self.text


def _plain_text(name: str) -> Kind:
    """A text encoder without a space shared with images."""
    return Kind(text=Tower({"cls": name, "mean": name}))


def _plain_vision(name: str) -> Kind:
    return Kind(vision=Tower({"cls": name, "pooled": name}))


KINDS: dict[str, Kind] = {
    "clip": Kind(
        vision=Tower({"projection": "CLIPVisionModelWithProjection", "pooled": "CLIPVisionModel"}),
        text=Tower({"projection": "CLIPTextModelWithProjection", "pooled": "CLIPTextModel"}),
    ),
    # SigLIP has no projection behind the pooled state of its images: both names mean that.
    "siglip": Kind(
        vision=Tower({"projection": "SiglipVisionModel", "pooled": "SiglipVisionModel"}),
        text=Tower({"projection": "SiglipTextModel"}, masked=False, fixed_length=True),
    ),
    # model_type siglip2 are the NaFlex checkpoints, whose vision tower takes patches of pictures
    # of any shape; SigLIP 2 of fixed resolution says "siglip".
    "siglip2": Kind(
        text=Tower({"projection": "Siglip2TextModel"}, masked=False, fixed_length=True)
    ),
    "vit": _plain_vision("ViTModel"),
    "dinov2": _plain_vision("Dinov2Model"),
    "dinov2_with_registers": _plain_vision("Dinov2WithRegistersModel"),
    "dinov3_vit": _plain_vision("DINOv3ViTModel"),
    "distilbert": _plain_text("DistilBertModel"),
    "bert": _plain_text("BertModel"),
    "roberta": _plain_text("RobertaModel"),
    "xlm-roberta": _plain_text("XLMRobertaModel"),
    "mpnet": _plain_text("MPNetModel"),
}


def transformers() -> Any:
    """The transformers package. Raises MissingDependencyError."""
    try:
        import transformers as package
    except ImportError as error:
        raise MissingDependencyError(
            "transformers", purpose="a pretrained encoder", install="pip install 'memcli[train]'"
        ) from error
    return package


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' messages and bars: they speak of weights of the other tower as unused
    and of defaults that the checkpoint does not need. And without torch's warnings of pickles,
    which are refused or harmless."""
    log = transformers().utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def tower_of(folder: Path, tower: str) -> tuple[str, Tower]:
    """`model_type` of the checkpoint in `folder`, and its `tower`.

    Raises ModelError, listing what there is, for an unknown kind or one without that tower.
    """
    path = folder / "config.json"
    name = read_json(path).get("model_type")
    kind = KINDS.get(name) if isinstance(name, str) else None
    found = kind.tower(tower) if kind is not None else None
    if found is None or not isinstance(name, str):
        known = ", ".join(sorted(key for key, one in KINDS.items() if one.tower(tower)))
        raise ModelError(
            f"a model of type {printable(str(name)[:60])!r} is no {tower} encoder that is known",
            where=str(path),
            next_step=f"Name one of the types {known}.",
        )
    return name, found


def tower_config(folder: Path, tower: str) -> Any:
    """transformers' configuration of the tower, with the defaults of its kind filled in.

    Raises ModelError if transformers does not know it or finds it wrong.
    """
    package = transformers()
    try:
        with quiet():
            config = package.AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        raise ModelError(
            f"transformers {package.__version__} cannot use this configuration: "
            f"{first_line(error)}",
            where=str(folder / "config.json"),
        ) from error
    return getattr(config, f"{tower}_config", config)


def embedding_dim(folder: Path, tower: str, pooling: Pooling) -> int:
    """Length of the embedding that `pooling` gives. Raises ModelError if it is not stated."""
    kind, _ = tower_of(folder, tower)
    config = tower_config(folder, tower)
    found = None
    if pooling == "projection":
        found = getattr(config, "projection_dim" if kind == "clip" else "projection_size", None)
    if found is None:
        found = config.hidden_size
    if not isinstance(found, int) or found < 1:
        raise ModelError("does not say how long embeddings are", where=str(folder / "config.json"))
    return found
