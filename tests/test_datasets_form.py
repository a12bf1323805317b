"""Tables that are not comma-separated UTF-8, or have other columns: one line says so."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcli.app import run as memcli
from memcli.train.datasets import DatasetError, detect, load_dataset
from memcli.train.datasets.form import columns_fault, encoding_fault, form_of

GENERIC = "path,score\na.mp4,0.5\n"
SCORES = (
    "video_id,video_url,scores_raw_short_term,scores_normalized_short_term\n1,u/a.mp4,0.5,0.5\n"
)
SEMICOLONS = "separated by ; not by commas: save it with commas between columns"
UTF16 = "UTF-16, not UTF-8: save it as UTF-8"
SPOILT = {
    "semicolons": (GENERIC.replace(",", ";").encode(), SEMICOLONS),
    "quoted": (b'"path";"score"\n"a.mp4";"0,5"\n', SEMICOLONS),
    "a comma in a name": (b"path;score;seen, remembered\na.mp4;0.5;1\n", SEMICOLONS),
    "tabs": (GENERIC.replace(",", "\t").encode(), "separated by tabs not by commas"),
    "UTF-16": (GENERIC.encode("utf-16"), UTF16),
    "UTF-16 without a mark": (GENERIC.encode("utf-16-le"), UTF16),
    "UTF-32": (GENERIC.encode("utf-32"), "UTF-32, not UTF-8"),
    "both": (
        GENERIC.replace(",", ";").encode("utf-16"),
        f"UTF-16, not UTF-8, and {SEMICOLONS}, as UTF-8",
    ),
    "other columns": (
        b"file,memorability\na.mp4,0.5\n",
        "no column path, score: it has 'file, memorability'; needed: path, score",
    ),
    "one column": (b"path,mem\na.mp4,0.5\n", "no column score: it has 'path, mem'; needed: path,"),
    "nothing": (b"", "it is empty; needed: a first line with the columns path, score"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_table_says_what_is_wrong_with_it(tmp_path: Path, name: str) -> None:
    content, message = SPOILT[name]
    table = tmp_path / "clips.csv"
    table.write_bytes(content)
    for tell in (detect, lambda path: load_dataset("csv", path)):
        with pytest.raises(DatasetError) as caught:
            tell(table)
        first = str(caught.value).splitlines()[0]
        assert first.startswith(f"{table}: ")
        assert message in first
        assert "path,score[,caption]" in str(caught.value)


@pytest.mark.parametrize("name", SPOILT)
def test_its_folder_says_the_same(tmp_path: Path, name: str) -> None:
    content, message = SPOILT[name]
    (tmp_path / "clips.csv").write_bytes(content)
    for tell in (detect, lambda path: load_dataset("csv", path)):
        with pytest.raises(DatasetError) as caught:
            tell(tmp_path)
        (line,) = (line for line in str(caught.value).splitlines() if message in line)
        assert "clips.csv: " in line


def test_of_many_files_the_likely_ones_come_first(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.csv").write_text("a,b\n1,2\n")
    (tmp_path / "x.csv").write_bytes(SPOILT["semicolons"][0])
    (tmp_path / "y.csv").write_bytes(SPOILT["UTF-16"][0])
    with pytest.raises(DatasetError, match="no dataset here") as caught:
        detect(tmp_path)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[1:5] == [
        f"x.csv: {SEMICOLONS}",
        f"y.csv: {UTF16}",
        "0.csv: no column path, score: it has 'a, b'; needed: path, score",
        "and 4 more",
    ]


def test_a_sound_table_beside_a_spoilt_one_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(SPOILT["UTF-16"][0])
    (tmp_path / "b.csv").write_text(GENERIC)
    assert detect(tmp_path) == "csv"
    assert [item.id for item in load_dataset("csv", tmp_path).items] == ["a.mp4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SCORES.replace(",", ";").encode(), SEMICOLONS),
        (SCORES.encode("utf-16"), UTF16),
        (
            b"video_id,mem\n1,0.5\n",
            "no column video_url, scores_raw_short_term: it has 'video_id, mem';"
            " needed: video_id, video_url, scores_raw_short_term",
        ),
    ],
)
def test_official_lists_say_it_too(
    tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train_scores.csv"
    path.write_bytes(content)
    assert memcli(["dataset", "check", str(tmp_path)]) == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if str(path) in x)
    assert message in line


@pytest.mark.parametrize("text", [GENERIC, "\ufeffpath,score\n", "é,path,score\n", "a\n", ""])
def test_utf8_is_no_fault(text: str) -> None:
    assert encoding_fault(text.encode()) is None


@given(st.binary(max_size=200))
def test_any_bytes_have_a_form(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content)
    form = form_of(path, ("path", "score"))
    assert (form.fault is None) == ({"path", "score"} <= set(form.columns))
    assert form.fault is None or form.fault.isprintable()


def test_a_table_with_the_columns_has_no_fault() -> None:
    assert columns_fault(("x;y", "path", "score"), ("path", "score")) is None


def test_a_table_of_its_first_line_only_is_named(tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    table.write_text("path,score\n\n")
    with pytest.raises(DatasetError, match="no video is listed here") as caught:
        load_dataset("csv", tmp_path)
    assert f"{table}:1: there is no row to read below this line" in str(caught.value)
    assert caught.value.next_step
