"""Synthetic EEG, references of epochs, and how epochs are compared."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcli.engines.comparison import Comparison, as_probabilities, compare, compare_epochs
from memcli.engines.records import _report
from memcli.engines.synthetic_eeg import synthetic_epochs
from memcli.engines.verify import (
    EEG,
    SAMPLES,
    SUBJECT,
    SYNTHETIC_EEG,
    ParityReport,
    Reference,
    epoch_feeds,
    reference_feeds,
)
from memcli.errors import ModelError
from memcli.models import get_model
from memcli.spec import EegPrep, ModelSpec, Tolerance

SPEC = get_model("eeg-cnn")
PREP = SPEC.eeg
assert PREP is not None
LIMIT = Tolerance(0.01, 0.005)
GOLDEN = "488517cabbe0689f5dc2c8cb26f911c21dda839c2c167aeb7b3f009ddf254612"
"""SHA-256 of 12 epochs of seed 1: a bundle made with others could not be verified here."""


def test_the_epochs_are_the_same_everywhere() -> None:
    made = synthetic_epochs(PREP, 12, seed=1)
    digest = hashlib.sha256(made.eeg.astype("<f4").tobytes() + made.samples.tobytes())
    assert digest.hexdigest() == GOLDEN


def test_an_epoch_depends_on_its_number_and_the_seed_alone() -> None:
    few, many = synthetic_epochs(PREP, 5, seed=3), synthetic_epochs(PREP, 9, seed=3)
    np.testing.assert_array_equal(few.eeg, many.eeg[:5])
    np.testing.assert_array_equal(few.samples, many.samples[:5])
    assert (synthetic_epochs(PREP, 5, seed=4).eeg != few.eeg).any()


def test_amplitudes_and_spectrum_are_those_of_recordings() -> None:
    made = synthetic_epochs(PREP, 24, seed=0)
    whole = made.eeg[made.samples == PREP.samples]
    deviations = whole.std(axis=2)
    assert 5 < np.median(deviations) < 40, "microvolts"
    assert np.abs(whole.mean(axis=2)).max() > 200, "offsets of amplifiers"
    power = np.abs(np.fft.rfft(whole - whole.mean(axis=2, keepdims=True))) ** 2
    hertz = np.fft.rfftfreq(PREP.samples, 1 / PREP.sfreq_hz)

    def band(low: float, high: float) -> float:
        return float(power[..., (hertz >= low) & (hertz < high)].mean())

    assert band(1, 2) > 3 * band(4, 7) > 9 * band(30, 45)
    assert band(9, 11) > 2 * band(4, 8), "alpha"


def test_padding_and_flat_channels_occur() -> None:
    made = synthetic_epochs(PREP, 12, seed=1)
    lengths = made.samples
    assert 1 in lengths
    assert (lengths == PREP.samples).sum() == 6
    assert ((lengths > 1) & (lengths < PREP.window_samples)).any()
    assert any(0 < one < PREP.samples and one % PREP.window_samples == 0 for one in lengths)
    there = np.arange(PREP.samples) < lengths[:, None, None]
    assert not made.eeg[~np.broadcast_to(there, made.eeg.shape)].any()
    flat = np.ptp(made.eeg, axis=2) == 0
    assert flat[lengths == PREP.samples].sum(axis=1).tolist().count(1) == 3


@given(
    st.integers(1, 5), st.integers(1, 3), st.sampled_from([0.25, 1.0]), st.sampled_from([20.0, 128])
)
def test_epochs_of_any_shape(channels: int, windows: int, window_s: float, rate: float) -> None:
    names = tuple(f"E{number}" for number in range(channels))
    prep = EegPrep(names, float(rate), window_s * windows, window_s=window_s, subjects=("a",))
    made = synthetic_epochs(prep, 12, seed=0)
    assert made.eeg.shape == (12, *prep.epoch_shape())
    assert ((made.samples >= 1) & (made.samples <= prep.samples)).all()
    assert set(made.subject) == {0, 1}


def test_feeds_have_subjects_only_where_the_model_knows_some() -> None:
    assert set(epoch_feeds(PREP, 3, 0)) == {EEG, SAMPLES}
    feeds = epoch_feeds(replace(PREP, subjects=("a", "b")), 4, 0)
    assert feeds[SUBJECT].tolist() == [0, 1, 2, 0]
    assert feeds[SUBJECT].dtype == feeds[SAMPLES].dtype == np.int64
    assert feeds[EEG].dtype == np.float32


def make_reference(**changes: Any) -> Reference:
    given: dict[str, Any] = {
        "clips": 2,
        "frames_per_clip": 0,
        "seed": 0,
        "tolerance": LIMIT,
        "scores": (0.5, 0.6),
        "contributions": ((0.0,) * 11, (0.1,) * 11),
        "kind": SYNTHETIC_EEG,
    }
    return Reference(**{**given, **changes})


def test_a_reference_survives_the_manifest() -> None:
    reference = make_reference()
    assert Reference.from_dict(reference.to_dict()) == reference
    feeds = reference_feeds(reference, SPEC, None)
    np.testing.assert_array_equal(feeds[EEG], synthetic_epochs(PREP, 2, 0).eeg)


@pytest.mark.parametrize(
    "changes",
    [
        {"contributions": ((0.0,) * 11,)},
        {"contributions": ((0.0,) * 11, (0.0,) * 10)},
        {"contributions": ()},
        {"scores": (), "frame_scores": ((0.5,), (0.5,)), "frames_per_clip": 1},
        {"kind": "synthetic-1"},
        {"kind": "synthetic-eeg-2"},
        {"contributions": "much"},
    ],
)
def test_a_damaged_reference_is_refused(changes: dict[str, Any]) -> None:
    entry = {**make_reference().to_dict(), **changes}
    with pytest.raises(ModelError):
        Reference.from_dict(entry)


def test_a_reference_of_another_kind_of_model_is_refused() -> None:
    video = Reference(2, 1, 0, LIMIT, frame_scores=((0.5,), (0.5,)))
    with pytest.raises(ModelError, match="not of this model"):
        reference_feeds(video, SPEC, None)
    with pytest.raises(ModelError, match="not of this model"):
        reference_feeds(make_reference(), get_model("resmem"), None)
    large = replace(SPEC, eeg=replace(PREP, duration_s=1000.0))
    many = make_reference(clips=50, scores=(0.5,) * 50, contributions=((0.0,),) * 50)
    with pytest.raises(ModelError, match="too large"):
        reference_feeds(many, large, None)


def test_manifests_and_records_of_videos_are_as_they_were() -> None:
    reference = Reference(2, 1, 0, LIMIT, frame_scores=((0.5,), (0.5,)))
    assert set(reference.to_dict()) == {
        *("clips", "frames_per_clip", "seed", "frame_scores", "tolerance", "kind")
    }
    comparison = compare(np.full((2, 1), 0.5), np.full((2, 1), 0.5), LIMIT)
    report = ParityReport(
        **asdict(comparison), engine="e", precision="fp32", clips_per_s=2.0, frames_per_s=None
    )
    assert "of" not in report.to_dict()
    assert report.unit == "clips/s"
    assert _report(report.to_dict()) == report
    epochs = replace(report, of="epochs")
    assert epochs.unit == "epochs/s"
    assert _report(epochs.to_dict()) == epochs
    assert _report({**report.to_dict(), "of": "videos"}) is None


def compared(scores: Any, shares: Any) -> Comparison:
    wanted = np.array([0.2, 0.8]), np.array([[0.1, -0.5], [2.0, 0.4]])
    return compare_epochs((np.asarray(scores), wanted[0]), (np.asarray(shares), wanted[1]), LIMIT)


def test_scores_and_contributions_are_both_held_to_the_tolerance() -> None:
    shares = np.array([[0.1, -0.5], [2.0, 0.4]])
    same = compared([0.2, 0.8], shares)
    assert same.passed
    assert (same.clips, same.frames, same.max_abs, same.frame_max_abs) == (2, 4, 0, 0)
    assert "2 epochs, 4 windows" in same.numbers()
    assert not compared([0.2, 0.82], shares).passed
    # By the largest of them, 2, and the slope of the sigmoid, 1 / 4.
    one = np.array([[0.0, 1.0], [0.0, 0.0]])
    assert compared([0.2, 0.8], shares + 0.07 * one).passed
    assert not compared([0.2, 0.8], shares + 0.09 * one).passed
    assert not compared([0.2, np.nan], shares).passed
    assert not compared([0.2, 0.8], [[0.1, np.nan], [2.0, 0.4]]).passed
    with pytest.raises(ValueError, match="contributions of shape"):
        compared([0.2, 0.8], shares[:, :1])


def test_small_contributions_are_not_blown_up() -> None:
    found, wanted = as_probabilities(np.array([0.02]), np.array([0.01]))
    assert found - wanted == pytest.approx(0.0025)


def test_the_spec_survives_the_manifest() -> None:
    spec = replace(SPEC, eeg=replace(PREP, subjects=("a", "b"), low_pass_hz=40.0))
    assert ModelSpec.from_dict(spec.to_dict()) == spec
