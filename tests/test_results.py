"""Tables: every format says the same, whole or not at all."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from test_journal import ROW

from memcli import results
from memcli.errors import OutputError, UsageError
from memcli.results import COLUMNS, write_table

ROWS = [
    replace(ROW, path='a "b",\n.mp4', frame_times_s=[0.5, 1.5], frame_scores=[0.1, 0.9]),
    replace(ROW, path="=cmd.mp4", status="failed", score=None, error="=1+1", error_code="damaged"),
    replace(ROW, path=os.fsdecode(b"\xff.mp4"), width=320, height=240, duration_s=1.5),
]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_table(path, ROWS, curve=False)
    with path.open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert tuple(table[0]) == COLUMNS
    assert [row["path"] for row in table] == ['a "b",\n.mp4', "./=cmd.mp4", "\\xff.mp4"]
    assert table[1]["score"] == ""
    assert table[1]["error"] == "'=1+1"
    assert not results.curve_path(path).exists()


def test_csv_curves_are_a_second_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_table(path, ROWS, curve=True)
    with results.curve_path(path).open(newline="") as stream:
        points = list(csv.DictReader(stream))
    assert [(p["frame"], p["time_s"], p["score"]) for p in points] == [
        ("0", "0.5", "0.1"),
        ("1", "1.5", "0.9"),
    ]


@pytest.mark.parametrize("curve", [False, True])
def test_jsonl(tmp_path: Path, curve: bool) -> None:
    path = tmp_path / "t.jsonl"
    write_table(path, ROWS, curve=curve)
    values = [json.loads(line) for line in path.read_text().splitlines()]
    assert [value["path"] for value in values] == [row.path for row in ROWS]
    assert ("frame_scores" in values[0]) is curve


@pytest.mark.parametrize("curve", [False, True])
def test_parquet(tmp_path: Path, curve: bool) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    write_table(path, ROWS, curve=curve)
    table = parquet.read_table(path)
    assert table.column_names == [*COLUMNS, *(results.CURVE_COLUMNS if curve else ())]
    assert table["score"].to_pylist() == [0.5, None, 0.5]
    assert table["width"].to_pylist() == [None, None, 320]
    if curve:
        assert table["frame_scores"].to_pylist()[0] == [0.1, 0.9]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_failure_leaves_the_old_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(b"old")

    def rows() -> object:
        yield ROW
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write_table(path, rows(), curve=False)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_unknown_format() -> None:
    with pytest.raises(UsageError, match=r"unknown table format '\.xls'"):
        results.output_format(Path("t.xls"))
    with pytest.raises(UsageError, match="no ending names its format") as caught:
        results.output_format(Path("scores"))
    assert "end in one of: .csv, .jsonl, .parquet" in str(caught.value)
