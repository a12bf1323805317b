"""Which installed captioner makes the captions here: by name, or the one that fits the device."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from memcli.captioning.bundle import (
    MANIFEST,
    CaptionerBundle,
    captioners_dir,
    read_captioner,
)
from memcli.errors import ModelError
from memcli.text import printable

SMALL_BYTES = 9 * 10**9
"""Devices of 8 GB, which tell up to 8.6e9 bytes, have less than this."""
SIZES = ("500m", "256m", "2.2b")
"""In the order of preference."""
_MAX_CONFIG_BYTES = 1 << 20
_SIZE = re.compile(r"(?<![\d.])(256m|500m|2\.2b)(?![a-z0-9])")
_PRECISIONS = {"cpu": ("int8", "fp32"), "cuda": ("fp16", "fp32", "int8")}


@dataclass(frozen=True)
class CaptionerChoice:
    """A captioner, and what its user should know of the choice."""

    bundle: CaptionerBundle
    note: str | None = None


def survey_captioners() -> tuple[list[CaptionerBundle], list[str]]:
    """Every captioner on this machine, by name, and those that are damaged: name and reason."""
    folder = captioners_dir()
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    found, damaged = [], []
    for path in paths:
        if path.name.startswith("."):
            continue
        try:
            if (path / MANIFEST).is_file():
                found.append(read_captioner(path, check=False))
        except ModelError as error:
            damaged.append(f"{printable(path.name)} ({printable(error.what)})")
        except OSError as error:  # a folder that may not be read
            damaged.append(f"{printable(path.name)} ({error.strerror or error})")
    return found, damaged


def installed_captioners() -> list[CaptionerBundle]:
    """Every captioner on this machine, by name, without the damaged ones."""
    return survey_captioners()[0]


def choose_captioner(
    name: str | None, device: str, memory_bytes: int | None
) -> CaptionerChoice | None:
    """The captioner that `name` means, or without a name the best for a device; None without any.

    `name` is that of an installed one, a folder, or a size (256m, 500m, 2.2b). On `cpu` int8 goes
    before fp32, on `cuda` fp16 does; the size is 500M, and the smallest where the device has 8 GB
    or less (`memory_bytes`; None: unknown). Raises ModelError for a name that is not here, or that
    the device does not compute.
    """
    if name is not None:
        named = _named(name)
        if named is not None:
            if not _fitting([named], device):
                raise _not_computed([named], device)
            return CaptionerChoice(named)
    installed = installed_captioners()
    if name is not None:
        installed = [bundle for bundle in installed if size_of(bundle) == name.lower()]
        if not installed:
            raise _absent(name)
    fitting = _fitting(installed, device)
    if not fitting and name is not None:
        raise _not_computed(installed, device)
    if not fitting:
        return None
    if name is None and memory_bytes is not None and memory_bytes < SMALL_BYTES:
        return _for_little_memory(fitting, device, memory_bytes)
    return CaptionerChoice(fitting[0])


def size_of(bundle: CaptionerBundle) -> str | None:
    """`256m`, `500m` or `2.2b`, by its names; None for another checkpoint."""
    found = _SIZE.search(f"{bundle.name} {bundle.repository}".lower())
    return found[1] if found else None


def bundle_bytes(bundle: CaptionerBundle) -> int:
    """What its files take on the disk."""
    return sum(
        path.stat().st_size for name in bundle.files if (path := bundle.folder / name).is_file()
    )


def no_captioner_error(what: str = "no captioner is installed") -> ModelError:
    """How to get one."""
    return ModelError(what, next_step=how_to_get())


def none_for(device: str) -> ModelError:
    """Why there is no captioner for a device, although one is needed."""
    installed, damaged = survey_captioners()
    error = _not_computed(installed, device) if installed else no_captioner_error()
    if damaged:
        error = no_captioner_error(f"{error.what}; damaged: {', '.join(damaged)}")
    return error


def how_to_get(name: str = "") -> str:
    """The commands that bring a captioner here, of the size that is in a name if one is."""
    found = _SIZE.search(name.lower())
    size = f" --size {found[1]}" if found and found[1] != SIZES[0] else ""
    return (
        f"Make one:          memcli export captioner{size}   (needs pip install"
        " 'memcli[export,cpu]')\n"
        "Or install one:    memcli models add FOLDER   (made on another machine)"
    )


def _named(name: str) -> CaptionerBundle | None:
    """The captioner of exactly this name or folder; None for a size."""
    folder = Path(name).expanduser()
    if "/" not in name and (captioners_dir() / name / MANIFEST).is_file():
        folder = captioners_dir() / name
    elif name.lower() in SIZES:
        return None
    elif not (folder / MANIFEST).is_file():
        raise _absent(name)
    return read_captioner(folder.resolve(), check=False)


def _not_computed(bundles: list[CaptionerBundle], device: str) -> ModelError:
    names = ", ".join(f"{one.name} ({one.precision})" for one in bundles)
    return no_captioner_error(f"{device} does not compute what is installed: {names}")


def _absent(name: str) -> ModelError:
    installed, damaged = survey_captioners()
    names = ", ".join([*(bundle.name for bundle in installed), *damaged])
    there = f" (installed: {names})" if names else ""
    step = checkpoint_step(Path(name).expanduser()) or how_to_get(name)
    return ModelError(f"there is no captioner {name!r} here{there}", next_step=step)


def checkpoint_step(folder: Path) -> str | None:
    """What to do with a SmolVLM2 checkpoint as the hub has it; None for anything else."""
    try:
        with (folder / "config.json").open("rb") as stream:
            kind = json.loads(stream.read(_MAX_CONFIG_BYTES)).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    if kind != "smolvlm":
        return None
    return (
        "It is a checkpoint, which a captioner is made of:  memcli export captioner --checkpoint"
        f" {shlex.quote(str(folder))}"
    )


def _fitting(bundles: list[CaptionerBundle], device: str) -> list[CaptionerBundle]:
    """Those that the device computes well, best first."""
    precisions = _PRECISIONS["cuda" if device.startswith("cuda") else "cpu"]

    def rank(bundle: CaptionerBundle) -> tuple[int, int, str]:
        size = size_of(bundle)
        by_size = SIZES.index(size) if size in SIZES else len(SIZES)
        return by_size, precisions.index(bundle.precision), bundle.name

    return sorted((one for one in bundles if one.precision in precisions), key=rank)


def _for_little_memory(
    fitting: list[CaptionerBundle], device: str, memory_bytes: int
) -> CaptionerChoice:
    small = [bundle for bundle in fitting if size_of(bundle) == "256m"]
    chosen = small[0] if small else min(fitting, key=bundle_bytes)
    room = f"{device} has {memory_bytes / 1e9:.1f} GB"
    if size_of(chosen) in ("500m", "2.2b"):
        note = (
            f"captioner: {chosen.name}, although {room}; a smaller one: memcli export captioner"
            " --size 256m"
        )
        return CaptionerChoice(chosen, note)
    if chosen is fitting[0]:
        return CaptionerChoice(chosen)
    note = f"captioner: {chosen.name}, because {room} (--captioner {fitting[0].name} overrides)"
    return CaptionerChoice(chosen, note)
