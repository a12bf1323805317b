"""Captioners of other machines: install one from a folder, remove one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from memcli.captioning.bundle import (
    MANIFEST,
    CaptionerBundle,
    captioners_dir,
    check_files,
    read_captioner,
)
from memcli.engines.files import discard, install, locked, staging
from memcli.errors import MemcliError, ModelError, OutputError


def is_captioner(path: Path) -> bool:
    """Whether a folder holds a captioner, whole or not."""
    return (path / MANIFEST).is_file()


def is_installed(name: str) -> bool:
    """Whether a captioner of this name is there, whole or not: its folder may lack any file. Paths
    are not names."""
    plain = name == Path(name).name and not name.startswith(".")
    return plain and (captioners_dir() / name).is_dir()


def add_captioner(source: Path, report: Callable[[str], None]) -> CaptionerBundle:
    """Install the captioner of a folder, every hash checked; nothing but its files is copied.

    Raises ModelError if it is damaged or its files are links, OutputError if the disk does not
    take it.
    """
    bundle = read_captioner(source, check=False)
    for name in (MANIFEST, *bundle.files):
        path = source / name
        if path.is_symlink() or not path.is_file():
            raise ModelError("a captioner consists of plain files", where=str(path))
    target = captioners_dir() / bundle.name
    try:
        with staging(target, "add") as folder:
            content = folder / "captioner"
            content.mkdir()
            for name in (MANIFEST, *bundle.files):
                shutil.copyfile(source / name, content / name)
            check_files(read_captioner(content, check=False))
            waiting = f"another memcli is changing {bundle.name}: waiting"
            with locked(target, lambda: report(waiting)):
                install(content, target)
    except MemcliError:
        raise  # some are OSErrors too
    except OSError as error:
        raise OutputError(
            f"the captioner cannot be copied: {error.strerror or error}", where=str(target)
        ) from error
    return read_captioner(target, check=False)


def remove_captioner(name: str) -> Path:
    """Delete an installed captioner, damaged or not; the captions that it made stay.

    Raises ModelError if it is not installed, OutputError if it cannot be deleted.
    """
    path = captioners_dir() / name
    if not is_installed(name):
        raise ModelError(f"{name} is not installed", next_step="See: memcli models")
    try:
        with locked(path):
            discard(path)
    except OSError as error:
        raise OutputError(
            f"cannot be deleted: {error.strerror or error}", where=str(path)
        ) from error
    return path
