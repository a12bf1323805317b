"""Installing, packing and removing bundles, also hostile ones."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
from tiny_bundle import make_tiny_bundle

from memcli import store
from memcli.engines.bundle import read_bundle
from memcli.errors import ModelError, UsageError


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
    with pytest.raises(ModelError, match="not enough disk space"):
        store.add(packed)


def test_what_a_killed_run_left_is_cleared(memcli_home: Path) -> None:
    bundles = memcli_home / "bundles"
    dead = bundles / ".tiny.999999999"
    alive = bundles / f".tiny.{os.getppid()}"
    dead.mkdir(parents=True)
    alive.mkdir()
    with store.staging("tiny") as folder:
        assert folder.is_dir()
    assert not dead.exists()
    assert not folder.exists()
    assert alive.is_dir()


def test_a_damaged_bundle_is_named_and_can_be_removed(packed: Path) -> None:
    root = store.add(packed).root
    (root / "manifest.json").write_text("{")
    assert store.installed() == []
    with pytest.raises(ModelError, match="manifest"):
        store.find("tiny")
    store.remove("tiny")
    assert not root.exists()
