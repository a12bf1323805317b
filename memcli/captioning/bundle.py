"""The folder of a captioner: three graphs, the tokenizer, and the manifest that describes them.

captioner.json                 what it is and how it is used; the SHA-256 of every other file
vision.onnx, vision.bin        frames uint8 [images, side, side, 3] -> [images, tokens, D]
embed.onnx, embed.bin          input_ids [batch, length] -> [batch, length, D]
decoder.onnx, decoder.bin      inputs_embeds, attention_mask, position_ids, past_key_values.N.*
                               -> logits [batch, vocabulary] of the last token, present.N.*
tokenizer.json, LICENSE
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from memcli.captioning.generate import GenerationRules
from memcli.captioning.images import ImageRules
from memcli.captioning.prompt import PromptRules
from memcli.engines.files import sha256_file
from memcli.engines.loading import graph_facts
from memcli.errors import EngineError, ModelError
from memcli.home import home
from memcli.text import printable
from memcli.typed import parsed

SCHEMA = 2
CAPTION_VERSION = 3
"""Goes up with any change of memcli's own that may change a caption: how frames are prepared, how
tokens are chosen, what counts as repetition."""
MANIFEST = "captioner.json"
TOKENIZER = "tokenizer.json"
MAX_FRAMES = 64
_MAX_MANIFEST_BYTES = 4 << 20
_MAX_TEXT = 200
_MAX_QUESTION = 10_000
_SHOWN = 100
_GRAPHS = ("vision.onnx", "embed.onnx", "decoder.onnx")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CacheShape:
    """Of the decoder's keys and values: [batch, heads, past, width] per layer, twice."""

    layers: int
    heads: int
    width: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not all(1 <= size <= 4096 for size in (self.layers, self.heads, self.width)):
            raise ModelError(f"unusable sizes of the decoder: {self}")
        if self.dtype not in ("float32", "float16"):
            raise ModelError(f"unusable type of the decoder: {self.dtype}")


@dataclass(frozen=True)
class CaptionerBundle:
    """A captioner on disk. Made by `read_captioner` or by the export."""

    name: str
    folder: Path
    repository: str
    revision: str | None
    digest: str
    """SHA-256 of the checkpoint."""
    licence: str
    precision: str
    question: str
    """What is asked about the video; it stands in the prompt's suffix."""
    frames: int
    """Frames of a video that it is made for."""
    images: ImageRules
    prompt: PromptRules
    generation: GenerationRules
    cache: CacheShape
    files: Mapping[str, str]
    """SHA-256 by name."""
    parity: Mapping[str, Any] = field(default_factory=dict)
    made_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Changes with anything that decides about a caption: files, rules, prompt, and what memcli
        itself does with frames and tokens."""
        content = self.to_dict()
        for told in ("name", "parity", "made_by", "repository", "revision", "licence"):
            del content[told]
        content["files"].pop("LICENSE", None)
        content["version"] = CAPTION_VERSION
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def graph(self, name: str) -> Path:
        """Path of one of the three graphs."""
        return self.folder / f"{name}.onnx"

    def to_dict(self) -> dict[str, Any]:
        """The manifest."""
        content = {"schema": SCHEMA, **asdict(self)}
        del content["folder"]
        content["files"], content["parity"] = dict(self.files), dict(self.parity)
        content["generation"]["stop"] = list(self.generation.stop)
        return content


_KINDS: dict[str, Any] = {
    **dict.fromkeys(("name", "repository", "digest", "licence", "question"), str),
    "revision": str | None,
    "precision": Literal["fp32", "fp16", "int8"],
    "frames": int,
    "images": ImageRules,
    "prompt": PromptRules,
    "generation": GenerationRules,
    "cache": CacheShape,
    "files": dict[str, str],
    "made_by": dict[str, str],
}
"""What the manifest holds, beside the schema and what the gate measured."""


def captioners_dir() -> Path:
    """One folder per installed captioner."""
    return home() / "captioners"


def write_manifest(bundle: CaptionerBundle) -> None:
    """Write `captioner.json`. Raises OSError."""
    text = json.dumps(bundle.to_dict(), indent=2, ensure_ascii=False)
    (bundle.folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest. Raises OSError."""
    return {
        path.name: sha256_file(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST
    }


def read_captioner(folder: Path, *, check: bool = True) -> CaptionerBundle:
    """Read a captioner and compare its files with their hashes.

    `check` of False leaves the hashes out, for a listing. Raises ModelError for a folder that is
    no captioner, of another schema, or damaged.
    """
    path = folder / MANIFEST
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_MANIFEST_BYTES + 1)
        if len(data) > _MAX_MANIFEST_BYTES:
            raise ModelError("is too large for a manifest", where=str(path))
        content = json.loads(data)
    except OSError as error:
        raise ModelError(
            f"this is no captioner: {error.strerror or error}",
            where=str(path),
            next_step="Make one: memcli export captioner",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError("the manifest is no valid JSON", where=str(path)) from error
    bundle = _parsed(content, folder, path)
    if check:
        check_files(bundle)
    return bundle


def _parsed(content: Any, folder: Path, path: Path) -> CaptionerBundle:
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ModelError(
            "was made by another version of memcli",
            where=str(path),
            next_step="Make it again: memcli export captioner",
        )
    try:
        known = {name: parsed(kind, content[name], name) for name, kind in _KINDS.items()}
        parity = dict(content["parity"])
    except (KeyError, TypeError, ValueError, ModelError) as error:
        what = error.what if isinstance(error, ModelError) else str(error)
        raise ModelError(
            f"the manifest is damaged: {printable(what[:_SHOWN])}", where=str(path)
        ) from error
    bundle = CaptionerBundle(folder=folder, parity=parity, **known)
    told = (bundle.repository, bundle.revision or "", bundle.digest, bundle.licence)
    if (
        not _NAME.fullmatch(bundle.name)
        or not all(_is_file(name, value) for name, value in bundle.files.items())
        or any(name not in bundle.files for name in (*_GRAPHS, TOKENIZER))
        or not all(len(text) <= _MAX_TEXT and text.isprintable() for text in told)
        or not (len(bundle.question) <= _MAX_QUESTION and bundle.question.isprintable())
        or not 1 <= bundle.frames <= MAX_FRAMES
    ):
        raise ModelError("the manifest is damaged", where=str(path))
    return bundle


def _is_file(name: str, value: str) -> bool:
    plain = Path(name).name == name and name.isprintable() and len(name) <= _MAX_TEXT
    return plain and _HASH.fullmatch(value) is not None


def check_files(bundle: CaptionerBundle) -> None:
    """Compare every file with its hash, before any of them is used.

    Raises ModelError for one that differs or is missing, and for a graph that would read a file
    that is not among them.
    """
    for name, expected in bundle.files.items():
        path = bundle.folder / name
        try:
            found = sha256_file(path)
        except OSError as error:
            raise ModelError(
                f"cannot be read: {error.strerror or error}",
                where=str(path),
                next_step=_another(bundle),
            ) from error
        if found != expected:
            raise ModelError(
                "is not the file that was exported (its SHA-256 differs)",
                where=str(path),
                next_step=_another(bundle),
            )
    for name in _GRAPHS:
        _check_weights(bundle, bundle.folder / name)


def _check_weights(bundle: CaptionerBundle, path: Path) -> None:
    try:
        others = graph_facts(path).external_files - set(bundle.files)
    except EngineError as error:
        raise ModelError(error.what, where=str(path)) from error
    if others:
        raise ModelError(
            f"the graph reads a file without a hash: {printable(min(others)[:_SHOWN])!r}",
            where=str(path),
            next_step=_another(bundle),
        )


def _another(bundle: CaptionerBundle) -> str:
    """What to do about a captioner whose files cannot be used."""
    name = shlex.quote(bundle.name)
    return (
        f"Remove it, so that another that is installed is taken:  memcli models rm {name}\n"
        "Or make it again, from the same checkpoint and at the same precision:  memcli export"
        " captioner"
    )
