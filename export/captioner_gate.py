"""Does the exported captioner write what transformers' own `generate` writes?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memcli.captioning.captioner import Captioner
from memcli.captioning.images import ImageRules, prepare_clip, resize
from memcli.errors import ModelError, ParityError
from memcli.train.checkpoints import first_line

Clip = npt.NDArray[np.uint8]
_SIZES = ((90, 160), (120, 96), (64, 64))
_LEAST_AGREEMENT = {"fp32": 1.0, "fp16": 0.9, "int8": 0.85}
"""Share of tokens, given the same text before them, below which nothing is installed."""
NEW_TOKENS = 32
_MOST_APART = 0.01
"""Of pixels from 0 to 255, after normalisation in float32: the pixels themselves are integers."""


def frame_sets(frames: int, seed: int = 0) -> list[Clip]:
    """Clips uint8 [T, H, W, 3] of several sizes and lengths: colours that drift, and noise."""
    random = np.random.default_rng(seed)
    clips = []
    for (height, width), count in zip(_SIZES, (frames, max(frames // 2, 1), 1), strict=True):
        small = random.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
        large = np.stack([resize(one, height, width, "bilinear") for one in small]).astype(int)
        noisy = large + random.integers(-20, 21, large.shape)
        clips.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return clips


def reference_tokens(
    model: Any,
    captioner: Captioner,
    clip: Clip,
    mean: Sequence[float],
    std: Sequence[float],
    new_tokens: int,
) -> list[int]:
    """Greedy tokens of transformers for one clip, with the stop token if there is one.

    Raises ModelError where transformers fails.
    """
    import torch

    images, tiles = prepare_clip(clip, captioner.bundle.images)
    pixels = (torch.from_numpy(images).float() - torch.tensor(mean)) / torch.tensor(std)
    ids = torch.tensor([captioner.prompt_ids([tiles] * len(clip))])
    try:
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels.permute(0, 3, 1, 2)[None],
                do_sample=False,
                max_new_tokens=new_tokens,
                return_dict_in_generate=False,
            )
    except Exception as error:  # transformers raises whatever its parts raise
        raise ModelError(
            f"transformers cannot caption with this checkpoint: {first_line(error)}"
        ) from error
    return [int(one) for one in found[0, ids.shape[1] :]]


def gate_captioner(
    model: Any, captioner: Captioner, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """Compare the tokens on several frame sets, in batches; the report for the manifest.

    In fp32 every token must be that of transformers. In other precisions each token is compared
    given the same text before it. Raises ParityError with the figures otherwise; then nothing is
    installed.
    """
    precision = captioner.bundle.precision
    clips = frame_sets(captioner.bundle.frames)
    wanted = [reference_tokens(model, captioner, clip, mean, std, NEW_TOKENS) for clip in clips]
    found = captioner.follow(clips, wanted)
    pairs = [
        pair
        for ours, theirs in zip(found, wanted, strict=True)
        for pair in zip(ours, theirs, strict=True)
    ]
    same = sum(a == b for a, b in pairs)
    agreement = same / len(pairs)
    report = {
        "compared_with": "transformers generate, greedy",
        "frame_sets": len(clips),
        "tokens": len(pairs),
        "agreement": round(agreement, 4),
    }
    least = _LEAST_AGREEMENT[precision]
    if agreement < least:
        raise ParityError(
            f"the captioner in {precision} agrees with the original on {same} of {len(pairs)}"
            f" tokens; at least {least:.0%} are needed",
            next_step="Nothing was installed.",
        )
    return report


def check_images(
    rules: ImageRules, mean: Sequence[float], std: Sequence[float], processor: Any
) -> str:
    """Compare prepared and normalised frames with transformers' image processor of the checkpoint;
    says what was compared.

    Filter, sizes, mean and deviation are those that `processor` has read from the files itself. It
    only knows images: what is told it is whether frames are cut and, where they are not, the size
    that the section for videos gives. `processor` is None where Pillow is missing. Raises
    ModelError where it fails, ParityError if a pixel differs.
    """
    if processor is None:
        return "not compared: Pillow is not installed"
    settings: dict[str, Any] = {"do_image_splitting": rules.splitting, "return_tensors": "np"}
    if not rules.splitting:
        settings["size"] = {"longest_edge": rules.longest or rules.side}
    clips = [one for clip in frame_sets(1) for one in clip]
    for frame in clips:
        try:
            theirs = processor([frame], **settings)["pixel_values"][0].transpose(0, 2, 3, 1)
        except Exception as error:  # transformers raises whatever its parts raise
            raise ModelError(f"transformers' image processor fails: {first_line(error)}") from error
        ours, _ = prepare_clip(frame[None], rules)
        back = theirs.astype(np.float64) * np.array(std) + np.array(mean)
        if ours.shape != back.shape or not np.allclose(ours, back, rtol=0, atol=_MOST_APART):
            raise ParityError(
                f"a frame of {frame.shape[1]} x {frame.shape[0]} differs from transformers'",
                next_step="Nothing was installed.",
            )
    return f"equal to {type(processor).__name__} on {len(clips)} frames"
