"""PyTorch module to a tidy ONNX graph: what every export from PyTorch has in common.

Nothing of the machine that made a graph is in it: no paths, stack traces or code.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules
from torch import Tensor, nn

from memcli.engines.bundle import DATA_FILE, GRAPH_FILE

OPSET = 18
IR_VERSION = 8
"""The IR of opset 18, so that runtimes of 2023 and later read the graph."""
PRODUCER = "memcli"
_NOISY = ("torch.onnx", "onnxscript", "onnx_ir")
_EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the graph: runtimes read shapes and axes off it without the weights."""


def trace(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    dynamic_axes: Mapping[str, Mapping[int, Any]],
    outputs: Sequence[str],
) -> onnx_ir.Model:
    """The exporter's graph of `module`, as it comes: `inputs` are its arguments by name.

    `dynamic_axes` gives a `torch.export.Dim` per dynamic axis of each input. The sizes in
    `inputs` should differ and be greater than 1, which the exporter takes for fixed. Raises what
    torch.export raises for a module that would fix an axis that is to be dynamic.
    """
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            kwargs=dict(inputs),
            dynamo=True,
            dynamic_shapes={name: dict(dynamic_axes.get(name, {})) for name in inputs},
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            # The exporter's own optimiser would fuse batch normalisation into convolutions, whose
            # weights would no longer be the parameters. Runtimes fuse anyway.
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export(dynamo=True) returned no program")
    model: onnx_ir.Model = program.model
    passes.InlinePass()(model)
    return model


def tidy(model: onnx_ir.Model) -> onnx_ir.Model:
    """Clear up what the exporter leaves behind: shape arithmetic, zero biases, traces, copies."""
    with _quiet():
        optimizer.fold_constants(model)
        passes.ShapeInferencePass()(model)
        model = rewriter.rewrite(
            model, [rules.remove_optional_bias_from_conv_rule, rules.squeeze_reshape_1d_rule]
        )
        for step in (
            passes.IdentityEliminationPass(),
            passes.RemoveUnusedNodesPass(),
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            passes.CommonSubexpressionEliminationPass(),
            passes.RemoveUnusedOpsetsPass(),
            passes.ClearMetadataAndDocStringPass(),
        ):
            step(model)
    return model


def transpose_weights(model: onnx_ir.Model) -> None:
    """Store a weight matrix transposed where the graph would transpose it.

    Folding constants does the same, but keeps all transposed copies in memory at once.
    """
    graph = model.graph
    made: dict[str, onnx_ir.Value] = {}
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        tensor = source.const_value if source is not None else None
        if source is None or tensor is None or len(tensor.shape) != 2:
            continue
        name = str(source.name)
        if name not in graph.initializers or node.outputs[0].is_graph_output():
            continue
        if name not in made:
            made[name] = _transposed(f"{name}.T", tensor)
            graph.register_initializer(made[name])
        node.outputs[0].replace_all_uses_with(made[name])
        graph.remove(node, safe=True)
    passes.RemoveUnusedNodesPass()(model)  # and initialisers that were only read transposed


def _transposed(name: str, tensor: onnx_ir.TensorProtocol) -> onnx_ir.Value:
    def make() -> onnx_ir.TensorProtocol:
        return onnx_ir.Tensor(np.ascontiguousarray(tensor.numpy().T), name=name)

    shape = onnx_ir.Shape(tensor.numpy().T.shape)
    lazy = onnx_ir.LazyTensor(make, dtype=tensor.dtype, shape=shape, name=name)
    return onnx_ir.Value(
        name=name, shape=shape, type=onnx_ir.TensorType(tensor.dtype), const_value=lazy
    )


def simplify(model: onnx_ir.Model) -> None:
    """Rewrite what the exporter spells out at length; weights are fused where that helps."""
    with _quiet():
        optimizer.optimize(model)


def give_names(model: onnx_ir.Model, prefix: str) -> None:
    """Names that say what is what, fixed by the module alone.

    Initialisers are named like the module's parameters without `prefix`, and constants by number;
    nodes that read a parameter after its module (`head.score`), others after operator and position
    (`Relu_7`), and a value after the node that computes it. Inputs and outputs keep their names.
    """
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    kept = {value.name for value in (*graph.inputs, *graph.outputs)}
    constants = 0
    for value in list(graph.initializers.values()):
        name = str(value.name)
        if name.startswith(prefix):
            value.name = name.removeprefix(prefix)
        else:
            value.name = f"constant_{constants}"
            constants += 1
    counts = Counter[str]()
    for node in graph:
        owned = [
            str(value.name)
            for value in node.inputs
            if value is not None
            and value.is_initializer()
            and not str(value.name).startswith("constant_")
        ]
        module = owned[0].removesuffix(".T").rpartition(".")[0] if owned else ""
        name = f"{module}.{node.op_type}" if module else f"{node.op_type}_{counts[node.op_type]}"
        if module:
            repeated = counts[name]
            counts[name] += 1
            name = f"{name}_{repeated}" if repeated else name
        counts[node.op_type] += 1
        node.name = name
        for index, value in enumerate(node.outputs):
            if value.name not in kept:
                value.name = name if index == 0 else f"{name}:{index}"
                # Sizes inside are the business of the runtime, which infers them again.
                value.shape, value.type = None, None
    graph.name = PRODUCER


def keep_inside(model: onnx_ir.Model, names: Sequence[str]) -> None:
    """Make inner values of the outputs `names`: they keep their names and are given no more.

    Raises ValueError if one is not computed in the graph, or a score is computed without it.
    """
    graph = model.graph
    for value in [one for one in graph.outputs if one.name in names]:
        if value.producer() is None or not value.uses():
            raise ValueError(f"{value.name} is no inner value of the graph")
        graph.outputs.remove(value)
        value.shape, value.type = None, None


def write_graph(model: onnx_ir.Model, folder: Path) -> None:
    """Write `model.onnx` with its weights in `model.bin`, one tensor at a time.

    Raises OSError.
    """
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = PRODUCER, None
    model.metadata_props.update(tool_versions())
    onnx_ir.save(
        model,
        folder / GRAPH_FILE,
        external_data=DATA_FILE,
        size_threshold_bytes=_EXTERNAL_BYTES,
    )


def tool_versions() -> dict[str, str]:
    """Versions of the packages that decide every byte of a graph."""
    names = ("torch", "onnx", "onnxscript", "onnx-ir")
    return {name: version(name).partition("+")[0] for name in names}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks, about packages we do not use and the like, off the terminal."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
