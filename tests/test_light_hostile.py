"""Light files from anybody: tables, archives and checkpoints that are not what they say."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from light_bundle import (
    encoder_tensors,
    halved,
    make_encoder_bundle,
    nothing_installed,
    pack,
    rewritten,
    write_encoder,
)

from memcli import store
from memcli.engines.bundle import Bundle
from memcli.errors import ModelError, OutputError
from memcli.export.light_table import LeftOut, LightTable, parse_table
from memcli.spec import EncoderSpec

REST = "fp32/model.bin.rest"


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return write_encoder(tmp_path / "encoder", encoder_tensors())


@pytest.fixture
def whole(tmp_path: Path) -> Bundle:
    return make_encoder_bundle(tmp_path / "workstation", encoder_tensors())


@pytest.fixture
def packed(whole: Bundle, encoder: Path, tmp_path: Path) -> Path:
    return pack(whole, tmp_path / "tiny.memcli", encoder)


def one_value(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors["dense.weight"][3, 4] += 1
    return tensors


def other_shape(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return tensors | {"dense.weight": tensors["dense.weight"].T.copy()}


def without_one(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in tensors.items() if name != "norm.weight"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (one_value, "the SHA-256 of its tensor 'dense.weight' is "),
        (other_shape, r"'dense.weight' is float32 of shape \[16, 24\], not float32 of shape \[24,"),
        (without_one, "it has no tensor 'norm.weight'"),
        (halved, "'patch.weight' is another type of shape"),
    ],
)
def test_another_encoder_is_refused(
    packed: Path, tmp_path: Path, memcli_home: Path, change: Callable[..., Any], why: str
) -> None:
    other = write_encoder(tmp_path / "other", change(encoder_tensors()))
    with pytest.raises(ModelError, match=f"not the encoder that tiny was made with: .*{why}") as e:
        store.add(packed, encoders=[str(other)])
    assert e.value.where == str(other)
    assert nothing_installed(memcli_home)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged_checkpoints(
    packed: Path, tmp_path: Path, memcli_home: Path, damage: bytes
) -> None:
    other = write_encoder(tmp_path / "other", encoder_tensors())
    (other / "model.safetensors").write_bytes(damage)
    with pytest.raises(ModelError, match=r"cannot be read|it has no tensor"):
        store.add(packed, encoders=[str(other)])
    (other / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="this folder has no weights"):
        store.add(packed, encoders=[str(other)])
    assert nothing_installed(memcli_home)


HOSTILE: dict[str, Any] = {
    "schema": {"schema": 2},
    "no tensors": {"tensors": []},
    "tensors of another type": {"tensors": {"a": 1}},
    "size": {"size": 100},
    "huge": {"size": 1 << 60},
    "text for a size": {"size": "800"},
    "yes for a size": {"size": True},
    "before the file": {"offset": -4},
    "no whole number": {"offset": 1.5},
    "overlap": {"offset": 0},
    "after the file": {"offset": 1 << 40},
    "length": {"length": 4},
    "shape": {"shape": [10**9, 10**9]},
    "no shape": {"shape": None},
    "axes": {"shape": [1] * 20},
    "empty axis": {"shape": [0]},
    "tower": {"tower": "audio"},
    "tower that is not there": {"tower": "text"},
    "list as tower": {"tower": []},
    "transposed": {"transposed": True},
    "digest": {"sha256": "../../etc/passwd"},
    "other digest": {"sha256": "0" * 64},
    "name": {"tensor": ""},
    "long name": {"tensor": "a" * 1000},
    "other tensor": {"tensor": "\x1b[2Jevil\nline"},
    "no number": {"name": 7},
}


FITTING = ("schema", "tower that is not there", "other digest", "other tensor")
"""Tables that are sound in themselves, and are refused for what they refer to."""


def test_a_table_that_ends_after_the_file(packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        entry = json.loads(archive.read("light.json"))
    last = entry["tensors"][-1]
    entry["size"] = last["offset"] + last["length"]
    assert parse_table(json.dumps(entry).encode(), "x").size == entry["size"]
    entry["size"] -= 1
    with pytest.raises(ModelError, match="ends after the file"):
        parse_table(json.dumps(entry).encode(), "x")


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_tables(
    packed: Path, encoder: Path, tmp_path: Path, memcli_home: Path, kind: str
) -> None:
    with zipfile.ZipFile(packed) as archive:
        entry = json.loads(archive.read("light.json"))
    changes = HOSTILE[kind]
    entry |= {key: value for key, value in changes.items() if key in entry}
    if isinstance(entry["tensors"], list) and entry["tensors"]:
        last = entry["tensors"][-1]
        assert len(last["shape"]) == 1
        last |= {key: value for key, value in changes.items() if key in last}
    hostile = rewritten(
        packed, tmp_path / "hostile.memcli", {"light.json": json.dumps(entry).encode()}
    )
    with pytest.raises(ModelError) as caught:
        store.add(hostile, encoders=[str(encoder)])
    assert caught.value.what.isprintable()
    of_table = caught.value.what.startswith("the table of what was left out is damaged: ")
    assert of_table == (kind not in FITTING)
    assert nothing_installed(memcli_home)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"light.json": b"{"}, "the table of what was left out is damaged"),
        ({"light.json": b"[" * 100_000}, "the table of what was left out is damaged"),
        ({"light.json": b" " * (17 << 20)}, "it is too large"),
        ({"light.json": b"[]"}, "it is no object"),
        ({"light.json": b'{"schema": 1}'}, "'size' is missing"),
        ({"fp32/model.bin": b"x"}, "contradicts itself: fp32/model.bin is not what is missing"),
        ({REST: b"x"}, "contradicts itself: .* has not the size"),
        ({REST: None}, "contradicts itself: .* has not the size"),
        ({"light.json": None}, "a file of the bundle is missing"),
        ({"fp32/model.onnx": b"x"}, "SHA-256 differs"),
    ],
)
def test_hostile_archives(
    packed: Path,
    encoder: Path,
    tmp_path: Path,
    memcli_home: Path,
    changes: dict[str, bytes | None],
    what: str,
) -> None:
    hostile = rewritten(packed, tmp_path / "hostile.memcli", changes)
    given_ = [] if "light.json" in changes and changes["light.json"] is None else [str(encoder)]
    with pytest.raises(ModelError, match=what):
        store.add(hostile, encoders=given_)
    assert nothing_installed(memcli_home)


def test_a_rest_that_was_changed_is_found_by_the_manifest(
    packed: Path, encoder: Path, tmp_path: Path, memcli_home: Path
) -> None:
    with zipfile.ZipFile(packed) as archive:
        rest = archive.read(REST)
    hostile = rewritten(packed, tmp_path / "x.memcli", {REST: b"\x01" + rest[1:]})
    with pytest.raises(ModelError, match="SHA-256 differs"):
        store.add(hostile, encoders=[str(encoder)])
    assert nothing_installed(memcli_home)


@pytest.mark.parametrize("repository", ["../../etc", "/etc", "a/b/c", "a b", "http://evil"])
def test_a_manifest_that_names_no_repository(
    tmp_path: Path, memcli_home: Path, encoder: Path, repository: str
) -> None:
    spec = EncoderSpec("vision", repository, "a" * 40, 24, "MIT")
    hostile = make_encoder_bundle(tmp_path / "hostile", encoder_tensors(), spec)
    with pytest.raises(ModelError, match="neither a folder nor a name on the hub"):
        store.add(pack(hostile, tmp_path / "x.memcli", encoder))
    assert nothing_installed(memcli_home)


def test_a_disk_that_is_too_small(
    packed: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder := packed.with_name("unpacked"))
    real = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=100))
    with pytest.raises(OutputError, match="not enough disk space to fill in"):
        store.add(folder, encoders=[str(encoder)])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
PIECE = {
    "name": "a",
    "offset": 0,
    "length": 8,
    "tower": "vision",
    "tensor": "b",
    "shape": [2],
    "transposed": False,
    "sha256": "0" * 64,
}
NUMBERS = st.integers(-4, 40)
PIECES = st.builds(
    lambda offset, axes, other: (
        {**PIECE, "offset": offset, "shape": axes, "length": 4 * math.prod(axes)} | other
    ),
    NUMBERS,
    st.lists(st.integers(1, 3), max_size=3),
    st.just({}) | st.dictionaries(st.sampled_from([*PIECE]), JSON | NUMBERS, max_size=1),
)


@given(
    st.binary(max_size=50)
    | st.builds(
        lambda size, pieces: json.dumps({"schema": 1, "size": size, "tensors": pieces}).encode(),
        NUMBERS | JSON,
        st.lists(PIECES, max_size=3) | JSON,
    )
)
def test_the_table_is_sound_or_refused(content: bytes) -> None:
    try:
        table = parse_table(content, "x.memcli")
    except ModelError as error:
        assert error.what.isprintable()  # noqa: PT017
        return
    end = 0
    for one in table.tensors:
        assert end <= one.offset < (end := one.offset + one.length) <= table.size
        assert one.length == 4 * int(np.prod(one.shape))
        assert len(one.shape) == 2 or not one.transposed
    assert table.left_out <= table.size


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9), st.booleans()), min_size=1))
def test_a_table_is_read_as_it_was_written(pieces: list[tuple[int, int, bool]]) -> None:
    tensors, end = [], 0
    for gap, axis, transposed in pieces:
        one = LeftOut("n", end + gap, 8 * axis, "text", "t", (axis, 2), transposed, f"{axis:064x}")
        tensors.append(one)
        end = one.offset + one.length
    table = LightTable(end + 3, tuple(tensors))
    assert parse_table(table.to_json().encode(), "x") == table
