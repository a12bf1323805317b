"""Recordings of BIDS: checked and read as any other, whatever mne-bids does on its own."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from eeg_media import NAMES, noise, save_edf

from memcli.eeg import EpochOptions, open_recording, read_epochs
from memcli.errors import RecordingError
from memcli.spec import EegPrep

pytest.importorskip("mne")

THREE = NAMES[:3]
EVENTS = ((2.0, 0.0, "clip"), (9.0, 0.0, "clip"))
STEM = "sub-03_task-recall"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the recordings of a BIDS dataset, with a bad channel and events of its own."""
    folder = tmp_path / "bids" / "sub-03" / "eeg"
    folder.mkdir(parents=True)
    description = {"Name": "x", "BIDSVersion": "1.8.0"}
    (tmp_path / "bids" / "dataset_description.json").write_text(json.dumps(description))
    (folder / f"{STEM}_eeg.json").write_text(json.dumps({"PowerLineFrequency": 50}))
    (folder / f"{STEM}_events.tsv").write_text(
        "onset\tduration\ttrial_type\n2.0\t0\tshown\n9.0\t0\tshown\n"
    )
    return folder


def save_mixed(path: Path) -> Path:
    """EEG at 128 Hz and an EMG at 512 Hz."""
    edfio = pytest.importorskip("edfio")
    fast = 8 * np.sin(np.arange(20 * 512) / 3)
    emg = edfio.EdfSignal(
        fast, 512, label="EMG chin", physical_dimension="uV", physical_range=(-9, 9)
    )
    return save_edf(path, noise(3, 20 * 128) * 1e6, THREE, 128, events=EVENTS, extra=[emg])


def epochs_of(path: Path, event: str) -> list:
    with open_recording(path) as recording:
        prep = EegPrep(THREE, duration_s=5)
        return list(read_epochs(recording, prep, EpochOptions(event=event)))


@pytest.mark.parametrize("with_mne_bids", [True, False])
def test_signals_at_another_rate_do_not_change_the_eeg(
    tmp_path: Path, folder: Path, with_mne_bids: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if with_mne_bids:
        pytest.importorskip("mne_bids")
    else:
        monkeypatch.setitem(sys.modules, "mne_bids", None)
    plain = save_edf(tmp_path / "plain.edf", noise(3, 20 * 128) * 1e6, THREE, 128, events=EVENTS)
    path = save_mixed(folder / f"{STEM}_eeg.edf")
    (folder / f"{STEM}_channels.tsv").write_text(
        "name\ttype\tunits\tstatus\n"
        + "".join(f"{name}\tEEG\tuV\t{'bad' if name == THREE[1] else 'good'}\n" for name in THREE)
        + "EMG chin\tEMG\tuV\tgood\n"
    )
    with open_recording(path) as recording:
        assert recording.info.sfreq_hz == 128
        assert any("another rate: EMG chin" in note for note in recording.info.notes)
        assert recording.info.events == (("shown" if with_mne_bids else "clip", 2),)
        assert recording.opened.bads == ((THREE[1],) if with_mne_bids else ())
    found = epochs_of(path, "shown" if with_mne_bids else "clip")
    for one, other in zip(epochs_of(plain, "clip"), found, strict=True):
        assert one.onset_s == other.onset_s
        np.testing.assert_array_equal(one.data, other.data)


@pytest.mark.parametrize("bids", [True, False])
def test_annotations_that_are_not_in_utf8(tmp_path: Path, folder: Path, bids: bool) -> None:
    if bids:
        pytest.importorskip("mne_bids")
        (folder / f"{STEM}_events.tsv").unlink()
    path = folder / f"{STEM}_eeg.edf" if bids else tmp_path / "a.edf"
    save_edf(path, noise(3, 20 * 128) * 1e6, THREE, 128, events=((2.0, 0.0, "vidé"),))
    path.write_bytes(path.read_bytes().replace("vidé".encode(), b"vid\xe9s"))
    with open_recording(path) as recording:
        assert recording.info.events == (("vidés", 1),)


def test_brainvision_cut_short(folder: Path) -> None:
    pytest.importorskip("mne_bids")
    data = (noise(3, 20 * 128).T * 1e6).astype("<f4").tobytes()
    path = folder / f"{STEM}_eeg.vhdr"
    path.write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={STEM}_eeg.eeg\nMarkerFile={STEM}_eeg.vmrk\nDataFormat=BINARY\n"
        "DataOrientation=MULTIPLEXED\nNumberOfChannels=3\nSamplingInterval=7812.5\n"
        "DataPoints=2560\n\n[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n\n[Channel Infos]\n"
        + "".join(f"Ch{i}={name},,1,µV\n" for i, name in enumerate(THREE, start=1)),
        encoding="utf-8",
    )
    (folder / f"{STEM}_eeg.vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={STEM}_eeg.eeg\n\n[Marker Infos]\nMk1=Stimulus,S  1,257,1,0\n"
    )
    (folder / f"{STEM}_eeg.eeg").write_bytes(data)
    assert len(epochs_of(path, "shown")) == 2
    (folder / f"{STEM}_eeg.eeg").write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(RecordingError, match=r"cut short: 1,536 of 2,560 samples"):
        open_recording(path)
