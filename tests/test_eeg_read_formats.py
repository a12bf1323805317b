"""Files of every format: opened lazily, with the right channels, units, events and epochs."""

import json
from pathlib import Path

import numpy as np
import pytest
from eeg_media import NAMES, noise, raw_of, real, save_edf, save_fif

from memcli.eeg import EpochOptions, find_recordings, open_recording, read_epochs
from memcli.eeg.files import EEG_SUFFIXES
from memcli.eeg.formats import FORMATS
from memcli.errors import RecordingError
from memcli.spec import EegPrep

mne = pytest.importorskip("mne")

EVENTS = ((2.0, 0.0, "video"), (9.0, 0.0, "video"), (9.5, 0.0, "button"))


def epochs_of(path: Path, names=NAMES, duration_s: float = 5, **options):
    with open_recording(path) as recording:
        prep = EegPrep(tuple(names), duration_s=duration_s)
        return list(read_epochs(recording, prep, EpochOptions(**options)))


def test_suffixes_of_folders_and_files_agree() -> None:
    assert {suffix.removesuffix(".gz") for suffix in EEG_SUFFIXES} == set(FORMATS)


@pytest.mark.parametrize(
    ("part", "rate", "eeg", "others", "event"),
    [
        ("brainvision/test.vhdr", 1000, 26, {"CP5", "CP6", "HL", "HR", "Vb", "ReRef"}, "S255"),
        ("brainvision/testbva.vhdr", 200, 29, {"Eog", "Ekg1", "Ekg2"}, "4"),
        ("eeglab/eeglab_data.set", 128, 30, {"EOG1", "EOG2"}, "square"),
        ("fif/mne_test_bin_raw.fif", 1000, 32, {"STI 014"}, "254"),
    ],
)
def test_real_recordings(part: str, rate: float, eeg: int, others: set[str], event: str) -> None:
    path = real(part)
    with open_recording(path) as recording:
        info = recording.info
        stream = read_epochs(recording, EegPrep(info.eeg, duration_s=2), EpochOptions(event=event))
        epochs = list(stream)
    assert info.sfreq_hz == rate
    assert len(info.eeg) == eeg
    assert {one.original for one in info.channels if one.kind != "eeg"} == others
    assert not others & set(info.eeg)
    assert len(epochs) + len(stream.skipped) == stream.total > 2
    for epoch in epochs:
        assert epoch.data.dtype == np.float32
        assert epoch.data.shape == (eeg, 200)
        assert 1 < np.median(epoch.data[:, : epoch.samples].std(axis=1)) < 200
    if "eeglab" in part:
        assert info.events == (("square", 80), ("rt", 74))


@pytest.mark.parametrize("suffix", [".edf", ".bdf"])
@pytest.mark.parametrize("count", [19, 64])
def test_edf_and_bdf_of_other_writers(
    tmp_path: Path, suffix: str, count: int, capfd: pytest.CaptureFixture[str]
) -> None:
    data = noise(count, 20 * 256)
    labels = [f"EEG {name.upper()}-REF" for name in NAMES[:19]]
    labels += [f"E{i}" for i in range(19, count)]
    path = save_edf(tmp_path / f"a{suffix}", data * 1e6, labels, 256, events=EVENTS)
    with open_recording(path) as recording:
        info = recording.info
        assert info.eeg[:19] == NAMES[:19]
        assert info.events == (("video", 2), ("button", 1))
        assert {one.unit for one in info.channels} == {"uV"}
    reference = epochs_of(
        save_fif(tmp_path / "a_raw.fif", raw_of(info.eeg, 20, 256, EVENTS, data=data)),
        info.eeg,
        event="video",
    )
    epochs = epochs_of(path, info.eeg, event="video")
    step = 600 / 2 ** (24 if suffix == ".bdf" else 16)  # of the converter, in microvolts
    for one, other in zip(reference, epochs, strict=True):
        np.testing.assert_allclose(one.data, other.data, atol=2 * step + 1e-5)
        assert one.flags == other.flags == ()
    assert capfd.readouterr() == ("", "")


def test_signals_at_another_rate_do_not_change_the_eeg(tmp_path: Path) -> None:
    edfio = pytest.importorskip("edfio")
    data = noise(4, 20 * 128) * 1e6
    plain = save_edf(tmp_path / "plain.edf", data, NAMES[:4], 128, events=EVENTS)
    fast = edfio.EdfSignal(
        np.zeros(20 * 512), 512, label="EMG chin", physical_dimension="uV", physical_range=(-9, 9)
    )
    mixed = save_edf(tmp_path / "mixed.edf", data, NAMES[:4], 128, events=EVENTS, extra=[fast])
    with open_recording(mixed) as recording:
        assert recording.info.sfreq_hz == 128
        assert "EMG chin" in recording.info.notes[0]
    for one, other in zip(
        epochs_of(plain, NAMES[:4], event="video"),
        epochs_of(mixed, NAMES[:4], event="video"),
        strict=True,
    ):
        np.testing.assert_array_equal(one.data, other.data)


def test_split_fif_is_one_recording(tmp_path: Path) -> None:
    raw = raw_of(seconds=120, sfreq=512, events=((2, 0, "video"), (70, 0, "video")))
    whole = save_fif(tmp_path / "whole_raw.fif", raw)
    raw.save(tmp_path / "split_raw.fif", split_size="2MB", fmt="single", verbose="ERROR")
    assert (tmp_path / "split_raw-1.fif").exists()
    found = find_recordings([tmp_path])
    assert [Path(one.path).name for one in found] == ["split_raw.fif", "whole_raw.fif"]
    for one, other in zip(epochs_of(whole), epochs_of(tmp_path / "split_raw.fif"), strict=True):
        np.testing.assert_allclose(one.data, other.data, rtol=1e-5, atol=1e-3)


def mne_epochs(count: int = 6, seconds: float = 6, sfreq: float = 200):
    raw = raw_of(NAMES, count * 10 + 10, sfreq, ())
    events = np.c_[
        (np.arange(count) * 10 + 2) * sfreq, np.zeros(count), np.arange(count) % 2 + 1
    ].astype(int)
    return mne.Epochs(
        raw,
        events,
        {"new": 1, "old": 2},
        -0.5,
        seconds,
        baseline=None,
        preload=True,
        verbose="ERROR",
    )


def test_epochs_with_metadata_keep_what_they_say(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    epochs = mne_epochs()
    epochs.metadata = pandas.DataFrame(
        {"subject": ["a", "b"] * 3, "label": [0, 1] * 3, "video": [f"v{i}.mp4" for i in range(6)]}
    )
    path = tmp_path / "sub-07-epo.fif"
    epochs.save(path, fmt="double", verbose="ERROR")
    with open_recording(path) as recording:
        info = recording.info
        assert (info.epoched, info.n_epochs, info.subject) == (True, 6, "07")
        assert info.events == (("new", 3), ("old", 3))
    read = epochs_of(path)
    assert [one.metadata["label"] for one in read] == [0, 1] * 3
    assert [one.subject for one in read] == ["a", "b"] * 3
    assert read[3].metadata["video"] == "v3.mp4"
    assert [one.onset_s for one in read] == [2, 12, 22, 32, 42, 52]
    old = epochs_of(path, event="old")
    assert [one.index for one in old] == [1, 3, 5]
    np.testing.assert_array_equal(old[0].data, read[1].data)
    # From the event on, not from the epoch's beginning.
    from scipy.signal import resample_poly

    data = 1e6 * epochs.get_data(verbose="ERROR")[1]
    expected = resample_poly(data, 1, 2, axis=1, padtype="reflect")[:, 50:550]
    np.testing.assert_allclose(read[1].data, expected, rtol=1e-6, atol=1e-5)


def test_short_epochs_are_padded_and_late_ones_said(tmp_path: Path) -> None:
    mne_epochs().save(tmp_path / "a-epo.fif", verbose="ERROR")
    mne_epochs().crop(0.5, 4).save(tmp_path / "b-epo.fif", verbose="ERROR")
    first = epochs_of(tmp_path / "a-epo.fif", duration_s=11)[0]
    assert first.flags == ("padded",)
    assert first.samples == 601
    assert not first.data[:, 601:].any()
    assert epochs_of(tmp_path / "b-epo.fif", duration_s=11)[0].flags == ("late-start", "padded")


def test_epochs_that_begin_a_window_late_are_refused(tmp_path: Path) -> None:
    """Their first sample would stand for time 0: each window would see another one's signal."""
    mne_epochs().crop(3, 6).save(tmp_path / "a-epo.fif", verbose="ERROR")
    with pytest.raises(RecordingError, match="epochs begin 3 s after their events") as caught:
        epochs_of(tmp_path / "a-epo.fif", duration_s=11)
    assert caught.value.code == "too-short"
    with open_recording(tmp_path / "a-epo.fif") as recording:
        prep = EegPrep(NAMES, duration_s=2, start_s=3)
        assert next(read_epochs(recording, prep, EpochOptions(event="new"))).flags == ()


def test_epoched_set_files_of_other_writers(tmp_path: Path) -> None:
    export = pytest.importorskip("eeglabio.epochs").export_set
    epochs = mne_epochs()
    path = tmp_path / "a.set"
    export(
        str(path),
        epochs.get_data(verbose="ERROR"),
        200,
        epochs.events,
        epochs.tmin,
        epochs.tmax,
        list(NAMES),
        event_id=epochs.event_id,
    )
    reference = tmp_path / "a-epo.fif"
    epochs.save(reference, fmt="double", verbose="ERROR")
    with open_recording(path) as recording:
        assert recording.info.epoched
        assert recording.info.n_epochs == 6
    for one, other in zip(epochs_of(reference), epochs_of(path), strict=True):
        np.testing.assert_allclose(one.data, other.data, rtol=1e-4, atol=1e-3)


def test_arrays_say_what_they_are(tmp_path: Path) -> None:
    data = np.stack([1e6 * noise(3, 1400, seed) for seed in range(4)])
    np.savez(
        tmp_path / "a.npz",
        data=data,
        sfreq=256.0,
        ch_names=np.array(["T3", "EOG1", "cz"]),
        label=np.array([0, 1, 1, 0]),
        event=np.array(["x", "y", "x", "y"]),
    )
    np.save(tmp_path / "b.npy", data)
    (tmp_path / "b.json").write_text(json.dumps({"sfreq": 256, "ch_names": ["T3", "EOG1", "cz"]}))
    np.save(tmp_path / "c.npy", data * 1e-6)
    (tmp_path / "c.json").write_text(json.dumps({"unit": "V"}))
    with open_recording(tmp_path / "a.npz") as recording:
        assert recording.info.eeg == ("T7", "Cz")
    first = epochs_of(tmp_path / "a.npz", ("Cz", "T7"))
    assert [one.metadata for one in first] == [{"label": label} for label in (0, 1, 1, 0)]
    assert [one.event for one in first] == ["x", "y", "x", "y"]
    for one, other in zip(first, epochs_of(tmp_path / "b.npy", ("Cz", "T7")), strict=True):
        np.testing.assert_array_equal(one.data, other.data)
    with open_recording(
        tmp_path / "c.npy", sfreq_hz=256, channels=("T3", "EOG1", "cz")
    ) as recording:
        for one, other in zip(
            first, read_epochs(recording, EegPrep(("Cz", "T7"), duration_s=5)), strict=True
        ):
            np.testing.assert_allclose(one.data, other.data, rtol=1e-5, atol=1e-4)


def test_bids_says_types_and_events(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mne_bids")
    folder = tmp_path / "sub-03" / "eeg"
    folder.mkdir(parents=True)
    (tmp_path / "derivatives").mkdir()
    (tmp_path / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    stem = "sub-03_task-recall"
    save_edf(folder / f"{stem}_eeg.edf", 1e6 * noise(4, 5120), ["Fz", "Cz", "Pz", "Left"], 256)
    save_edf(tmp_path / "derivatives" / f"{stem}_eeg.edf", 1e6 * noise(1, 2560), ["Fz"], 256)
    (folder / f"{stem}_eeg.json").write_text(
        json.dumps({"SamplingFrequency": 256, "PowerLineFrequency": 50, "TaskName": "recall"})
    )
    (folder / f"{stem}_channels.tsv").write_text(
        "name\ttype\tunits\tstatus\nFz\tEEG\tuV\tgood\nCz\tEEG\tuV\tbad\nPz\tEEG\tuV\tgood\n"
        "Left\tVEOG\tuV\tgood\n"
    )
    (folder / f"{stem}_events.tsv").write_text(
        "onset\tduration\ttrial_type\n3.0\t5\tclip\n10.0\t5\tclip\n17.0\t0\tkey\n"
    )
    (source,) = find_recordings([tmp_path])
    assert source.subject == "03"
    with open_recording(source.path) as recording:
        assert recording.info.eeg == ("Fz", "Cz", "Pz")
        assert recording.info.events == (("clip", 2), ("key", 1))
    epochs = epochs_of(Path(source.path), ("Pz", "Cz"), event="clip")
    assert [one.onset_s for one in epochs] == [3.0, 10.0]
    assert {one.subject for one in epochs} == {"03"}
    assert {one.flags for one in epochs} == {("bad-channel:Cz",)}
    assert capfd.readouterr() == ("", "")


def test_a_label_in_a_stimulus_channel_changes_nothing(tmp_path: Path) -> None:
    """Typed stim, or typed EEG and named so: not among the channels, not in the epochs."""
    data = noise(4, 5120)
    eeg_typed = ("Trigger", "TRIGGER(1)", "trigger_in", "Marker_channel", "EVENT_ID", "STATUS2")
    named: list = [(None, name) for name in (*eeg_typed, "target", "lbl", "L-AREA", "E1-M2")]
    for types, name in (*named, (["eeg", "eeg", "eeg", "stim"], "STI 014")):
        leak = data.copy()
        leak[3] = np.repeat([0, 1], 2560)
        names = (*NAMES[:3], name)
        events = ((1, 0, "video"), (12, 0, "video"))
        plain = raw_of(NAMES[:3], 20, 256, events, data=data[:3])
        leaky = raw_of(names, 20, 256, events, types, data=leak)
        one = save_fif(tmp_path / "plain_raw.fif", plain)
        other = save_fif(tmp_path / "leaky_raw.fif", leaky)
        with open_recording(other) as recording:
            assert recording.info.eeg == NAMES[:3]
        for clean, seen in zip(epochs_of(one, NAMES[:3]), epochs_of(other, NAMES[:3]), strict=True):
            np.testing.assert_array_equal(clean.data, seen.data)
