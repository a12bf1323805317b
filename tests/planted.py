"""A planted signal: rendered clips whose score is a function of what is seen and said.

    python tests/planted.py DIR --videos 300 [--shuffle] [--noise 0.02] [--seed 0]

writes DIR/videos/*.mp4 and DIR/planted.csv in the generic form (path, score, caption, split,
group; five rows per clip, one per caption). A clip shows a square on a coloured background; the
score grows with the warmth of the background and the size of the square, and the captions name
both in words. So a model that looks, reads or does both can learn it, and with --shuffle none can.
It validates code, not memorability: figures on it are always marked as planted.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

COLOURS = ("blue", "teal", "green", "olive", "yellow", "orange", "red")
"""From cold to warm."""
SIZES = ("tiny", "small", "medium", "large", "huge")
_PHRASES = (
    "a {size} square on a {colour} background",
    "there is a {size} square moving over {colour}",
    "{colour} picture with one {size} white square",
    "the {size} square slides across a {colour} wall",
    "white square of {size} size and {colour} light",
)
WORDS = sorted({word for phrase in _PHRASES for word in phrase.split() if "{" not in word})
"""Every word of the captions but the telling ones."""
_SIDE = 64
_FRAMES = 12
_RATE = 12
_GROUP = 2
"""Clips of one film."""


@dataclass(frozen=True)
class PlantedClip:
    """What one clip shows, both in [0, 1], and its score."""

    warmth: float
    size: float
    score: float

    @property
    def captions(self) -> tuple[str, ...]:
        colour = COLOURS[min(int(self.warmth * len(COLOURS)), len(COLOURS) - 1)]
        size = SIZES[min(int(self.size * len(SIZES)), len(SIZES) - 1)]
        return tuple(phrase.format(colour=colour, size=size) for phrase in _PHRASES)


def planted_clips(count: int, *, seed: int = 0, noise: float = 0.02) -> list[PlantedClip]:
    """`count` clips; `noise` is the standard deviation of what no model can know."""
    rng = np.random.default_rng(seed)
    clips = []
    for _ in range(count):
        warmth, size = rng.random(2)
        score = 0.3 + 0.6 * (0.6 * warmth + 0.4 * size) + noise * rng.standard_normal()
        clips.append(PlantedClip(float(warmth), float(size), float(np.clip(score, 0, 1))))
    return clips


def render(clip: PlantedClip, path: Path, *, seed: int) -> None:
    """Write the clip as an MP4 of one second."""
    rng = np.random.default_rng(seed)
    background = np.array([40 + 190 * clip.warmth, 70, 230 - 190 * clip.warmth])
    side = round(8 + 40 * clip.size)
    top, left = rng.integers(0, _SIDE - side, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_RATE)
        stream.width = stream.height = _SIDE
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "preset": "ultrafast"}
        stream.codec_context.thread_count = 1
        for number in range(_FRAMES):
            picture = background + rng.normal(0, 6, (_SIDE, _SIDE, 1))
            x = (left + number) % (_SIDE - side)
            picture[top : top + side, x : x + side] = 235
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def make_planted(
    folder: Path,
    videos: int,
    *,
    seed: int = 0,
    noise: float = 0.02,
    shuffle: bool = False,
    name: str = "planted.csv",
) -> Path:
    """Write the dataset; returns its CSV. The last fifth, in whole groups, is the split `dev`, the
    rest `train`.

    `shuffle` gives every clip the score of another one: what remains learnable is nothing.
    """
    clips = planted_clips(videos, seed=seed, noise=noise)
    scores = np.array([clip.score for clip in clips])
    if shuffle:
        scores = np.random.default_rng(seed + 1).permutation(scores)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    table = folder / name
    first_of_dev = videos * 4 // 5 // _GROUP * _GROUP
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "score", "caption", "split", "group"))
        for number, (clip, score) in enumerate(zip(clips, scores, strict=True)):
            video = f"videos/clip{number:04d}.mp4"
            if not (folder / video).exists():
                render(clip, folder / video, seed=seed * 1_000_003 + number)
            split = "dev" if number >= first_of_dev else "train"
            for caption in clip.captions:
                writer.writerow((video, f"{score:.6f}", caption, split, f"film{number // _GROUP}"))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.02)
    parser.add_argument("--shuffle", action="store_true")
    options = parser.parse_args()
    table = make_planted(
        options.folder,
        options.videos,
        seed=options.seed,
        noise=options.noise,
        shuffle=options.shuffle,
    )
    print(f"{options.videos} clips in {table}")


if __name__ == "__main__":
    main()
