"""Bundles on disk: hostile and damaged manifests, hashes, atomic replacement."""

import dataclasses
import json

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import make_tiny_bundle

from memcli.engines.bundle import hash_files, read_bundle, verify_files, write_manifest
from memcli.errors import ModelError
from memcli.models import MODELS
from memcli.spec import ModelSpec


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
        {"files": {"fp32/model.onnx": "0", "../outside": "0"}},
        {"files": {"fp32/model.onnx": "0", "/outside": "0"}},
        {"graph": "x/../../a.onnx", "files": {"x/../../a.onnx": "0"}},
        {"parity": [3]},
        {"parity": [{}]},
        {"parity": [{"max_abs": "1", "mean_abs": 1}]},
        {"parity": [{"max_abs": 1, "mean_abs": float("nan")}]},
        {"made_by": 3},
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


@pytest.mark.parametrize("place", ["file", "folder"])
def test_links_are_refused_wherever_they_lead(bundle, tmp_path, place):
    """Also inside: what was hashed could be exchanged without a trace."""
    folder = bundle.root / "fp32"
    if place == "file":
        (folder / "model.onnx").rename(folder / "real.onnx")
        (folder / "model.onnx").symlink_to("real.onnx")
    else:
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="outside the bundle"):
        verify_files(bundle, bundle.variants["fp32"])


def test_a_bundle_may_lie_behind_a_link(bundle, tmp_path):
    (tmp_path / "link").symlink_to(bundle.root)
    again = read_bundle(tmp_path / "link")
    verify_files(again, again.variants["fp32"])


@pytest.mark.parametrize("location", ["model.bin", "../outside.bin", "/outside.bin"])
def test_every_file_that_the_graph_reads_has_a_hash(bundle, location):
    path = bundle.root / "fp32" / "model.onnx"
    graph = onnx.load(path)
    weight = onnx.TensorProto(name="w", data_type=1, dims=[300], data_location=1)
    weight.external_data.add(key="location", value=location)
    graph.graph.initializer.append(weight)
    path.write_bytes(graph.SerializeToString())
    (bundle.root / "fp32" / "model.bin").write_bytes(bytes(1200))
    names = ["fp32/model.onnx"]
    variant = dataclasses.replace(bundle.variants["fp32"], files=hash_files(bundle.root, names))
    with pytest.raises(ModelError, match="without a hash"):
        verify_files(bundle, variant)
    if location == "model.bin":
        names.append("fp32/model.bin")
        verify_files(bundle, dataclasses.replace(variant, files=hash_files(bundle.root, names)))


def test_a_graph_that_is_none_is_a_damaged_bundle(bundle):
    (bundle.root / "fp32" / "model.onnx").write_bytes(b"\xff" * 50)
    files = hash_files(bundle.root, ["fp32/model.onnx"])
    with pytest.raises(ModelError, match="not an ONNX graph"):
        verify_files(bundle, dataclasses.replace(bundle.variants["fp32"], files=files))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("trained_on", None),
        ("trained_on", 3),
        ("name", "../tiny"),
        ("name", ""),
        ("name", ".tiny"),
        ("name", "x" * 65),
        ("surprise", 1),
        ("prep", None),
        ("prep", []),
        ("prep.frames", 0),
        ("prep.frames", 513),
        ("prep.frames", True),
        ("prep.frames", 4.0),
        ("prep.resize_width", 10**9),
        ("prep.resize_height", 47),
        ("prep.crop_width", 0),
        ("prep.crop_height", -1),
        ("prep.filter", "nearest"),
        ("prep.filter", []),
        ("prep.scale", 0),
        ("prep.scale", float("nan")),
        ("prep.mean", [0, 0]),
        ("prep.mean", [0, 0, float("inf")]),
        ("prep.std", [1, 1, 0]),
        ("prep.std", [1, 1, "1"]),
        ("prep.std", [1, 1, 10**400]),
        ("weights.size_bytes", -1),
        ("weights.license", ["a"]),
        ("published", {}),
        ("published", [{"metric": "SRCC"}]),
        ("tolerances", {"fp64": {"max_abs": 1, "mean_abs": 1}}),
        ("tolerances", {"fp32": {"max_abs": 1, "mean_abs": 2}}),
        ("tolerances", {"fp32": {"max_abs": 1, "mean_abs": 1, "min_srcc": "1"}}),
    ],
)
def test_a_spec_is_read_as_a_whole(bundle, path, value):
    def change(content):
        *folders, last = path.split(".")
        part = content["spec"]
        for folder in folders:
            part = part[folder]
        if value is None:
            del part[last]
        else:
            part[last] = value
        content.update(model=content["spec"]["name"], weights=content["spec"]["weights"])

    edit(bundle, change)
    with pytest.raises(ModelError, match="the manifest is damaged"):
        read_bundle(bundle.root)


@pytest.mark.parametrize("spec", MODELS.values(), ids=list(MODELS))
def test_specs_of_the_registry_survive_json(spec):
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_manifest_that_contradicts_itself(bundle):
    edit(bundle, lambda content: content["weights"].update(license="free for all"))
    with pytest.raises(ModelError, match="says two things"):
        read_bundle(bundle.root)


@pytest.mark.parametrize("content", ["[" * 100_000, " " * (17 << 20)])
def test_manifests_that_are_too_much(bundle, content):
    (bundle.root / "manifest.json").write_text(content)
    with pytest.raises(ModelError, match="cannot be read"):
        read_bundle(bundle.root)


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
