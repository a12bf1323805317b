"""Result rows (schema 1) and the tables they are written to: CSV, JSON lines, Parquet."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, get_args

from memcli.errors import MissingDependencyError, OutputError, UsageError
from memcli.text import csv_cell, csv_path, decodable

if TYPE_CHECKING:
    import pyarrow

SCHEMA = 1
Status = Literal["ok", "partial", "failed"]
STATUSES: tuple[Status, ...] = get_args(Status)
FORMATS = (".csv", ".jsonl", ".parquet")
_PARQUET_ROWS = 4096


@dataclass(frozen=True)
class Row:
    """One video of a table. Fields that do not apply are None (an empty cell)."""

    path: str
    status: Status
    score: float | None
    """Memorability in [0, 1]; None if failed."""
    model: str
    bundle: str
    """Model and content hash of what scored it."""
    engine: str
    device: str
    precision: str
    sampling: str
    weights_license: str
    duration_s: float | None = None
    width: int | None = None
    height: int | None = None
    frames_used: int | None = None
    """Distinct frames the score rests on."""
    caption: str | None = None
    error_code: str | None = None
    error: str | None = None
    """Why it failed, or what is damaged in a partial one."""
    decoder: str | None = None
    """What decoded it: cpu, nvdec or nvdec+gpu-resize; None if nothing was decoded."""
    decode_ms: float | None = None
    infer_ms: float | None = None
    frame_times_s: list[float] | None = None
    """Seconds from the start of the video, one per sampled frame (with --curve)."""
    frame_scores: list[float] | None = None

    def to_dict(self, *, curve: bool) -> dict[str, Any]:
        """Columns in order; the curve's two only where asked for."""
        values = dataclasses.asdict(self)
        if not curve:
            for name in CURVE_COLUMNS:
                del values[name]
        return values


CURVE_COLUMNS = ("frame_times_s", "frame_scores")
COLUMNS = tuple(f.name for f in dataclasses.fields(Row) if f.name not in CURVE_COLUMNS)
MEASURED_COLUMNS = ("decode_ms", "infer_ms")
"""Columns that differ between two runs over the same files."""


def output_format(path: Path) -> str:
    """`.csv`, `.jsonl` or `.parquet`. Raises UsageError for other endings, and where Parquet's
    package is missing."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        problem = f"unknown table format {suffix!r}" if suffix else "no ending names its format"
        raise UsageError(
            problem, where=str(path), next_step=f"Let its name end in one of: {', '.join(FORMATS)}"
        )
    if suffix == ".parquet":
        _pyarrow()
    return suffix


def write_table(path: Path, rows: Iterable[Row], *, curve: bool) -> None:
    """Write rows to `path` in the format of its ending, atomically.

    A CSV table has no place for curves: they go to a second file, `NAME.curve.csv`, with one line
    per frame. Raises OutputError; an older table is then still whole.
    """
    suffix = output_format(path)
    if suffix == ".csv":
        _write_csv(path, rows, curve=curve)
    elif suffix == ".jsonl":
        with _atomic(path) as stream:
            for row in rows:
                stream.write(json.dumps(row.to_dict(curve=curve)) + "\n")
    else:
        _write_parquet(path, rows, curve=curve)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"the table cannot be written: {error.strerror or error}",
        where=str(path),
        next_step="Its rows are safe in the journal: make room and run the same command again.",
    )


def _temporary(path: Path) -> Path:
    # One name, not one per process: what a killed run left is overwritten by the next.
    return path.with_name(f".{path.name}.tmp")


def curve_path(path: Path) -> Path:
    """The file of curves beside a CSV table."""
    return path.with_suffix(".curve.csv")


@contextmanager
def _atomic(path: Path) -> Iterator[IO[str]]:
    """A text stream whose content replaces `path` at the end, or leaves it as it was."""
    temporary = _temporary(path)
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OutputError:
        raise  # of a table that is written at the same time
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_csv(path: Path, rows: Iterable[Row], *, curve: bool) -> None:
    if not curve:
        with _atomic(path) as stream:
            table = csv.writer(stream)
            table.writerow(COLUMNS)
            table.writerows(_csv_row(row) for row in rows)
        return
    with _atomic(path) as stream, _atomic(curve_path(path)) as curves:
        table, points = csv.writer(stream), csv.writer(curves)
        table.writerow(COLUMNS)
        points.writerow(("path", "frame", "time_s", "score"))
        for row in rows:
            table.writerow(_csv_row(row))
            frames = zip(row.frame_times_s or [], row.frame_scores or [], strict=True)
            points.writerows((csv_path(row.path), n, *point) for n, point in enumerate(frames))


def _csv_row(row: Row) -> list[Any]:
    values = row.to_dict(curve=False)
    cells = [csv_cell(value) if isinstance(value, str) else value for value in values.values()]
    cells[0] = csv_path(row.path)
    return cells


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError(
            "pyarrow", purpose="writing Parquet", install="pip install 'memcli[parquet]'"
        ) from None
    return pyarrow


def _arrow_schema(arrow: Any, *, curve: bool) -> pyarrow.Schema:
    integers = {"width", "height", "frames_used"}
    reals = {"score", "duration_s", *MEASURED_COLUMNS}

    def kind(name: str) -> Any:
        if name in integers:
            return arrow.int64()
        return arrow.float64() if name in reals else arrow.string()

    fields = [(name, kind(name)) for name in COLUMNS]
    if curve:
        fields += [(name, arrow.list_(arrow.float64())) for name in CURVE_COLUMNS]
    return arrow.schema(fields, metadata={"memcli_schema": str(SCHEMA)})


def _write_parquet(path: Path, rows: Iterable[Row], *, curve: bool) -> None:
    arrow = _pyarrow()
    schema = _arrow_schema(arrow, curve=curve)
    temporary = _temporary(path)
    try:
        with arrow.parquet.ParquetWriter(temporary, schema) as writer:
            for part in _chunks(rows, _PARQUET_ROWS):
                table = [{**row.to_dict(curve=curve), "path": decodable(row.path)} for row in part]
                writer.write_table(arrow.Table.from_pylist(table, schema=schema))
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    part: list[Row] = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
