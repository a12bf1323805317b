"""Whether TensorRT-RTX loads on this GPU, and says the same."""

from pathlib import Path

import numpy as np
import pytest

from memcli.engines.select import open_engine

pytestmark = pytest.mark.gpu


def test_tensorrt_rtx_loads_and_says_the_same(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.gpu.siglip import make_bundle

    bundle, _ = make_bundle(tmp_path, full_size=False)
    assert bundle.prep is not None
    shape = (3, 16, *bundle.prep.frame_shape())
    clips = np.random.default_rng(6).integers(0, 256, shape, np.uint8)
    scores = []
    for engine, device in (("onnxruntime", "cpu"), ("tensorrt-rtx", "cuda")):
        chosen = open_engine(bundle, engine=engine, device=device, precision="fp32")  # type: ignore[arg-type]
        with chosen.engine as opened:
            scores.append(opened.run({"frames": clips})["score"])
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
