"""What `memcli doctor` finds out: the machine, packages, storage, models, and what would be used.

Every probe survives whatever it meets; a part that fails says why in its `problem`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli import __version__
from memcli.errors import MemcliError

if TYPE_CHECKING:
    from memcli.engines.bundle import Bundle
    from memcli.machine import Package

SCHEMA = 1
_NEEDED = ("av", "numpy")
"""Packages of the base install without which no video is read."""


def examine() -> dict[str, Any]:
    """Everything `memcli doctor` knows, ready for JSON. A part that fails says why in `problem`."""
    from memcli import machine

    packages = machine.inspect_packages()
    facts = _guarded(lambda: machine.inspect().to_dict())
    problem, next_step = _verdict(packages)
    models = _guarded(lambda: {"installed": _models(packages)})
    return {
        "schema": SCHEMA,
        "memcli": __version__,
        "usable": problem is None,
        "problem": problem,
        "next_step": next_step,
        "machine": facts,
        "packages": {
            name: {"version": found.version, "problem": found.problem, "facts": list(found.facts)}
            for name, found in packages.items()
        },
        "notes": _notes(packages, facts),
        "extras": _guarded(_extras),
        "storage": _guarded(_storage),
        "models": models,
        "captioners": _guarded(lambda: {"installed": _captioners()}),
        "score": _guarded(lambda: _score(models.get("installed", []))),
    }


def _guarded(section: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A section of the report; whatever goes wrong in it is a finding, not the end."""
    try:
        return section()
    except Exception as error:
        return {"problem": str(error) or type(error).__name__}


def _runtimes(packages: dict[str, Package]) -> list[Any]:
    """Runtimes that this version can use and that load."""
    from memcli.engines.loading import installed_runtimes

    return [name for name in installed_runtimes() if packages[name].usable]


def _verdict(packages: dict[str, Package]) -> tuple[str | None, str | None]:
    """Why nothing can be scored here and what to do, or twice None."""
    from memcli.engines.loading import BOTH_INSTALLS, installed_runtimes

    for name in _NEEDED:
        if not packages[name].usable:
            what = f"does not load: {packages[name].problem}" if packages[name].problem else ""
            return (
                f"{name} {what or 'is not installed'}",
                f"Install it again: pip install --force-reinstall {name}",
            )
    if _runtimes(packages):
        return None, None
    broken = [name for name in installed_runtimes() if packages[name].problem]
    if broken:
        reasons = "; ".join(f"{name} does not load: {packages[name].problem}" for name in broken)
        return reasons, f"Install it again: pip install --force-reinstall {' '.join(broken)}"
    return "no runtime is installed", f"Install one: {BOTH_INSTALLS}"


def _notes(packages: dict[str, Package], facts: dict[str, Any]) -> list[str]:
    """What works but not as its owner may think."""
    from memcli import machine
    from memcli.engines.loading import GPU_INSTALL

    notes = []
    builds = machine.onnxruntime_builds()
    if len(builds) > 1:
        notes.append(
            f"{' and '.join(builds)} overwrite each other's files: uninstall both, then install one"
        )
    ort = packages["onnxruntime"]
    has_gpu = bool(facts.get("nvidia", {}).get("gpus"))
    if has_gpu and ort.usable and "CUDAExecutionProvider" not in ort.facts:
        notes.append(
            "there is an NVIDIA GPU, but this onnxruntime is the CPU build:"
            f" pip uninstall onnxruntime, then {GPU_INSTALL}"
        )
    compiled = [n for n in packages if n.startswith("tensorrt") and packages[n].usable]
    if compiled and not has_gpu:
        notes.append(f"{' and '.join(compiled)}: no NVIDIA GPU here to run its engines")
    return notes


def _extras() -> dict[str, Any]:
    from memcli import machine

    # cpu and gpu are alternatives: installing both would make either overwrite the other.
    other = {"cpu": "gpu", "gpu": "cpu"}
    whole = {name for name in other if not machine.missing_of(name)}
    return {
        name: {
            "purpose": purpose,
            "missing": [] if other.get(name) in whole else list(machine.missing_of(name)),
            "replaced_by": other[name] if other.get(name) in whole else None,
            "install": f"pip install 'memcli[{name}]'",
        }
        for name, (purpose, _) in machine.EXTRAS.items()
    }


def _storage() -> dict[str, Any]:
    from memcli import home

    place = home.home()
    existing = next(path for path in (place, *place.parents) if path.exists())
    return {
        "home": str(place),
        "chosen_by": home.HOME_VARIABLE if os.environ.get(home.HOME_VARIABLE) else "default",
        "exists": place.exists(),
        "writable": os.access(existing, os.W_OK | os.X_OK) and existing.is_dir(),
        "bundles_bytes": _size(home.bundles_dir()),
        "cache_bytes": _size(home.cache_dir("")),
        "captions_bytes": _size(home.home() / "captions"),
        "free_bytes": shutil.disk_usage(existing).free,
    }


def _size(folder: Path) -> int:
    """Bytes of all files below a folder; what cannot be looked at counts as nothing."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            path = Path(top) / name
            if not path.is_symlink() and path.is_file():
                total += path.stat().st_size
    return total


def _models(packages: dict[str, Package]) -> list[dict[str, Any]]:
    from memcli.home import bundles_dir
    from memcli.store import is_installed

    folder = bundles_dir()
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    names = [path.name for path in paths if not path.name.startswith(".")]
    return [_model(name, packages) for name in names if is_installed(name)]


def _captioners() -> list[dict[str, Any]]:
    from memcli.captioning.bundle import captioners_dir, read_captioner
    from memcli.captioning.choice import bundle_bytes

    folder = captioners_dir()
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    found: list[dict[str, Any]] = []
    for path in paths:
        if path.name.startswith("."):
            continue
        entry: dict[str, Any] = {"captioner": path.name, "problem": None}
        try:
            bundle = read_captioner(path, check=False)
            entry |= {
                "hash": bundle.hash,
                "precision": bundle.precision,
                "size_bytes": bundle_bytes(bundle),
                "license": bundle.licence,
                "question": bundle.question,
            }
        except Exception as error:
            entry["problem"] = str(error)
        found.append(entry)
    return found


def _model(name: str, packages: dict[str, Package]) -> dict[str, Any]:
    from memcli.store import find

    try:
        bundle = find(name)
        return {
            "model": name,
            "problem": None,
            "size_bytes": bundle.size_bytes(),
            "license": bundle.license,
            "engines": list(_engines(bundle, packages)),
        }
    except Exception as error:
        return {"model": name, "problem": str(error), "engines": []}


def _engines(bundle: Bundle, packages: dict[str, Package]) -> Iterator[dict[str, Any]]:
    """Every way to run a bundle here, as `engines.select` lists them, with its record."""
    from memcli.engines.candidates import TENSORRT, known_record
    from memcli.engines.select import list_candidates

    compiled = [name for name in TENSORRT if name in packages and packages[name].usable]
    for runtime in (*_runtimes(packages), *compiled):
        try:
            found = list_candidates(bundle, engine=runtime, device="auto", precision="auto")
        except MemcliError:
            continue  # the bundle was not made for this runtime, or there is no GPU for it
        for candidate in found:
            record = known_record(candidate, packages[runtime].version or "")
            state = "not verified yet"
            if record is not None:
                state = "verified" if record.passed else "refused"
            yield {
                "engine": runtime,
                "precision": candidate.variant.precision,
                "device": candidate.device,
                "state": state,
                "clips_per_s": record.clips_per_s if record and record.passed else None,
                "frames_per_s": record.frames_per_s if record and record.passed else None,
                "speed": f"{record.rate:.1f} {record.unit}" if record and record.passed else None,
                "difference": record.numbers() if record else None,
            }


def _score(installed: list[dict[str, Any]]) -> dict[str, Any]:
    """What `memcli score` without options will do, and why."""
    from memcli.models import DEFAULT_MODEL, get_model

    model = next((entry for entry in installed if entry["model"] == DEFAULT_MODEL), None)
    answer: dict[str, Any] = {"model": DEFAULT_MODEL, "installed": model is not None}
    if model is not None:
        return {**answer, **_choice(model), "fetch": None}
    weights = get_model(DEFAULT_MODEL).weights
    fetch = (
        None
        if weights is None
        else {
            "package": f"{weights.package} {weights.version}",
            "size_bytes": weights.size_bytes,
            "license": weights.license,
            "license_note": weights.license_note,
        }
    )
    return {**answer, "engine": None, "reason": "fetched once, at the first use", "fetch": fetch}


def _choice(model: dict[str, Any]) -> dict[str, Any]:
    """The engine that the records speak for; `engines.select` decides the same way."""
    if model["problem"]:
        return {"engine": None, "reason": model["problem"]}
    verified = [entry for entry in model["engines"] if entry["state"] == "verified"]
    pending = [engine_name(e) for e in model["engines"] if e["state"] == "not verified yet"]
    verified.sort(key=lambda entry: -float(entry["clips_per_s"]))
    later = f"{', '.join(pending)}: verified and timed at the first use" if pending else ""
    if not verified:
        return {"engine": None, "reason": later or "no engine passed verification"}
    speeds = ", ".join(f"{entry['frames_per_s']:.1f}" for entry in verified[1:])
    reason = f"verified, {verified[0]['frames_per_s']:.1f} frames/s"
    if speeds:
        reason = f"fastest of {len(verified)} {reason} against {speeds}"
    return {"engine": engine_name(verified[0]), "reason": f"{reason}; {later}".rstrip("; ")}


def engine_name(entry: dict[str, Any]) -> str:
    return f"{entry['engine']} on {entry['device']} at {entry['precision']}"
