"""Labelled recordings: what is read, what leaks in (nothing), what is refused in one line."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
mne = pytest.importorskip("mne")
pd = pytest.importorskip("pandas")
pytest.importorskip("sklearn")

from memcli.eeg import open_recording, read_epochs  # noqa: E402
from memcli.errors import MemcliError, UsageError  # noqa: E402
from memcli.spec import EegPrep  # noqa: E402
from memcli.train.datasets import DatasetError  # noqa: E402
from memcli.train.eeg.electrodes import default_channels  # noqa: E402
from memcli.train.eeg.folds import (  # noqa: E402
    epoch_folds,
    monitoring_part,
    monitoring_videos,
    subject_folds,
    video_folds,
)
from memcli.train.eeg.loading import Source, load  # noqa: E402
from memcli.train.eeg.planted import Planted, planted_subject, write_planted  # noqa: E402

CHANNELS = ("Fz", "Cz", "Pz")
PREP = EegPrep(channels=("?",), duration_s=3.0)


def planted(**changes: Any) -> Planted:
    own: dict[str, Any] = {"subjects": 2, "epochs": 6, "duration_s": 3.0, "sfreq_hz": 100.0}
    return Planted(**({"channels": CHANNELS} | own | changes))


def arrays(folder: Path, count: int = 6, names: Sequence[str] = CHANNELS, stem: str = "a") -> Path:
    rng = np.random.default_rng(0)
    data = rng.normal(0, 10, (count, len(names), 300))
    np.savez(folder / f"{stem}.npz", data=data, sfreq=100.0, ch_names=np.array(names))
    return folder


def table(folder: Path, rows: Sequence[Sequence[object]], columns: str = "") -> None:
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow((columns or "file,epoch,subject,label").split(","))
        writer.writerows(rows)


def test_planted_files_come_back_as_they_were_made(tmp_path: Path) -> None:
    what = planted(test_share=0.3)
    found = load(Source(write_planted(what, tmp_path / "data")), PREP)
    assert found.prep.channels == CHANNELS
    assert found.demonstration
    assert found.subjects == ("sub-01",) * 4 + ("sub-02",) * 4
    assert found.test is not None
    assert (len(found.examples), len(found.test)) == (8, 4)
    first = planted_subject(what, 0)
    np.testing.assert_allclose(found.examples.eeg[:4], first.data[:4], rtol=1e-4, atol=1e-3)
    assert found.examples.labels[:4].tolist() == list(first.labels[:4])
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["demonstration"] is True


def test_a_leak_in_the_stimulus_channel_does_not_come_in(tmp_path: Path) -> None:
    eeg = []
    for leak in (False, True):
        folder = write_planted(planted(leak=leak, effect=0.0), tmp_path / str(leak))
        found = load(Source(folder), PREP)
        assert found.prep.channels == CHANNELS
        eeg.append(found.examples.eeg)
    assert torch.equal(*eeg)
    path = tmp_path / "True" / "sub-01-epo.fif"
    told = mne.read_epochs(path, verbose="error").get_data(picks="stim")[:, 0].max(axis=1)
    assert told.tolist() == [1 + one for one in planted_subject(planted(), 0).labels]


@pytest.mark.parametrize("name", ["Input7", "TRG"])
def test_a_leak_in_a_channel_that_calls_itself_eeg_does_not_come_in(
    tmp_path: Path, name: str
) -> None:
    for folder, leak in (("without", 0.0), ("with", 1.0)):
        (tmp_path / folder).mkdir()
        data = np.random.default_rng(0).normal(0, 10, (6, 4, 300))
        data[:, 3, ::50] += leak * 100 * (np.arange(6) % 2)[:, None]
        names = np.array([*CHANNELS, name])
        np.savez(
            tmp_path / folder / "a.npz", data=data, sfreq=100.0, ch_names=names,
            label=np.arange(6) % 2,
        )  # fmt: skip
    found = [load(Source(tmp_path / folder), PREP) for folder in ("without", "with")]
    assert found[1].prep.channels == CHANNELS
    assert torch.equal(found[0].examples.eeg, found[1].examples.eeg)


def test_a_channel_that_is_no_electrode_by_name_is_named(tmp_path: Path) -> None:
    rows = [("a.npz", i, "s", i % 2) for i in range(6)]
    arrays(tmp_path, names=("Fz", "Cz", "Pz", "Input7"))
    table(tmp_path, rows)
    found = load(Source(tmp_path), PREP)
    assert any("left out" in note and "Input7" in note for note in found.notes)
    asked = load(Source(tmp_path, channels=("Cz", "Input7")), PREP)
    assert asked.prep.channels == ("Cz", "Input7")
    assert not any("Input7" in note for note in asked.notes)
    arrays(tmp_path, names=("E5", "E6", "Cz", "Input7"))
    found = load(Source(tmp_path), PREP)
    assert found.prep.channels == ("E5", "E6", "Cz", "Input7")
    assert any("taken" in note and "E5, E6, Input7" in note for note in found.notes)


def test_electrodes_of_usual_caps_are_known() -> None:
    caps = ("Fp1", "AFp3h", "EEG T3-REF", "T4", "M1", "A2", "Iz", "CB1", "FT11", "PO9", "TPP9h")
    assert default_channels((*caps, "X1")) == (caps, ("X1",))


def twins(tmp_path: Path) -> Path:
    """Two recordings of one name, in folders of their own."""
    for folder in "xy":
        (tmp_path / folder).mkdir()
        arrays(tmp_path / folder)
    return tmp_path


def test_recordings_of_one_name_have_their_own_labels(tmp_path: Path) -> None:
    twins(tmp_path)
    rows = [("x/a.npz", i, "s", i % 2) for i in range(6)]
    table(tmp_path, [*rows, *((str(tmp_path / "y" / "a"), i, "t", 1 - i % 2) for i in range(6))])
    found = load(Source(tmp_path), PREP)
    assert found.examples.ids[:7:6] == ("x/a.npz:0", "y/a.npz:0")
    assert found.examples.labels.tolist() == [0, 1] * 3 + [1, 0] * 3
    assert found.subjects == ("s",) * 6 + ("t",) * 6


def test_a_name_that_two_recordings_have_is_refused(tmp_path: Path) -> None:
    table(twins(tmp_path), [("a.npz", i, "s", i % 2) for i in range(6)])
    told = refusal(Source(tmp_path))
    assert "labels.csv:2" in told
    assert "x/a.npz, y/a.npz" in told


def test_a_whole_path_goes_before_the_end_of_another(tmp_path: Path) -> None:
    arrays(twins(tmp_path))
    rows = [(f"{name}.npz", i, "s", i % 2) for name in ("a", "x/a", "y/a") for i in range(6)]
    table(tmp_path, [*rows, ("b.npz", 0, "s", 1)])
    found = load(Source(tmp_path), PREP)
    assert len(found.examples) == 18
    assert "1 row of labels.csv name no recording" in " ".join(found.notes)


def test_recordings_of_nobody_are_people_of_their_own(tmp_path: Path) -> None:
    twins(tmp_path)
    rows = [(f"{f}/a.npz", i, "", i % 2) for f in "xy" for i in range(6)]
    table(tmp_path, rows)
    found = load(Source(tmp_path), PREP)
    assert set(found.subjects) == found.unnamed == {"x/a.npz", "y/a.npz"}
    assert any("2 recordings do not say whose they are" in note for note in found.notes)
    with open_recording(tmp_path / "x" / "a.npz") as recording:  # as when it is scored
        assert next(read_epochs(recording, found.prep)).subject is None


def test_the_demonstration_mark_holds_wherever_the_data_is_looked_at_from(tmp_path: Path) -> None:
    folder = write_planted(planted(), tmp_path / "deep" / "planted")
    for data in (tmp_path, tmp_path / "deep", folder, folder / "sub-01-epo.fif"):
        assert load(Source(data), PREP).demonstration
    (folder / "dataset.json").unlink()
    assert not load(Source(tmp_path), PREP).demonstration


def test_arrays_beside_a_table(tmp_path: Path) -> None:
    arrays(tmp_path)
    arrays(tmp_path, stem="b")
    rows = [(f"{stem}.npz", i, f"s-{stem}", i % 2) for stem in "ab" for i in range(6)]
    table(tmp_path, rows)
    found = load(Source(tmp_path), PREP)
    assert len(found.examples) == 12
    assert set(found.subjects) == {"s-a", "s-b"}
    assert found.examples.labels.tolist() == [0, 1] * 6
    assert not found.demonstration
    assert found.test is None


def test_labels_by_the_names_of_events(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = mne.io.RawArray(
        rng.normal(0, 1e-5, (3, 8000)), mne.create_info(list(CHANNELS), 100.0, "eeg"), verbose=False
    )
    onsets = np.arange(2, 72, 10)
    raw.set_annotations(mne.Annotations(onsets, 0, ["old", "new"] * 3 + ["old"]))
    raw.save(tmp_path / "x_raw.fif", verbose="error")
    found = load(Source(tmp_path, event="old|new", recognised="^old$"), PREP)
    assert found.examples.labels.tolist() == [1, 0, 1, 0, 1, 0, 1]


def refusal(source: Source) -> str:
    with pytest.raises(DatasetError) as caught:
        load(source, PREP)
    assert "\n" not in caught.value.what
    return str(caught.value)


@pytest.mark.parametrize(
    ("label", "said"),
    [("2", "neither 0 nor 1"), ("", "neither 0 nor 1"), ("nan", "neither"), ("\x1b[2J", "x1b")],
)
def test_labels_that_are_not_0_or_1(tmp_path: Path, label: str, said: str) -> None:
    table(arrays(tmp_path), [("a.npz", i, "s", label if i == 3 else i % 2) for i in range(6)])
    told = refusal(Source(tmp_path))
    assert said in told
    assert "epoch 3" in told
    assert "\x1b" not in told


def test_no_labels_at_all(tmp_path: Path) -> None:
    assert "--recognised" in refusal(Source(arrays(tmp_path)))


def test_one_class_only(tmp_path: Path) -> None:
    table(arrays(tmp_path), [("a.npz", i, "s", 1) for i in range(6)])
    assert "6 epochs are recognised (label 1) and 0 are not" in refusal(Source(tmp_path))


def test_recordings_of_different_channels(tmp_path: Path) -> None:
    arrays(tmp_path)
    arrays(tmp_path, names=("Fz", "Cz", "Oz"), stem="b")
    table(tmp_path, [(f"{s}.npz", i, s, i % 2) for s in "ab" for i in range(6)])
    found = load(Source(tmp_path), PREP)
    assert found.prep.channels == ("Fz", "Cz")
    assert any("2 channels common to all 2 recordings" in note for note in found.notes)
    swapped = load(Source(tmp_path, channels=("Cz", "Fz")), PREP)
    assert torch.equal(swapped.examples.eeg.flip(1), found.examples.eeg)


@pytest.mark.parametrize("row", [("a.npz", "x", "s", 1), ("a.npz", 0, "s", 1)])
def test_tables_that_make_no_sense_name_the_line(tmp_path: Path, row: tuple[object, ...]) -> None:
    rows = [("a.npz", i, "s", i % 2) for i in range(6)]
    table(arrays(tmp_path), [*rows, row])
    assert "labels.csv:8" in refusal(Source(tmp_path))


def test_a_split_that_is_none(tmp_path: Path) -> None:
    rows = [("a.npz", i, "s", i % 2, "dev") for i in range(6)]
    table(arrays(tmp_path), rows, "file,epoch,subject,label,split")
    assert "train or test" in refusal(Source(tmp_path))


def test_nothing_there(tmp_path: Path) -> None:
    assert "no such file" in refusal(Source(tmp_path / "none"))
    with pytest.raises(MemcliError):
        load(Source(tmp_path), PREP)


def test_planted_data_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(UsageError, match="new or empty"):
        write_planted(planted(), tmp_path)


def test_folds_of_subjects_keep_everybody_on_one_side() -> None:
    labels = [0, 1, 1, 0, 1] * 12
    subjects = [f"s{i % 6}" for i in range(60)]
    folds = subject_folds(labels, subjects, 3, 0)
    assert sorted(i for held in folds for i in held) == list(range(60))
    for held in folds:
        inside = {subjects[i] for i in held}
        rest = sorted(set(range(60)) - set(held))
        assert not inside & {subjects[i] for i in rest}
        train, monitor = monitoring_part(rest, subjects, labels, 0)
        assert sorted(train + monitor) == rest
        assert len({subjects[i] for i in monitor}) == 1
        assert not {subjects[i] for i in monitor} & {subjects[i] for i in train}


def test_folds_of_epochs_have_equal_shares_of_labels() -> None:
    labels = [1] * 20 + [0] * 30
    for held in epoch_folds(labels, 5, 0):
        assert [labels[i] for i in held].count(1) == 4


@pytest.mark.parametrize(
    ("subjects", "count", "said"),
    [(["a", "b"] * 5, 3, "--folds 2"), (["a"] * 10, 2, "--split epochs")],
)
def test_fewer_subjects_than_folds(subjects: list[str], count: int, said: str) -> None:
    with pytest.raises(DatasetError, match="at least") as caught:
        subject_folds([0, 1] * 5, subjects, count, 0)
    assert said in str(caught.value)


def test_folds_of_videos_keep_every_video_on_one_side() -> None:
    videos = [f"v{i % 12}" for i in range(60)]
    labels = [int(i % 12 < 4 or i % 5 == 0) for i in range(60)]
    folds = video_folds(labels, videos, 3, 0)
    assert sorted(i for held in folds for i in held) == list(range(60))
    for held in folds:
        rest = sorted(set(range(60)) - set(held))
        assert not {videos[i] for i in held} & {videos[i] for i in rest}
        train, monitor = monitoring_videos(rest, videos, labels, 0)
        assert sorted(train + monitor) == rest
        assert not {videos[i] for i in train} & {videos[i] for i in monitor}
        assert {labels[i] for i in monitor} == {labels[i] for i in train} == {0, 1}
        assert 4 <= len(monitor) <= 12


def test_where_two_videos_tell_the_label_epochs_say_when_to_stop() -> None:
    labels = [0, 1] * 20
    train, monitor = monitoring_videos(range(40), ["no", "yes"] * 20, labels, 0)
    assert len(monitor) == 4
    assert {labels[i] for i in monitor} == {labels[i] for i in train} == {0, 1}


def test_epochs_of_unknown_videos() -> None:
    with pytest.raises(DatasetError, match="1 of 4 epochs do not say of which video"):
        video_folds([0, 1, 0, 1], ["a", "b", None, "c"], 2, 0)


def test_a_class_of_fewer_epochs_than_folds() -> None:
    with pytest.raises(DatasetError, match="one has 2"):
        epoch_folds([1, 1, 0, 0, 0, 0], 3, 0)
