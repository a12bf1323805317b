"""Arrays that are not what they say: one line, and no memory for what nobody wants."""

import io
import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from eeg_media import noise, raw_of, save_fif

from memcli.eeg import npz, open_recording, read_epochs
from memcli.errors import RecordingError
from memcli.spec import EegPrep

pytest.importorskip("mne")

DATA = 1e6 * noise(2, 1200)[None]


def refused(path: Path) -> str:
    with pytest.raises(RecordingError) as caught:
        open_recording(path)
    assert caught.value.code in ("unsupported", "damaged")
    assert "\n" not in caught.value.what
    return caught.value.what


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (5, "no list of texts"),
        ("FzCz", "no list of texts"),
        ("Fz", "no list of texts"),
        ([1, 2], "no list of texts"),
        ([["Fz"], ["Cz"]], "no list of texts"),
        (["Fz", "C" * 999], "a channel name of more than 200 characters"),
        (None, "no channel names"),
    ],
)
def test_names_that_are_none(tmp_path: Path, names: object, what: str) -> None:
    np.save(tmp_path / "a.npy", DATA)
    (tmp_path / "a.json").write_text(json.dumps({"sfreq": 256, "ch_names": names}))
    assert what in refused(tmp_path / "a.npy")
    if names is not None:
        np.savez(tmp_path / "a.npz", data=DATA, sfreq=256, ch_names=np.array(names))
        assert what in refused(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["sfreq", "tmin"])
@pytest.mark.parametrize("value", [np.nan, np.inf, "soon", [], {}, 10**400])
def test_numbers_that_are_none(tmp_path: Path, name: str, value: object) -> None:
    said = {"sfreq": 256, "ch_names": ["Fz", "Cz"], name: value}
    np.save(tmp_path / "a.npy", DATA)
    (tmp_path / "a.json").write_text(json.dumps(said))
    assert "is no number" in refused(tmp_path / "a.npy")
    if not isinstance(value, (dict, int)):
        np.savez(tmp_path / "a.npz", **{"data": DATA, **said})
        assert "is no number" in refused(tmp_path / "a.npz")


def test_onsets_that_are_no_times(tmp_path: Path) -> None:
    data = np.concatenate([DATA, DATA, DATA])
    onsets = np.array([np.nan, np.inf, 7.5])
    names = ["Fz", "Cz"]
    np.savez(tmp_path / "a.npz", data=data, sfreq=256, ch_names=names, onset_s=onsets)
    with open_recording(tmp_path / "a.npz") as recording:
        epochs = list(read_epochs(recording, EegPrep(("Fz", "Cz"), duration_s=2)))
    assert [one.onset_s for one in epochs] == [None, None, 7.5]


def test_onsets_are_not_made_up(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", data=DATA, sfreq=256, ch_names=["Fz", "Cz"])
    with open_recording(tmp_path / "a.npz") as recording:
        (epoch,) = read_epochs(recording, EegPrep(("Fz", "Cz"), duration_s=2))
    assert epoch.onset_s is None


def test_what_an_array_lacks_is_named_at_once(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", DATA)
    with pytest.raises(RecordingError, match="no sampling rate and no channel names") as caught:
        open_recording(tmp_path / "a.npy")
    assert "--sfreq HZ and --channel-names" in str(caught.value)


def test_random_bytes_are_not_proposed_for_unsafe_loading(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(bytes(range(200)))
    with pytest.raises(RecordingError, match="does not begin as a file of NumPy") as caught:
        open_recording(tmp_path / "a.npy")
    assert "pickle" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said", "subject"),
    [("a.npz", "", None), ("sub-07.npz", "", "07"), ("sub-07.npz", "x", "x"), ("a.npz", "x", "x")],
)
def test_whose_an_epoch_is(tmp_path: Path, name: str, said: str, subject: str | None) -> None:
    """An empty cell says nothing, and nobody is made up of the file's name."""
    path = tmp_path / name
    np.savez(path, data=DATA, sfreq=256, ch_names=["Fz", "Cz"], subject=np.array([said]))
    with open_recording(path) as recording:
        (epoch,) = read_epochs(recording, EegPrep(("Fz", "Cz"), duration_s=4))
    assert epoch.subject == subject


def test_members_that_nobody_wants_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(
        path,
        data=DATA,
        sfreq=256,
        ch_names=["Fz", "Cz"],
        label=np.array([1]),
        junk=np.zeros(4_000_000),
        more=np.zeros((2, 1_000_000)),
        objects=np.array([{}], dtype=object),
        pickled=np.array([{}, {}], dtype=object),
    )
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    del kept["objects.npy"]  # of one entry per epoch: wanted, and refused
    tracemalloc.start()
    try:
        assert refused(path)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in kept.items():
                archive.writestr(name, content)
        del kept, content
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with open_recording(path) as recording:
            (epoch,) = read_epochs(recording, EegPrep(("Fz", "Cz"), duration_s=4))
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert epoch.metadata == {"label": 1}
    assert peak < 8_000_000


def test_data_that_memory_does_not_hold_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["Fz", "Cz"]
    np.savez(tmp_path / "a.npz", data=DATA, sfreq=256, ch_names=names)
    monkeypatch.setattr(npz, "memory_bytes", lambda: DATA.nbytes)
    assert "its data unpacks to" in refused(tmp_path / "a.npz")
    monkeypatch.undo()
    header = io.BytesIO()
    claim = {"descr": "<f8", "fortran_order": False, "shape": (1 << 20, 2, 1 << 20)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("data.npy", header.getvalue())
    assert "its data unpacks to 1.64e+04 GiB" in refused(tmp_path / "b.npz")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    save_fif(tmp_path / "a_raw.fif", raw_of(seconds=5))
    for name in ("b_raw.fif", "c.edf", "d.npy"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(RecordingError, match="a pipe, socket or device"):
            open_recording(tmp_path / name)
