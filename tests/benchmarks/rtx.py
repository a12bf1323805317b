"""Does TensorRT-RTX take every model of the registry in fp16?

    python -m tests.benchmarks.rtx [MODEL ...] [--capability 8.9]

Models of the tests' tiny size, one of each structure; no GPU is needed. Some minutes of CPU: the
tests build a few of them only. Exit code 1 if one is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from memcli.engines.tensorrt_build import build
from memcli.engines.tensorrt_flavour import load_flavour
from memcli.engines.tensorrt_profile import BuildOptions, profile_of
from memcli.errors import MemcliError
from memcli.export.half import write_half
from memcli.export.trained import write_traced
from memcli.models import MODELS

sys.path.append(str(Path(__file__).parent.parent))  # which pytest adds, and `python -m` does not
from tiny_models import CHECKPOINT_KINDS, TRAINED, make_tiny_model


def structure(name: str) -> str:
    """What decides about the tiny graph of a model, other than its weights."""
    spec = MODELS[name]
    assert spec.head is not None
    parts = [
        [(CHECKPOINT_KINDS[one.repository], one.tower, one.pooling) for one in spec.encoders],
        asdict(spec.head),
        spec.prep.frames if spec.prep else None,
        spec.frame_scores,
    ]
    return json.dumps(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", metavar="MODEL", choices=[*TRAINED, []])
    parser.add_argument("--capability", default="8.9")
    options = parser.parse_args()
    names = options.models or {structure(name): name for name in reversed(TRAINED)}.values()
    flavour = load_flavour("tensorrt-rtx")
    refused = 0
    for name in names:
        with tempfile.TemporaryDirectory(prefix="memcli-") as temporary:
            folder = Path(temporary)
            model = make_tiny_model(name, folder / "hub")
            write_traced(model.model, model.spec, folder)
            half = folder / "half" / "model.onnx"
            half.parent.mkdir()
            write_half(folder / "model.onnx", half, "fp16")
            try:
                built = build(
                    flavour,
                    half,
                    profile_of(model.spec),
                    BuildOptions(),
                    capability=options.capability,
                )
            except MemcliError as error:
                refused += 1
                print(f"{name}: {error.what}", flush=True)
            else:
                print(f"{name}: {len(built.plan) / 1e6:.1f} MB", flush=True)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
