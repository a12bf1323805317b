"""Spell a graph so that runtimes recognise its operators and fuse them.

Torch writes GELU as x * (0.5 * (1 + f)), with f the tanh or erf of the activation. ONNX Runtime
(1.31) looks for (x * 0.5) * (1 + f) and computes the other one part by part, over the widest values
of a transformer. Halving is exact in floating point, so that the result is the same to the bit.

The operator Gelu itself came with opset 20, and Attention with opset 23: runtimes of 2023 and
TensorRT 10.3 do not read these.
"""

from __future__ import annotations

from typing import Any

import onnx_ir
from onnxscript import rewriter
from onnxscript.rewriter import pattern


def fuse(model: onnx_ir.Model) -> int:
    """Respell every GELU of `model`, in place, and give how many there were.

    One whose parts something else reads is left as it is.
    """
    return int(rewriter.RewriteRuleSet([_rule("Tanh"), _rule("Erf")]).apply_to_model(model))


def _rule(kind: str) -> pattern.RewriteRule:
    def written(op: Any, x: Any, half: Any, one: Any, inner: Any) -> Any:
        return op.Mul(x, op.Mul(half, op.Add(getattr(op, kind)(inner), one)))

    def wanted(op: Any, x: Any, half: Any, one: Any, inner: Any) -> Any:
        return op.Mul(op.Mul(x, half), op.Add(getattr(op, kind)(inner), one))

    def is_gelu(_context: Any, half: Any, one: Any, **_: Any) -> bool:
        return _is(half, 0.5) and _is(one, 1.0)

    return pattern.RewriteRule(written, wanted, is_gelu, name=f"Gelu{kind}")


def _is(value: onnx_ir.Value, wanted: float) -> bool:
    """Whether a value is a constant, one number."""
    constant = onnx_ir.convenience.get_const_tensor(value)
    return constant is not None and constant.size == 1 and constant.numpy().item() == wanted
