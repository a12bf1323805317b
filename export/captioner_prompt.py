"""The checkpoint's chat template, rendered once and cut into the pieces of the manifest."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from memcli.captioning.images import Tiles
from memcli.captioning.prompt import PromptRules, PromptTokenizer, prompt_text
from memcli.errors import ModelError, ParityError
from memcli.train.checkpoints import first_line, read_json

_MAX_TEMPLATE_BYTES = 1 << 20
_CLOCK = "strftime_now"
"""What transformers gives to templates; they have no other way to the clock."""
_COUNTS = (1, 2, 3, 8)
_GRIDS: tuple[Tiles, ...] = ((0, 0), (1, 2), (2, 1), (3, 4))


def chat_template(folder: Path, tokenizer: Any) -> str:
    """The template that the checkpoint's processor uses, else the tokenizer's.

    Raises ModelError if there is none.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        if path.stat().st_size > _MAX_TEMPLATE_BYTES:
            raise ModelError("is too large for a chat template", where=str(path))
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"cannot be read: {first_line(error)}", where=str(path)) from error
    found: Any = None
    for name in ("chat_template.json", "processor_config.json"):
        if found is None and (folder / name).is_file():
            found = read_json(folder / name).get("chat_template")
    if found is None:
        found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        found = found.get("default")
    if not isinstance(found, str):
        raise ModelError("this checkpoint has no chat template", where=str(folder))
    return found


def prompt_rules(folder: Path, tokenizer: Any, question: str, tokens: int) -> PromptRules:
    """Pieces of the prompt for a question about a video's frames.

    `tokenizer` is transformers' tokenizer of the checkpoint; `tokens` the tokens per image. Raises
    ModelError for a template that fails, that asks for the clock or chance, or that does not
    put the same between any two images.
    """
    template = chat_template(folder, tokenizer)
    if _CLOCK in template:
        raise ModelError(
            f"its chat template may say what day it is ({_CLOCK}): the prompt would be that of the"
            " day of the export",
            where=str(folder),
        )
    image = str(getattr(tokenizer, "image_token", "<image>"))
    if image in question:
        raise ModelError(f"the question may not hold {image}")
    pieces = _rendered(tokenizer, template, question, 3).split(image)
    if len(pieces) != 4 or pieces[1] != pieces[2]:
        raise ModelError(
            "its chat template does not treat images alike, or drops them", where=str(folder)
        )
    bos = tokenizer.bos_token
    rules = PromptRules(
        prefix=pieces[0],
        separator=pieces[1],
        suffix=pieces[3],
        image=image,
        around=str(getattr(tokenizer, "fake_image_token", "<fake_token_around_image>")),
        whole=str(getattr(tokenizer, "global_image_token", "<global-img>")),
        tile="<row_{row}_col_{column}>",
        tokens=tokens,
        # As transformers does: a template that writes the first token replaces the tokenizer's.
        add_special=not (bos and pieces[0].startswith(bos)),
    )
    for count in _COUNTS:
        whole = rules.prefix + image + (rules.separator + image) * (count - 1) + rules.suffix
        if whole != _rendered(tokenizer, template, question, count):
            raise ModelError(
                f"its chat template says something else to {count} images", where=str(folder)
            )
    return rules


def _rendered(tokenizer: Any, template: str, question: str, count: int) -> str:
    content: list[dict[str, str]] = [{"type": "image"} for _ in range(count)]
    content.append({"type": "text", "text": question})
    chance = random.getstate()
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )
    except Exception as error:  # jinja's errors, and whatever a template raises
        raise ModelError(f"its chat template fails: {first_line(error)}") from error
    if random.getstate() != chance:
        raise ModelError("its chat template says something by chance")
    return str(text)


def check_prompt(rules: PromptRules, tokenizer: Any, own: PromptTokenizer) -> int:
    """Compare prompts and their ids with transformers, for several grids; says how many.

    Raises ParityError with the first that differs, ModelError where transformers fails.
    """
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    compared = 0
    for grid in _GRIDS:
        for count in (1, 3):
            expanded = get_image_prompt_string(
                *grid,
                rules.tokens,
                image_token=rules.image,
                fake_token_around_image=rules.around,
                global_image_token=rules.whole,
            )
            text = rules.prefix + rules.separator.join([expanded] * count) + rules.suffix
            try:
                ids = list(tokenizer(text, add_special_tokens=rules.add_special)["input_ids"])
            except Exception as error:  # transformers raises whatever its parts raise
                raise ModelError(f"its tokenizer fails: {first_line(error)}") from error
            if text != prompt_text(rules, [grid] * count) or ids != own.encode([grid] * count):
                raise ParityError(
                    f"the prompt for {count} images in {grid} tiles is not that of transformers",
                    next_step="Nothing was installed.",
                )
            compared += 1
    return compared
