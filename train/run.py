"""Run folders: what one training leaves behind, and how it is read again.

    $MEMCLI_HOME/runs/early-fusion/
      latest                 names the newest complete run
      20260131-101500/
        run.json             what was trained, on what, how, and how well
        model.safetensors    the model trained on everything: `head.*`, and `frame_encoder.*` or
                             `text_encoder.*` if the encoder was fine-tuned with the head
        fold-1.safetensors   the model of each fold, which has not seen the fold's videos
        adapted.safetensors  encoders after contrastive adaptation, common to all of these (FCLIP)
        split.csv            id, fold (that holds the video out), role (in the full training)
        predictions.csv      id, fold, truth, predicted[, vision, text]: of held-out videos only
        tokenizer.json       if the model reads captions
        logs/                TensorBoard

A run may come from anywhere: nothing in it is believed, and nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from memcli.errors import ModelError, UsageError
from memcli.home import home
from memcli.spec import EncoderSpec, FramePrep, ModelSpec, TextPrep, is_model_name
from memcli.text import printable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from memcli.train.eeg.network import EegModel
    from memcli.train.encoders import Checkpoint
    from memcli.train.model import MemorabilityModel

SCHEMA = 1
RUN_FILE = "run.json"
MODEL_FILE = "model.safetensors"
ADAPTED_FILE = "adapted.safetensors"
TOKENIZER_FILE = "tokenizer.json"
SPLIT_FILE = "split.csv"
PREDICTIONS_FILE = "predictions.csv"
LOGS_FOLDER = "logs"
LATEST = "latest"

_MAX_JSON_BYTES = 16 << 20
_MAX_DIM = 1 << 16
_BLOCK_BYTES = 1 << 20

Report = Callable[[str], None]
Status = Literal["training", "complete"]


@dataclass(frozen=True)
class EncoderUse:
    """The checkpoint behind one tower of a run."""

    tower: Literal["vision", "text"]
    repository: str
    revision: str | None
    digest: str
    """Of its weights, as `memcli.train.encoders.Checkpoint.digest`."""
    folder: str
    """Where it lay on the machine that trained; for the reader only."""


@dataclass(frozen=True)
class Run:
    """One training, from its run.json."""

    folder: Path
    spec: ModelSpec
    """As resolved: the encoders, preparations and recipe that were really used."""
    dataset: dict[str, Any]
    """name, root, target, videos (how many), split, left_out (id -> reason)."""
    seed: int
    encoders: tuple[EncoderUse, ...]
    dims: dict[str, int]
    """Lengths of the embeddings that the head takes: `frame` and/or `text`."""
    status: Status
    metrics: dict[str, Any] = field(default_factory=dict)
    """`mean_srcc`, `interval` and, over all held-out videos, `held_out` (Metrics.to_dict)."""
    folds: tuple[dict[str, Any], ...] = ()
    """For each fold: fold, metrics, epochs, best_epoch, learning_rate, and so on."""
    full: dict[str, Any] = field(default_factory=dict)
    """The training on everything: epochs, learning_rate, why that many epochs."""
    adaptation: dict[str, Any] = field(default_factory=dict)
    """The contrastive adaptation before it, if there was one: epochs, monitored_on, and so on."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each weights file, and of the tokenizer."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the command was given."""
    features: str | None = None
    """Name of the precomputed features it was trained on: such a model cannot look at videos."""
    versions: dict[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    created: str = ""

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.spec.name

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer's file, if the model reads captions."""
        return self.folder / TOKENIZER_FILE if self.spec.text is not None else None

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, as in run.json."""
        entry = {
            "schema": SCHEMA,
            "model": self.model,
            "status": self.status,
            "created": self.created,
            "spec": self.spec.to_dict(),
            "encoders": [asdict(one) for one in self.encoders],
            "folds": list(self.folds),
        }
        return entry | {name: getattr(self, name) for name in _KINDS if name not in entry}


def runs_dir(model: str) -> Path:
    """The folder of a model's runs."""
    return home() / "runs" / model


def latest_run(model: str) -> Path:
    """Folder of the newest complete run of a model.

    Raises ModelError if it was never trained here.
    """
    pointer = runs_dir(model) / LATEST
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{model} has not been trained on this machine",
            next_step=f"Train it:  memcli train {model} --dataset NAME --data DIR",
        ) from error
    return runs_dir(model) / name  # an absolute path stays what it is


def read_run(path_or_model: str | Path, *, unfinished: bool = False) -> Run:
    """The run of a folder, or the newest complete one of a model of the registry.

    Raises UsageError if there is nothing of that name, ModelError if the run is damaged, of another
    version of memcli or, without `unfinished`, not complete.
    """
    name = str(path_or_model)
    folder = Path(path_or_model)
    if not folder.is_dir():
        if not is_model_name(name):
            raise UsageError("there is no run in this folder", where=name)
        folder = latest_run(name)
    run = _read(folder)
    if run.status != "complete" and not unfinished:
        raise ModelError(
            "this training was not finished",
            where=str(folder),
            next_step="Go on with it:"
            f"  memcli train {run.model} --resume {shlex.quote(str(folder))}",
        )
    return run


def load_model(
    run: Run, *, offline: bool = False, report: Report, fold: int | None = None
) -> MemorabilityModel | EegModel:
    """The trained model, in eval mode, on the CPU; with `fold`, the one of that fold.

    An `EegModel` for a run of an EEG model, of one member where it is a fold's.
    Raises ModelError for weights that are missing, changed or of another model or version, for an
    encoder whose weights differ from those of the training, and for a model that was trained on
    precomputed features (it has no encoder: `load_head`).
    """
    from memcli.train import encoders
    from memcli.train.model import MemorabilityModel

    if run.spec.eeg is not None:
        return _load_eeg(run, fold)
    if run.features is not None:
        raise ModelError(
            f"this {run.model} was trained on the precomputed features {run.features!r} and cannot"
            " look at videos or captions",
            where=str(run.folder),
            next_step="Train it from the videos:  memcli train without --features",
        )
    towers: dict[str, nn.Module] = {}
    for used in run.encoders:
        found = encoder_of(run, used, offline=offline, report=report)
        towers[used.tower] = encoders.load_encoder(*found)
    weights = read_weights(run, _weights_file(fold))
    model = MemorabilityModel(_head(run, weights), towers.get("vision"), towers.get("text"))
    if ADAPTED_FILE in run.files:
        weights = read_weights(run, ADAPTED_FILE) | weights
    _fill(model, weights, run)
    return cast("MemorabilityModel", model.eval())


def _load_eeg(run: Run, fold: int | None) -> EegModel:
    """Built only if the weights are its own, as `_head`."""
    import torch

    from memcli.train.eeg.network import EegModel

    spec = run.spec
    if fold is not None and spec.head is not None:
        spec = replace(spec, head=replace(spec.head, options=spec.head.options | {"members": 1}))
    weights = read_weights(run, _weights_file(fold))
    with torch.device("meta"):
        _check(EegModel(spec), weights, run)
    model = EegModel(spec)
    _fill(model, weights, run)
    return model.eval()


def load_head(run: Run, *, fold: int | None = None) -> nn.Module:
    """The trained head alone, in eval mode: embeddings to scores. Raises ModelError."""
    weights = read_weights(run, _weights_file(fold))
    head = _head(run, weights)
    _fill(head, _own(weights), run)
    return head.eval()


def encoder_of(
    run: Run, used: EncoderUse, *, offline: bool, report: Report
) -> tuple[EncoderSpec, Checkpoint, FramePrep | TextPrep]:
    """An encoder of the training and the preparation of its inputs.

    Raises ModelError if it is not to be had or has other weights than in the training.
    """
    from memcli.train import encoders

    spec = run.spec.encoder(used.tower)
    prep = run.spec.prep if used.tower == "vision" else run.spec.text
    if spec is None or prep is None:
        raise ModelError(f"{used.tower} encoder without preparation", where=str(run.folder))
    resolved, checkpoint = encoders.resolve(spec, offline=offline, report=report)
    if checkpoint.digest != used.digest:
        raise ModelError(
            f"the weights of {printable(used.repository)} are not those of the training",
            where=str(checkpoint.folder),
            next_step=f"The run has {printable(used.digest[:12])}, this folder"
            f" {checkpoint.digest[:12]}.",
        )
    return resolved, checkpoint, prep


def read_weights(run: Run, name: str) -> dict[str, Tensor]:
    """The tensors of one of the run's weights files, after a check of its hash.

    Raises ModelError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = run.folder / name
    expected = run.files.get(name)
    if expected is None or not path.is_file():
        raise ModelError("these weights are missing", where=str(path))
    if sha256_file(path) != expected:
        raise ModelError(
            "these weights have changed since the training",
            where=str(path),
            next_step="Take the run from a backup, or train again.",
        )
    try:
        return cast("dict[str, Tensor]", load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"not a safetensors file: {error}", where=str(path)) from error


def fold_file(fold: int) -> str:
    """Name of a fold's weights file."""
    return f"fold-{fold}.safetensors"


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _weights_file(fold: int | None) -> str:
    return MODEL_FILE if fold is None else fold_file(fold)


def _own(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The head's, by their names in the head."""
    return {k.removeprefix("head."): v for k, v in weights.items() if k.startswith("head.")}


def _head(run: Run, weights: dict[str, Tensor]) -> nn.Module:
    """The head, made only if `weights` are its: a run.json of a few bytes can ask for any size."""
    import torch

    from memcli.train.heads import make_head

    if run.spec.head is None:
        raise ModelError(f"{run.model} has no head to train", where=str(run.folder))
    parts = run.spec.head, run.dims.get("frame"), run.dims.get("text")
    with torch.device("meta"):
        _check(make_head(*parts), _own(weights), run)
    return make_head(*parts)


def _fill(module: nn.Module, weights: dict[str, Tensor], run: Run) -> None:
    """Put `weights` into `module`; only encoders may keep what they have."""
    _check(module, weights, run)
    module.load_state_dict(module.state_dict() | weights)


def _check(module: nn.Module, weights: dict[str, Tensor], run: Run) -> None:
    """Raises ModelError unless `weights` are the module's, by names and shapes."""
    own = module.state_dict()
    required = {
        name for name in own if not name.startswith(("frame_encoder.", "text_encoder."))
    } - set(weights)
    strange = set(weights) - set(own)
    wrong = {name for name in set(weights) & set(own) if weights[name].shape != own[name].shape}
    for names, problem in ((required, "lacks"), (strange, "also has"), (wrong, "has another")):
        if names:
            raise ModelError(
                f"these are weights of another model or version: it {problem} {min(names)[:80]}",
                where=str(run.folder),
                next_step=f"Train again:  memcli train {run.model} --dataset NAME --data DIR",
            )


def _read(folder: Path) -> Run:
    path = folder / RUN_FILE
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelError("too large for a run.json", where=str(path))
        entry = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError("there is no run in this folder", where=str(folder)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot be read: {error}", where=str(path)) from error
    try:
        return _parsed(folder, entry)
    except (KeyError, TypeError, ValueError) as error:
        missing = "is missing" if isinstance(error, KeyError) else ""
        raise ModelError(f"not a run.json: {error} {missing}".strip(), where=str(path)) from error


def _parsed(folder: Path, entry: object) -> Run:
    if not isinstance(entry, dict):
        raise ValueError("not an object")
    if entry.get("schema") != SCHEMA:
        raise ValueError(f"schema {entry.get('schema')!r}; this memcli reads {SCHEMA}")
    if entry["status"] not in ("training", "complete"):
        raise ValueError("unknown status")
    for name, kind in _KINDS.items():
        if not isinstance(entry[name], kind):
            raise ValueError(f"{name} is of another type")
    dims = entry["dims"]
    if not all(k in ("frame", "text") and _is_size(v) for k, v in dims.items()):
        raise ValueError("dims are no lengths of embeddings")
    if not all(_is_file(k) and isinstance(v, str) for k, v in entry["files"].items()):
        raise ValueError("files has a strange entry")
    spec = ModelSpec.from_dict(entry["spec"])
    encoders = tuple(_encoder(one) for one in entry["encoders"])
    if any(spec.encoder(one.tower) is None for one in encoders):
        raise ValueError("an encoder that the model does not have")
    folds = tuple(entry["folds"])
    if not all(isinstance(one, dict) and type(one.get("fold")) is int for one in folds):
        raise ValueError("folds has a strange entry")
    rest = {name: entry[name] for name in _KINDS if name not in ("encoders", "folds")}
    return Run(folder, spec, encoders=encoders, folds=folds, status=entry["status"], **rest)


_KINDS: dict[str, Any] = {
    "dataset": dict,
    "seed": int,
    "encoders": list,
    "dims": dict,
    "metrics": dict,
    "folds": list,
    "full": dict,
    "adaptation": dict,
    "files": dict,
    "settings": dict,
    "features": (str, type(None)),
    "versions": dict,
    "git_revision": (str, type(None)),
    "created": str,
}


def _is_size(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MAX_DIM


def _is_file(name: str) -> bool:
    return "/" not in name and "\\" not in name and not name.startswith(".")


def _encoder(entry: object) -> EncoderUse:
    if not isinstance(entry, dict) or entry.get("tower") not in ("vision", "text"):
        raise ValueError("encoders has a strange entry")
    use = EncoderUse(**entry)
    texts = (use.repository, use.digest, use.folder)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("encoders has a strange entry")
    if not isinstance(use.revision, (str, type(None))):
        raise ValueError("encoders has a strange revision")
    return use


def finite(value: float | None) -> float | None:
    """`value` for JSON, which has no NaN: None instead."""
    return value if value is not None and math.isfinite(value) else None
