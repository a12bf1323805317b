"""Where an encoder's files come from: the hub by a pinned revision, or a local folder.

Checkpoints are never executed: no remote code, and weights only as safetensors or through
`weights_only=True`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memcli.errors import ModelError, UsageError
from memcli.spec import EncoderSpec
from memcli.text import printable
from memcli.train.digests import INPUT_FILES, folder_digest

Report = Callable[[str], None]

_MAX_JSON_BYTES = 4 << 20
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SMALL_FILES = ("config.json", *INPUT_FILES["vision"], *INPUT_FILES["text"], "README.md")
_TOKENIZERS = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""Any of these sets of files is a whole tokenizer."""
_AGAIN = "Copy or download this file again from where the checkpoint is from."
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


@dataclass(frozen=True)
class Checkpoint:
    """The files of one encoder on this machine."""

    folder: Path
    repository: str
    """Name on the hub, or the local folder."""
    revision: str | None
    """Commit on the hub; None for a local folder."""
    digest: str
    """SHA-256 of configuration and weights, and of the files that prepare the tower's inputs."""


def locate(
    spec: EncoderSpec,
    *,
    override: str | None = None,
    offline: bool = False,
    report: Report = lambda _: None,
) -> Checkpoint:
    """The checkpoint of `spec`, or of `override`: a folder, `NAME`, or `NAME@REVISION` of the hub.

    What the hub's cache holds of a pinned revision is taken without asking the hub; a folder that
    happens to be called like it is not looked at. Raises ModelError, saying which files to put
    where, if the files are not to be had; UsageError for a name that is neither a folder nor a
    name of the hub.
    """
    spec = _overridden(spec, override)
    folder = _local(spec.repository) if spec.revision is None else None
    if folder is not None:
        missing = missing_files(folder, spec)
        if missing:
            raise ModelError(
                f"this folder has no {missing}",
                where=str(folder),
                next_step=f"Put it there ({_files_of(spec)}), or name a whole checkpoint:"
                "  --encoder FOLDER",
            )
        return Checkpoint(folder, str(folder), None, _digest(folder, spec))
    if not _HUB_NAME.fullmatch(spec.repository) or ".." in spec.repository:
        raise UsageError(
            f"{printable(spec.repository)!r} is neither a folder nor a name on the hub",
            where="--encoder",
            next_step="Name a folder in the hub's format, or a repository: --encoder OWNER/NAME",
        )
    folder = _from_hub(spec, offline, report)
    missing = missing_files(folder, spec)
    if missing:
        raise _not_here(spec, f"has no {missing} on the hub, or it was not fetched")
    revision = folder.name if folder.parent.name == "snapshots" else spec.revision
    return Checkpoint(folder, spec.repository, revision, _digest(folder, spec))


def _digest(folder: Path, spec: EncoderSpec) -> str:
    return folder_digest(folder, weight_files(folder), spec.tower)


def _local(name: str) -> Path | None:
    """The folder of that name, resolved; None if there is none."""
    try:
        folder = Path(name).expanduser()
        return folder.resolve() if name and folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long a name, ~ of nobody, a zero byte
        return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises ModelError, naming the file, if it is none."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_JSON_BYTES + 1)
        if len(content) > _MAX_JSON_BYTES:
            raise ModelError("is too large for a configuration", where=str(path))
        found = json.loads(content)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise ModelError("is not valid JSON", where=str(path), next_step=_AGAIN) from error
    if not isinstance(found, dict):
        raise ModelError("is not a JSON object", where=str(path), next_step=_AGAIN)
    return found


def first_line(error: BaseException) -> str:
    """What another library says of a failure, in one short line."""
    lines = str(error).strip().splitlines()
    return printable(lines[0][:200]) if lines else type(error).__name__


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, safetensors first; empty where one is missing.

    Raises ModelError for an index that cannot be read or that names files elsewhere.
    """
    for whole, index in (_SAFETENSORS, _TORCH):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            shards = read_json(folder / index).get("weight_map")
            names = set(shards.values()) if isinstance(shards, dict) else set()
            if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
                raise ModelError(
                    "names no weight files of its folder",
                    where=str(folder / index),
                    next_step=_AGAIN,
                )
            files = [folder / name for name in sorted(names)]
            return files if all(file.is_file() for file in files) else []
    return []


def missing_files(folder: Path, spec: EncoderSpec) -> str | None:
    """What a checkpoint lacks for this tower, in words; None if it is complete."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not weight_files(folder):
        return "weights (model.safetensors or pytorch_model.bin)"
    there = {name for name in INPUT_FILES[spec.tower] if (folder / name).is_file()}
    if spec.tower == "vision":
        return None if there else "preprocessor_config.json"
    if not any(there.issuperset(names) for names in _TOKENIZERS):
        return "tokenizer files (tokenizer.json)"
    if "modules.json" in there and "1_Pooling/config.json" not in there:
        pools = b"Pooling" in _head(folder / "modules.json")
        return "1_Pooling/config.json" if pools else None
    return None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_JSON_BYTES)
    except OSError:
        return b""


def _overridden(spec: EncoderSpec, override: str | None) -> EncoderSpec:
    if override is None:
        return spec
    if _local(override) is not None:
        return replace(spec, repository=override, revision=None)
    name, _, revision = override.partition("@")
    if revision and not re.fullmatch(r"[\w./-]{1,200}", revision):
        raise UsageError(f"{printable(revision)!r} is no revision", where="--encoder")
    return replace(spec, repository=name, revision=revision or None)


def _from_hub(spec: EncoderSpec, offline: bool, report: Report) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors as hub
    except ImportError as error:  # a base dependency: only a broken installation lacks it
        raise ModelError(f"huggingface_hub cannot be imported: {error}") from error

    def fetch(local: bool, *patterns: str) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                spec.repository,
                revision=spec.revision,
                allow_patterns=list(patterns),
                local_files_only=local,
            )
        )

    here = "is not on this machine"
    if offline or spec.revision is not None:
        try:
            folder = fetch(True, *_SMALL_FILES)
        except (hub.LocalEntryNotFoundError, OSError, ValueError):
            pass
        else:
            missing = missing_files(folder, spec)
            if missing is None:
                return folder
            here = f"has no {missing} in the hub's cache on this machine"
    if offline:
        raise _not_here(spec, f"{here}, and --offline was given")
    report(f"encoder {spec.repository} from the hub")
    try:
        folder = fetch(False, *_SMALL_FILES, *_SAFETENSORS, "model-*.safetensors")
        if not weight_files(folder):
            folder = fetch(False, *_SMALL_FILES, *_TORCH, "pytorch_model-*.bin")
    except hub.LocalEntryNotFoundError as error:  # what it raises without network
        raise _not_here(spec, f"{here}, and the hub cannot be reached") from error
    except hub.GatedRepoError as error:
        raise _not_here(
            spec,
            "is only given to those who accepted its terms: accept them at "
            f"https://huggingface.co/{spec.repository}, then sign in with `hf auth login`",
        ) from error
    except hub.RevisionNotFoundError as error:
        raise _not_here(spec, f"has no revision {spec.revision} on the hub") from error
    except hub.RepositoryNotFoundError as error:
        raise _not_here(spec, "does not exist on the hub, or is private") from error
    except hub.HfHubHTTPError as error:
        raise _not_here(spec, f"was refused by the hub: {first_line(error)}") from error
    except ModelError:
        raise
    except Exception as error:  # no route, no space, offline mode: each has its own class
        raise _not_here(spec, f"cannot be fetched from the hub: {first_line(error)}") from error
    return folder


def _files_of(spec: EncoderSpec) -> str:
    """What a checkpoint consists of, for a message."""
    prep = (
        "preprocessor_config.json"
        if spec.tower == "vision"
        else "tokenizer.json, tokenizer_config.json (or vocab.txt, vocab.json and merges.txt, "
        "spiece.model)"
    )
    return f"config.json, model.safetensors (else pytorch_model.bin), {prep}"


def _not_here(spec: EncoderSpec, why: str) -> ModelError:
    """The error that says how to get the files by hand."""
    tree = f"https://huggingface.co/{spec.repository}/tree/{spec.revision or 'main'}"
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return ModelError(
        f"the {spec.tower} encoder {spec.repository} {why}",
        next_step=f"On a machine with network, download {_files_of(spec)}\n"
        f"from {tree}\n"
        "into one folder, copy it here, and name it:  --encoder FOLDER\n"
        f"(Or copy that machine's hub cache to {cache} and add:  --offline)",
    )
