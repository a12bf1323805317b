"""Bad input: one line that says what was found and what is needed; nothing on the terminal."""

from pathlib import Path

import numpy as np
import pytest
from eeg_media import NAMES, noise, raw_of, real, save_edf, save_fif

from memcli.eeg import EpochOptions, find_recordings, open_recording, read_epochs
from memcli.errors import RecordingError, UsageError
from memcli.spec import EegPrep

mne = pytest.importorskip("mne")

TWO = NAMES[:2]


def read(path: Path, names=NAMES, duration_s: float = 5, **options):
    with open_recording(path) as recording:
        prep = EegPrep(tuple(names), duration_s=duration_s)
        return list(read_epochs(recording, prep, EpochOptions(**options)))


def refused(code: str, path: Path, *args, **options) -> str:
    with pytest.raises(RecordingError) as caught:
        read(path, *args, **options)
    assert caught.value.code == code
    assert str(path.name) in str(caught.value.where)
    assert "\n" not in caught.value.what
    return caught.value.what


@pytest.fixture
def fif(tmp_path: Path) -> Path:
    return save_fif(tmp_path / "a_raw.fif", raw_of())


def changed(tmp_path: Path, change) -> Path:
    """A recording whose data [channels, samples] were changed; events at 2 and 9 s of 30."""
    data = noise(len(NAMES), 30 * 256)
    change(data)
    return save_fif(tmp_path / "b_raw.fif", raw_of(data=data))


def test_files_that_are_no_recordings(
    tmp_path: Path, fif: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert refused("missing", tmp_path / "none.edf")
    (tmp_path / "empty.bdf").touch()
    assert refused("empty", tmp_path / "empty.bdf")
    (tmp_path / "a.mp4").write_bytes(b"x" * 100)
    assert "no format" in refused("unsupported", tmp_path / "a.mp4")
    assert "begins at its .vhdr" in refused("unsupported", _made(tmp_path / "a.vmrk", b"x"))
    for name in ("a.edf", "a.bdf", "a_raw2.fif", "a-epo.fif", "a.vhdr", "a.set", "a.cnt", "a.gdf"):
        refused("damaged", _made(tmp_path / name, b"nothing of the kind" * 40))
        refused("damaged", _made(tmp_path / name, bytes(3000)))
    for name in ("a.npy", "a.npz"):
        refused("damaged", _made(tmp_path / name, b"nothing of the kind" * 40))
    assert capfd.readouterr() == ("", "")


def _made(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".edf", ".bdf"])
def test_files_cut_short(tmp_path: Path, suffix: str) -> None:
    path = save_edf(tmp_path / f"a{suffix}", 1e6 * noise(2, 5120), TWO, 256)
    _made(path, path.read_bytes()[:-5000])
    assert "cut short" in refused("damaged", path, TWO)
    _made(path, path.read_bytes()[:300])
    refused("damaged", path, TWO)


def test_fif_and_arrays_cut_short(tmp_path: Path, fif: Path) -> None:
    whole = fif.read_bytes()
    for part in (0.9, 0.5, 0.1, 0.01):
        refused("damaged", _made(tmp_path / "cut_raw.fif", whole[: int(part * len(whole))]))
    np.save(tmp_path / "a.npy", np.zeros((3, 2, 1000)))
    content = (tmp_path / "a.npy").read_bytes()
    refused("damaged", _made(tmp_path / "a.npy", content[:-99]))


def test_real_files_cut_short(tmp_path: Path) -> None:
    for part, data in (("eeglab/eeglab_data.set", ".fdt"), ("brainvision/test.vhdr", ".eeg")):
        path = real(part)
        for other in path.parent.glob(f"{path.stem}.*"):
            _made(tmp_path / other.name, other.read_bytes())
        short = (tmp_path / path.name).with_suffix(data)
        _made(short, short.read_bytes()[:-50_001])
        if data == ".fdt":
            refused("damaged", tmp_path / path.name, ("Cz",), event="square")
        short.unlink()
        refused("damaged", tmp_path / path.name, ("Cz",))


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[{}]], dtype=object))
    assert "Python objects" in refused("unsupported", tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", data=np.zeros((2, 2, 900)), ch_names=np.array(["Cz", 1], object))
    assert "Python objects" in refused("unsupported", tmp_path / "a.npz")


def test_messages_hold_nothing_of_python(tmp_path: Path, fif: Path) -> None:
    what = refused("damaged", _made(tmp_path / "x.fif", b"abc" * 99))
    assert "PosixPath" not in what
    scipy_io = pytest.importorskip("scipy.io")
    scipy_io.savemat(tmp_path / "a.set", {"data": np.zeros((2, 900))}, format="5")
    what = refused("damaged", tmp_path / "a.set")
    assert what.endswith("its content is not what its format says")
    raw = raw_of(NAMES, seconds=120, sfreq=512)
    raw.save(tmp_path / "s_raw.fif", split_size="2MB", fmt="single", verbose="ERROR")
    (tmp_path / "s_raw-1.fif").unlink()
    assert refused("damaged", tmp_path / "s_raw.fif") == "its next part is not there: s_raw-1.fif"


def test_arrays_that_say_too_little(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", data=np.zeros((2, 2, 900)), ch_names=["Cz", "Pz"])
    assert "no sampling rate" in refused("unsupported", tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", data=np.zeros((2, 2, 900)), sfreq=100, ch_names=["Cz"])
    assert "2 channels in the data, 1 names" in refused("unsupported", tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", other=np.zeros(3))
    assert "it holds other" in refused("unsupported", tmp_path / "a.npz")


def test_no_eeg(tmp_path: Path) -> None:
    raw = raw_of(("HEOG", "ECG", "left"), types=("eeg", "ecg", "misc"))
    what = refused("no-eeg", save_fif(tmp_path / "x_raw.fif", raw))
    assert what == "no EEG channel (channels: 1 eog, 1 ecg, 1 misc)"
    raw = raw_of(("MEG 0111", "MEG 0112"), types=("mag", "grad"))
    what = refused("no-eeg", save_fif(tmp_path / "y_raw.fif", raw))
    assert what == "no EEG channel (channels: 2 MEG)"


def test_missing_channels_are_named_with_what_is_there(tmp_path: Path) -> None:
    raw = raw_of(("Cz", "Pz", "CP5", "EOG1"), types=("eeg", "eeg", "misc", "eeg"))
    path = save_fif(tmp_path / "a_raw.fif", raw)
    what = refused("missing-channels", path, ("Cz", "CP5", "Oz", "EOG1"))
    assert what == (
        "lacks 3 of the model's 4 channels: CP5 (there as misc), Oz, EOG1 (there as eog); "
        "it has 2 EEG channels: Cz, Pz"
    )
    what = refused("missing-channels", path, ("Cz", "Pz", "Oz"), on_missing="interpolate")
    assert "more than the 20% that may be interpolated: Oz" in what


def test_interpolation_needs_places(tmp_path: Path, fif: Path) -> None:
    names = (*NAMES[:19], "E1")
    assert "no position for E1" in refused("no-montage", fif, names, on_missing="interpolate")
    with pytest.raises(UsageError, match="unknown montage 'bald'") as caught:
        read(fif, NAMES, montage="bald")
    assert "standard_1005" in (caught.value.next_step or "")
    for known in ("standard_1005", "standard_1020"):
        assert len(read(fif, montage=known)) == 2
    strange = save_fif(tmp_path / "c_raw.fif", raw_of([f"E{i}" for i in range(9)] + ["Cz"]))
    names = (*(f"E{i}" for i in range(9)), "Pz")
    assert "positions for 1 of 10" in refused(
        "no-montage", strange, names, on_missing="interpolate"
    )


def test_several_channels_of_one_name(tmp_path: Path) -> None:
    path = save_fif(tmp_path / "a_raw.fif", raw_of(("T3", "EEG T7-REF", "Cz")))
    assert "'T3' and 'EEG T7-REF'" in refused("duplicate-channels", path, ("T7", "Cz"))
    assert len(read(path, ("Cz",))) == 2
    names = ["Cz", "Pz", "Cz"]
    path = save_edf(tmp_path / "a.edf", 1e6 * noise(3, 5120), names, 256, events=[(2, 0, "a")])
    assert "'Cz' and 'Cz'" in refused("duplicate-channels", path, ("Cz",))


def test_events_that_are_not_there(tmp_path: Path, fif: Path) -> None:
    what = refused("no-events", fif, event="film")
    assert what == "no event matches 'film'; it has video (2)"
    raw = raw_of(events=((2, 0, "a"), (3, 0, "b"), (9, 0, "b"), (10, 2, "BAD_move")))
    path = save_fif(tmp_path / "c_raw.fif", raw)
    assert refused("no-events", path) == "several kinds of events; it has b (2), a (1)"
    path = save_fif(tmp_path / "d_raw.fif", raw_of(events=()))
    assert refused("no-events", path).endswith("it has none")
    with pytest.raises(UsageError, match="no regular expression"):
        read(fif, event="(")
    with pytest.raises(UsageError, match="would match all"):
        read(fif, event="")
    raw = raw_of(events=((2, 0, "Comment/clip"), (9, 0, "Comment/clip")))
    path = save_fif(tmp_path / "e_raw.fif", raw)
    what = refused("no-events", path)
    assert what == "no event that is taken by default; it has Comment/clip (2)"
    with open_recording(path) as recording:
        assert recording.info.events == ()
        assert recording.info.not_taken == (("Comment/clip", 2),)


def test_rates_and_lengths(tmp_path: Path, fif: Path) -> None:
    slow = save_fif(tmp_path / "c_raw.fif", raw_of(sfreq=64))
    assert refused("rate-too-low", slow) == "sampled at 64 Hz; the model needs at least 100 Hz"
    assert "shorter than an epoch of 60 s" in refused("too-short", fif, duration_s=60)
    padded = read(fif, duration_s=60, on_short="pad")
    assert [one.samples for one in padded] == [2800, 2100]
    mne_file = tmp_path / "e-epo.fif"
    mne.EpochsArray(noise(2, 800)[None], mne.create_info(TWO, 256, "eeg"), verbose="ERROR").save(
        mne_file, verbose="ERROR"
    )
    assert "no place for other onsets" in refused("onsets", mne_file, TWO, onsets=fif)
    late = save_fif(tmp_path / "d_raw.fif", raw_of(events=((29.5, 0, "video"),)))
    assert "the recording ends 0.5 s after" in refused("too-short", late)


@pytest.mark.parametrize(("factor", "guess"), [(1e6, "uV"), (1e3, "mV"), (1e-6, "V")])
def test_volts_and_microvolts_are_told_apart(tmp_path: Path, factor: float, guess: str) -> None:
    """FIF declares volts: numbers in microvolts are a million times too large, and so on."""

    def change(data: np.ndarray) -> None:
        data *= factor

    path = changed(tmp_path, change)
    if factor > 1:
        with pytest.raises(RecordingError, match="amplitudes of") as caught:
            read(path)
        assert f"--unit {guess}" in (caught.value.next_step or "")
        fixed = read(path, unit=guess)
        plain = read(changed(tmp_path, lambda data: None))
        np.testing.assert_allclose(fixed[0].data, plain[0].data, rtol=1e-5, atol=1e-4)
    else:
        assert "pV" in refused("units", path)
    as_it_is = read(changed(tmp_path, change), unit="recorded")
    assert np.median(as_it_is[0].data.std(axis=1)) == pytest.approx(12 * factor, rel=0.3)


def test_dead_channels_are_as_missing(tmp_path: Path) -> None:
    def change(data: np.ndarray) -> None:
        data[3], data[7] = 1e-5, np.nan

    path = changed(tmp_path, change)
    assert refused("missing-channels", path) == (
        f"no signal (flat or NaN wherever looked at) in {NAMES[3]}, {NAMES[7]}"
    )
    flagged = read(path, on_dead="flag")[0]
    assert flagged.flags == (f"nan:{NAMES[7]}", f"flat:{NAMES[3]}")
    assert np.isfinite(flagged.data).all()
    filled = read(path, on_missing="interpolate")[0]
    assert set(filled.flags) == {f"interpolated:{NAMES[3]}", f"interpolated:{NAMES[7]}"}
    assert filled.data[[3, 7]].std(axis=1).min() > 1


def test_bad_stretches_are_flagged_or_skipped(tmp_path: Path) -> None:
    events = [(start, 0, "video") for start in (0, 5, 10, 15, 20, 25)]
    data = noise(len(NAMES), 30 * 256)
    data[0, 5 * 256 : 10 * 256] = 2e-5
    data[1, 12 * 256 : 12 * 256 + 20] = np.abs(data).max()
    data[2, 16 * 256] = np.nan
    raw = raw_of(events=[*events, (22, 1, "BAD_move"), (27, 0, "boundary")], data=data)
    path = save_fif(tmp_path / "a_raw.fif", raw)
    with open_recording(path) as recording:
        stream = read_epochs(
            recording, EegPrep(NAMES, duration_s=5), EpochOptions(on_bad="skip", event="video")
        )
        kept = list(stream)
    flags = [one.flags for one in read(path, event="video")]
    assert flags == [
        (),
        (f"flat:{NAMES[0]}",),
        (f"clipped:{NAMES[1]}",),
        (f"nan:{NAMES[2]}",),
        ("bad-annotation",),
        ("boundary",),
    ]
    assert [one.index for one in kept] == [0, 5]
    assert [(one.index, one.reason) for one in stream.skipped] == [
        (index, flags[index][0]) for index in (1, 2, 3, 4)
    ]
    assert stream.total == 6


def test_folders_and_names_that_lead_nowhere(tmp_path: Path, fif: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").touch()
    with pytest.raises(UsageError, match="no recording found"):
        find_recordings([tmp_path / "sub"])
    with pytest.raises(UsageError, match="no such file"):
        find_recordings([tmp_path / "none"])
    for name in ("x-ave.fif", "x-cov.fif", "._a.edf", "x.vmrk", "x.fdt", "sub-1_split-02_eeg.fif"):
        (tmp_path / name).touch()
    both = find_recordings([tmp_path, str(tmp_path / "*.fif")])
    assert [Path(one.path).name for one in both] == ["a_raw.fif", "x-ave.fif"][:1]
    parts = [find_recordings([tmp_path], (i, 3)) for i in (1, 2, 3)]
    assert sum(map(len, parts)) == 1
