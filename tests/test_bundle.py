"""Bundles on disk: hostile and damaged manifests, hashes, atomic replacement."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import make_tiny_bundle

from memcli.engines.bundle import install, read_bundle, verify_files, write_manifest
from memcli.errors import ModelError


@pytest.fixture
def bundle(tmp_path):
    return make_tiny_bundle(tmp_path)


def edit(bundle, change):
    """Apply `change` to the manifest's content."""
    path = bundle.root / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_is_written_is_read(bundle):
    again = read_bundle(bundle.root)
    assert again == bundle
    verify_files(again, again.variants["fp32"])
    write_manifest(again)
    assert read_bundle(bundle.root) == bundle
    assert [p.name for p in bundle.root.iterdir() if p.name.startswith(".")] == []


def test_not_a_bundle(tmp_path):
    with pytest.raises(ModelError, match=r"no manifest\.json"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"{", b"[]", b"null", b"3", b'{"a":1}'])
def test_garbage(bundle, content):
    (bundle.root / "manifest.json").write_bytes(content)
    with pytest.raises(ModelError):
        read_bundle(bundle.root)


def test_newer_schema_says_upgrade(bundle):
    edit(bundle, lambda content: content.update(schema=2))
    with pytest.raises(ModelError, match="schema 2") as caught:
        read_bundle(bundle.root)
    assert "Upgrade memcli" in str(caught.value)


@pytest.mark.parametrize("key", ["model", "spec", "weights", "variants"])
@pytest.mark.parametrize("value", ["missing", None, 7, "text", []])
def test_damaged_parts(bundle, key, value):
    edit(bundle, lambda c: c.pop(key) if value == "missing" else c.update({key: value}))
    if key == "model" and value != "missing":
        assert read_bundle(bundle.root).model == str(value)
        return
    if key == "weights" and value == []:
        assert read_bundle(bundle.root).weights == {}
        return
    with pytest.raises(ModelError):
        read_bundle(bundle.root)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp64"},
        {"engines": ["torch"]},
        {"graph": "fp32/other.onnx"},
        {"files": None},
        {"files": ["fp32/model.onnx"]},
        {"reference": 3},
    ],
)
def test_damaged_variants(bundle, change):
    edit(bundle, lambda content: content["variants"]["fp32"].update(change))
    with pytest.raises(ModelError, match="damaged"):
        read_bundle(bundle.root)


@pytest.mark.parametrize("name", ["../outside.onnx", "fp32/../../outside.onnx", "ABSOLUTE", "link"])
def test_files_outside_the_bundle(bundle, tmp_path, name):
    outside = tmp_path / "bundles" / "outside.onnx"
    outside.write_bytes((bundle.root / "fp32" / "model.onnx").read_bytes())
    if name == "ABSOLUTE":
        name = str(outside)
    if name == "link":
        (bundle.root / "link").symlink_to(outside)
    digest = bundle.variants["fp32"].files["fp32/model.onnx"]
    variant = dataclasses.replace(bundle.variants["fp32"], graph=name, files={name: digest})
    with pytest.raises(ModelError, match="outside the bundle"):
        verify_files(bundle, variant)


def test_wrong_hash_and_missing_file(bundle):
    variant = bundle.variants["fp32"]
    path = bundle.graph_path(variant)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="SHA-256 differs") as caught:
        verify_files(bundle, variant)
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(ModelError, match="missing"):
        verify_files(bundle, variant)
    path.mkdir()
    with pytest.raises(ModelError, match="missing"):
        verify_files(bundle, variant)


def test_digest_names_the_content(bundle):
    variant = bundle.variants["fp32"]
    assert bundle.label(variant) == f"tiny@{variant.digest}"
    assert dataclasses.replace(variant, files={"fp32/model.onnx": "0"}).digest != variant.digest
    assert dataclasses.replace(variant, precision="bf16").digest != variant.digest
    assert dataclasses.replace(variant, parity=[{"a": 1}]).digest == variant.digest


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["schema", "model", "spec", "prep", "weights", "variants", "fp32"]),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_bundle_or_a_model_error(bundle, content):
    if isinstance(content, dict):
        content["schema"] = 1
    (bundle.root / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ModelError):
        read_bundle(bundle.root)


def test_install_replaces_at_once(tmp_path):
    def staged(name: str) -> Path:
        staging = tmp_path / f"staging-{name}"
        staging.mkdir()
        (staging / "file").write_text(name)
        return staging

    target = tmp_path / "deep" / "model"
    install(staged("first"), target)
    install(staged("second"), target)
    assert (target / "file").read_text() == "second"
    assert [path.name for path in target.parent.iterdir()] == ["model"]
