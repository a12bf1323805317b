"""Synthetic frames: the same bits everywhere, and pictures that tell engines apart."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from memcli.engines.reference import synthetic_frames
from memcli.export.fill import GRAPHS
from memcli.models import MODELS
from memcli.spec import FramePrep


def prep(width: int, height: int) -> FramePrep:
    return FramePrep(4, width, height, width, height)


@pytest.mark.parametrize(
    ("width", "height", "digest"),
    [(227, 227, "d74bbcb549acb7ef"), (40, 25, "c64100201c0b68cf"), (1, 1, "f7792dd85db64485")],
)
def test_bits_are_fixed(width: int, height: int, digest: str) -> None:
    """Stored scores belong to these bits: a change here makes every reference worthless."""
    frames = synthetic_frames(prep(width, height), clips=8, frames_per_clip=2, seed=1)
    assert frames.shape == (8, 2, height, width, 3)
    assert frames.dtype == np.uint8
    assert hashlib.sha256(frames.tobytes()).hexdigest()[:16] == digest


def test_clips_and_frames_do_not_depend_on_their_number() -> None:
    many = synthetic_frames(prep(32, 32), clips=5, frames_per_clip=3, seed=7)
    few = synthetic_frames(prep(32, 32), clips=2, frames_per_clip=2, seed=7)
    assert np.array_equal(many[:2, :2], few)


def test_clips_frames_and_seeds_differ() -> None:
    frames = synthetic_frames(prep(64, 64), clips=12, frames_per_clip=2, seed=1)
    assert len({frame.tobytes() for clip in frames for frame in clip}) == 24
    assert not np.array_equal(frames, synthetic_frames(prep(64, 64), 12, 2, seed=2))


def test_stored_scores_spread() -> None:
    """Scores that hardly differ could not show that an engine has lost the ranking."""
    for spec in (spec for spec in MODELS.values() if spec.graph is not None):
        path = (GRAPHS / spec.graph).with_suffix(".reference.json")
        scores = np.array(json.loads(path.read_text())["frame_scores"])
        assert scores.mean(axis=1).std() > 0.05
        assert ((scores > 0) & (scores < 1)).all()
