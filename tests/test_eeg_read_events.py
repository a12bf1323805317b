"""Where epochs begin: annotations, stimulus channels, tables of onsets."""

from pathlib import Path

import numpy as np
import pytest
from eeg_media import NAMES, noise, raw_of, save_fif
from hypothesis import given
from hypothesis import strategies as st

from memcli.eeg import EpochOptions, open_recording, read_epochs
from memcli.eeg.events import matcher
from memcli.eeg.onsets import check_onsets, parse_onsets, read_onsets
from memcli.errors import RecordingError, UsageError
from memcli.spec import EegPrep

mne = pytest.importorskip("mne")
TABLE = Path("onsets.csv")


def onsets_of(path: Path, **options) -> list[tuple[float, str]]:
    with open_recording(path) as recording:
        stream = read_epochs(recording, EegPrep(NAMES[:3], duration_s=2), EpochOptions(**options))
        return [(one.onset_s, one.event) for one in stream]


@pytest.mark.parametrize(
    ("event", "name", "matches"),
    [
        ("3", "Stimulus/S  3", True),
        ("3", "3", True),
        ("3", "Stimulus/S 13", False),
        ("13", "Stimulus/S 13", True),
        ("^S", "Stimulus/S 13", True),
        ("clip|film", "a film", True),
        ("clip", "Clip", False),
    ],
)
def test_events_by_id_or_expression(event: str, name: str, matches: bool) -> None:
    assert matcher(event)(name) is matches


def test_stimulus_channel_events_are_those_of_mne(tmp_path: Path) -> None:
    codes = np.zeros(30 * 256)
    for start, code in ((2.0, 5), (2.1, 5), (4.0, 7), (9.5, 5), (12.0, 300)):
        codes[int(start * 256) : int(start * 256) + 10] = code
    data = np.vstack([noise(3, 30 * 256), codes])
    raw = raw_of((*NAMES[:3], "STI 014"), 30, 256, (), ["eeg"] * 3 + ["stim"], data=data)
    path = save_fif(tmp_path / "a_raw.fif", raw)
    expected = [
        (sample / 256, str(code)) for sample, _, code in mne.find_events(raw, verbose="ERROR")
    ]
    assert onsets_of(path, event=r"\d") == expected
    assert onsets_of(path, event="300") == [(12.0, "300")]
    with open_recording(path) as recording:
        assert recording.info.events == (("5", 3), ("300", 1), ("7", 1))


@pytest.mark.parametrize("dated", [True, False])
@pytest.mark.parametrize("first", [0, 2560])
def test_annotations_survive_a_first_sample_and_a_date(
    tmp_path: Path, dated: bool, first: int
) -> None:
    """Cropped, or begun late as an acquisition system does; MNE's own events are the reference."""
    import datetime

    raw = raw_of(NAMES[:3], events=((5, 0, "video"), (11, 0, "video")), first_samp=first)
    if dated:
        raw.set_meas_date(datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc))
    path = save_fif(tmp_path / "a_raw.fif", raw.crop(3, 20))
    assert onsets_of(path) == [(2.0, "video"), (8.0, "video")]
    reference = mne.io.read_raw_fif(path, verbose="ERROR")
    events, _ = mne.events_from_annotations(reference, verbose="ERROR")
    assert [(one[0] - reference.first_samp) / 256 for one in events] == [2.0, 8.0]


def test_start_after_the_event(tmp_path: Path) -> None:
    raw = raw_of(NAMES[:3], events=((5, 0, "video"), (6, 0, "video")))
    path = save_fif(tmp_path / "a_raw.fif", raw)
    with open_recording(path) as recording:
        first, second = (
            list(read_epochs(recording, EegPrep(NAMES[:3], duration_s=2, start_s=start)))
            for start in (1.0, 0.0)
        )
    np.testing.assert_array_equal(first[0].data, second[1].data)
    assert first[0].onset_s == 5.0


def test_a_table_of_onsets_selects_and_describes(tmp_path: Path) -> None:
    path = save_fif(tmp_path / "a_raw.fif", raw_of(NAMES[:3]))
    table = tmp_path / "onsets.csv"
    table.write_text(
        "\ufefffile;onset_s;event;label;subject\n"
        "a_raw.fif;7.5;new;1;s1\n"
        "other.fif;3;new;0;s2\n"
        f"{path};2;old;0;s1\n"
        ";4;old;n/a;\n",
        encoding="utf-8",
    )
    with open_recording(path) as recording:
        prep = EegPrep(NAMES[:3], duration_s=2)
        epochs = list(read_epochs(recording, prep, EpochOptions(onsets=table)))
    assert [(one.onset_s, one.event, one.subject) for one in epochs] == [
        (2.0, "old", "s1"),
        (4.0, "old", None),
        (7.5, "new", "s1"),
    ]
    assert [one.metadata.get("label") for one in epochs] == ["0", None, "1"]
    assert onsets_of(path, onsets=table, event="new") == [(7.5, "new")]
    with pytest.raises(RecordingError, match=r"no event matches 'x'; it has old \(2\), new \(1\)"):
        onsets_of(path, onsets=table, event="x")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no column onset_s"),
        ("time,label\n1,2\n", "it has time, label"),
        ("onset_s\nsoon\n", "line 2: 'soon' is no onset"),
        ("onset_s\n1\n-2\n", "line 3: '-2' is no onset"),
        ("onset_s\nnan\n", "is no onset"),
        ("onset_s\n1e999\n", "is no onset"),
        ("onset_s,event\n1\n", "1 cells where the first line has 2"),
        ("onset_s,a,A\n1,2,3\n", "the same name"),
        ("onset_s,file\n1,b.edf\n", "no row for a.edf"),
        ("onset_s,label\n1,1\n2,yes\n", "line 3: label is 'yes'"),
        ("onset_s,label\n1,1\n2,0\n1,0\n", "line 4: label 0 at 1 s, which has 1 in line 2"),
        ("onset_s,file,label\n1,a,1\n1,a.edf,0\n", "line 3: label 0 at 1 s"),
        ("onset_s\n\x1b[31m\n", r"\x1b"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, what: str) -> None:
    table = tmp_path / "onsets.csv"
    table.write_text(text)
    with pytest.raises(RecordingError) as caught:
        read_onsets(table, "a.edf")
    assert caught.value.code == "onsets"
    assert what in str(caught.value)


def test_a_table_is_checked_once(tmp_path: Path) -> None:
    table = tmp_path / "onsets.csv"
    table.write_text("onset_s,file,label\n1,a,1\n1,b.edf,0\n3,c.edf,1\n4,c.edf,\n")
    (note,) = check_onsets(table, ["x/a.edf", "x/b.edf"])
    assert "2 rows of no recording that was named, the first in line 4 (c.edf)" in note
    assert check_onsets(table, ["a.edf", "b.edf", "c.edf"]) == ()
    assert check_onsets(table, None) == ()
    table.write_text("onset_s\nsoon\n")
    with pytest.raises(UsageError, match="'soon' is no onset") as caught:
        check_onsets(table, ["a.edf"])
    assert "line 2" in str(caught.value.where)


def test_tables_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="cannot be read"):
        read_onsets(tmp_path / "none.csv", "a.edf")
    (tmp_path / "a.csv").write_bytes(b"onset_s\n\xff\xfe\n")
    with pytest.raises(RecordingError, match="no text"):
        read_onsets(tmp_path / "a.csv", "a.edf")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    refused = ""
    rows = []
    try:
        rows = parse_onsets(f"onset_s,event\n{text}", TABLE)
    except RecordingError as error:
        refused = error.what
    assert not refused or refused.isprintable()
    assert all(row.onset_s >= 0 for _, row in rows)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e6, allow_nan=False),
            st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=8),
        ),
        max_size=20,
    ),
    st.sampled_from(",;\t"),
)
def test_tables_say_what_was_written(rows: list[tuple[float, str]], delimiter: str) -> None:
    lines = [f"onset{delimiter}video", *(f"{onset!r}{delimiter}{video}" for onset, video in rows)]
    read = parse_onsets("\n".join(lines), TABLE)
    assert [(one.onset_s, one.metadata["video"]) for _, one in read] == rows


@given(st.text(max_size=30))
def test_any_expression_is_taken_or_refused(event: str) -> None:
    refused, found = "", False
    try:
        found = matcher(event)("video")
    except UsageError as error:
        refused = error.what
    assert "\n" not in refused
    assert not (refused and found)
