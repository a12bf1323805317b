"""Captions to calibrate and to check int8 with: of a file, else synthetic ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memcli.engines.reference import synthetic_captions
from memcli.errors import UsageError, VideoError
from memcli.export.calibration import (
    GATE_CLIPS,
    MIN_CALIBRATION_CAPTIONS,
    MIN_HOLDOUT_CAPTIONS,
    SYNTHETIC_CAPTIONS,
    CalibrationClips,
    split_by_video,
    spread_items,
)

if TYPE_CHECKING:
    Captions = tuple[str, ...]

_MAX_VIDEOS = 192
_SEED = 20


@dataclass(frozen=True)
class CalibrationCaptions:
    """Captions by video, at least one each; no sentence is on both sides."""

    calibration: tuple[Captions, ...]
    holdout: tuple[Captions, ...]
    source: str
    """Where they come from, for messages and reports."""


def captions_of_file(entries: Iterable[Sequence[str]], name: str) -> CalibrationCaptions:
    """Captions of at most 192 videos of a file, spread over it: half of them are held out.

    Raises UsageError if it has too few.
    """
    seen: set[str] = set()
    videos: list[Captions] = []
    for texts in entries:
        fresh = tuple(dict.fromkeys(text for text in texts if text not in seen))
        seen.update(fresh)
        if fresh:
            videos.append(fresh)
    needed = MIN_CALIBRATION_CAPTIONS + MIN_HOLDOUT_CAPTIONS
    if len(videos) < needed:
        raise UsageError(
            f"calibration needs different captions of {needed} videos, not of {len(videos)}",
            where=name,
        )
    calibration, holdout = split_by_video(spread_items(videos, _MAX_VIDEOS))
    return CalibrationCaptions(tuple(calibration), tuple(holdout), f"captions of {Path(name).name}")


def captions_of_videos(
    clips: CalibrationClips,
    of: Callable[[str], Sequence[str]],
    name: str,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[CalibrationClips, CalibrationCaptions]:
    """The clips that have captions, and these; `of` gives those of a path (`Captions.of`).

    Clips without captions are left out and reported, and so are captions to calibrate with that a
    video of the holdout has, too: annotators write the same of different videos. Raises UsageError
    if none is left.
    """

    def find(paths: Sequence[str]) -> dict[int, Captions]:
        """The captions of the videos that have some, by their places."""
        found = {}
        for place, path in enumerate(paths):
            with suppress(VideoError):
                found[place] = tuple(of(path))
        missing = [path for place, path in enumerate(paths) if place not in found]
        for path in dict.fromkeys(missing):
            report(f"not used: {path}: no caption of it in {name}")
        return found

    first, second = find(clips.calibration_paths), find(clips.holdout_paths)
    first = _without(first, second, clips.calibration_paths, report)
    if not first or not second:
        raise UsageError("it has no captions of the videos to calibrate with", where=name)
    left = CalibrationClips(
        [clips.calibration[i] for i in first],
        [clips.holdout[i] for i in second],
        [clips.calibration_paths[i] for i in first],
        [clips.holdout_paths[i] for i in second],
    )
    captions = tuple(first.values()), tuple(second.values())
    return left, CalibrationCaptions(*captions, f"captions of {Path(name).name}")


def without_calibration(
    clips: CalibrationClips, captions: CalibrationCaptions | None
) -> tuple[CalibrationClips, CalibrationCaptions | None]:
    """All in the holdout, for a precision that nothing is calibrated for: 64 clips of all videos
    and their captions. Captions without clips stay as they are."""
    if not clips.holdout:
        return clips, captions
    both = [*clips.calibration, *clips.holdout]
    paths = [*clips.calibration_paths, *clips.holdout_paths]
    places = spread_items(range(len(both)), GATE_CLIPS)
    left = CalibrationClips([], [both[i] for i in places], [], [paths[i] for i in places])
    if captions is None:
        return left, None
    texts = [*captions.calibration, *captions.holdout]
    return left, CalibrationCaptions((), tuple(texts[i] for i in places), captions.source)


def _without(
    first: Mapping[int, Captions],
    second: Mapping[int, Captions],
    paths: Sequence[str],
    report: Callable[[str], None],
) -> dict[int, Captions]:
    """`first` without the captions of `second`, and without videos that have no others."""
    held = {text for texts in second.values() for text in texts}
    kept: dict[int, Captions] = {}
    dropped = 0
    for place, texts in first.items():
        own = tuple(text for text in texts if text not in held)
        dropped += len(texts) - len(own)
        if own:
            kept[place] = own
        else:
            report(f"not used: {paths[place]}: a video to check with has its captions, too")
    if dropped:
        noun = "caption" if dropped == 1 else "captions"
        report(f"not calibrated with: {dropped} {noun} that videos to check with have, too")
    return kept


def synthetic_calibration_captions(
    calibration: int = MIN_CALIBRATION_CAPTIONS, holdout: int = MIN_HOLDOUT_CAPTIONS
) -> CalibrationCaptions:
    """One synthetic sentence for each clip; none of the holdout's is among the others.

    Raises UsageError if there are not enough of them.
    """
    found: dict[str, None] = {}
    for (sentence,) in synthetic_captions(4 * (calibration + holdout), 1, _SEED):
        found.setdefault(sentence)
    sentences = [(one,) for one in found]
    if len(sentences) < calibration + holdout:
        raise UsageError(f"there are {len(sentences)} synthetic captions only")
    return CalibrationCaptions(
        tuple(sentences[:calibration]),
        tuple(sentences[calibration : calibration + holdout]),
        SYNTHETIC_CAPTIONS,
    )
