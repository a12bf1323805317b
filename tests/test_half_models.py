"""Models of the papers, tiny and with random weights, in fp16 and bf16: inside the gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

pytest.importorskip("onnxscript", reason="torch's exporter needs it")
torch = pytest.importorskip("torch", reason="the original")
pytest.importorskip("transformers", reason="the encoders")
pytest.importorskip("onnxruntime", reason="the runtime of the gate")

from test_export_graph import realistic  # noqa: E402
from test_half import check_typed  # noqa: E402
from tiny_exports import Exporter  # noqa: E402

from memcli.engines.bundle import Bundle, read_bundle, verify_files  # noqa: E402
from memcli.engines.verify import Reference  # noqa: E402
from memcli.export import half_variant  # noqa: E402
from memcli.export.build import build_bundle  # noqa: E402
from memcli.export.cases import CASES, make_feeds  # noqa: E402
from memcli.export.fill import write_filled  # noqa: E402
from memcli.export.onnx import build_video_module, export_weightless  # noqa: E402
from memcli.export.precision import make_variant  # noqa: E402
from memcli.export.retype import element_types  # noqa: E402
from memcli.home import bundles_dir  # noqa: E402
from memcli.models import get_model  # noqa: E402
from memcli.train.architectures.resmem import ResMem  # noqa: E402


def few_feeds(spec: Any, tokenizer: Path | None, index: int) -> Any:
    """Two clips of each case."""
    return {name: array[:2] for name, array in make_feeds(spec, tokenizer, index).items()}


def make_resmem(folder: Path) -> Bundle:
    """ResMem with one block per stage."""
    from memcli.engines.reference import synthetic_frames

    spec = get_model("resmem")
    image = ResMem(depths=(1, 1, 1, 1)).eval()
    realistic(image)
    module = build_video_module(spec, image)
    (folder / "weightless.onnx").write_bytes(export_weightless(module).SerializeToString())
    staging = bundles_dir() / "staging"
    staging.mkdir(parents=True)
    state = {key: tensor.numpy() for key, tensor in image.state_dict().items()}
    write_filled(folder / "weightless.onnx", state, staging)
    (staging / "LICENSE.weights.txt").write_text("test")
    assert spec.prep is not None
    frames = torch.from_numpy(synthetic_frames(spec.prep, 2, 2, seed=3))
    with torch.inference_mode():
        scores = module(frames)[1].tolist()
    tolerance = spec.tolerances["fp32"]
    reference = Reference(2, 2, 3, tolerance, tuple(map(tuple, scores)))
    small = replace(spec, name="resmem")
    return build_bundle(small, staging, reference=reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resmem", "early-fusion", "vision", "text", "clip-gru", "clip-vision"]
)
def test_half_precision_of_the_models(
    name: str, tiny_export: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = 64
    if name == "resmem":  # its linear layers have full size: 64 clips take minutes
        monkeypatch.setattr(half_variant, "CASES", CASES[:3])
        monkeypatch.setattr(half_variant, "make_feeds", few_feeds)
        clips = 6
        bundle = make_resmem(tmp_path)
    else:
        bundle = tiny_export(name).copied(bundles_dir() / name)
    fp32 = onnx.load(str(bundle.root / "fp32/model.onnx"), load_external_data=False)
    inside = set(element_types(fp32))
    assert ("frame_embeddings" in inside) == (bundle.spec.prep is not None and name != "resmem")
    assert ("caption_embeddings" in inside) == (bundle.spec.text is not None)
    for precision, limit in (("fp16", 0.003), ("bf16", 0.01)):
        variant = make_variant(read_bundle(bundle.root), precision)
        installed = read_bundle(bundle.root)
        verify_files(installed, variant)
        report = variant.parity[0]
        assert report["clips"] == clips
        assert report["max_abs"] <= limit
        assert report["mean_abs"] <= 0.005
        assert report["srcc"] > 0.98 or name == "resmem"
        assert report["additions"] == precision
        assert len(report["float_layers"]) == 1, "the last layer"
        if name != "resmem":
            assert report["cosine_min"] >= 0.999
        check_typed(installed.graph_path(variant))
        assert installed.tokenizer_path(variant) is None or (
            installed.tokenizer_path(variant).is_file()
        )
