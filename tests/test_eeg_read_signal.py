"""Samples: equal to scipy and MNE over the whole recording, in bounded memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from eeg_media import NAMES, noise, raw_of, real, save_fif
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.eeg import EpochOptions, open_recording, read_epochs
from memcli.eeg.blocks import Blocks
from memcli.eeg.filters import BandFilter
from memcli.eeg.resample import Resampler
from memcli.spec import EegPrep

mne = pytest.importorskip("mne")
resample_poly = pytest.importorskip("scipy.signal").resample_poly


def epochs_of(path: Path, prep: EegPrep, **options):
    with open_recording(path) as recording:
        stream = read_epochs(recording, prep, EpochOptions(**options))
        return list(stream), stream


@pytest.mark.parametrize("sfreq", [100, 128, 200, 250, 256, 500, 512, 600.615, 1000, 2048])
def test_a_stretch_is_resampled_as_the_whole(sfreq: float) -> None:
    resample = Resampler(sfreq, 100)
    data = np.random.default_rng(0).standard_normal((3, int(sfreq * 40)))
    whole = resample_poly(data, resample.up, resample.down, axis=1)
    first = resample.up * max(1, round(12 * sfreq / resample.down))
    start = first // resample.up * resample.down - resample.margin
    part = resample(data[:, start : start + resample.input_length(500)], 500)
    np.testing.assert_allclose(part, whole[:, first : first + 500], atol=1e-12)


def test_too_few_samples_are_refused_rather_than_read_beyond_the_array() -> None:
    resample = Resampler(512, 100)
    with pytest.raises(ValueError, match="fewer samples"):
        resample(np.zeros((2, resample.input_length(100) - 1)), 100)


@pytest.mark.parametrize("sfreq", [256, 500, 600.615])
def test_epochs_equal_scipy_over_the_whole_recording(tmp_path: Path, sfreq: float) -> None:
    """Also at both ends, where the recording is continued by reflection as MNE's polyphase does.

    Onsets that are no multiple of the ratio's denominator: the recording is shifted to them.
    """
    events = [(0, 0, "video"), (1.037, 0, "video"), (8.41, 0, "video"), (16.5, 0, "video")]
    raw = raw_of(NAMES[:3], 20, sfreq, events)
    path = save_fif(tmp_path / "a_raw.fif", raw)
    epochs, _ = epochs_of(path, EegPrep(NAMES[:3], duration_s=6))
    resample = Resampler(sfreq, 100)
    data = raw.get_data()
    assert len(epochs) == 4
    for epoch in epochs:
        onset = round(epoch.onset_s * sfreq)
        level = data[:, onset : onset + 1]  # the filter's gain at 0 Hz is not quite 1
        whole = resample_poly(
            np.pad(data - level, ((0, 0), (6000, 6000)), mode="reflect")[
                :, (6000 + onset) % resample.down :
            ],
            resample.up,
            resample.down,
            axis=1,
        )
        whole = 1e6 * (whole + level)
        first = (6000 + onset) // resample.down * resample.up
        expected = whole[:, first : first + epoch.samples]
        np.testing.assert_allclose(epoch.data[:, : epoch.samples], expected, rtol=1e-6, atol=1e-5)
        assert not epoch.data[:, epoch.samples :].any()
    assert epochs[-1].flags == ("padded", "end-of-recording")
    assert epochs[-1].samples in (350, 351)


def test_resampling_equals_mne_on_a_real_recording() -> None:
    path = real("eeglab/eeglab_data.set")
    raw = mne.io.read_raw_eeglab(path, preload=True, verbose="ERROR").pick(["Cz", "Pz", "Oz"])
    epochs, _ = epochs_of(path, EegPrep(("Cz", "Pz", "Oz")), event="square")
    # A multiple of 32 samples: MNE rounds the ratio to whole lengths.
    data = 1e6 * raw.get_data()[:, : 953 * 32]
    aligned = [e for e in epochs if round(e.onset_s * 128) % 32 == 0 and e.onset_s < 226]
    assert len(epochs) == 80
    assert aligned
    for epoch in aligned:
        onset = round(epoch.onset_s * 128)
        level = data[:, onset : onset + 1]
        whole = mne.filter.resample(data - level, 25.0, 32.0, method="polyphase", verbose="ERROR")
        first = onset // 32 * 25
        expected = whole[:, first : first + epoch.samples] + level
        np.testing.assert_allclose(epoch.data[:, : epoch.samples], expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(0.5, None), (None, 40.0), (1.0, 30.0)])
def test_filter_and_reference_equal_the_whole_recording(
    tmp_path: Path, low: float | None, high: float | None
) -> None:
    raw = raw_of(NAMES[:4], 90, 200, [(40, 0, "video"), (43, 0, "video")])
    path = save_fif(tmp_path / "a_raw.fif", raw)
    prep = EegPrep(NAMES[:4], high_pass_hz=low, low_pass_hz=high, reference="average")
    epochs, _ = epochs_of(path, prep)
    whole = mne.filter.filter_data(
        resample_poly(raw.get_data(), 1, 2, axis=1), 100, low, high, verbose="ERROR"
    )
    whole -= whole.mean(axis=0)
    for epoch in epochs:
        first = round(epoch.onset_s * 100)
        np.testing.assert_allclose(
            epoch.data, 1e6 * whole[:, first : first + 1100], rtol=1e-6, atol=1e-5
        )


@pytest.mark.parametrize("sfreq", [256, 512, 600.615])
def test_an_offset_leaves_no_wave(tmp_path: Path, sfreq: float) -> None:
    """A z-score would blow up what the filter makes of an offset in a channel without signal."""
    data = noise(4, round(20 * sfreq))
    data[1] = 0.02
    still = raw_of(NAMES[:4], 20, sfreq, [(2.037, 0, "video")], data=data)
    prep = EegPrep(NAMES[:4], duration_s=6)
    (plain,), _ = epochs_of(save_fif(tmp_path / "a_raw.fif", still), prep, on_dead="flag")
    assert np.ptp(plain.data[1]) == 0
    assert plain.data[1, 0] == pytest.approx(20_000)
    data[2] += 0.03
    shifted = raw_of(NAMES[:4], 20, sfreq, [(2.037, 0, "video")], data=data)
    (moved,), _ = epochs_of(save_fif(tmp_path / "b_raw.fif", shifted), prep, on_dead="flag")
    np.testing.assert_allclose(moved.data[2] - 30_000, plain.data[2], atol=0.005)


def test_blocks_give_the_same_as_one_epoch_at_a_time(tmp_path: Path) -> None:
    """Epochs that overlap, touch and lie apart; each alone must equal itself among the others."""
    onsets = [0.5, 3, 3.5, 9, 20, 20.1, 33, 41, 58]
    raw = raw_of(NAMES[:4], 60, 250, [(onset, 0, "video") for onset in onsets])
    path = save_fif(tmp_path / "a_raw.fif", raw)
    prep = EegPrep(NAMES[:4], duration_s=4, high_pass_hz=1)
    together, _ = epochs_of(path, prep)
    for onset, epoch in zip(onsets, together, strict=True):
        table = tmp_path / "one.csv"
        table.write_text(f"onset_s\n{onset}\n")
        (alone,), _ = epochs_of(path, prep, onsets=table)
        np.testing.assert_array_equal(alone.data, epoch.data)


class Counting:
    """A signal of sample numbers that remembers what was read."""

    samples = 5000

    def __init__(self) -> None:
        self.read_samples = 0

    def read(self, picks, start, stop):
        self.read_samples += stop - start
        return np.arange(start, stop, dtype=float)[None]


@given(st.lists(st.tuples(st.integers(-400, 5200), st.integers(1, 900)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_stretch_is_the_recording_reflected_at_its_ends(spans: list[tuple[int, int]]) -> None:
    stretches = sorted((start, start + length) for start, length in spans)
    signal = Counting()
    blocks = Blocks(signal, [0], stretches)
    period = 2 * (signal.samples - 1)
    for start, stop in stretches:
        place = np.arange(start, stop) % period
        expected = np.where(place < signal.samples, place, period - place)
        np.testing.assert_array_equal(blocks.get(start, stop)[0], expected)


def test_each_sample_is_read_once() -> None:
    signal = Counting()
    stretches = [(start, start + 700) for start in range(0, 4200, 100)]
    blocks = Blocks(signal, [0], stretches)
    for start, stop in stretches:
        blocks.get(start, stop)
    assert signal.read_samples == 4800


def test_interpolation_equals_mne() -> None:
    """Same places, centre and channels: what MNE puts into the channels marked bad."""
    from memcli.eeg.splines import spline_weights

    raw = raw_of(seconds=4, events=())
    raw.set_montage("easycap-M1", verbose="ERROR")
    raw.info["bads"] = ["T7", "Cz"]
    places = np.array([ch["loc"][:3] for ch in raw.info["chs"]])
    good = np.array([name not in raw.info["bads"] for name in NAMES])
    centre = np.array([0.0, 0.0, 0.04])
    data = raw.get_data()
    weights = spline_weights(places[good], places[~good], centre)
    raw.interpolate_bads(origin=tuple(centre), method={"eeg": "spline"}, verbose="ERROR")
    expected = raw.get_data()[~good]
    np.testing.assert_allclose(weights @ data[good], expected, atol=1e-9 * np.abs(data).max())


def test_interpolated_channels_resemble_what_was_taken_away(tmp_path: Path) -> None:
    path = real("eeglab/eeglab_data.set")
    raw = mne.io.read_raw_eeglab(path, preload=True, verbose="ERROR")
    with open_recording(path) as recording:
        names = recording.info.eeg
    (whole, *_), _ = epochs_of(path, EegPrep(names), event="square")
    short = save_fif(tmp_path / "a_raw.fif", raw.drop_channels(["Cz", "P4"]))
    (filled, *_), stream = epochs_of(
        short, EegPrep(names), event="square", on_missing="interpolate"
    )
    assert stream.notes[-2:] == (
        "interpolated: Cz, P4",
        "3 epochs padded: beyond the recording's end",
    )
    assert {"interpolated:Cz", "interpolated:P4"} <= set(filled.flags)
    for name in ("Cz", "P4"):
        place = names.index(name)
        assert np.corrcoef(whole.data[place], filled.data[place])[0, 1] > 0.85
    others = [place for place, name in enumerate(names) if name not in ("Cz", "P4")]
    np.testing.assert_allclose(whole.data[others], filled.data[others], rtol=1e-5, atol=1e-4)


def test_a_band_that_the_rate_cannot_hold_is_refused() -> None:
    from memcli.errors import UsageError

    for low, high in ((60.0, None), (None, 50.0), (30.0, 20.0), (0.0, None)):
        with pytest.raises(UsageError, match="no band"):
            BandFilter(EegPrep(("Cz",), high_pass_hz=low, low_pass_hz=high))


def test_memory_is_a_fraction_of_the_recording(tmp_path: Path) -> None:
    """400 s of 64 channels: what reading needs does not grow with the recording's length."""
    names = [f"E{i}" for i in range(64)]
    raw = raw_of(names, 400, 512, (), data=np.tile(noise(64, 5120), (1, 40)))
    raw.save(tmp_path / "a_raw.fif", verbose="ERROR")
    whole = raw.get_data().nbytes
    del raw
    table = tmp_path / "onsets.csv"
    table.write_text("onset_s\n" + "\n".join(str(12 * i) for i in range(32)))
    tracemalloc.start()
    try:
        with open_recording(tmp_path / "a_raw.fif") as recording:
            stream = read_epochs(recording, EegPrep(tuple(names)), EpochOptions(onsets=table))
            assert sum(1 for _ in stream) == 32
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < whole / 3
