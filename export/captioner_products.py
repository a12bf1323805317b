"""Products of matrices in fewer bits: what the captioner's graphs read most from memory.

int8 keeps weights only: blocks of 32 along the inputs with one scale each (ONNX Runtime's
MatMulNBits, 8 bits, symmetric). fp16 rounds weights and what they are multiplied with; everything
between the products, and keys and values, stay in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from memcli.export.captioner_graphs import Product, float_product
from memcli.export.graph_builder import CONTRIB, GraphBuilder

_BLOCK = 32
_ZERO = 128
_INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy level: the activations are rounded to int8 too, block by block, where the
CPU's kernels are faster so."""


def int8_product(graph: GraphBuilder, value: str, name: str, weight: np.ndarray[Any, Any]) -> str:
    """value [..., K] times weight [K, N] in blocks of 8-bit numbers."""
    inputs, outputs = weight.shape
    blocks = -(-inputs // _BLOCK)
    padded = np.zeros((outputs, blocks * _BLOCK), np.float32)
    padded[:, :inputs] = weight.T
    parts = padded.reshape(outputs, blocks, _BLOCK)
    scales = np.abs(parts).max(axis=2) / 127
    divisors = np.where(scales == 0, 1, scales)[..., None]
    rounded = (np.rint(parts / divisors) + _ZERO).astype(np.uint8)
    return str(
        graph.op(
            "MatMulNBits",
            value,
            graph.weight(f"{name}.int8", rounded),
            graph.weight(f"{name}.scales", scales.reshape(-1).astype(np.float32)),
            domain=CONTRIB,
            K=inputs,
            N=outputs,
            bits=8,
            block_size=_BLOCK,
            accuracy_level=_INT8_ACTIVATIONS,
        )
    )


def fp16_product(graph: GraphBuilder, value: str, name: str, weight: np.ndarray[Any, Any]) -> str:
    """value [..., K] times weight [K, N] in half precision, float32 around it."""
    half = graph.op("Cast", value, to=TensorProto.FLOAT16)
    found = graph.op("MatMul", half, graph.weight(f"{name}.T", weight.astype(np.float16)))
    return str(graph.op("Cast", found, to=TensorProto.FLOAT))


PRODUCTS: dict[str, Product] = {
    "fp32": float_product,
    "fp16": fp16_product,
    "int8": int8_product,
}
VISION_PRODUCTS: dict[str, Product] = {**PRODUCTS, "int8": float_product}
"""The tower reads its weights once for a thousand patches: fewer bits make it no faster, and on a
CPU without int8 instructions slower."""
