"""Writes an ONNX graph node by node, its weights beside it in one file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from memcli.export.trace import PRODUCER

OPSET = 20
_IR_VERSION = 9
"""The IR of opset 20."""
_EXTERNAL_BYTES = 1024
_ALIGNMENT = 64
CONTRIB = "com.microsoft"


class GraphBuilder:
    """Nodes, weights, inputs and outputs of a graph in the making."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._weights: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._counts: Counter[str] = Counter()
        self._renamed: dict[str, str] = {}
        self._contrib = False

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Add an input; dimensions that are text are dynamic."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, value: str, name: str, dtype: int, shape: Sequence[int | str]) -> None:
        """Make a computed value an output under a name of its own.

        It is renamed rather than copied: a decoder's outputs are most of what it moves.
        """
        self._renamed[value] = name
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def weight(self, name: str, array: Any) -> str:
        """Add a weight once; a second one of that name is taken for the same."""
        self._weights.setdefault(name, array)
        return name

    def constant(self, value: Any, dtype: str) -> str:
        """A small constant, shared by all who use the same."""
        array = np.asarray(value, dtype=dtype)
        name = f"constant.{dtype}.{array.tolist()}".replace(" ", "")
        return self.weight(name, array)

    def op(
        self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **settings: Any
    ) -> Any:
        """Add a node; its output's name, or a list of them."""
        self._contrib |= bool(domain)
        name = f"{kind}_{self._counts[kind]}"
        self._counts[kind] += 1
        names = [name] if outputs == 1 else [f"{name}:{index}" for index in range(outputs)]
        self._nodes.append(
            helper.make_node(kind, list(inputs), names, name=name, domain=domain, **settings)
        )
        return name if outputs == 1 else names

    def save(self, path: Path) -> None:
        """Write the graph, and its larger weights as `.bin` beside it. Raises OSError."""
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [self._renamed.get(name, name) for name in names]
        tensors = []
        data = path.with_suffix(".bin")
        with data.open("wb") as stream:
            for name, array in self._weights.items():
                array = np.ascontiguousarray(array).reshape(np.shape(array))
                if array.nbytes < _EXTERNAL_BYTES:
                    tensors.append(numpy_helper.from_array(array, name))
                    continue
                stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
                tensors.append(_external(name, array, data.name, stream.tell()))
                stream.write(array.data)
        opsets = [helper.make_opsetid("", OPSET)]
        if self._contrib:
            opsets.append(helper.make_opsetid(CONTRIB, 1))
        model = helper.make_model(
            helper.make_graph(self._nodes, PRODUCER, self._inputs, self._outputs, tensors),
            ir_version=_IR_VERSION,
            opset_imports=opsets,
            producer_name=PRODUCER,
        )
        onnx.save(model, path)


def _external(name: str, array: Any, location: str, offset: int) -> Any:
    tensor = TensorProto(
        name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape
    )
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
