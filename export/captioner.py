"""A SmolVLM2 checkpoint to an installed captioner: read, write graphs, compare, install."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from memcli.captioning.bundle import (
    MAX_FRAMES,
    TOKENIZER,
    CaptionerBundle,
    captioners_dir,
    hash_files,
    read_captioner,
    write_manifest,
)
from memcli.captioning.captioner import Captioner
from memcli.captioning.images import MAX_SIDE, ImageRules, tiles_of
from memcli.captioning.prompt import PromptTokenizer
from memcli.captioning.sessions import CaptionerSessions
from memcli.engines.files import install, locked, staging
from memcli.errors import MemcliError, ModelError, OutputError, UsageError
from memcli.export.captioner_checkpoint import CaptionerCheckpoint
from memcli.export.captioner_gate import check_images, gate_captioner
from memcli.export.captioner_graphs import write_captioner_graphs
from memcli.export.captioner_products import PRODUCTS, VISION_PRODUCTS
from memcli.export.captioner_prompt import check_prompt, prompt_rules
from memcli.export.captioner_settings import (
    check_generation,
    generation_rules,
    image_rules,
    normalisation,
)
from memcli.text import printable
from memcli.train.checkpoints import first_line, read_json

Report = Callable[[str], None]
QUESTION = "Describe the video in one sentence."
FRAMES = 8
NEW_TOKENS = 64
LICENSE_FILE = "LICENSE"


def export_captioner(
    checkpoint: CaptionerCheckpoint,
    *,
    precision: str = "fp32",
    name: str | None = None,
    question: str = QUESTION,
    frames: int = FRAMES,
    max_new_tokens: int = NEW_TOKENS,
    splitting: bool | None = None,
    target: Path | None = None,
    report: Report = lambda _: None,
) -> CaptionerBundle:
    """Make the captioner's graphs, compare its captions with transformers', and install it.

    `name` is by default made of the checkpoint's, with the precision unless that is fp32;
    `target` by default `captioners_dir()/NAME`. Question, number of frames and length are ours:
    000_bcb79d7cf5a52fe8.txt, section 2.1, does not give them. `splitting` overrides the
    checkpoint's own rule for frames of videos.

    Raises ParityError with figures if prompt, frames or tokens differ from those of transformers,
    ModelError for a checkpoint that cannot be used, UsageError, OutputError for a full disk. Then
    an installed captioner stays as it was.
    """
    if not 1 <= frames <= MAX_FRAMES or not question.strip():
        raise UsageError(f"a captioner takes 1 to {MAX_FRAMES} frames and a question")
    name = name or captioner_name(checkpoint.repository, precision)
    target = target or captioners_dir() / name
    rules = image_rules(checkpoint.folder, splitting)
    generation = generation_rules(checkpoint.folder, max_new_tokens)
    mean, std = normalisation(checkpoint.folder)
    report("reading the checkpoint")
    model, tokenizer = _load(checkpoint.folder)
    check_generation(generation, model.generation_config.to_dict(), str(checkpoint.folder))
    tokens = _tokens_per_image(model, rules.side, checkpoint.folder)
    prompt = prompt_rules(checkpoint.folder, tokenizer, question, tokens)
    own = PromptTokenizer(checkpoint.folder / TOKENIZER, prompt)
    _check_image_token(model, own, checkpoint.folder)
    _check_length(model, own, rules, frames, max_new_tokens, checkpoint.folder)
    images = check_images(rules, mean, std, _image_processor(checkpoint.folder))
    prompts = check_prompt(prompt, tokenizer, own)
    try:
        with staging(target, "make") as folder:
            content = folder / "captioner"
            content.mkdir()
            shutil.copyfile(checkpoint.folder / TOKENIZER, content / TOKENIZER)
            licence = _licence(checkpoint.folder)
            (content / LICENSE_FILE).write_text(
                f"Weights of {checkpoint.repository}: {licence}\n", encoding="utf-8"
            )
            report("writing the graphs")
            cache = write_captioner_graphs(
                model,
                rules.side,
                mean,
                std,
                content,
                product=PRODUCTS[precision],
                vision_product=VISION_PRODUCTS[precision],
            )
            bundle = CaptionerBundle(
                name=name,
                folder=content,
                repository=checkpoint.repository,
                revision=checkpoint.revision,
                digest=checkpoint.digest,
                licence=licence,
                precision=precision,
                question=question,
                frames=frames,
                images=rules,
                prompt=prompt,
                generation=generation,
                cache=cache,
                files=hash_files(content),
                made_by={one: version(one) for one in ("torch", "transformers", "onnxruntime")},
            )
            report("comparing with transformers")
            with Captioner(bundle, CaptionerSessions(bundle, emulate=True)) as captioner:
                parity = gate_captioner(model, captioner, mean, std)
            bundle = replace(bundle, parity={**parity, "prompts": prompts, "images": images})
            write_manifest(bundle)
            read_captioner(content)
            with locked(target, lambda: report(f"another memcli is changing {name}: waiting")):
                install(content, target)
    except MemcliError:
        raise  # some are OSErrors too
    except OSError as error:
        raise OutputError(f"cannot write the captioner: {error}", where=str(target)) from error
    return read_captioner(target, check=False)


def captioner_name(repository: str, precision: str) -> str:
    """`smolvlm2-500m`, with `-int8` or `-fp16`, of a repository's or folder's name."""
    last = repository.rpartition("/")[2].lower()
    short = re.sub(r"(-video)?-instruct$", "", last)
    plain = re.sub(r"[^a-z0-9._-]+", "-", short).strip("-._")[:48] or "captioner"
    return plain if precision == "fp32" else f"{plain}-{precision}"


def _load(folder: Path) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer, without running anything of the checkpoint's."""
    import torch
    import transformers

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar per file
            model, loaded = transformers.AutoModelForImageTextToText.from_pretrained(
                str(folder),
                torch_dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # transformers raises whatever its parts raise
        raise ModelError(
            f"transformers cannot load the checkpoint: {first_line(error)}", where=str(folder)
        ) from error
    if loaded["missing_keys"]:  # transformers would draw them by chance
        raise ModelError(
            f"the checkpoint lacks weights: {printable(min(loaded['missing_keys']))[:80]}",
            where=str(folder),
        )
    return model.eval(), tokenizer


def _tokens_per_image(model: Any, side: int, folder: Path) -> int:
    """Of the vision tower; the processor's own number must be the same. Raises ModelError."""
    config = model.config
    tokens = int((side // config.vision_config.patch_size) ** 2 // config.scale_factor**2)
    path = folder / "processor_config.json"
    said = read_json(path).get("image_seq_len") if path.is_file() else None
    if said not in (None, tokens) or side != config.vision_config.image_size:
        raise ModelError(
            f"the processor has {said} tokens for an image of {side} pixels, the model {tokens}"
            f" for one of {config.vision_config.image_size}",
            where=str(path),
        )
    return tokens


def _check_image_token(model: Any, own: PromptTokenizer, folder: Path) -> None:
    """Raises ModelError if model and tokenizer mean different tokens by an image."""
    if model.config.image_token_id != own.image_id:
        raise ModelError(
            f"the model's token of an image is {model.config.image_token_id} (image_token_id), the"
            f" tokenizer's {own.image_id}",
            where=str(folder / "config.json"),
        )


def _check_length(
    model: Any, own: PromptTokenizer, rules: ImageRules, frames: int, new_tokens: int, folder: Path
) -> None:
    """Raises ModelError if the longest prompt and its answer are more than the model has positions
    for: square frames are cut into the most tiles."""
    longest = rules.longest or MAX_SIDE
    grid = tiles_of(longest, longest, rules)
    length = len(own.encode([grid] * frames)) + new_tokens
    most = model.config.text_config.max_position_embeddings
    if length > most:
        tiles = f", each in {grid[0]} x {grid[1]} tiles and whole," if any(grid) else ","
        raise ModelError(
            f"{frames} frames{tiles} question and answer are up to {length} tokens; the model has"
            f" positions for {most} (max_position_embeddings)",
            where=str(folder / "config.json"),
            next_step="Export it for fewer frames, or without tiles.",
        )


def _image_processor(folder: Path) -> Any:
    """transformers' image processor that uses Pillow, as it reads the checkpoint itself; None
    without Pillow. Raises ModelError if it cannot be made."""
    try:
        import PIL  # noqa: F401

        try:
            from transformers.models.smolvlm.image_processing_pil_smolvlm import (
                SmolVLMImageProcessorPil as Processor,
            )
        except ImportError:  # transformers 4
            from transformers.models.smolvlm.image_processing_smolvlm import (
                SmolVLMImageProcessor as Processor,
            )
    except ImportError:
        return None
    try:
        return Processor.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises whatever its parts raise
        raise ModelError(
            f"transformers cannot make its image processor: {first_line(error)}", where=str(folder)
        ) from error


def _licence(folder: Path) -> str:
    """The licence that the model card names."""
    path = folder / "README.md"
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as card:
            head = card.read(20_000)
        found = re.search(r"^license:\s*([\w.+-]{1,60})\s*$", head, re.MULTILINE)
        if found:
            return found[1]
    return "unknown"
