"""Tables as Markdown, CSV and plots: nothing in a name breaks them, and nothing is lost."""

from __future__ import annotations

import csv
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcli.errors import OutputError
from memcli.experiments.files import CSV_FILE, PAGE_FILE, write_tables
from memcli.experiments.tables import (
    CSV_COLUMNS,
    Figure,
    Quantity,
    Row,
    Table,
    markdown,
    shown,
    write_text,
)

PLAIN = Table(
    "table-1",
    "Table 1: SRCC",
    ("Model",),
    (Quantity("SRCC"), Quantity("Batch size", ",.0f", plotted=False)),
    (
        Row(
            ("first",),
            "first",
            published={"SRCC": Figure(0.603, interval=(0.589, 0.616), videos=8500)},
            obtained={
                "SRCC": Figure(0.5, interval=(0.4, 0.59), videos=100),
                "Batch size": Figure(1024),
            },
        ),
        Row(
            ("second",), "second", published={"SRCC": Figure(0.362, std=0.1)}, failure="no wéights"
        ),
        Row(("third",), published={"SRCC": Figure(0.1)}, absent="not here"),
        Row(("fourth",), obtained={"SRCC": Figure(None)}),
    ),
    ("A note.",),
)


def cells(line: str) -> list[str]:
    """What a reader of GitHub's Markdown takes for the cells of a line."""
    assert line.startswith("| ")
    assert line.endswith(" |")
    return [cell.strip() for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]]


def records(folder: Path) -> list[dict[str, str]]:
    with (folder / CSV_FILE).open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        rows = list(reader)
    assert tuple(reader.fieldnames or ()) == CSV_COLUMNS
    return rows


def test_markdown_has_published_beside_obtained() -> None:
    lines = markdown(replace(PLAIN, mark="Planted.")).splitlines()
    assert lines[:4] == ["### Table 1: SRCC", "", "**Planted.**", ""]
    assert cells(lines[4]) == [
        "Model",
        "SRCC, published",
        "SRCC, obtained",
        "Batch size, published",
        "Batch size, obtained",
    ]
    assert [cells(line) for line in lines[6:10]] == [
        ["first", "0.603 (0.589, 0.616)", "0.500 (0.400, 0.590)", "–", "1,024"],
        ["second", "0.362 ± 0.10", "failed", "–", "failed"],
        ["third", "0.100", "not here", "–", "not here"],
        ["fourth", "–", "undefined", "–", "–"],
    ]
    assert lines[10:] == ["", "- A note.", "- second failed: no wéights"]


def test_without_anything_published_there_is_one_column_per_quantity() -> None:
    row = Row(("a",), obtained={"b": Figure(0.25)})
    table = Table("srcc", "t", ("Trained on",), (Quantity("b"),), (row,))
    assert cells(markdown(table).splitlines()[2]) == ["Trained on", "b"]


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_name_breaks_the_markdown(name: str, reason: str) -> None:
    row = Row((name,), failure=reason or "x")
    table = Table("t", name, (name,), (Quantity("SRCC"),), (row,), (name,), reason)
    lines = markdown(table).split("\n")
    rows = [line for line in lines if line.startswith("|")]
    assert [len(cells(line)) for line in rows] == [2, 2, 2]
    assert len(lines) == (11 if reason else 9)
    strange = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert not [one for line in lines for one in line if unicodedata.category(one) in strange]
    assert not re.search(r"(?<!\\)(?:\\\\)*[<`]", "\n".join(lines))


def test_csv_holds_every_figure(tmp_path: Path) -> None:
    write_tables(tmp_path, [replace(PLAIN, mark="=planted")], plots=False)
    rows = records(tmp_path)
    assert {row["mark"] for row in rows} == {"'=planted"}
    first = [row for row in rows if row["row"] == "first"]
    assert [(r["quantity"], r["source"], r["value"], r["low"], r["videos"]) for r in first] == [
        ("SRCC", "published", "0.603", "0.589", "8500"),
        ("SRCC", "obtained", "0.5", "0.4", "100"),
        ("Batch size", "obtained", "1024", "", ""),
    ]
    failed = [r for r in rows if r["status"] == "failed"]
    assert {(r["row"], r["value"], r["reason"]) for r in failed} == {("second", "", "no wéights")}
    assert [r["reason"] for r in rows if r["row"] == "third" and r["source"] == "obtained"] == [
        "not here",
        "not here",
    ]


def test_csv_cells_are_no_formulas(tmp_path: Path) -> None:
    row = Row(("=HYPERLINK(1)",), "=x", failure="@SUM(1)\nsecond line")
    write_tables(tmp_path, [replace(PLAIN, rows=(row,))], plots=False)
    for record in records(tmp_path):
        assert not [cell for cell in record.values() if cell.startswith(("=", "@", "+"))]
    assert records(tmp_path)[0]["reason"] == "'@SUM(1)\nsecond line"


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    write_text(path, "old")
    (tmp_path / ".page.md.new").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_figures_in_cells() -> None:
    assert shown(None, ".3f") == "–"
    assert shown(Figure(2e-6), ".0e") == "2e-06"
    assert shown(Figure(0.71, interval=(0.7, 0.72)), ".4f") == "0.7100 (0.7000, 0.7200)"


def test_plot_has_a_dot_for_each_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from memcli.train import plots

    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append((figure, path)))
    write_tables(tmp_path, [replace(PLAIN, mark="Planted $x$")], plots=True)
    ((figure, path),) = figures
    assert path == tmp_path / "table-1.png"
    (axes,) = figure.axes
    assert axes.get_xlabel() == "SRCC"
    published, obtained = axes.containers
    assert published[0].get_xdata().tolist() == [0.603, 0.362, 0.1]
    assert [round(y) for y in published[0].get_ydata()] == [0, 1, 2]
    assert obtained[0].get_xdata().tolist() == [0.5]
    ((low, high),) = [segment[:, 0] for segment in obtained[2][0].get_segments()]
    assert (low, high) == pytest.approx((0.4, 0.59))
    deviation = published[2][0].get_segments()[1][:, 0]
    assert deviation.tolist() == pytest.approx([0.262, 0.462])
    assert figure.get_suptitle() == "Table 1: SRCC\nPlanted $x$"
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["first", "second"]
    assert "![table-1: published and obtained](table-1.png)" in (tmp_path / PAGE_FILE).read_text()


def test_plots_are_png_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = ("$x^", "日本\x1b[31m")
    rows = tuple(Row((name,), obtained={"SRCC": Figure(0.1)}) for name in names)
    write_tables(tmp_path, [replace(PLAIN, rows=rows)], plots=True)
    assert (tmp_path / "table-1.png").read_bytes().startswith(b"\x89PNG")
