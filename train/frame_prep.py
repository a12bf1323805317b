"""How an encoder's frames are prepared, read from its own `preprocessor_config.json`.

Both forms are understood: plain numbers for sizes (transformers up to 4.2x), and mappings with
height and width, or shortest_edge (since).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from memcli.errors import ModelError
from memcli.spec import FramePrep
from memcli.train.checkpoints import Checkpoint, read_json

_FILTERS: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
_FILTER_NAMES = {0: "nearest", 1: "lanczos", 4: "box", 5: "hamming"}
_MAX_SIDE = 4096
# What the processors of transformers take where the file does not say, by their class's name.
_CLIP = {
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "resample": 3,
    "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "Siglip": {"size": 224, "resample": 3, **_HALF},
    "ViT": {"size": 224, "resample": 2, **_HALF},
    "DINOv3ViT": {"size": 224, "resample": 2, **_IMAGENET},
}


def frame_prep(checkpoint: Checkpoint, like: FramePrep) -> FramePrep:
    """The preparation that the checkpoint was trained with.

    Frames and sampling are those of `like`. With `like.fit` "stretch" every frame is resized to
    the encoder's input whatever its shape (as a model may ask for); else as the checkpoint says.
    Raises ModelError, naming file and key, for settings that memcli does not have.
    """
    path, config = _config(checkpoint.folder)
    reader = _Reader(path, config)
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if reader.flag(key, True) is False:
            reader.refuse(key, "is false, which memcli cannot follow")
    if reader.flag("do_pad", False):
        reader.refuse("do_pad", "is true, which memcli cannot follow")
    resize = reader.size("size")
    crop = reader.size("crop_size") if reader.flag("do_center_crop", False) else resize
    fit: Literal["stretch", "shortest"] = "stretch"
    if resize[0] == "shortest":
        if not reader.flag("do_center_crop", False):
            reader.refuse("size", "keeps the shape of frames, but do_center_crop is not true")
        fit = "shortest"
    (_, resize_height, resize_width), (_, crop_height, crop_width) = resize, crop
    if like.fit == "stretch" and fit == "shortest":
        fit, resize_height, resize_width = "stretch", crop_height, crop_width
    if crop_height > resize_height or crop_width > resize_width:
        reader.refuse("crop_size", "is larger than size: memcli does not pad")
    return dataclasses.replace(
        like,
        resize_width=resize_width,
        resize_height=resize_height,
        crop_width=crop_width,
        crop_height=crop_height,
        filter=reader.filter(),
        fit=fit,
        scale=reader.number("rescale_factor", 1 / 255),
        mean=reader.triple("image_mean"),
        std=reader.triple("image_std", positive=True),
    )


def _config(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The image processor's part of the checkpoint's configuration."""
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return path, read_json(path)
    path = folder / "processor_config.json"  # transformers 5 writes all processors into one file
    found = read_json(path).get("image_processor")
    if not isinstance(found, dict):
        raise ModelError(
            "image_processor is missing",
            where=str(path),
            next_step="Put the checkpoint's preprocessor_config.json beside it.",
        )
    return path, found


class _Reader:
    """Typed access to a configuration that anybody may have written."""

    def __init__(self, path: Path, config: dict[str, Any]):
        self._path = path
        name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
        for suffix in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
            name = name.removesuffix(suffix)
        # null means "as the class has it", as a missing key does
        given = {key: value for key, value in config.items() if value is not None}
        self._config = {**_DEFAULTS.get(name, {}), **given}

    def refuse(self, key: str, why: str) -> None:
        raise ModelError(f"{key} {why}", where=str(self._path))

    def flag(self, key: str, default: bool) -> bool:
        value = self._config.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, f"is {str(value)[:40]!r}, not true or false")
        return bool(value)

    def size(self, key: str) -> tuple[Literal["stretch", "shortest"], int, int]:
        """How to fit, height and width."""
        value = self._config.get(key)
        if isinstance(value, dict):
            # newer files also list keys that do not apply, as null
            value = {name: side for name, side in value.items() if side is not None}
            if set(value) == {"shortest_edge"}:
                side = self._side(key, value["shortest_edge"])
                return "shortest", side, side
            if set(value) == {"height", "width"}:
                return "stretch", self._side(key, value["height"]), self._side(key, value["width"])
            self.refuse(
                key,
                f"has {', '.join(sorted(map(str, value)))[:80] or 'nothing'}; memcli "
                "knows height and width, or shortest_edge",
            )
        side = self._side(key, value)
        # A plain number is the shorter side where a crop follows (CLIP), else both sides (ViT).
        shortest = key == "size" and self.flag("do_center_crop", False)
        return ("shortest" if shortest else "stretch"), side, side

    def filter(self) -> Literal["bilinear", "bicubic"]:
        value = self._config.get("resample", 2)
        if type(value) is not int or value not in _FILTERS:
            name = _FILTER_NAMES.get(value) if type(value) is int else None
            self.refuse(
                "resample",
                f"is {str(value)[:40]} ({name or 'unknown'}); memcli has 2 "
                "(bilinear) and 3 (bicubic)",
            )
        return _FILTERS[int(value)]

    def number(self, key: str, default: float) -> float:
        value = self._config.get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e6:
            self.refuse(key, f"is {str(value)[:40]!r}, not a positive number")
        return float(value)

    def triple(self, key: str, positive: bool = False) -> tuple[float, float, float]:
        value = self._config.get(key)
        wrong = (
            not isinstance(value, (list, tuple))
            or len(value) != 3
            or not all(type(v) in (int, float) and abs(v) < 1e6 for v in value)
            or (positive and min(value) <= 0)
        )
        if wrong:
            self.refuse(key, f"is {str(value)[:60]}, not three {'positive ' * positive}numbers")
        red, green, blue = (float(v) for v in value or ())
        return red, green, blue

    def _side(self, key: str, value: Any) -> int:
        if type(value) is not int or not 1 <= value <= _MAX_SIDE:
            self.refuse(key, f"is {str(value)[:40]!r}, not a side of 1 to {_MAX_SIDE} pixels")
        return int(value)
