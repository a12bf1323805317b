"""Result rows (schema 1) and the tables they are written to: CSV, JSON lines, Parquet.

`Row` is a video's. Other kinds of rows have a `Layout` of their own and the same writers.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import (
    IO,
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    get_args,
    get_type_hints,
)

from memcli.errors import MissingDependencyError, OutputError, UsageError
from memcli.text import csv_cell, csv_path, decodable

if TYPE_CHECKING:
    import pyarrow

SCHEMA = 1
Status = Literal["ok", "partial", "failed"]
FORMATS = (".csv", ".jsonl", ".parquet")
_PARQUET_ROWS = 4096


class TableRow(Protocol):
    """A row of any table: a dataclass of strings, numbers and lists of numbers."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def path(self) -> str: ...

    @property
    def status(self) -> Status: ...


R = TypeVar("R", bound=TableRow)


@dataclass(frozen=True)
class Layout(Generic[R]):
    """How rows of one type become a table. Columns and their types are the row's fields."""

    row: type[R]
    lists: tuple[str, ...]
    """Columns that hold lists, which a CSV table has no place for."""
    points: tuple[str, ...] = ()
    """Columns of the second CSV file, `NAME.curve.csv`, that has a line per point of the lists;
    none: CSV goes without lists."""
    points_of: Callable[[R], Iterable[Sequence[Any]]] | None = None
    """The lines of a row there."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns without lists."""
        names = (field.name for field in dataclasses.fields(self.row))
        return tuple(name for name in names if name not in self.lists)

    def values(self, row: R, *, lists: bool) -> dict[str, Any]:
        """A row's columns, those with lists only where asked for."""
        values = dataclasses.asdict(row)
        if not lists:
            for name in self.lists:
                del values[name]
        return values


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
    caption_source: str | None = None
    """given, sidecar, generated or none; None of models that read no captions."""
    captioner: str | None = None
    """Name and hash of what made the caption, or was asked for one and gave none of use."""
    caption_note: str | None = None
    """Which files beside the video are not used, and why."""
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
        return SCORES.values(self, lists=curve)


CURVE_COLUMNS = ("frame_times_s", "frame_scores")


def _curve_points(row: Row) -> Iterator[tuple[Any, ...]]:
    points = zip(row.frame_times_s or [], row.frame_scores or [], strict=True)
    return ((csv_path(row.path), frame, *point) for frame, point in enumerate(points))


SCORES = Layout(Row, CURVE_COLUMNS, ("path", "frame", "time_s", "score"), _curve_points)
COLUMNS = SCORES.columns
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
    """`write_rows` of scores. Curves beside a CSV table are in `NAME.curve.csv`."""
    write_rows(path, rows, SCORES, lists=curve)


def write_rows(path: Path, rows: Iterable[R], layout: Layout[R], *, lists: bool) -> None:
    """Write rows to `path` in the format of its ending, atomically.

    `lists`: also the columns that hold lists. Raises OutputError; an older table is then still
    whole.
    """
    suffix = output_format(path)
    if suffix == ".csv":
        _write_csv(path, rows, layout, lists=lists)
    elif suffix == ".jsonl":
        with atomic_text(path) as stream:
            for row in rows:
                stream.write(json.dumps(layout.values(row, lists=lists)) + "\n")
    else:
        _write_parquet(path, rows, layout, lists=lists)


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
def atomic_text(path: Path) -> Iterator[IO[str]]:
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


def _write_csv(path: Path, rows: Iterable[R], layout: Layout[R], *, lists: bool) -> None:
    if not lists or layout.points_of is None:
        with atomic_text(path) as stream:
            table = csv.writer(stream)
            table.writerow(layout.columns)
            table.writerows(_csv_row(row, layout) for row in rows)
        return
    with atomic_text(path) as stream, atomic_text(curve_path(path)) as curves:
        table, points = csv.writer(stream), csv.writer(curves)
        table.writerow(layout.columns)
        points.writerow(layout.points)
        for row in rows:
            table.writerow(_csv_row(row, layout))
            points.writerows(layout.points_of(row))


def _csv_row(row: R, layout: Layout[R]) -> list[Any]:
    values = layout.values(row, lists=False)
    return [
        csv_path(row.path) if name == "path" else _cell(value) for name, value in values.items()
    ]


def _cell(value: Any) -> Any:
    return csv_cell(value) if isinstance(value, str) else value


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError(
            "pyarrow", purpose="writing Parquet", install="pip install 'memcli[parquet]'"
        ) from None
    return pyarrow


def _arrow_schema(arrow: Any, layout: Layout[R], *, lists: bool) -> pyarrow.Schema:
    hints = get_type_hints(layout.row)

    def kind(name: str) -> Any:
        kinds = get_args(hints[name]) or (hints[name],)
        if bool in kinds:
            return arrow.bool_()
        if int in kinds:
            return arrow.int64()
        return arrow.float64() if float in kinds else arrow.string()

    fields = [(name, kind(name)) for name in layout.columns]
    if lists:
        fields += [(name, arrow.list_(arrow.float64())) for name in layout.lists]
    return arrow.schema(fields, metadata={"memcli_schema": str(SCHEMA)})


def _write_parquet(path: Path, rows: Iterable[R], layout: Layout[R], *, lists: bool) -> None:
    arrow = _pyarrow()
    schema = _arrow_schema(arrow, layout, lists=lists)
    temporary = _temporary(path)
    try:
        with arrow.parquet.ParquetWriter(temporary, schema) as writer:
            for part in _chunks(rows, _PARQUET_ROWS):
                table = [_parquet_row(row, layout, lists=lists) for row in part]
                writer.write_table(arrow.Table.from_pylist(table, schema=schema))
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _parquet_row(row: R, layout: Layout[R], *, lists: bool) -> dict[str, Any]:
    return {**layout.values(row, lists=lists), "path": decodable(row.path)}


def _chunks(rows: Iterable[R], size: int) -> Iterator[list[R]]:
    part: list[R] = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
