"""Lists of a dataset: every row that is right is read, every one that is wrong is named."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.train.datasets import load_dataset
from memcli.train.datasets.tables import header, read_objects, read_table, read_text


class Notes:
    """Collects problems as the tables report them."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int | None]] = []
        self.texts: list[str] = []

    def problem(self, kind, what, file, line=None, severity="error") -> None:
        self.found.append((kind, line))
        self.texts.append(what)


def rows(path: Path, content: bytes | str, *required: str):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    notes = Notes()
    found = [(row.line, *row.cells.values()) for row in read_table(path, notes, required)]
    return found, notes


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "unended"])
def test_bom_and_line_ends_do_not_matter(table: Path, mark: bytes, end: bytes, last: bool) -> None:
    lines = [b"id,text", b'1,"a, b"', b"2, c "]
    content = mark + end.join(lines) + (end if last else b"")
    found, notes = rows(table, content, "id", "text")
    assert found == [(2, "1", "a, b"), (3, "2", "c")]
    assert notes.found == []
    assert header(table) == ("id", "text")


def test_lines_are_those_of_the_file_whatever_the_cells_hold(table: Path) -> None:
    content = 'id,text\n1,"one\ntwo\nthree"\n\n2,x\n3\n4,"a ""b"" c"\n'
    found, notes = rows(table, content, "id")
    assert found == [(2, "1", "one\ntwo\nthree"), (6, "2", "x"), (8, "4", 'a "b" c')]
    assert notes.found == [("columns", 7)]


def test_columns_may_stand_in_any_order_and_case(table: Path) -> None:
    table.write_text(" Score ,PATH,extra\n0.5,a.mp4,x\n")
    (row,) = read_table(table, Notes(), ("path", "score"))
    assert (row["path"], row["score"], row.get("extra"), row.get("fold")) == (
        "a.mp4",
        "0.5",
        "x",
        "",
    )


@pytest.mark.parametrize(
    ("content", "problem", "says"),
    [
        ("id;score\n1;2\n", ("columns", 1), "separated by ; not by commas: save it"),
        ("id\tscore\n1\t2\n", ("columns", 1), "separated by tabs not by commas: save it"),
        ("id;a,b;score\n1;2\n", ("columns", 1), "separated by ; not by commas: save it"),
        ("a,b\n1,2\n", ("columns", 1), "no column id, score: it has 'a, b'; needed: id, score"),
        ("name\n1\n", ("columns", 1), "no column id, score: it has 'name'; needed: id, score"),
        ("", ("columns", 1), "it is empty; needed: a first line with the columns id, score"),
        ("id,score\n", ("no-rows", 1), "no row to read below this line"),
        ("id,score,score\n1,2,3\n", ("columns", 1), "same name"),
        (b"id,score\n1,2\n\xe9,3\n", ("encoding", 3), "0xe9"),
        ("id,score\n1,2\n".encode("utf-16"), ("encoding", None), "UTF-16, not UTF-8: save it as"),
        ("id,score\n1,2\n".encode("utf-16-le"), ("encoding", None), "UTF-16, not UTF-8: save it"),
        ("id,score\n1,2\n".encode("utf-16-be"), ("encoding", None), "UTF-16, not UTF-8: save it"),
        ("id,score\n1,2\n".encode("utf-32"), ("encoding", None), "UTF-32, not UTF-8: save it as"),
        (b"id,score\n1,\x00\n", ("encoding", None), "not text"),
        ('id,score\n1,2\n3,"4\n5,6\n', ("unreadable", 3), "CSV"),
        ('id,score\n1,2\n"3"x,4\n5,6\n', ("unreadable", 3), "CSV"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(table, content, problem, says) -> None:
    _, notes = rows(table, content, "id", "score")
    assert notes.found == [problem]
    assert says in notes.texts[0]


def test_rows_after_a_faulty_one_are_read(table: Path) -> None:
    found, notes = rows(table, 'id,score\n"1"x,4\n5,6\n', "id")
    assert found == [(3, "5", "6")]
    assert notes.found == [("unreadable", 2)]


def test_a_file_that_is_not_there_or_too_large_is_a_problem(table: Path) -> None:
    notes = Notes()
    assert read_text(table, notes) is None
    with table.open("wb") as stream:
        stream.truncate(300 << 20)  # a sparse file
    assert read_text(table, notes) is None
    assert notes.found == [("unreadable", None)] * 2
    assert header(table.parent / "absent.csv") == ()


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20).map(
    str.strip
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(CELLS.filter(bool), CELLS, CELLS), max_size=6), st.booleans())
def test_what_the_csv_writer_writes_is_read_back(
    tmp_path_factory, records: list[tuple[str, str, str]], crlf: bool
) -> None:
    """Commas, quotes, line breaks and letters of any script; each row's line is where the writer
    stood when it began."""
    stream = io.StringIO(newline="")
    # With plain line feeds the writer leaves a lone carriage return unquoted, so it quotes all.
    quoting = csv.QUOTE_MINIMAL if crlf else csv.QUOTE_ALL
    writer = csv.writer(stream, lineterminator="\r\n" if crlf else "\n", quoting=quoting)
    writer.writerow(("id", "a", "b"))
    expected = []
    for record in records:
        # csv counts lines as universal newlines do
        line = len(io.StringIO(stream.getvalue(), newline="").readlines()) + 1
        writer.writerow(record)
        expected.append((line, *record))
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    found, notes = rows(path, stream.getvalue().encode(), "id")
    assert notes.found == ([] if records else [("no-rows", 1)])
    assert found == expected


def objects(path: Path, text: str):
    path.write_text(text, encoding="utf-8")
    notes = Notes()
    return list(read_objects(path, notes)), notes


def test_json_objects_have_the_lines_they_start_on(tmp_path: Path) -> None:
    text = '\n[ {"a": 1},\n\n  {"a":\n "x\\ny"}, 7,\n{"a": NaN}\n]\n'
    found, notes = objects(tmp_path / "list.json", text)
    assert [(line, str(value["a"])) for line, value in found] == [(2, "1"), (4, "x\ny"), (6, "nan")]
    assert notes.found == [("value", 5)]


@pytest.mark.parametrize(
    ("text", "line", "read"),
    [
        ('{"a": 1}', 1, 0),
        ("", 1, 0),
        ('[{"a": 1},\n{"a": }]', 2, 1),
        ('[{"a": 1}\n{"a": 2}]', 2, 1),
        ('[{"a": 1},\n', 2, 1),
        ("[" * 100_000, 1, 0),
        ('[\n{"a": ' + "9" * 10_000 + "}]", 2, None),
    ],
)
def test_broken_json_is_read_to_the_break(tmp_path, text, line, read) -> None:
    found, notes = objects(tmp_path / "list.json", text)
    if read is None:  # an integer of this length is refused or not, by version of Python
        assert len(found) + len(notes.found) == 1
        return
    assert len(found) == read
    assert notes.found == [("unreadable", line)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.floats())))
def test_json_lists_are_read_back(tmp_path_factory, values) -> None:
    text = json.dumps(values, indent=1)
    found, notes = objects(tmp_path_factory.mktemp("json") / "list.json", text)
    assert notes.found == []
    assert repr([value for _, value in found]) == repr(json.loads(text))
    starts = [number for number, line in enumerate(text.split("\n"), 1) if line[:2] == " {"]
    assert [line for line, _ in found] == starts


@pytest.mark.parametrize("text", ["\x1b[2J\n/etc/passwd:1: forged", "a" * 500])
def test_foreign_text_in_a_problem_is_one_harmless_line(tmp_path: Path, text: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f'path,score\n"{text}",7\n', encoding="utf-8")
    problems = load_dataset("csv", table).problems
    assert {problem.kind for problem in problems} == {"score-range", "missing-video"}
    for problem in problems:
        assert problem.what.isprintable()
        assert len(problem.what) < 200
