"""Every entry of the registry is complete, and reading it costs nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from memcli.errors import ModelError
from memcli.export.fill import GRAPHS
from memcli.models import DEFAULT_MODEL, MODELS, get_model
from memcli.spec import PRECISIONS, ModelSpec

every_model = pytest.mark.parametrize("spec", MODELS.values(), ids=list(MODELS))
PUBLISHED = [spec for spec in MODELS.values() if spec.weights is not None]
every_published_model = pytest.mark.parametrize("spec", PUBLISHED, ids=lambda spec: spec.name)


def test_default_is_registered() -> None:
    assert get_model(DEFAULT_MODEL) is MODELS[DEFAULT_MODEL]


@pytest.mark.parametrize("name", ["resnem", "ResMem", "res-mem"])
def test_unknown_name_suggests_the_close_one(name: str) -> None:
    with pytest.raises(ModelError, match="did you mean 'resmem'") as caught:
        get_model(name)
    assert "Models: resmem" in str(caught.value)


@pytest.mark.parametrize("name", ["", "x" * 1000, "../resmem"])
def test_unknown_name_lists_all(name: str) -> None:
    with pytest.raises(ModelError, match="no model called"):
        get_model(name)


@every_model
def test_entry_is_complete(spec: ModelSpec) -> None:
    assert MODELS[spec.name] is spec
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", spec.name)
    assert set(spec.tolerances) == set(PRECISIONS)
    assert all(0 < t.mean_abs <= t.max_abs for t in spec.tolerances.values())
    assert all(result.source for result in spec.published)
    assert re.match(r"\d{3}_[0-9a-f]{16}\.txt, section", spec.source)
    json.dumps(spec.to_dict())


@every_published_model
def test_graph_and_reference_are_shipped(spec: ModelSpec) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", spec.weights.sha256)
    assert 0 < (GRAPHS / spec.graph).stat().st_size < 500_000
    reference = json.loads((GRAPHS / spec.graph).with_suffix(".reference.json").read_text())
    assert reference["wheel_sha256"] == spec.weights.sha256
    assert len(reference["frame_scores"]) == reference["clips"]


def test_resmem_preprocessing_is_the_published_one() -> None:
    prep = MODELS["resmem"].prep
    assert (prep.resize_width, prep.resize_height, prep.filter) == (256, 256, "bilinear")
    assert prep.frame_shape() == (227, 227, 3)
    assert (prep.scale, prep.mean, prep.std) == (1 / 255, (0, 0, 0), (1, 1, 1))


def test_registry_imports_only_the_standard_library() -> None:
    code = "import sys, memcli.models; print({m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(re.findall(r"'(\w+)'", done.stdout))
    assert not loaded & {"numpy", "onnx", "torch", "av", "click", "rich"}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("prep", "scale"), 10**400),
        (("head", "options", "alpha"), 10**400),
        (("head", "options", "alpha"), float("nan")),
        (("text", "tokenizer"), ""),
        (("text", "tokenizer"), "a\0b"),
        (("text", "tokenizer"), "../tokenizer.json"),
        (("recipe", "batch_size"), -1),
        (("recipe", "step_epochs"), 0),
        (("recipe", "epochs"), 10**9),
        (("encoders", 0, "dim"), 0),
        (("encoders", 0, "tower"), "text"),
    ],
)
def test_specs_that_make_no_sense_are_refused(place: tuple[str | int, ...], value: object) -> None:
    spec = json.loads(json.dumps(get_model("late-fusion").to_dict()))
    assert ModelSpec.from_dict(spec) == get_model("late-fusion")
    part = spec
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(ValueError, match=r"^spec\."):
        ModelSpec.from_dict(spec)
