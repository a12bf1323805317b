"""Installing, packing and removing bundles, also hostile ones."""

import dataclasses
import errno
import os
import shutil
import threading
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import make_tiny_bundle

from memcli import store
from memcli.engines.bundle import read_bundle
from memcli.engines.files import locked
from memcli.errors import ModelError, OutputError, UsageError
from memcli.models import MODELS

DEAD = 999_999_999


@pytest.fixture
def packed(memcli_home: Path, tmp_path: Path) -> Path:
    bundle = make_tiny_bundle(memcli_home)
    path = tmp_path / "tiny.memcli"
    store.pack(bundle, path)
    shutil.rmtree(memcli_home)
    return path


def test_a_packed_bundle_moves_to_another_home(packed: Path, memcli_home: Path) -> None:
    assert not store.installed()
    bundle = store.add(packed)
    assert bundle.root == memcli_home / "bundles" / "tiny"
    assert [one.model for one in store.installed()] == ["tiny"]
    assert store.find("tiny").variants == bundle.variants
    assert [path.name for path in bundle.root.parent.iterdir()] == ["tiny"]
    store.remove("tiny")
    with pytest.raises(ModelError, match="not installed"):
        store.remove("tiny")


def test_adding_replaces(packed: Path) -> None:
    first = store.add(packed)
    (first.root / "stray").write_text("x")
    assert not (store.add(packed).root / "stray").exists()


def test_a_folder_is_added_or_used_in_place(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    zipfile.ZipFile(packed).extractall(folder)
    assert store.find(str(folder)).root == folder
    assert store.add(folder).model == "tiny"


@pytest.mark.parametrize("name", ["../escape", "/tmp/escape", "a/../../escape", "a\\..\\escape"])
def test_archives_that_reach_outside(packed: Path, tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(ModelError, match="unsafe name"):
        store.add(packed)
    assert not list(tmp_path.rglob("escape"))
    assert not Path("/tmp/escape").exists()


def test_changed_content_is_refused_and_the_old_one_kept(packed: Path, tmp_path: Path) -> None:
    store.add(packed)
    changed = tmp_path / "changed.memcli"
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data + b"\0" if name.endswith(".onnx") else data)
    with pytest.raises(ModelError, match="SHA-256"):
        store.add(changed)
    assert read_bundle(store.find("tiny").root).model == "tiny"


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 torn"])
def test_files_that_are_no_bundles(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.memcli"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a readable bundle file"):
        store.add(path)
    with pytest.raises(UsageError, match="no such file"):
        store.add(tmp_path / "absent.memcli")


def test_an_archive_larger_than_the_disk(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=10))
    with pytest.raises(OutputError, match="not enough disk space"):
        store.add(packed)


def test_a_damaged_bundle_is_named_and_can_be_removed(packed: Path) -> None:
    root = store.add(packed).root
    (root / "manifest.json").write_text("{")
    assert store.installed() == []
    with pytest.raises(ModelError, match="manifest"):
        store.find("tiny")
    store.remove("tiny")
    assert not root.exists()


@pytest.mark.parametrize("name", ["ABSOLUTE", "../tiny", "", ".", "..", ".hidden", "tiny/", "a.b"])
def test_only_names_are_removed(memcli_home: Path, tmp_path: Path, name: str) -> None:
    """`bundles / "/abs"` is `/abs`: a path would delete the user's own folder."""
    mine = make_tiny_bundle(tmp_path).root
    for path in (memcli_home / "tiny", memcli_home / "bundles" / ".hidden"):
        shutil.copytree(mine, path)
    shutil.copy(mine / "manifest.json", memcli_home / "bundles" / "manifest.json")
    name = str(mine) if name == "ABSOLUTE" else name
    before = sorted([*memcli_home.rglob("*"), *tmp_path.rglob("*")])
    assert not store.is_installed(name)
    with pytest.raises(UsageError, match="not the name of a model"):
        store.remove(name)
    assert sorted([*memcli_home.rglob("*"), *tmp_path.rglob("*")]) == before
    assert store.installed() == []


def test_removing_a_link_leaves_what_it_leads_to(memcli_home: Path, tmp_path: Path) -> None:
    mine = make_tiny_bundle(tmp_path).root
    (memcli_home / "bundles").mkdir()
    (memcli_home / "bundles" / "tiny").symlink_to(mine)
    store.remove("tiny")
    assert read_bundle(mine).model == "tiny"
    assert not store.is_installed("tiny")


def test_a_folder_that_cannot_be_deleted(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(packed)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="cannot be deleted"):
        store.remove("tiny")


@pytest.mark.parametrize("kind", ["file", "folder", "licence", "pipe"])
def test_folders_with_links_are_not_added(memcli_home: Path, tmp_path: Path, kind: str) -> None:
    root = make_tiny_bundle(tmp_path).root
    secret = tmp_path / "secret"
    secret.mkdir()
    if kind == "file":
        (root / "fp32" / "model.onnx").replace(secret / "model.onnx")
        (root / "fp32" / "model.onnx").symlink_to(secret / "model.onnx")
    elif kind == "folder":
        (root / "fp32").replace(secret / "fp32")
        (root / "fp32").symlink_to(secret / "fp32")
    elif kind == "licence":
        (root / "LICENSE.weights.txt").symlink_to("/etc/hostname")
    else:
        os.mkfifo(root / "pipe")
    with pytest.raises(ModelError, match="no links or devices"):
        store.add(root)
    assert list((memcli_home / "bundles").iterdir()) == []


def test_damaged_compressed_data(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.memcli"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", os.urandom(10_000) + bytes(10_000))
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    content[43] = 0xFF  # a kind of block that deflate does not have
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a readable bundle file"):
        store.add(path)


@pytest.mark.parametrize("name", ["fp32", "fp32/model.onnx", "manifest.json/x", "a" * 300, "."])
def test_archives_that_contradict_themselves(packed: Path, name: str) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "a") as archive:
        warnings.simplefilter("ignore")  # one name twice
        archive.writestr(name, "x")
    with pytest.raises(ModelError, match="not a readable bundle file"):
        store.add(packed)


@pytest.mark.parametrize("how", ["file", "folder"])
def test_a_disk_that_fills_up_is_not_the_bundles_fault(
    packed: Path, memcli_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    source = packed
    if how == "folder":
        source = tmp_path / "unpacked"
        zipfile.ZipFile(packed).extractall(source)
    real = Path.open

    def full(path: Path, mode: str = "r", *rest: Any) -> Any:
        if "x" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, *rest)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match="cannot write here: No space left"):
        store.add(source)
    assert list((memcli_home / "bundles").iterdir()) == []


def test_packing_where_nothing_can_be_written(memcli_home: Path, tmp_path: Path) -> None:
    bundle = make_tiny_bundle(memcli_home)
    with pytest.raises(OutputError, match="cannot be written"):
        store.pack(bundle, tmp_path / "absent" / "x.memcli")
    (tmp_path / "folder.memcli" / "x").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot be written"):
        store.pack(bundle, tmp_path / "folder.memcli")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.memcli"]


def test_what_was_moved_aside_by_a_killed_run_comes_back(packed: Path) -> None:
    root = store.add(packed).root
    root.replace(root.with_name(f".tiny.old.{DEAD}"))
    assert [one.model for one in store.installed()] == ["tiny"]
    root.replace(root.with_name(f".tiny.old.{DEAD}"))
    assert store.find("tiny").root == root
    assert [path.name for path in root.parent.iterdir()] == ["tiny"]


def test_only_one_process_fetches_what_is_missing(
    memcli_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits, says so, and uses what the first has made."""
    fetched = []
    second_waits = threading.Event()
    spec = dataclasses.replace(MODELS["resmem"], name="tiny")
    monkeypatch.setattr(store, "MODELS", {"tiny": spec})
    monkeypatch.setattr(store, "get_model", lambda name: spec)

    def fetch(spec: object, **_: object) -> object:
        fetched.append(spec)
        assert second_waits.wait(20)
        return make_tiny_bundle(memcli_home)

    monkeypatch.setattr(store, "_pull", fetch)
    said: list[str] = []

    def report(line: str) -> None:
        said.append(line)
        if "waiting" in line:
            second_waits.set()

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(store.ensure, "tiny", offline=False, report=report) for _ in range(2)]
        assert [run.result(30).model for run in runs] == ["tiny", "tiny"]
    assert len(fetched) == 1
    assert "another memcli is installing tiny: waiting" in said
    assert [path.name for path in (memcli_home / "bundles").iterdir()] == ["tiny"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_pull_that_waited_uses_what_it_waited_for(
    memcli_home: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    bundle = make_tiny_bundle(memcli_home)
    monkeypatch.setattr(store, "get_model", lambda name: bundle.spec)
    pulled = []
    monkeypatch.setattr(store, "_pull", lambda *_, **__: pulled.append(1) or bundle)
    if not whole:
        bundle.graph_path(bundle.variants["fp32"]).write_bytes(b"damaged")
    waits = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with locked(bundle.root):
            run = pool.submit(
                store.pull, "tiny", wheel=None, offline=True, report=lambda _: waits.set()
            )
            assert waits.wait(20)
            assert not run.done()
        assert run.result(20).model == "tiny"
    assert pulled == ([] if whole else [1])
