"""Whether a model gets the captions that it reads: known before the first video is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from memcli.captioning.choice import (
    HOW_TO_GET,
    choose_captioner,
    installed_captioners,
    no_captioner_error,
)
from memcli.captioning.sources import any_sidecar, check_required
from memcli.captions import Captions
from memcli.errors import UsageError
from memcli.spec import ModelSpec

if TYPE_CHECKING:
    from memcli.caption_maker import CaptionMaker
    from memcli.scoring import Scorer, ScoreSettings


def check_captions(
    settings: ScoreSettings, spec: ModelSpec, videos: Sequence[str], *, whole: bool
) -> None:
    """Raise UsageError if a model reads captions and not one of `videos` would get any, or if all
    must have some (`require`) and do not; ModelError for a captioner that is not here.

    Only manifests are read. `whole` of False: other parts of the videos are scored elsewhere.
    """
    mode = settings.caption_mode or "prefer"
    if spec.text is None or mode == "none":
        return
    if mode == "require":
        check_required(settings.captions, videos, whole=whole)
        return
    if settings.captioner is not None:
        choose_captioner(settings.captioner, "cuda", None)  # raises if it is not here
        return
    if installed_captioners():
        return
    if mode == "generate":
        raise no_captioner_error()
    if settings.captions is None and not any_sidecar(videos):
        raise UsageError(
            f"{spec.name} reads captions: none were given, none are beside the videos, and no"
            " captioner is installed",
            next_step=HOW_TO_GET,
        )


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
        raise no_captioner_error(f"no captioner that is installed computes on {device}")
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
