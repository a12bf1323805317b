"""The fp16 or bf16 variant of a bundle: graph, gate against fp32, folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.engines.bundle import FP32_GRAPH, GRAPH_FILE, Bundle, Variant, hash_files
from memcli.engines.loading import import_runtime
from memcli.errors import ParityError
from memcli.export.build import graph_files, versions
from memcli.export.cases import CASES, make_feeds, make_real_feeds
from memcli.export.compare import Inputs, compare_graphs
from memcli.export.evidence import synthetic_inputs
from memcli.export.half import Half, write_half

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from memcli.engines.base import EngineName
    from memcli.engines.verify import Reference
    from memcli.export.calibration_epochs import CalibrationEpochs
    from memcli.spec import ModelSpec, Tolerance

    Clip = npt.NDArray[np.uint8]

Report = Callable[[str], None]
ENGINES: tuple[EngineName, ...] = ("onnxruntime", "tensorrt", "tensorrt-rtx")


def make_half(
    bundle: Bundle,
    folder: Path,
    precision: Half,
    reference: Reference,
    tolerance: Tolerance,
    *,
    clips: Iterable[Clip] = (),
    captions: Sequence[Sequence[str]] = (),
    epochs: CalibrationEpochs | None = None,
    videos: int | None = None,
    report: Report = lambda _: None,
) -> Variant:
    """Write the graph into a folder of its own in `folder` and gate it against the fp32 graph.

    The gate's inputs are 64 synthetic clips (or epochs) and the user's, each with its captions if
    there are some, in ONNX Runtime on the CPU; half precision is emulated there
    (`memcli.export.emulate`), and the report says so. A graph that misses is made once more with
    its additions in fp32, which is reported, too.

    Raises ParityError with the numbers and the worst layers, MissingDependencyError without ONNX
    Runtime, EngineError, ModelError, UsageError for captions of other clips, OSError.
    """
    tokenizer = bundle.tokenizer_path(bundle.variants["fp32"])
    inputs = [
        Inputs(
            synthetic_inputs(bundle.spec),
            [make_feeds(bundle.spec, tokenizer, i) for i in range(len(CASES))],
        )
    ]
    if bundle.spec.eeg is not None:
        if epochs is not None:
            given = [*epochs.calibration, *epochs.holdout]
            inputs.append(Inputs(epochs.source, given, real=epochs.real))
    elif real := make_real_feeds(bundle.spec, tokenizer, clips, captions):
        name = _real_inputs(bundle.spec, bool(captions), len(real), videos)
        inputs.append(Inputs(name, real, real=True))
    original = bundle.root / FP32_GRAPH
    version = import_runtime("onnxruntime").__version__
    for float_sums in (False, True):
        report(f"{precision}: writing the graph{', additions in fp32' if float_sums else ''}")
        result = write_half(original, folder / GRAPH_FILE, precision, float_sums=float_sums)
        try:
            measured = compare_graphs(
                original, folder / GRAPH_FILE, inputs, precision, tolerance, report
            )
            break
        except ParityError as error:
            if float_sums:
                raise
            report(f"{precision}: {error.what}; once more, with additions in fp32")
    told: dict[str, Any] = {
        "half_layers": result.half_layers,
        "float_layers": list(result.float_layers),
        "additions": "fp32" if float_sums else precision,
    }
    variant = Variant(
        precision=precision,
        graph=GRAPH_FILE,
        engines=ENGINES,
        files={},
        reference=reference.to_dict(),
        parity=[{**one.to_dict(), **told} for one in measured],
        made_by=versions({"onnxruntime": version}),
    )
    return _placed(bundle, folder, variant)


def _real_inputs(spec: ModelSpec, has_captions: bool, clips: int, videos: int | None) -> str:
    """What the user's inputs are called in reports."""
    if spec.prep is None:
        return "captions of videos"
    name = "videos" if videos is None or videos == clips else f"clips of {videos} videos"
    if spec.text is None:
        return name
    return f"{name} with {'their' if has_captions else 'synthetic'} captions"


def _placed(bundle: Bundle, folder: Path, variant: Variant) -> Variant:
    """The variant with its files in a folder that is named after the content.

    bf16 also has OpenVINO execute the fp32 graph: on CPUs it takes that and computes in bf16.
    """
    if bundle.spec.text is not None:
        name = bundle.spec.text.tokenizer
        shutil.copyfile((bundle.root / FP32_GRAPH).with_name(name), folder / name)
    hashes = hash_files(folder, graph_files(folder, GRAPH_FILE, bundle.spec))
    content = hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()[:8]
    place = f"{variant.precision}-{content}"
    (folder / place).mkdir()
    for name in hashes:
        (folder / name).replace(folder / place / name)
    files = {f"{place}/{name}": digest for name, digest in hashes.items()}
    variant = replace(variant, graph=f"{place}/{GRAPH_FILE}", files=files)
    if variant.precision != "bf16":
        return variant
    return replace(
        variant,
        engines=("openvino", *variant.engines),
        files={**files, **bundle.variants["fp32"].files},
        graphs={"openvino": FP32_GRAPH},
    )
