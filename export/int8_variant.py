"""A folder with 8 bit graphs as a variant of a bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memcli.engines.bundle import FP32_GRAPH, GRAPH_FILE, Bundle, Variant, hash_files
from memcli.engines.comparison import Comparison, compare, compare_epochs
from memcli.engines.loading import import_runtime, installed_runtimes
from memcli.engines.onnxruntime import open_onnxruntime
from memcli.engines.openvino import open_openvino
from memcli.engines.verify import FoundScores, Reference, reference_feeds, run_scores
from memcli.export.build import graph_files, versions
from memcli.export.evidence import (
    PYTORCH,
    SHOWN,
    noun_of,
    reference_inputs,
    spread_of,
)

if TYPE_CHECKING:
    from memcli.engines.base import EngineName
    from memcli.export.int8_result import Int8Result
    from memcli.spec import Precision

SIGNED_FOLDER = "signed"
"""Of the all-signed twin of a graph, inside the variant's folder."""
_TENSORRT: tuple[EngineName, ...] = ("tensorrt", "tensorrt-rtx")


def int8_variant(bundle: Bundle, folder: Path, reference: Reference, result: Int8Result) -> Variant:
    """The graphs in `folder`, moved to a folder in it that is named after the content.

    `folder` holds what `make_int8` wrote: `model.onnx`, and `signed/model.onnx` if there is a twin
    for TensorRT. Raises OSError, ModelError, EngineError.
    """
    graphs = [GRAPH_FILE]
    if result.signed is not None:
        graphs.append(f"{SIGNED_FOLDER}/{GRAPH_FILE}")
    else:
        shutil.rmtree(folder / SIGNED_FOLDER, ignore_errors=True)
    if bundle.spec.text is not None:
        for graph in graphs:
            tokenizer = bundle.spec.text.tokenizer
            shutil.copyfile(
                (bundle.root / FP32_GRAPH).with_name(tokenizer),
                (folder / graph).with_name(tokenizer),
            )
    precision: Precision = "fp8" if result.scheme == "fp8" else "int8"
    hashes: dict[str, str] = {}
    for graph in graphs:
        hashes |= hash_files(folder, graph_files(folder, graph, bundle.spec))
    content = hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()[:8]
    place = f"{precision}-{content}"
    for name in hashes:
        target = folder / place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / name).replace(target)
    engines: tuple[EngineName, ...] = ("openvino",)
    if result.scheme == "fp8":
        engines = _TENSORRT
    elif result.scheme == "s8s8":
        engines = ("openvino", "onnxruntime", *_TENSORRT)
    elif result.signed is not None:
        engines = ("openvino", *_TENSORRT)
    variant = Variant(
        precision=precision,
        graph=f"{place}/{GRAPH_FILE}",
        engines=engines,
        files={f"{place}/{name}": digest for name, digest in hashes.items()},
        reference=reference.to_dict(),
        made_by=versions(
            {
                name: import_runtime(name).__version__
                for name in installed_runtimes()
                if name in engines
            }
        ),
        graphs={}
        if result.signed is None
        else dict.fromkeys(_TENSORRT, f"{place}/{SIGNED_FOLDER}/{GRAPH_FILE}"),
    )
    if result.scheme == "fp8":
        return variant  # nothing here computes in it: the original's scores are the reference
    here = replace(bundle, root=folder)
    own, row = _own_reference(here, variant, variant.graph, reference)
    variant = replace(variant, reference=own.to_dict(), parity=[row])
    if result.signed is None:
        return variant
    (twin,) = set(variant.graphs.values())
    entry, row = _own_reference(here, variant, twin, reference)
    return replace(
        variant,
        references=dict.fromkeys(_TENSORRT, entry.to_dict()),
        parity=[*variant.parity, row | {"inputs": f"{row['inputs']}, all-signed twin"}],
    )


def _own_reference(
    bundle: Bundle, variant: Variant, graph: str, reference: Reference
) -> tuple[Reference, dict[str, Any]]:
    """The scores of one of the variant's int8 graphs itself on the synthetic inputs.

    How far int8 is from the original was measured on real ones, which the bundle cannot hold.
    What is left to verify on another machine is that the runtime executes the graph as it did here.
    How far these scores are from the original's is the second value, a row of the report: it says
    something of inputs that are not like the calibration's, and decides nothing.
    """
    spec = bundle.spec
    feeds = reference_feeds(reference, spec, bundle.tokenizer_path(variant))
    open_graph = open_openvino if "openvino" in installed_runtimes() else open_onnxruntime
    with open_graph(bundle.root / graph, device="cpu", precision="int8", threads=None) as engine:
        found = run_scores(engine, feeds, frame_scores=spec.frame_scores)
        runtime = str(engine.describe())
    wanted = reference.expected()
    row = {
        **_compared(found, reference).to_dict(),
        **spread_of(wanted.mean(axis=1)).to_dict(),
        "role": SHOWN,
        "against": PYTORCH,
        "inputs": reference_inputs(noun_of(spec)),
        "runtime": runtime,
    }
    if spec.frame_scores:
        rows = tuple(tuple(map(float, scores)) for scores in found.rows)
        return replace(reference, frame_scores=rows), row
    shares = () if found.contributions is None else found.contributions
    scores = tuple(map(float, found.clips))
    contributions = tuple(tuple(map(float, one)) for one in shares)
    return replace(reference, scores=scores, contributions=contributions), row


def _compared(found: FoundScores, reference: Reference) -> Comparison:
    wanted = reference.expected()
    if found.contributions is None:
        return compare(found.rows, wanted, reference.tolerance, clip_scores=found.clips)
    shares = np.array(reference.contributions, np.float64)
    scores = found.clips, wanted[:, 0]
    return compare_epochs(scores, (found.contributions, shares), reference.tolerance)
