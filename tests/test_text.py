"""Foreign text is harmless wherever it is shown."""

import csv
import io
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcli.text import csv_cell, csv_path, decodable, plural, printable

any_text = st.text(st.characters(categories=None))


@given(any_text)
def test_printable_is_one_printable_line(text: str) -> None:
    shown = printable(text)
    assert "\n" not in shown
    assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in shown)
    shown.encode("utf-8")


@given(st.text(st.characters(categories=["L", "N", "P"])))
def test_printable_keeps_what_prints(text: str) -> None:
    assert printable(text) == text


def test_printable_disarms_terminal_escapes_and_bidi() -> None:
    assert printable("a\x1b[31mb\r\n") == "a\\x1b[31mb\\r\\n"
    assert printable("\u202egpj.mp4") == "\\u202egpj.mp4"
    assert printable(os.fsdecode(b"caf\xe9.mp4")) == "caf\\xe9.mp4"


@given(any_text)
def test_csv_cell_survives_a_round_trip_and_is_no_formula(text: str) -> None:
    cell = csv_cell(text)
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerow([cell, "end"])
    buffer.seek(0)
    assert next(csv.reader(buffer)) == [cell, "end"]
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    cell.encode("utf-8")
    assert "\x1b" not in cell


@pytest.mark.parametrize(
    "name",
    [
        "Recording 2026-11-21 at 1.00.00\u202fPM.mov",
        "夏\u3000祭り.mp4",
        "👩\u200d🚀.mp4",
        "a\xa0b.mp4",
    ],
)
def test_real_names_stay_themselves(name: str) -> None:
    assert csv_path(name) == name
    assert decodable(name) == name


def test_decodable_changes_bytes_that_are_not_utf8_only() -> None:
    assert decodable(os.fsdecode(b"-caf\xe9\x1b.mp4")) == "-caf\\xe9\x1b.mp4"


def test_csv_path_stays_a_path() -> None:
    assert csv_path("=1+2.mp4") == "./=1+2.mp4"
    assert csv_path("/a/=b.mp4") == "/a/=b.mp4"
    assert csv_path('two\nlines "x".mp4') == 'two\nlines "x".mp4'


def test_plural() -> None:
    assert plural(1, "video") == "1 video"
    assert plural(1000, "video") == "1,000 videos"
