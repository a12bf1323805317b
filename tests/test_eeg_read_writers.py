"""What writers of BrainVision and EEGLAB leave to their readers: ends of data, names of epochs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from eeg_media import NAMES, noise, raw_of

from memcli.eeg import EpochOptions, formats, open_recording, read_epochs
from memcli.errors import RecordingError
from memcli.spec import EegPrep

mne = pytest.importorskip("mne")
FOUR = NAMES[:4]
RATE = 128


def brainvision(path: Path, markers: Sequence[tuple[float, str, str]], seconds: int = 20) -> Path:
    """A recording without DataPoints, in 16-bit numbers of 0.1 microvolts."""
    data = (noise(len(FOUR), seconds * RATE) / 1e-7).astype("<i2")
    path.with_suffix(".eeg").write_bytes(data.T.tobytes())
    channels = "".join(f"Ch{i}={name},,0.1,uV\n" for i, name in enumerate(FOUR, start=1))
    path.write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\n"
        f"DataFile={path.stem}.eeg\nMarkerFile={path.stem}.vmrk\nDataFormat=BINARY\n"
        f"DataOrientation=MULTIPLEXED\nNumberOfChannels={len(FOUR)}\n"
        f"SamplingInterval={1e6 / RATE}\n[Binary Infos]\nBinaryFormat=INT_16\n"
        f"[Channel Infos]\n{channels}"
    )
    path.with_suffix(".vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n[Common Infos]\n"
        f"DataFile={path.stem}.eeg\n[Marker Infos]\n"
        + "".join(
            f"Mk{i}={kind},{name},{round(second * RATE) + 1},1,0\n"
            for i, (second, kind, name) in enumerate(markers, start=1)
        )
    )
    return path


def stream_of(path: Path, **options):
    with open_recording(path) as recording:
        stream = read_epochs(recording, EegPrep(FOUR, duration_s=4), EpochOptions(**options))
        return list(stream), stream


CLIPS = [(2, "Stimulus", "S  1"), (8, "Stimulus", "S  1"), (14, "Stimulus", "S  1")]


def test_markers_beyond_the_end_are_left_out_with_a_word(tmp_path: Path) -> None:
    path = brainvision(tmp_path / "a.vhdr", CLIPS)
    epochs, stream = stream_of(path)
    assert ([one.onset_s for one in epochs], stream.skipped) == ([2, 8, 14], [])
    data = path.with_suffix(".eeg")
    data.write_bytes(data.read_bytes()[: 2 * len(FOUR) * 13 * RATE])
    epochs, stream = stream_of(path)
    assert [one.onset_s for one in epochs] == [2, 8]
    assert [(one.index, one.onset_s, one.event) for one in stream.skipped] == [
        (2, 14, "Stimulus/S  1")
    ]
    assert stream.total == 3
    assert "1 event without a window: skipped" in stream.notes


def test_data_that_end_within_a_sample_are_damaged(tmp_path: Path) -> None:
    path = brainvision(tmp_path / "a.vhdr", CLIPS)
    data = path.with_suffix(".eeg")
    whole = data.read_bytes()
    for content, what in ((whole[:-3], "ends within sample 2,559"), (b"", "a.eeg is empty")):
        data.write_bytes(content)
        with pytest.raises(RecordingError, match=what) as caught:
            open_recording(path)
        assert caught.value.code == "damaged"
    data.unlink()
    with pytest.raises(RecordingError, match=r"its data file a\.eeg is not there"):
        open_recording(path)


def eeglab(path: Path, later: Sequence[tuple[float, str]], name: str = "clip/new") -> Path:
    """Two epochs that were cut at clip/new and clip/old, with events at seconds after the first."""
    export = pytest.importorskip("eeglabio.epochs").export_set
    raw = raw_of(FOUR, 30, RATE, ())
    events = np.array([[2 * RATE, 0, 1], [15 * RATE, 0, 2]])
    kinds = {"clip/new": 1, "clip/old": 2}
    epochs = mne.Epochs(raw, events, kinds, -1, 9, baseline=None, preload=True, verbose="ERROR")
    told = [[one for _, one in later], [1 + at for at, _ in later], [0.0] * len(later)]
    export(
        str(path),
        epochs.get_data(verbose="ERROR"),
        RATE,
        events,
        -1,
        9,
        list(FOUR),
        event_id=kinds,
        annotations=told if later else None,
    )
    return path


def test_epochs_are_named_by_the_event_they_were_cut_at(tmp_path: Path) -> None:
    """Not by all that happened in them: another clip may begin before an epoch ends."""
    path = eeglab(tmp_path / "a.set", [(6, "clip/old"), (3, "key")])
    epochs, _ = stream_of(path, event="clip")
    assert [one.event for one in epochs] == ["clip/new", "clip/old"]
    assert [one.onset_s for one in epochs] == [None, None]  # the file has no urevent
    epochs, _ = stream_of(path, event="old")
    assert [one.index for one in epochs] == [1]
    with open_recording(path) as recording:
        assert recording.info.events == (("clip/new", 1), ("clip/old", 1))


def test_epochs_cut_at_nobody_knows_what_are_refused(tmp_path: Path) -> None:
    path = eeglab(tmp_path / "a.set", [(0, "clip/old")])
    with pytest.raises(RecordingError, match="epoch 0 has several events at latency 0") as caught:
        open_recording(path)
    assert caught.value.code == "no-events"


def test_joined_names_are_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = eeglab(tmp_path / "a.set", [(6, "clip/old")])
    monkeypatch.setattr(formats, "locking_events", lambda *_: None)
    with pytest.raises(RecordingError, match="does not say at which events"):
        open_recording(path)


def test_onsets_of_eeglab_epochs_are_those_of_the_recording(tmp_path: Path) -> None:
    from scipy.io import loadmat, savemat

    path = eeglab(tmp_path / "a.set", [])
    held = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
    held["urevent"] = np.rec.fromarrays([[0.0, 257.0, 1921.0]], names=["latency"])
    held["epoch"] = np.rec.fromarrays(
        [np.array(one, object) for one in ([0.0, 0.0], ["a", "b"], [2.0, 3.0])],
        names=["eventlatency", "eventtype", "eventurevent"],
    )
    savemat(path, held)
    epochs, _ = stream_of(path, event=".")
    assert [(one.event, one.onset_s) for one in epochs] == [("a", 2.0), ("b", 15.0)]


def test_onsets_of_fif_epochs_are_in_seconds_of_the_recording(tmp_path: Path) -> None:
    raw = raw_of(FOUR, 30, RATE, ())
    events = np.array([[2 * RATE, 0, 1], [15 * RATE, 0, 1]])
    epochs = mne.Epochs(raw, events, None, 0, 9, baseline=None, preload=True, verbose="ERROR")
    epochs.resample(100, verbose="ERROR").save(tmp_path / "a-epo.fif", verbose="ERROR")
    assert [one.onset_s for one in stream_of(tmp_path / "a-epo.fif")[0]] == [2, 15]
    made = mne.EpochsArray(epochs.get_data(verbose="ERROR"), epochs.info, verbose="ERROR")
    made.save(tmp_path / "b-epo.fif", verbose="ERROR")
    assert [one.onset_s for one in stream_of(tmp_path / "b-epo.fif")[0]] == [None, None]
