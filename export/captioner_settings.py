"""What the files of a SmolVLM2 checkpoint ask of whoever runs it, as rules for the manifest.

What they ask for and the rules cannot express is refused, not ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memcli.captioning.generate import GenerationRules
from memcli.captioning.images import ImageRules
from memcli.errors import ModelError
from memcli.train.checkpoints import read_json

_RESAMPLE = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
_PLAIN: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1),
    "encoder_repetition_penalty": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "bad_words_ids": (None, []),
    "force_words_ids": (None, []),
    "constraints": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None, {}),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "max_time": (None,),
    "stop_strings": (None, [], ""),
    "num_beams": (None, 1),
    "num_beam_groups": (None, 0, 1),
    "num_return_sequences": (None, 1),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
    "token_healing": (None, False),
    "watermarking_config": (None, {}),
    "remove_invalid_values": (None, False),
}
"""Settings that would change greedy generation, and the values with which they do not."""


def section(settings: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """An object in a file's object; empty if it is not there. Raises ModelError if it is none."""
    value = settings.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ModelError(f"{name} is {str(value)[:80]!r}, not an object", where=str(path))
    return value


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
    video = section(found, "video_sampling", path)
    if splitting is None:
        splitting = video.get("do_image_splitting") is True
    side = _edge(found.get("max_image_size"))
    size = found.get("size") if splitting else video.get("video_size", found.get("max_image_size"))
    longest = _edge(size)
    resized = _flag(found, "do_resize", path)
    number = found.get("resample", 1)
    resample = _RESAMPLE.get(number) if type(number) is int else None
    if side is None or resample is None or (longest is None and resized):
        raise ModelError("sizes or filter of images that memcli does not know", where=str(path))
    return ImageRules(side, longest if resized else None, splitting, resample)


def _edge(size: Any) -> int | None:
    value = size.get("longest_edge") if isinstance(size, dict) else size
    return value if type(value) is int else None


def _flag(settings: Mapping[str, Any], name: str, path: Path) -> bool:
    value = settings.get(name, True)
    if type(value) is not bool:
        raise ModelError(f"{name} is {str(value)[:80]!r}, not true or false", where=str(path))
    return value


def normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel of pixels from 0 to 255.

    Raises ModelError for values that are none, or too large or too small to compute with.
    """
    path = folder / "preprocessor_config.json"
    found = read_json(path)
    factor: Any = 1.0
    if _flag(found, "do_rescale", path):
        factor = found.get("rescale_factor", 1 / 255)
    mean: Any = [0.0] * 3
    std: Any = [1.0] * 3
    if _flag(found, "do_normalize", path):
        mean, std = found.get("image_mean", [0.5] * 3), found.get("image_std", [0.5] * 3)
    if not all(isinstance(one, list) and len(one) == 3 for one in (mean, std)):
        raise ModelError("mean and deviation need three channels", where=str(path))
    if not all(type(one) in (int, float) for one in (factor, *mean, *std)):
        raise ModelError("mean, deviation or rescale_factor are no numbers", where=str(path))
    try:
        means, stds = ([float(one) / factor for one in values] for values in (mean, std))
    except (OverflowError, ZeroDivisionError):
        means, stds = [], []
    if not means or not all(map(_usable, (*means, *stds))) or 0 in stds:
        raise ModelError(
            "mean, deviation or rescale_factor are no numbers to compute with", where=str(path)
        )
    return means, stds


def _usable(value: float) -> bool:
    """Whether it is a number, and in float32 as well."""
    return value == 0 or (math.isfinite(value) and 1e-30 < abs(value) < 1e30)


def generation_rules(folder: Path, max_new_tokens: int) -> GenerationRules:
    """When texts end, from generation_config.json or, without it, config.json.

    Raises ModelError for settings that would change greedy generation, and for no stop token.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        path = folder / "config.json"
    found = read_json(path)
    _check_plain(found, str(path))
    stop = found.get("eos_token_id")
    if stop is None:
        config = folder / "config.json"
        stop = section(read_json(config), "text_config", config).get("eos_token_id")
    ids: list[Any] = stop if isinstance(stop, list) else [stop]
    if not ids or not all(type(one) is int for one in ids):
        raise ModelError("names no token that ends a text (eos_token_id)", where=str(path))
    return GenerationRules(max_new_tokens, tuple(sorted(set(ids))))


def check_generation(rules: GenerationRules, settings: Mapping[str, Any], where: str) -> None:
    """Compare with the settings that transformers' own `generate` takes: of which file and section
    they come depends on its version.

    Raises ModelError if they change greedy generation, or end texts at other tokens.
    """
    _check_plain(settings, where)
    stop = settings.get("eos_token_id")
    theirs = stop if isinstance(stop, list) else [stop]
    same = all(one in theirs for one in rules.stop) and all(one in rules.stop for one in theirs)
    if stop is not None and not same:
        raise ModelError(
            f"transformers ends its texts at {str(theirs)[:80]}, not at {list(rules.stop)}"
            " (eos_token_id)",
            where=where,
        )


def _check_plain(settings: Mapping[str, Any], where: str) -> None:
    for name, harmless in _PLAIN.items():
        if name in settings and settings[name] not in harmless:
            raise ModelError(
                f"asks for {name} = {str(settings[name])[:80]!r}, which memcli does not do",
                where=where,
            )
