"""Bundles of models that read captions: building, manifest, reference, installing."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from tiny_bundle import (
    make_text_bundle,
    make_tiny_bundle,
    text_graph,
    text_reference,
    text_score,
    text_spec,
    write_tokenizer,
)

from memcli import store
from memcli.engines.bundle import LICENSE_FILE, Bundle, read_bundle, verify_files, write_manifest
from memcli.engines.reference import synthetic_captions
from memcli.engines.select import open_engine
from memcli.engines.verify import Reference, reference_feeds, run_scores
from memcli.errors import (
    ModelError,
    ParityError,
)
from memcli.export.build import build_bundle
from memcli.export.precision import make_variant


def staged(home: Path, *, frames: bool = True) -> Path:
    folder = home / "bundles" / ".staging"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(text_graph(frames=frames).SerializeToString())
    write_tokenizer(folder / "tokenizer.json")
    (folder / LICENSE_FILE).write_text("terms\n")
    return folder


def test_a_staging_folder_becomes_an_installed_bundle(memcli_home: Path) -> None:
    spec = text_spec("fusion", frames=True)
    training = {"dataset": "x", "srcc": 0.5, "folds": [{"srcc": None}]}
    said: list[str] = []
    bundle = build_bundle(
        spec,
        staged(memcli_home),
        reference=text_reference(frames=True),
        training=training,
        made_by={"torch": "2"},
        report=said.append,
    )
    assert bundle.root == memcli_home / "bundles" / "fusion"
    assert bundle.training == read_bundle(bundle.root).training == training
    assert bundle.spec == spec
    assert bundle.weights is None
    variant = bundle.variants["fp32"]
    assert set(variant.files) == {"fp32/model.onnx", "fp32/tokenizer.json"}
    assert all(report["passed"] for report in variant.parity)
    assert len(variant.parity) == 2
    assert store.find("fusion") == bundle
    with pytest.raises(ModelError, match="no tolerance for int8"):
        make_variant(bundle, "int8")


def test_a_graph_that_differs_is_not_installed(memcli_home: Path) -> None:
    reference = text_reference(frames=True)
    wrong = dataclasses.replace(reference, scores=tuple(s + 0.01 for s in reference.scores))
    spec = text_spec("fusion", frames=True)
    with pytest.raises(ParityError, match="does not reproduce fusion"):
        build_bundle(spec, staged(memcli_home), reference=wrong)
    assert not store.is_installed("fusion")


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.onnx", LICENSE_FILE])
def test_an_incomplete_staging_folder(memcli_home: Path, missing: str) -> None:
    folder = staged(memcli_home)
    (folder / missing).unlink()
    spec = text_spec("fusion", frames=True)
    with pytest.raises(ModelError, match="missing"):
        build_bundle(spec, folder, reference=text_reference(frames=True))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"a": object()}, "not JSON"),
        ({"a": float("nan")}, "not JSON"),
        ({"a": "x" * (1 << 20)}, "longer than 1 MiB"),
    ],
)
def test_a_report_that_no_manifest_can_hold(
    memcli_home: Path, training: dict[str, object], message: str
) -> None:
    spec = text_spec("fusion", frames=True)
    reference = text_reference(frames=True)
    with pytest.raises(ModelError, match=message):
        build_bundle(spec, staged(memcli_home), reference=reference, training=training)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": []}, "training is no object"),
        ({"training": {"a": "x" * (1 << 20)}}, "training is too large"),
        ({"training": {"a": float("nan")}}, "damaged"),
        ({"weights": {"package": "x"}}, "two things"),
    ],
)
def test_damaged_manifests(memcli_home: Path, change: dict[str, object], message: str) -> None:
    root = make_text_bundle(memcli_home).root
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(ModelError, match=message):
        read_bundle(root)


def test_the_tokenizer_needs_a_hash_that_fits(memcli_home: Path) -> None:
    bundle = make_text_bundle(memcli_home)
    tokenizer = bundle.tokenizer_path(bundle.variants["fp32"])
    assert tokenizer is not None
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(ModelError, match="SHA-256"):
        verify_files(bundle, bundle.variants["fp32"])
    variant = bundle.variants["fp32"]
    files = {"fp32/model.onnx": variant.files["fp32/model.onnx"]}
    stripped = dataclasses.replace(variant, files=files)
    write_manifest(dataclasses.replace(bundle, variants={"fp32": stripped}))
    with pytest.raises(ModelError, match=r"no hash for fp32/tokenizer\.json"):
        read_bundle(bundle.root)


@pytest.mark.parametrize("name", ["model.onnx", "model.bin", "tokenizer.txt", "../tokenizer.json"])
def test_the_tokenizer_is_no_other_file(memcli_home: Path, name: str) -> None:
    """Also not one that is there and has a hash, as the graph and its weights have."""
    root = make_text_bundle(memcli_home).root
    (root / "fp32" / "model.bin").write_bytes(b"x")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["spec"]["text"]["tokenizer"] = name
    manifest["variants"]["fp32"]["files"]["fp32/model.bin"] = hashlib.sha256(b"x").hexdigest()
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"spec\.text\.tokenizer is .*, not tokenizer\.json"):
        read_bundle(root)


def test_bundles_older_than_captions_still_open(memcli_home: Path) -> None:
    root = make_tiny_bundle(memcli_home).root
    manifest = json.loads((root / "manifest.json").read_text())
    del manifest["training"]
    for name in ("text", "encoders", "head", "recipe", "frame_scores"):
        del manifest["spec"][name]
    for name in ("fit", "sampling"):
        del manifest["spec"]["prep"][name]
    (root / "manifest.json").write_text(json.dumps(manifest))
    bundle = read_bundle(root)
    assert bundle.spec.frame_scores
    assert bundle.training == {}
    with open_engine(bundle, engine="onnxruntime").engine as engine:
        assert engine.describe().engine == "onnxruntime"


def test_a_reference_comes_back_from_json() -> None:
    reference = text_reference(frames=True)
    entry = json.loads(json.dumps(reference.to_dict()))
    assert entry == reference.to_dict()
    assert Reference.from_dict(entry) == reference
    assert reference.expected().shape == (3, 1)
    assert "frame_scores" not in entry


@pytest.mark.parametrize(
    "change",
    [
        {"captions": [["a"]]},
        {"captions": [[], ["a"], ["b"]]},
        {"captions": [["a"], ["b"], [1]]},
        {"captions": [["a"], ["b"], "c"]},
        {"captions": [["a"], ["b"], ["c" * 10_001]]},
        {"captions": [["a"], ["b"], ["c"] * 65]},
        {"scores": [0.5]},
        {"scores": []},
        {"scores": [0.5, 0.5, "x"]},
        {"frame_scores": [[0.1] * 4] * 3},
        {"clips": 1_000_000},
        {"frames_per_clip": -1},
        {"frames_per_clip": 1e400},
    ],
)
def test_damaged_references(change: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="reference is damaged"):
        Reference.from_dict({**text_reference(frames=True).to_dict(), **change})


def test_a_reference_of_another_model(memcli_home: Path) -> None:
    bundle = make_text_bundle(memcli_home)
    for reference in (
        text_reference(frames=True),
        dataclasses.replace(text_reference(frames=False), captions=()),
    ):
        with pytest.raises(ModelError, match="not of this model"):
            reference_feeds(reference, bundle.spec, bundle.tokenizer_path(bundle.variants["fp32"]))


def test_scores_of_any_number_of_clips(memcli_home: Path) -> None:
    bundle = make_text_bundle(memcli_home)
    captions = synthetic_captions(11, 3, 0)
    reference = dataclasses.replace(
        text_reference(frames=False), clips=11, captions=captions, scores=(0.0,) * 11
    )
    variant = bundle.variants["fp32"]
    feeds = reference_feeds(reference, bundle.spec, bundle.tokenizer_path(variant))
    with open_engine(bundle, engine="onnxruntime").engine as engine:
        found = run_scores(engine, feeds, frame_scores=False)
    assert found.rows.shape == (11, 1)
    assert (found.rows[:, 0] == found.clips).all()
    assert found.clips == pytest.approx(text_score(captions), abs=1e-6)


def test_synthetic_captions_are_fixed() -> None:
    captions = synthetic_captions(6, 3, 7)
    assert [len(texts) for texts in captions] == [1, 2, 3, 1, 2, 3]
    assert captions == synthetic_captions(6, 3, 7) != synthetic_captions(6, 3, 8)
    assert captions[:3] == synthetic_captions(3, 3, 7)
    lengths = {len(text.split()) for texts in captions for text in texts}
    assert len(lengths) > 2
    assert captions[0] == (
        "the camera pours water into a glass while it is raining and people are passing by with"
        " umbrellas",
    )


def test_adding_over_a_model_says_what_is_replaced(memcli_home: Path, tmp_path: Path) -> None:
    bundle = make_text_bundle(memcli_home)
    packed = tmp_path / "x.memcli"
    store.pack(bundle, packed)
    said: list[str] = []
    store.add(packed, report=said.append)
    digest = bundle.variants["fp32"].digest
    assert said == [f"replacing tiny-text (fp32 {digest}) by tiny-text (fp32 {digest})"]
    store.remove("tiny-text")
    said.clear()
    added: Bundle = store.add(packed, report=said.append)
    assert (said, added.training) == ([], {"dataset": "none"})
