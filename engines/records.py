"""`$MEMCLI_HOME/verified.json`: which engines passed verification on this machine, and their speed.

Losing it costs a few seconds at the next start. It is therefore never an error: a damaged or
unwritable file counts as empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from memcli.engines.base import EngineName
from memcli.engines.bundle import Variant
from memcli.engines.loading import cpu_features, cpu_name, usable_cpus
from memcli.engines.verify import ParityReport
from memcli.errors import OutputError
from memcli.home import home

SCHEMA = 2
FILE = "verified.json"
_PLAN = "plan "
"""What the last part of a key begins with where it names a plan."""


@dataclass(frozen=True)
class RecordKey:
    """Everything that a verification depends on."""

    variant: Variant
    engine: EngineName
    engine_version: str
    device: str
    threads: int | None
    plan: str | None = None
    """SHA-256 of the compiled plan, of runtimes that have one: each is verified by itself."""

    def text(self) -> str:
        """The key in the file; readable, because people look at it."""
        reference = json.dumps(self.variant.reference_of(self.engine), sort_keys=True).encode()
        parts = (
            f"{self.variant.precision}@{self.variant.digest}",
            f"reference {hashlib.sha256(reference).hexdigest()[:12]}",
            f"{self.engine} {self.engine_version}",
            self.device + _gpu(self.device),
            f"{cpu_name()} ({' '.join(cpu_features())})",
            f"{self.threads or usable_cpus()} threads{'' if self.threads else ' (default)'}",
            *([_PLAN + self.plan] if self.plan is not None else []),
        )
        return " | ".join(parts)


def _gpu(device: str) -> str:
    """Which GPU and driver a device is: others may compute otherwise."""
    if not device.startswith("cuda"):
        return ""
    from memcli.engines.cuda import gpu_label

    return f" ({label})" if (label := gpu_label(device)) else ""


def load(key: RecordKey) -> ParityReport | None:
    """The record of an earlier verification, or None."""
    return _report(_read(_path()).get(key.text()))


def load_plans(key: RecordKey) -> dict[str, ParityReport]:
    """The records of a key with any plan, by the plan's SHA-256."""
    start = f"{key.text()} | {_PLAN}"
    found = {
        text.removeprefix(start): _report(entry)
        for text, entry in _read(_path()).items()
        if text.startswith(start)
    }
    return {plan: report for plan, report in found.items() if report is not None}


def _report(entry: object) -> ParityReport | None:
    """None for what is no record."""
    names = {field.name for field in fields(ParityReport)} - {"of"}
    if not isinstance(entry, dict) or set(entry) - {"of"} != names:
        return None
    if entry.get("of", "epochs") != "epochs":
        return None
    numbers = ("max_abs", "mean_abs", "frame_max_abs", "frame_mean_abs", "clips_per_s")
    if not all(isinstance(entry[name], (int, float)) for name in numbers):
        return None
    if not isinstance(entry["frames_per_s"], (int, float, type(None))):
        return None
    return ParityReport(**entry) if isinstance(entry["passed"], bool) else None


def store(key: RecordKey, report: ParityReport) -> bool:
    """Add a record. False if the file cannot be written; the next start verifies again."""
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.with_suffix(".lock")):
            records = _read(path)
            records[key.text()] = report.to_dict()
            _write(path, {"schema": SCHEMA, "records": records})
    except OSError:
        return False
    return True


def forget(plans: Iterable[str]) -> bool:
    """Drop the records of plans, by their SHA-256. False if the file cannot be written."""
    ends = tuple(f" | {_PLAN}{plan}" for plan in plans)
    path = _path()
    if not ends or not path.is_file():
        return True
    try:
        with _lock(path.with_suffix(".lock")):
            records = _read(path)
            kept = {text: entry for text, entry in records.items() if not text.endswith(ends)}
            if len(kept) != len(records):
                _write(path, {"schema": SCHEMA, "records": kept})
    except OSError:
        return False
    return True


def clear() -> None:
    """Forget all records, so that every engine is verified and measured again.

    Raises OutputError if the file cannot be removed.
    """
    path = _path()
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot be deleted: {error.strerror or error}", where=str(path)
        ) from error


def _path() -> Path:
    return home() / FILE


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return {}
    records = content.get("records")
    return records if isinstance(records, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    """Atomically: readers see the old file or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{FILE}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1, sort_keys=True)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold off other processes that add records; no lock where the system has none.

    Without it two writers could each drop the other's record, which costs one verification.
    """
    with path.open("a") as stream:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
