"""Compiled engines on disk: `$MEMCLI_HOME/cache/engines/KEY/`, one folder per plan.

    plan.engine     what TensorRT compiled
    plan.json       its key in words, its SHA-256, what made it
    runtime-*.cache what TensorRT-RTX compiled on a GPU at run time

A plan is found by everything that it depends on (`PlanKey`) and by its hash; one that is damaged,
or of another version, is a miss with a reason. A plan is machine code of a GPU: only plans made
here, or added by hand with `memcli engines add`, are ever loaded. Bundles carry none.

To carry a plan to another machine, copy its folder (`export_plan` writes one); there,
`memcli engines add FOLDER` files it under its key. Plans of TensorRT-RTX are for every GPU of their
compute capability; those of TensorRT only for the GPU and driver that they were made with.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from memcli.engines.files import (
    clear_leftovers,
    discard,
    install,
    locked,
    sha256_file,
    staging,
)
from memcli.engines.tensorrt_profile import Profile
from memcli.errors import ModelError, OutputError, UsageError
from memcli.home import cache_dir

SCHEMA = 1
PLAN_FILE = "plan.engine"
ENTRY_FILE = "plan.json"
_KEY_LENGTH = 24
_MAX_ENTRY_BYTES = 1 << 20
_MAX_PLAN_BYTES = 16 << 30
_LATEST = 253_402_300_799
"""The end of the year 9999: what can be shown as a date."""


@dataclass(frozen=True)
class PlanKey:
    """Everything that a plan depends on. The strings are for people, too."""

    graph: str
    """`graph_digest`: the ONNX file and its external data."""
    flavour: str
    version: str
    platform: str
    """E.g. `linux-x86_64`."""
    capability: str
    """Compute capability, e.g. "8.9"."""
    gpu: str | None
    """Name of the GPU; None for flavours that build for a capability."""
    driver: str | None
    """Of the driver and CUDA; None likewise."""
    profile: dict[str, list[int]]
    options: dict[str, Any]

    def name(self) -> str:
        """Of the plan's folder."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]

    def machine(self) -> tuple[str | None, ...]:
        """What decides whether a plan can be used at all: all but profile and options."""
        return (
            self.graph,
            self.flavour,
            self.version,
            self.platform,
            self.capability,
            self.gpu,
            self.driver,
        )

    @classmethod
    def from_dict(cls, entry: object) -> PlanKey:
        """Raises ValueError unless every part is there and of its type."""
        if not isinstance(entry, dict) or set(entry) != {one.name for one in fields(cls)}:
            raise ValueError("its key is incomplete")
        key = cls(**entry)
        texts = (key.graph, key.flavour, key.version, key.platform, key.capability)
        if not all(isinstance(one, str) and len(one) < 300 for one in texts):
            raise ValueError("its key is damaged")
        if not all(isinstance(one, (str, type(None))) for one in (key.gpu, key.driver)):
            raise ValueError("its key is damaged")
        if not isinstance(key.profile, dict) or not isinstance(key.options, dict):
            raise ValueError("its key is damaged")
        Profile.from_dict(key.profile)
        return key


@dataclass(frozen=True)
class StoredPlan:
    """A plan in the cache, or in a folder that came from elsewhere."""

    folder: Path
    key: PlanKey
    sha256: str
    size_bytes: int
    label: str
    """What it is an engine of, e.g. `early-fusion fp16`."""
    seconds: float
    """What the build took."""
    created: float
    """When it was built, in seconds since 1970."""
    added: float
    """When it was filed here: the same, or later if it was built elsewhere."""

    @property
    def path(self) -> Path:
        """The plan itself."""
        return self.folder / PLAN_FILE

    def problem(self) -> str | None:
        """Why it must not be used, by its size and hash; None if it may."""
        try:
            if self.path.stat().st_size != self.size_bytes:
                return "its size is not what it was"
            if sha256_file(self.path) != self.sha256:
                return "it was changed or damaged (SHA-256 differs)"
        except OSError as error:
            return f"it cannot be read: {error.strerror or error}"
        return None

    def is_there(self) -> bool:
        """Whether the file is there with the size that it should have; its hash is not looked
        at, which takes seconds for large ones."""
        try:
            return self.path.stat().st_size == self.size_bytes
        except OSError:
            return False

    def to_dict(self) -> dict[str, Any]:
        """The content of `plan.json`."""
        return {
            "schema": SCHEMA,
            "key": asdict(self.key),
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "label": self.label,
            "seconds": self.seconds,
            "created": self.created,
            "added": self.added,
        }


@dataclass(frozen=True)
class Lookup:
    """What the cache says to a key: a plan with its bytes, or why there is none."""

    plan: StoredPlan | None
    content: bytes | None
    reason: str


def plans_dir() -> Path:
    """The folder of all plans."""
    return cache_dir("engines")


def read_plan(folder: Path) -> StoredPlan:
    """The entry of a plan's folder. Raises ModelError if it is none, or damaged; not the hash."""
    path = folder / ENTRY_FILE
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_ENTRY_BYTES + 1)
        if len(content) > _MAX_ENTRY_BYTES:
            raise ValueError("it is too large")
        entry = json.loads(content)
        if not isinstance(entry, dict) or entry.get("schema") != SCHEMA:
            raise ValueError("it is of another version of memcli")
        plan = StoredPlan(
            folder=folder,
            key=PlanKey.from_dict(entry["key"]),
            sha256=str(entry["sha256"]),
            size_bytes=int(entry["size_bytes"]),
            label=str(entry["label"])[:200],
            seconds=float(entry["seconds"]),
            created=float(entry["created"]),
            added=float(entry["added" if "added" in entry else "created"]),
        )
        if not all(0 <= one <= _LATEST for one in (plan.created, plan.added, plan.seconds)):
            raise ValueError("its times")
    except FileNotFoundError:
        raise ModelError(f"no compiled engine: it has no {ENTRY_FILE}", where=str(folder)) from None
    except KeyError as error:
        raise ModelError(f"the entry is damaged: {error} is missing", where=str(path)) from error
    except (OSError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ModelError(f"the entry is damaged: {error}", where=str(path)) from error
    if not 0 < plan.size_bytes <= _MAX_PLAN_BYTES:
        raise ModelError("the entry is damaged: its size", where=str(path))
    return plan


def find(key: PlanKey) -> Lookup:
    """The plan of a key, its hash checked; else why there is none, for people."""
    folder = plans_dir() / key.name()
    if not folder.is_dir():
        return Lookup(None, None, _nearest(key))
    try:
        plan = read_plan(folder)
        if plan.key != key:
            return Lookup(None, None, "the cached one is of another key")
        if plan.path.stat().st_size != plan.size_bytes:
            return Lookup(None, None, "the cached one: its size is not what it was")
        content = plan.path.read_bytes()
    except ModelError as error:
        return Lookup(None, None, f"the cached one: {error.what}")
    except OSError as error:
        return Lookup(None, None, f"the cached one cannot be read: {error.strerror or error}")
    if hashlib.sha256(content).hexdigest() != plan.sha256:
        return Lookup(None, None, "the cached one was changed or damaged (SHA-256 differs)")
    return Lookup(plan, content, "cached")


def find_usable(key: PlanKey) -> Lookup:
    """The plan of a key that was filed last, whatever its profile and options: they decide about
    speed and range, not about whether it can be used here. Hash and reason are as with `find`.
    """
    lookup = None
    for plan in stored():
        if plan.key.machine() == key.machine():
            found = find(plan.key)
            if found.plan is not None:
                return found
            lookup = lookup or found
    return lookup or find(key)


def _nearest(key: PlanKey) -> str:
    """Which part of the key is new, by the cached plan that shares the most."""
    words = {
        "graph": "the model",
        "flavour": "the runtime",
        "version": "its version",
        "platform": "the system",
        "capability": "the GPU's compute capability",
        "gpu": "the GPU",
        "driver": "the driver",
        "profile": "the range of shapes",
        "options": "the set of build options",
    }
    best: list[str] = []
    for plan in stored():
        differs = [name for name in words if getattr(plan.key, name) != getattr(key, name)]
        same_model = "graph" not in differs and "flavour" not in differs
        if same_model and (not best or len(differs) < len(best)):
            best = differs
    if not best:
        return "none was built yet"
    changes = [
        f"{words[name]} is {getattr(key, name)} now"
        if name in ("version", "gpu", "driver", "capability")
        else f"{words[name]} is another now"
        for name in best
    ]
    return "; ".join(changes)


def new_plan(key: PlanKey, content: bytes, *, label: str, seconds: float) -> StoredPlan:
    """The entry of a plan that was built just now. Nothing is written."""
    now = round(time.time(), 3)
    return StoredPlan(
        folder=plans_dir() / key.name(),
        key=key,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        label=label,
        seconds=round(seconds, 3),
        created=now,
        added=now,
    )


def check_place(key: PlanKey) -> None:
    """Raise OutputError if nothing can be written where the plan of a key is kept."""
    target = plans_dir() / key.name()
    try:
        with staging(target, "make"):
            pass
    except OSError as error:
        raise _cannot_keep(target, error) from error


def store(plan: StoredPlan, content: bytes) -> None:
    """Write a plan to its folder, whole or not at all.

    Raises OutputError if the disk does not take it.
    """
    target = plan.folder
    try:
        with locked(target):
            _write(plan, content, target)
    except OSError as error:
        raise _cannot_keep(target, error) from error


def _cannot_keep(target: Path, error: OSError) -> OutputError:
    return OutputError(
        f"the engine cannot be kept: {error.strerror or error}",
        where=str(target),
        next_step="Make room there or choose another place: MEMCLI_HOME=DIR",
    )


def _write(plan: StoredPlan, content: bytes, target: Path) -> None:
    with staging(target, "make") as folder:
        new = folder / "plan"
        new.mkdir()
        (new / PLAN_FILE).write_bytes(content)
        (new / ENTRY_FILE).write_text(
            json.dumps(plan.to_dict(), indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        install(new, target)


def stored() -> list[StoredPlan]:
    """All readable entries of the cache, those filed last first, of several added at once those
    built last; their hashes are not looked at."""
    return _read_all()[0]


def unreadable() -> dict[str, str]:
    """The names of folders in the cache whose entry cannot be read or is of another plan, and why:
    no runtime is ever given what is in them."""
    return _read_all()[1]


def _read_all() -> tuple[list[StoredPlan], dict[str, str]]:
    found: list[StoredPlan] = []
    problems: dict[str, str] = {}
    folder = plans_dir()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not path.is_dir():
            continue
        try:
            plan = read_plan(path)
        except ModelError as error:
            problems[path.name] = error.what
            continue
        if plan.key.name() == path.name:
            found.append(plan)
        else:
            problems[path.name] = "the entry is of another engine"
    return sorted(found, key=lambda plan: (-plan.added, -plan.created)), problems


def named(prefix: str) -> StoredPlan:
    """The plan whose key starts with `prefix`. Raises UsageError for none and for several."""
    found = [plan for plan in stored() if plan.key.name().startswith(prefix)]
    if len(found) != 1 or not prefix:
        what = "no engine" if not found else f"{len(found)} engines"
        raise UsageError(
            f"{what} of the cache: {prefix!r}", next_step="List them: memcli engines list"
        )
    return found[0]


def remove(plan: StoredPlan) -> None:
    """Delete a plan. Raises OutputError."""
    _delete(plan.folder)


def clear() -> int:
    """Delete all plans, damaged ones too; how many there were. Raises OutputError.

    What another process is writing now is left to it; what a killed one left goes.
    """
    folder = plans_dir()
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for name in names:
        if name.startswith("."):
            clear_leftovers(folder / name.split(".")[1])  # `.NAME.KIND.PID`
    paths = [path for path in folder.iterdir() if path.is_dir()] if names else []
    finished = [path for path in paths if not path.name.startswith(".")]
    for path in finished:
        _delete(path)
    return len(finished)


def _delete(folder: Path) -> None:
    try:
        with locked(folder):
            discard(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(
            f"cannot be deleted: {error.strerror or error}", where=str(folder)
        ) from error


def export_plan(plan: StoredPlan, folder: Path, content: bytes | None = None) -> StoredPlan:
    """Write a plan into `folder`, as a folder that `add` takes; the plan there.

    `content` is the plan where it is not kept. Raises OutputError.
    """
    target = folder / f"{plan.key.flavour}-{plan.key.capability}-{plan.key.name()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(plan, plan.path.read_bytes() if content is None else content, target)
    except OSError as error:
        raise OutputError(
            f"the engine cannot be written: {error.strerror or error}", where=str(target)
        ) from error
    return replace(plan, folder=target)


def add(folder: Path, report: Callable[[str], None] = lambda _: None) -> list[StoredPlan]:
    """File a plan's folder, or all of those in a folder, under their keys.

    Raises ModelError if there is none, or one is damaged; OutputError.
    """
    places = [folder] if (folder / ENTRY_FILE).is_file() else sorted(folder.glob(f"*/{ENTRY_FILE}"))
    if not places:
        raise ModelError(f"no compiled engine here: no {ENTRY_FILE}", where=str(folder))
    added = []
    now = round(time.time(), 3)
    for place in places:
        plan = read_plan(place if place.is_dir() else place.parent)
        if problem := plan.problem():
            raise ModelError(f"the engine is not added: {problem}", where=str(plan.path))
        try:
            content = plan.path.read_bytes()
        except OSError as error:
            raise ModelError(f"cannot be read: {error}", where=str(plan.path)) from error
        plan = replace(plan, folder=plans_dir() / plan.key.name(), added=now)
        store(plan, content)
        added.append(plan)
        report(f"added {plan.label}: {plan.key.name()[:12]}")
    return added
