"""Which parts of an fp32 graph compute in fp16 or bf16, and which stay islands of fp32.

Half precision is for products of matrices and for convolutions, which is where the time goes.
Everything that is known to break in it stays in fp32: LayerNormalization (also where a graph spells
it out), softmax, GELU and its parts, reductions and pooling, recurrent cells, the arithmetic of
attention masks, the last layer and the sigmoid behind it. What only moves values or adds them
follows its inputs. A constant that fp16 cannot hold (-3.4e38 of a mask, 1e-12 of a norm) keeps
whatever reads it in fp32.

The decision is in the graph: it is strongly typed, with explicit casts (`memcli.export.retype`),
and every runtime computes it alike. numpy and onnx only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from memcli.export.layer_norm import fuse_layer_norms
from memcli.export.retype import (
    element_types,
    half_dtype,
    load_typed,
    read_tensor,
    write_retyped,
)

if TYPE_CHECKING:
    import numpy.typing as npt

Half = Literal["fp16", "bf16"]

HEAVY = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
"""Computed in half precision; hardware sums the products in fp32."""
MOVES = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Concat"}
    | {"Gather", "Expand", "Identity"}
)
"""Values come out as they went in."""
SUMS = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Relu", "Where"})
"""Follow their inputs: fp32 as soon as one of these is."""
_FP16_MOVES = frozenset({"Tile", "Pad", "MaxPool", "GatherElements", "GatherND"})
"""Moves that ONNX Runtime's CUDA kernels have in fp16, but not in bf16 (1.31)."""
_ANY, _FLOAT, _HALF = "any", "float", "half"


@dataclass(frozen=True)
class HalfResult:
    """What became of a graph."""

    half_layers: int
    """Products and convolutions in half precision."""
    float_layers: tuple[str, ...]
    """Those left in fp32."""
    islands: int
    """Other operators that compute floats in fp32."""


def write_half(
    source: Path, target: Path, precision: Half, *, float_sums: bool = False
) -> HalfResult:
    """Write the fp32 graph `source` as a typed graph `target`, its weights beside it as model.bin.

    Inputs and outputs keep their names and types, and inner values their names. With `float_sums`
    additions (the residual stream of a transformer above all) stay in fp32, too, other than those
    of a bias. The bytes are a function of the source's. One tensor is in memory at a time, unless
    batch normalisation is to be folded into convolutions first.

    Raises ModelError for a graph that is no float32 graph or has subgraphs, OSError.
    """
    model, types = load_typed(source)
    folder = source.parent
    if fuse_layer_norms(model, folder):
        types = element_types(model)
    choice = choose(model, types, folder, precision, float_sums=float_sums)
    write_retyped(model, types, folder, choice, precision, target)
    heavy = [
        (node, half)
        for node, half in zip(model.graph.node, choice, strict=True)
        if node.op_type in HEAVY and _is_float(node, types)
    ]
    islands = sum(
        not half and node.op_type not in HEAVY and _is_float(node, types)
        for node, half in zip(model.graph.node, choice, strict=True)
    )
    kept = tuple(node.name for node, half in heavy if not half)
    return HalfResult(len(heavy) - len(kept), kept, islands)


def choose(
    model: ModelProto,
    types: dict[str, int],
    folder: Path,
    precision: Half,
    *,
    float_sums: bool = False,
) -> list[bool]:
    """For each node in order, whether it computes in half precision.

    `types` are the element types of all values, by name; external tensors lie in `folder`.
    """
    return _Choice(model, types, folder, precision, float_sums).run()


def _is_float(node: NodeProto, types: dict[str, int]) -> bool:
    return any(types.get(name) == TensorProto.FLOAT for name in node.output)


class _Choice:
    def __init__(
        self,
        model: ModelProto,
        types: dict[str, int],
        folder: Path,
        precision: Half,
        float_sums: bool,
    ):
        self.nodes: Sequence[NodeProto] = model.graph.node
        self.types = types
        self.float_sums = float_sums
        self.moves = MOVES | _FP16_MOVES if precision == "fp16" else MOVES
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self._fits = _fit_test(folder, half_dtype(precision))
        self.producer = {
            name: index for index, node in enumerate(self.nodes) for name in node.output if name
        }
        self.readers: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for name in dict.fromkeys(self.floats(node)):
                self.readers[name].append(index)
        self.last = self._last_layers()

    def floats(self, node: NodeProto) -> list[str]:
        """Inputs of a node that are float32, constants included."""
        return [name for name in node.input if self.types.get(name) == TensorProto.FLOAT]

    def dynamic(self, node: NodeProto) -> list[str]:
        """Float inputs of a node that are computed."""
        return [name for name in self.floats(node) if name not in self.constants]

    def run(self) -> list[bool]:
        state = [_FLOAT] * len(self.nodes)
        for index, node in enumerate(self.nodes):
            state[index] = self._forward(index, node, state)
        for index in reversed(range(len(self.nodes))):
            state[index] = self._backward(index, state)
        return [one == _HALF for one in state]

    def _forward(self, index: int, node: NodeProto, state: list[str]) -> str:
        if index in self.last or not _is_float(node, self.types):
            return _FLOAT
        heavy, moves = node.op_type in HEAVY, node.op_type in self.moves
        if not (heavy or moves or node.op_type in SUMS):
            return _FLOAT
        # The tiny constants of a weight matrix may vanish; a lone one that vanishes is an epsilon.
        if not all(
            self._fits(self.constants[name], not heavy)
            for name in self.floats(node)
            if name in self.constants
        ):
            return _FLOAT
        if heavy:
            return _HALF
        inputs = {self._state_of(name, index, state) for name in self.dynamic(node)}
        if _FLOAT in inputs:
            return _FLOAT
        if _HALF not in inputs:
            return _ANY
        if self.float_sums and not moves and node.op_type != "Relu" and not self._is_bias(node):
            return _FLOAT
        return _HALF

    def _state_of(self, name: str, reader: int, state: list[str]) -> str:
        """What an input counts as: an fp32 value that has to be cast for a product anyway may be
        read in half by others, the next addition to a residual stream above all."""
        if name not in self.producer:
            return _FLOAT  # an input of the graph
        found = state[self.producer[name]]
        if found == _FLOAT and not self.float_sums and self.nodes[reader].op_type == "Add":
            others = [self.nodes[one] for one in self.readers[name]]
            if any(node.op_type in ("MatMul", "Gemm") for node in others) and not (
                self.last & set(self.readers[name])
            ):
                return _HALF
        return found

    def _backward(self, index: int, state: list[str]) -> str:
        node, found = self.nodes[index], state[index]
        if not _is_float(node, self.types) or index in self.last:
            return _FLOAT
        readers = [one for name in node.output for one in self.readers[name]]
        is_output = bool(self.outputs & set(node.output))
        all_half = bool(readers) and not is_output and all(state[one] == _HALF for one in readers)
        if found == _ANY:
            return _HALF if all_half else _FLOAT
        inputs = self.dynamic(node)
        if found == _FLOAT and node.op_type in self.moves and len(inputs) == 1 and all_half:
            return _HALF  # the cast goes before the move, which then moves half as many bytes
        if found == _HALF and node.op_type in SUMS and len(inputs) == 1:
            none_half = bool(readers) and not any(state[one] == _HALF for one in readers)
            if none_half and node.op_type != "Relu" and not self._is_bias(node):
                return _FLOAT  # the cast goes before it: as many casts, and more exact
        return found

    def _is_bias(self, node: NodeProto) -> bool:
        """Whether this adds a constant to a product, which runtimes fuse with it."""
        sources = [self.producer.get(name) for name in self.dynamic(node)]
        return (
            node.op_type == "Add"
            and len(sources) == 1
            and sources[0] is not None
            and self.nodes[sources[0]].op_type in HEAVY
        )

    def _last_layers(self) -> set[int]:
        """Nodes from which an output is reached without another product in between."""
        found: set[int] = set()
        waiting = [self.producer[name] for name in self.outputs if name in self.producer]
        while waiting:
            index = waiting.pop()
            if index in found:
                continue
            found.add(index)
            node = self.nodes[index]
            if node.op_type not in HEAVY:
                names = node.input
                waiting += [self.producer[name] for name in names if name in self.producer]
        return found


def _fit_test(folder: Path, dtype: npt.DTypeLike) -> Callable[[TensorProto, bool], bool]:
    """A test whether a constant keeps its meaning in half precision."""
    known: dict[tuple[str, bool], bool] = {}

    def fits(tensor: TensorProto, small_too: bool) -> bool:
        key = tensor.name, small_too
        if key not in known:
            known[key] = _fits(read_tensor(tensor, folder), dtype, small_too)
        return known[key]

    return fits


def _fits(array: npt.NDArray[Any], dtype: npt.DTypeLike, small_too: bool) -> bool:
    with np.errstate(over="ignore", under="ignore"):
        half = array.astype(dtype).astype(np.float32)
    if not (np.isfinite(half) | ~np.isfinite(array)).all():
        return False
    return not (small_too and array.size == 1 and bool(((half == 0) & (array != 0)).any()))
