"""A SmolVLM2 checkpoint: where its files are, and whether they are one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memcli.engines.files import sha256_file
from memcli.errors import ModelError, UsageError
from memcli.export.captioner_settings import section
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
_CARD = "README.md"
"""Where the licence stands."""


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
    text = section(config, "text_config", folder / "config.json").get("model_type", "llama")
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
                allow_patterns=[*_SETTINGS, *_WEIGHTS, _CARD],
                local_files_only=offline,
            )
        )
    except Exception as error:  # no route, no such name, no space: each has its own class
        why = (
            "it is not in the hub's cache here, and --offline was given"
            if offline
            else first_line(error)
        )
        files = (*_SETTINGS, _CARD, *_WEIGHTS)
        lines = (", ".join(files[start : start + 4]) for start in range(0, len(files), 4))
        raise ModelError(
            f"the checkpoint {repository} is not to be had: {why}",
            next_step="On a machine with network, download from\n"
            f"https://huggingface.co/{repository}/tree/{revision or 'main'}\n"
            "what there is of these files into one folder, copy it here, and name it:"
            "  --checkpoint FOLDER\n" + ",\n".join(lines) + "\n"
            "(Or copy that machine's folder of the hub's cache to "
            f"{huggingface_hub.constants.HF_HUB_CACHE}\nand add:  --offline)",
        ) from error
