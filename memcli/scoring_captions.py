"""Whether a model gets the captions that it reads: known before the first video is decoded."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from memcli.captioning.choice import (
    choose_captioner,
    none_for,
)
from memcli.captioning.sources import CaptionMode, any_sidecar, check_required
from memcli.captions import Captions
from memcli.errors import ModelError, UsageError, VideoError
from memcli.inputs import AUDIO_SUFFIXES
from memcli.spec import ModelSpec
from memcli.text import plural, printable

if TYPE_CHECKING:
    from memcli.caption_maker import CaptionMaker
    from memcli.scoring import Scorer, ScoreSettings

_LOOK_S = 10.0


def check_captions(
    settings: ScoreSettings, spec: ModelSpec, videos: Sequence[str], *, whole: bool
) -> None:
    """Raise ModelError if a model reads captions and not one of `videos` would get any, or for a
    captioner that is not here; UsageError if all must have some (`require`) and do not.

    Only manifests are read. `whole` of False: other parts of the videos are scored elsewhere.
    """
    mode = settings.caption_mode or "prefer"
    if spec.text is None or mode == "none":
        return
    given = settings.captions
    if whole and videos and isinstance(given, Captions) and not any(map(given.fitting, videos)):
        raise UsageError(
            f"none of its {plural(len(given.entries), 'name')} fits a video of this run:"
            f" {printable(next(iter(given.entries)))}, but {printable(videos[0])}",
            where=given.name,
            next_step="Name videos by path, by file name or without ending; or leave the file out.",
        )
    if mode == "require":
        failing = {video for video in videos if not _may_be_video(video)}
        check_required(settings.captions, videos, whole=whole, failing=failing)
        return
    from memcli.caption_maker import expected_place

    place = expected_place(settings.device)
    try:
        if choose_captioner(settings.captioner, place, None) is not None:
            return
        error = none_for(place)
        if mode == "generate":
            raise error
    except ModelError as missing:
        missing.next_step = _or_give(missing, mode)
        raise
    if settings.captions is None and not any_sidecar(videos):
        next_step = _or_give(error, mode)
        if spec.head is not None and spec.head.kind == "LateFusion":
            next_step += "\nOr score the frames alone:  --captions none"
        raise ModelError(
            f"{spec.name} reads captions: none were given, none are beside the videos, and"
            f" {error.what}",
            next_step=next_step,
        )


def _or_give(error: ModelError, mode: CaptionMode) -> str:
    """What to do without a captioner where captions may come from elsewhere, too."""
    steps = [error.next_step or ""]
    if mode != "generate":
        steps.append("Or give captions:  --captions FILE, or clip.txt beside clip.mp4")
    return "\n".join(filter(None, steps))


def _may_be_video(path: str) -> bool:
    """Whether this can be a video: rows of others fail, with captions or without. What is named as
    sound mostly is, so that it is worth a look."""
    try:
        if os.stat(path).st_size == 0:  # noqa: PTH116
            return False
    except (OSError, ValueError):
        return False
    if os.path.splitext(path)[1].lower() not in AUDIO_SUFFIXES:  # noqa: PTH122
        return True
    from memcli.video import check_video

    try:
        check_video(path, deadline=time.monotonic() + _LOOK_S)
    except VideoError:
        return False
    return True


def maker_for(
    settings: ScoreSettings, spec: ModelSpec, device: str, report: Callable[[str], None]
) -> CaptionMaker | None:
    """What makes the captions of this run; None if it makes none.

    Raises as `memcli.caption_maker.open_maker` does.
    """
    mode = settings.caption_mode or "prefer"
    given = settings.captions
    if spec.text is None or mode not in ("prefer", "generate"):
        return None
    if given is not None and not isinstance(given, Captions):
        return None  # captions of a program, which has one for every video
    from memcli.caption_maker import open_maker

    maker = open_maker(
        settings.captioner,
        device=device,
        threads=settings.threads,
        sampling=settings.sampling,
        report=report,
    )
    if maker is None and mode == "generate":
        raise none_for(device)
    return maker


def check_without_captions(scorer: Scorer) -> None:
    """Raise UsageError if no captions were asked for and the model gives no score without.

    The model says so itself: its graph gives no number where no caption is present.
    """
    if scorer.settings.caption_mode != "none" or scorer.bundle.spec.text is None:
        return
    if not math.isfinite(scorer.score_without_captions()):
        raise UsageError(
            f"{scorer.bundle.model} gives no score from frames alone",
            next_step="Leave out --captions none",
        )
