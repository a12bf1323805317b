"""A SmolVLM2 checkpoint: where it is, and what its files ask of whoever runs it.

Everything a runtime needs to know is read here and turned into rules for the manifest; what the
checkpoint asks for and the rules cannot express is refused, not ignored.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcli.captioning.generate import GenerationRules
from memcli.captioning.images import ImageRules
from memcli.engines.files import sha256_file
from memcli.errors import ModelError, UsageError
from memcli.train.checkpoints import first_line, read_json, weight_files

Report = Callable[[str], None]
SIZES = {
    "256m": "HuggingFaceTB/SmolVLM2-256M-Video-Instruct@067788b187b95ebe7b2e040b3e4299e342e5b8fd",
    "500m": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct@7b375e1b73b11138ff12fe22c8f2822d8fe03467",
    "2.2b": "HuggingFaceTB/SmolVLM2-2.2B-Instruct@482adb537c021c86670beed01cd58990d01e72e4",
}
"""Commits, so that everybody's captions are of the same checkpoint."""
DEFAULT_SIZE = "500m"
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
)
_NEEDED = ("config.json", "preprocessor_config.json", "tokenizer.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
_RESAMPLE = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
_PLAIN: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "num_beams": (None, 1),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None, {}),
    "guidance_scale": (None, 1, 1.0),
    "penalty_alpha": (None, 0, 0.0),
}
"""Settings that would change greedy generation, and the values with which they do not."""


@dataclass(frozen=True)
class CaptionerCheckpoint:
    """The files of one checkpoint on this machine."""

    folder: Path
    repository: str
    revision: str | None
    digest: str
    """SHA-256 of settings and weights."""


def locate_captioner(
    checkpoint: str | None,
    size: str = DEFAULT_SIZE,
    *,
    offline: bool = False,
    report: Report = lambda _: None,
) -> CaptionerCheckpoint:
    """The checkpoint in a folder, `NAME` (newest) or `NAME@REVISION` of the hub, or of that size.

    Raises ModelError, saying which files to put where, if it is not to be had; UsageError for a
    size that does not exist.
    """
    if checkpoint is None and size not in SIZES:
        raise UsageError(
            f"there is no captioner of size {size!r}", next_step=f"Sizes: {list(SIZES)}"
        )
    name = checkpoint or SIZES[size]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(folder.resolve(), folder.resolve().name, None)
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or ".." in repository or repository.startswith(("/", ".")):
        raise UsageError(
            f"{name!r} is neither a folder nor a name on the hub", where="--checkpoint"
        )
    folder = _from_hub(repository, revision or None, offline, report)
    found = folder.name if folder.parent.name == "snapshots" else revision or None
    return _checked(folder, repository, found)


def _checked(folder: Path, repository: str, revision: str | None) -> CaptionerCheckpoint:
    for name in _NEEDED:
        if not (folder / name).is_file():
            raise ModelError(f"this checkpoint has no {name}", where=str(folder))
    weights = [path for path in weight_files(folder) if path.suffix == ".safetensors"]
    if not weights:
        raise ModelError("this checkpoint has no weights (model.safetensors)", where=str(folder))
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    text = (config.get("text_config") or {}).get("model_type", "llama")
    if kind != "smolvlm" or text != "llama":
        raise ModelError(
            f"this is a {str(kind)[:80]!r} ({str(text)[:80]!r}), no SmolVLM2",
            where=str(folder / "config.json"),
        )
    digest = hashlib.sha256()
    for path in (*(folder / name for name in sorted(_SETTINGS)), *weights):
        if path.is_file():
            digest.update(f"{path.name}\0{sha256_file(path)}\0".encode())
    return CaptionerCheckpoint(folder, repository, revision, digest.hexdigest())


def _from_hub(repository: str, revision: str | None, offline: bool, report: Report) -> Path:
    import huggingface_hub

    if not offline:
        report(f"captioner {repository} from the hub")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[*_SETTINGS, *_WEIGHTS, "README.md"],
                local_files_only=offline,
            )
        )
    except Exception as error:  # no route, no such name, no space: each has its own class
        why = (
            "it is not in the hub's cache here, and --offline was given"
            if offline
            else first_line(error)
        )
        cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME")
        raise ModelError(
            f"the checkpoint {repository} is not to be had: {why}",
            next_step="On a machine with network, download config.json, generation_config.json,"
            " preprocessor_config.json,\nprocessor_config.json, chat_template.json, tokenizer.json,"
            " tokenizer_config.json and model*.safetensors\n"
            f"from https://huggingface.co/{repository}/tree/{revision or 'main'}\n"
            "into one folder, copy it here, and name it:  --checkpoint FOLDER\n"
            "(Or copy that machine's hub cache to "
            f"{cache or '~/.cache/huggingface'} and add:  --offline)",
        ) from error


def image_rules(folder: Path, splitting: bool | None = None) -> ImageRules:
    """How the checkpoint prepares a video's frames.

    Frames are cut into tiles only if `splitting` says so or the file's section for videos does
    (`video_sampling.do_image_splitting`): SmolVLM2's own processors never cut frames of videos.
    The first resize goes to that section's `video_size`, else to the size of one tile; with tiles,
    to the size for images. Mean and deviation are in the graph.

    Raises ModelError for settings that cannot be kept.
    """
    path = folder / "preprocessor_config.json"
    found = read_json(path)
    video = found.get("video_sampling")
    video = video if isinstance(video, dict) else {}
    if splitting is None:
        splitting = video.get("do_image_splitting") is True
    side = _edge(found.get("max_image_size"))
    size = found.get("size") if splitting else video.get("video_size", found.get("max_image_size"))
    longest = _edge(size)
    resample = _RESAMPLE.get(found.get("resample", 1))
    if side is None or resample is None or (longest is None and found.get("do_resize", True)):
        raise ModelError("sizes or filter of images that memcli does not know", where=str(path))
    return ImageRules(side, longest if found.get("do_resize", True) else None, splitting, resample)


def _edge(size: Any) -> int | None:
    value = size.get("longest_edge") if isinstance(size, dict) else size
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel of pixels from 0 to 255.

    Raises ModelError for values that are none.
    """
    path = folder / "preprocessor_config.json"
    found = read_json(path)
    factor = 1.0
    if found.get("do_rescale", True):
        factor = float(found.get("rescale_factor", 1 / 255))
    mean, std = [0.0] * 3, [1.0] * 3
    if found.get("do_normalize", True):
        mean, std = found.get("image_mean", [0.5] * 3), found.get("image_std", [0.5] * 3)
    try:
        means, stds = [float(v) / factor for v in mean], [float(v) / factor for v in std]
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError("mean or deviation are no numbers", where=str(path)) from error
    if len(means) != 3 or len(stds) != 3 or 0 in stds:
        raise ModelError("mean and deviation need three channels", where=str(path))
    return means, stds


def generation_rules(folder: Path, max_new_tokens: int) -> GenerationRules:
    """When texts end, from generation_config.json or, without it, config.json.

    Raises ModelError for settings that would change greedy generation, and for no stop token.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        path = folder / "config.json"
    found = read_json(path)
    for name, harmless in _PLAIN.items():
        if name in found and found[name] not in harmless:
            raise ModelError(
                f"asks for {name} = {str(found[name])[:80]!r}, which memcli does not do",
                where=str(path),
            )
    stop = found.get("eos_token_id")
    if stop is None:
        stop = (read_json(folder / "config.json").get("text_config") or {}).get("eos_token_id")
    ids: list[Any] = stop if isinstance(stop, list) else [stop]
    if not ids or not all(isinstance(one, int) for one in ids):
        raise ModelError("names no token that ends a text (eos_token_id)", where=str(path))
    return GenerationRules(max_new_tokens, tuple(sorted(set(ids))))
