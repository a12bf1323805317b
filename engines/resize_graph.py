"""The resize of prepared frames as an ONNX graph, exact on any device.

The arithmetic is that of `memcli.swscale`, which makes the weights. Weighted sums are products of
float32 matrices that hold whole numbers: rows of 8-bit values with 14-bit weights stay below 2^24
at any moment, which float32 holds exactly in whatever order they are added, and so do columns once
the 15-bit values are split into 8 upper and 7 lower bits. The rest is int32. TF32 must be off.

Weights are inputs, because they depend on the size of the video; so width and height are free.
"""

from __future__ import annotations

from typing import Any

OPSET = 17
LUMA, CHROMA, COLOUR, FRAME = "luma", "chroma", "colour", "frame"
WEIGHTS = ("across", "across_chroma", "down", "down_chroma")
_HIGHEST = 32767.0
_LOW_BITS = 128
_BIAS = 1 << 20
"""Makes sums positive before they are divided: integer division rounds towards zero."""


def make_resize_graph() -> bytes:
    """The graph, serialised. Inputs, with width W, height H and prepared size h, w:

    `luma` uint8 [H, W] and `chroma` uint8 [H / 2, W / 2, 2], as NV12 has them; the float32 weights
    `across` [W, w], `across_chroma` [W / 2, w], `down` [h, H], `down_chroma` [h, H / 2]; `colour`
    int32 [6] as `swscale.Tables.colour`. Output: `frame` uint8 [h, w, 3].
    """
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph(helper)
    luma = graph.resized(graph.cast(LUMA, TensorProto.FLOAT), "across", "down")
    pairs = graph.add("Transpose", graph.cast(CHROMA, TensorProto.FLOAT), perm=[2, 0, 1])
    both = graph.add(
        "Sub", graph.resized(pairs, "across_chroma", "down_chroma"), graph.whole(1 << 16)
    )
    blue_difference, red_difference = graph.split(both, 2)
    offset, factor, red_v, green_u, green_v, blue_u = graph.split(COLOUR, 6)
    white = graph.add("Mul", graph.add("Sub", luma, offset), factor)
    white = graph.add("Add", white, graph.whole(1 << 21))
    red = graph.add("Add", white, graph.add("Mul", red_difference, red_v))
    green = graph.add("Add", white, graph.add("Mul", red_difference, green_v))
    green = graph.add("Add", green, graph.add("Mul", blue_difference, green_u))
    blue = graph.add("Add", white, graph.add("Mul", blue_difference, blue_u))
    channels = [graph.byte(channel) for channel in (red, green, blue)]
    graph.add("Concat", *channels, axis=2, output=FRAME)
    return graph.model(onnx).SerializeToString()  # type: ignore[no-any-return]


class _Graph:
    """Collects nodes and constants."""

    def __init__(self, helper: Any):
        self._helper = helper
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(self._helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def cast(self, value: str, kind: int) -> str:
        return self.add("Cast", value, to=kind)

    def split(self, value: str, parts: int) -> list[str]:
        """Parts along the first axis, each of length 1 there."""
        names = [f"{value}_{index}" for index in range(parts)]
        node = self._helper.make_node("Split", [value, self._sizes(parts)], names, axis=0)
        self._nodes.append(node)
        return names

    def whole(self, value: int) -> str:
        from onnx import TensorProto

        return self._constant(f"int_{value}", TensorProto.INT32, [], [value])

    def real(self, value: float) -> str:
        from onnx import TensorProto

        return self._constant(f"float_{value}", TensorProto.FLOAT, [], [value])

    def resized(self, value: str, across: str, down: str) -> str:
        """int32, floor((weighted sum + 2^9) / 2^10) of 15-bit values."""
        rows = self.add("Mul", self.add("MatMul", value, across), self.real(1 / 128))
        rows = self.add("Min", self.add("Floor", rows), self.real(_HIGHEST))
        high = self.add("Floor", self.add("Mul", rows, self.real(1 / _LOW_BITS)))
        low = self.add("Sub", rows, self.add("Mul", high, self.real(float(_LOW_BITS))))
        highs, lows = (self._sum(down, part) for part in (high, low))
        total = self.add("Add", self.add("Mul", highs, self.whole(_LOW_BITS)), lows)
        total = self.add("Add", total, self.whole(512 + (_BIAS << 10)))
        return self.add("Sub", self.add("Div", total, self.whole(1 << 10)), self.whole(_BIAS))

    def byte(self, value: str) -> str:
        """[1, h, w] in 2^-22, clipped, as uint8 [h, w, 1]."""
        from onnx import TensorProto

        kept = self.add("Min", self.add("Max", value, self.whole(0)), self.whole((1 << 30) - 1))
        whole = self.cast(self.add("Div", kept, self.whole(1 << 22)), TensorProto.UINT8)
        return self.add("Transpose", whole, perm=[1, 2, 0])

    def model(self, onnx: Any) -> Any:
        """The model with its inputs and output; checked."""
        kinds, make = onnx.TensorProto, self._helper.make_tensor_value_info
        shapes = {
            "across": ["width", "w"],
            "across_chroma": ["half_width", "w"],
            "down": ["h", "height"],
            "down_chroma": ["h", "half_height"],
        }
        inputs = [
            make(LUMA, kinds.UINT8, ["height", "width"]),
            make(CHROMA, kinds.UINT8, ["half_height", "half_width", 2]),
            *(make(name, kinds.FLOAT, shapes[name]) for name in WEIGHTS),
            make(COLOUR, kinds.INT32, [6]),
        ]
        output = make(FRAME, kinds.UINT8, ["h", "w", 3])
        constants = list(self._constants.values())
        graph = self._helper.make_graph(self._nodes, "resize", inputs, [output], constants)
        opset = self._helper.make_opsetid("", OPSET)
        model = self._helper.make_model(graph, opset_imports=[opset], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _sum(self, weights: str, value: str) -> str:
        """A weighted sum of columns as int32."""
        from onnx import TensorProto

        return self.cast(self.add("MatMul", weights, value), TensorProto.INT32)

    def _sizes(self, parts: int) -> str:
        from onnx import TensorProto

        return self._constant(f"ones_{parts}", TensorProto.INT64, [parts], [1] * parts)

    def _constant(self, name: str, kind: int, shape: list[int], values: list[Any]) -> str:
        self._constants[name] = self._helper.make_tensor(name, kind, shape, values)
        return name
