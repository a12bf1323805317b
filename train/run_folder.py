"""Writes a run folder, step by step, so that an interrupted training leaves what it has done.

Every file appears whole or not at all, and is listed with its hash in run.json only afterwards.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import json
import math
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from memcli.errors import MemcliError, ModelError, OutputError, UsageError
from memcli.home import make_dir
from memcli.locking import lock
from memcli.text import csv_cell
from memcli.train.run import (
    LATEST,
    LOGS_FOLDER,
    PREDICTIONS_FILE,
    RUN_FILE,
    SPLIT_FILE,
    TOKENIZER_FILE,
    Run,
    read_run,
    runs_dir,
    sha256_file,
)

if TYPE_CHECKING:
    from torch import Tensor

_WORK_FOLDER = "work"
_LOCK_FILE = ".lock"
_BEFORE_A_RUN = (_LOCK_FILE, f".{RUN_FILE}.new")
"""What a training leaves that could not write its run.json."""
_MAX_CSV_BYTES = 1 << 30


@dataclass(frozen=True)
class Prediction:
    """The score of one held-out video."""

    id: str
    fold: int
    truth: float
    predicted: float
    branches: tuple[float, ...] = ()
    """Of vision and text, for a late fusion."""


class RunFolder:
    """A run that is being made. A context manager: one process at a time may hold it."""

    def __init__(self, run: Run, lock: int):
        self.run = run
        self._lock = lock

    @classmethod
    def create(cls, run: Run, output: Path | None) -> RunFolder:
        """Begin a run, in `output` or in a new folder of the model's runs.

        `run.folder` is not looked at. Raises UsageError if `output` is there and not empty.
        """
        check_output(output)
        folder = output.absolute() if output is not None else _new_folder(run.model)
        make_dir(folder)
        opened = cls(replace(run, folder=folder), _locked(folder))
        try:
            opened.save()
        except BaseException:
            os.close(opened._lock)
            raise
        return opened

    @classmethod
    def resume(cls, folder: Path) -> RunFolder:
        """Go on with an interrupted run.

        Raises UsageError if there is none, it is complete or another process goes on with it.
        """
        if not folder.is_dir():
            raise UsageError("there is no run in this folder", where=str(folder))
        _unfinished(folder)
        lock = _locked(folder.absolute())
        try:
            # Again: until it was locked, another process may have gone on with it.
            return cls(_unfinished(folder), lock)
        except BaseException:
            os.close(lock)
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    @property
    def logs(self) -> Path:
        """Folder for TensorBoard."""
        return self.run.folder / LOGS_FOLDER

    def work(self, part: str) -> Path:
        """Folder for the checkpoints of one part of the training."""
        return self.run.folder / _WORK_FOLDER / part

    def clear_work(self, part: str) -> None:
        """Drop the checkpoints of a part whose weights are written."""
        shutil.rmtree(self.work(part), ignore_errors=True)

    def save(self, **changes: Any) -> None:
        """Change fields of the run and write run.json."""
        self.run = replace(self.run, **changes)
        text = json.dumps(_plain(self.run.to_dict()), indent=1, ensure_ascii=True, allow_nan=False)
        with _written(self.run.folder / RUN_FILE) as stream:
            stream.write(text + "\n")

    def add_weights(self, name: str, weights: dict[str, Tensor]) -> None:
        """Write a weights file and list it."""
        from safetensors.torch import save_file

        path = self.run.folder / name
        beside = path.with_name(f".{name}.new")
        with _disk(path):
            save_file({key: value.contiguous() for key, value in weights.items()}, beside)
            beside.replace(path)
        self.save(files=self.run.files | {name: sha256_file(path)})

    def add_tokenizer(self, source: Path) -> None:
        """Copy the tokenizer and list it."""
        path = self.run.folder / TOKENIZER_FILE
        beside = path.with_name(f".{path.name}.new")
        with _disk(path):
            shutil.copyfile(source, beside)
            beside.replace(path)
        self.save(files=self.run.files | {TOKENIZER_FILE: sha256_file(path)})

    def write_split(self, rows: Sequence[tuple[str, int | None, str]]) -> None:
        """id, fold that holds the video out (from 1; None: none) and role in the full training."""
        with _written(self.run.folder / SPLIT_FILE) as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("id", "fold", "role"))
            writer.writerows(
                (csv_cell(name), "" if fold is None else fold, role) for name, fold, role in rows
            )

    def write_predictions(self, rows: Sequence[Prediction], name: str = PREDICTIONS_FILE) -> None:
        """The held-out videos' (or epochs') scores so far."""
        branches = ("vision", "text") if any(row.branches for row in rows) else ()
        with _written(self.run.folder / name) as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("id", "fold", "truth", "predicted", *branches))
            writer.writerows(
                (csv_cell(row.id), row.fold, row.truth, row.predicted, *row.branches)
                for row in rows
            )

    def finish(self) -> Run:
        """Mark the run as complete and as the model's newest."""
        self.save(status="complete")
        shutil.rmtree(self.run.folder / _WORK_FOLDER, ignore_errors=True)
        runs = make_dir(runs_dir(self.run.model))
        folder = self.run.folder.absolute()
        inside = folder.parent == runs.absolute()
        with _written(runs / LATEST) as stream:
            stream.write((folder.name if inside else str(folder)) + "\n")
        return self.run


def check_output(output: Path | None) -> None:
    """Raises UsageError if `output` is there and not an empty folder."""
    if output is None or not output.exists():
        return
    if not output.is_dir():
        raise UsageError("this is a file, not a folder", where=str(output))
    if any(one.name not in _BEFORE_A_RUN for one in output.iterdir()):
        try:
            run = read_run(output, unfinished=True)
        except MemcliError:  # whatever else lies there
            run = None
        holds, next_step = "is not empty", "Choose another:  --output DIR"
        if run is not None and run.status == "complete":
            holds = f"holds a complete run of {run.model}"
        elif run is not None:
            holds = f"holds an unfinished run of {run.model}"
            next_step = (
                f"Go on with it:  memcli train {run.model} --resume {shlex.quote(str(output))}\n"
                "Or choose another:  --output DIR"
            )
        raise UsageError(
            f"this folder {holds}, and a training never overwrites anything",
            where=str(output),
            next_step=next_step,
        )


def read_predictions(run: Run, name: str = PREDICTIONS_FILE) -> list[Prediction]:
    """The held-out videos' scores of a run; none before its first fold is done.

    Ids are as in the file, where those that look like a formula have an apostrophe before them.
    Raises ModelError for a file that is damaged.
    """
    path = run.folder / name
    try:
        if not path.exists():
            return []
        if path.stat().st_size > _MAX_CSV_BYTES:
            raise ValueError("too large")
        with path.open(encoding="utf-8", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            if next(rows, [])[:4] != ["id", "fold", "truth", "predicted"]:
                raise ValueError("another header")
            return [_prediction(row) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise ModelError(f"not the predictions of a run: {error}", where=str(path)) from error


def _prediction(row: list[str]) -> Prediction:
    name, fold, *values = row
    truth, predicted, *branches = map(float, values)
    if not all(math.isfinite(one) for one in (truth, predicted, *branches)):
        raise ValueError("a score that is not finite")
    return Prediction(name, int(fold), truth, predicted, tuple(branches))


def _new_folder(model: str) -> Path:
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d-%H%M%S")
    runs = make_dir(runs_dir(model))
    number = 1
    while True:
        folder = runs / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        except OSError as error:
            raise OutputError(f"cannot be made: {error.strerror}", where=str(folder)) from error
        else:
            return folder


def _unfinished(folder: Path) -> Run:
    run = read_run(folder.absolute(), unfinished=True)
    if run.status == "complete":
        raise UsageError(
            "this training is complete",
            where=str(folder),
            next_step=f"Use it:  memcli export {run.model} --run {shlex.quote(str(folder))}",
        )
    return run


def _locked(folder: Path) -> int:
    path = folder / _LOCK_FILE
    with _disk(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        lock(
            descriptor,
            folder,
            busy="another memcli is training in this folder",
            elsewhere="Choose another place:  --output DIR",
        )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def _written(path: Path) -> Iterator[IO[str]]:
    beside = path.with_name(f".{path.name}.new")
    with _disk(path):
        with beside.open("w", encoding="utf-8", newline="") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror or error}",
            where=str(path),
            next_step="What was written before is kept: make room and use --resume.",
        ) from error


def _plain(value: Any) -> Any:
    """`value` for JSON, which has no NaN and no infinity: None instead."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value
