"""SmolVLM2 to three ONNX graphs: vision tower with connector, embedding, decoder with its cache.

The graphs are written node by node from the checkpoint's weights, not traced: tracing the 256M
decoder takes minutes, and what it gives depends on how a version of transformers holds its cache
and builds its masks. Here masks and positions are inputs, keys of grouped-query attention are never
repeated in memory, and keys and values come in two parts: `past_key_values.*`, at least one place,
which a step only reads, and `recent.*`, which it gives back with what it adds as `present.*`. A
long prompt is then not copied at every step. The gate compares tokens with transformers' own
`generate`.

Architecture: SigLIP tower, pixel shuffle and one linear layer, Llama decoder (SmolVLM,
arXiv:2504.05299, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from memcli.captioning.bundle import CacheShape
from memcli.errors import ModelError
from memcli.export.graph_builder import CONTRIB, GraphBuilder

_FLOAT, _INT64, _BYTE = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
_UNSEEN = -1e30
"""Added to the score of what may not be seen. Finite: a row of padding that sees nothing must not
become NaN."""
Weights = Callable[[str], "np.ndarray[Any, Any]"]
Product = Callable[[GraphBuilder, str, str, "np.ndarray[Any, Any]"], str]
"""Writes value [..., K] times weight [K, N] under a name; gives the result's name."""


def float_product(graph: GraphBuilder, value: str, name: str, weight: np.ndarray[Any, Any]) -> str:
    """A product of matrices in float32."""
    return str(graph.op("MatMul", value, graph.weight(f"{name}.T", weight)))


class Linear:
    """Writes linear layers of a state dict."""

    def __init__(self, graph: GraphBuilder, weights: Weights, names: set[str], product: Product):
        self._graph, self._weights, self._names, self._product = graph, weights, names, product

    def __call__(self, value: str, name: str) -> str:
        """value [..., in] -> [..., out], with the bias if there is one."""
        weight = np.ascontiguousarray(self._weights(f"{name}.weight").T)
        result = self._product(self._graph, value, name, weight)
        if f"{name}.bias" in self._names:
            bias = self._graph.weight(f"{name}.bias", self._weights(f"{name}.bias"))
            result = self._graph.op("Add", result, bias)
        return result


def write_captioner_graphs(
    model: Any,
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
    folder: Path,
    *,
    product: Product = float_product,
    vision_product: Product = float_product,
) -> CacheShape:
    """Write `vision`, `embed` and `decoder`, each `.onnx` with its weights in `.bin`.

    `model` is SmolVLMForConditionalGeneration in float32, unchanged by this. `mean` and `std` are
    of pixels from 0 to 255. `product` writes the products of the decoder, e.g. in int8, and
    `vision_product` those of tower and connector. Raises ModelError for settings that memcli does
    not know, OSError.
    """
    state = model.state_dict()

    def weights(name: str) -> np.ndarray[Any, Any]:
        value: np.ndarray[Any, Any] = state[name].detach().float().numpy()
        if not np.isfinite(value).all():
            raise ModelError(f"{name} of the checkpoint holds NaN or infinite numbers")
        return value

    names = set(state)
    _write_vision(model, side, mean, std, weights, names, vision_product, folder / "vision.onnx")
    embed = GraphBuilder()
    ids = embed.input("input_ids", _INT64, ["batch", "length"])
    table = "model.text_model.embed_tokens.weight"
    found = embed.op("Gather", embed.weight(table, weights(table)), ids)
    width = model.config.text_config.hidden_size
    embed.output(found, "embeddings", _FLOAT, ["batch", "length", width])
    embed.save(folder / "embed.onnx")
    return _write_decoder(model, weights, names, product, folder / "decoder.onnx")


def _write_vision(
    model: Any,
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
    weights: Weights,
    names: set[str],
    product: Product,
    path: Path,
) -> None:
    """frames uint8 [images, side, side, 3] -> features float32 [images, tokens, D]."""
    config = model.config.vision_config
    gelu = {"gelu_pytorch_tanh": "tanh", "gelu": "none"}.get(config.hidden_act)
    patch, scale = config.patch_size, model.config.scale_factor
    if gelu is None or side // patch % scale or config.num_channels != 3:
        raise ModelError(f"a vision tower memcli does not know: {config.hidden_act}, {side} pixels")
    rows, width = side // patch, config.hidden_size
    graph, base = GraphBuilder(), "model.vision_model"
    linear = Linear(graph, weights, names, product)

    def norm(value: str, name: str) -> str:
        both = (
            graph.weight(f"{name}.{one}", weights(f"{name}.{one}")) for one in ("weight", "bias")
        )
        eps = float(config.layer_norm_eps)
        return str(graph.op("LayerNormalization", value, *both, axis=-1, epsilon=eps))

    frames = graph.input("frames", _BYTE, ["images", side, side, 3])
    pixels = graph.op("Cast", frames, to=_FLOAT)
    pixels = graph.op("Sub", pixels, graph.constant(list(mean), "float32"))
    pixels = graph.op("Div", pixels, graph.constant(list(std), "float32"))
    pixels = graph.op("Transpose", pixels, perm=[0, 3, 1, 2])
    name = f"{base}.embeddings.patch_embedding"
    both = [graph.weight(f"{name}.{one}", weights(f"{name}.{one}")) for one in ("weight", "bias")]
    hidden = graph.op("Conv", pixels, *both, strides=[patch, patch], kernel_shape=[patch, patch])
    hidden = graph.op("Reshape", hidden, graph.constant([0, width, rows * rows], "int64"))
    hidden = graph.op("Transpose", hidden, perm=[0, 2, 1])
    positions = position_embeddings(model.model.vision_model, side)
    hidden = graph.op("Add", hidden, graph.weight(f"{base}.positions", positions))
    for number in range(config.num_hidden_layers):
        layer = f"{base}.encoder.layers.{number}"
        normed = norm(hidden, f"{layer}.layer_norm1")
        parts = [linear(normed, f"{layer}.self_attn.{one}_proj") for one in ("q", "k", "v")]
        heads = config.num_attention_heads
        joined = graph.op("MultiHeadAttention", *parts, domain=CONTRIB, num_heads=heads)
        hidden = graph.op("Add", hidden, linear(joined, f"{layer}.self_attn.out_proj"))
        normed = linear(norm(hidden, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
        normed = graph.op("Gelu", normed, approximate=gelu)
        hidden = graph.op("Add", hidden, linear(normed, f"{layer}.mlp.fc2"))
    hidden = norm(hidden, f"{base}.post_layernorm")
    # Pixel shuffle: the features of scale x scale neighbours become one longer vector.
    less = rows // scale
    split = graph.constant([0, less, scale, less, scale * width], "int64")
    hidden = graph.op("Transpose", graph.op("Reshape", hidden, split), perm=[0, 1, 3, 2, 4])
    joined = graph.constant([0, less * less, scale * scale * width], "int64")
    hidden = graph.op("Reshape", hidden, joined)
    features = linear(hidden, "model.connector.modality_projection.proj")
    size = model.config.text_config.hidden_size
    graph.output(features, "features", _FLOAT, ["images", less * less, size])
    graph.save(path)


def position_embeddings(tower: Any, side: int) -> np.ndarray[Any, Any]:
    """[patches, D] for a whole image, as the tower itself places its patches.

    It computes them from fractions, whose rounding is not worth repeating: it is asked for them.
    """
    import torch

    places: list[Any] = []
    embeddings = tower.embeddings
    hook = embeddings.position_embedding.register_forward_pre_hook(
        lambda _, inputs: places.append(inputs[0])
    )
    patches = side // embeddings.patch_size
    try:
        with torch.inference_mode():
            embeddings(
                torch.zeros(1, 3, side, side), torch.ones(1, patches, patches, dtype=torch.bool)
            )
    finally:
        hook.remove()
    table: np.ndarray[Any, Any] = embeddings.position_embedding.weight.detach().float().numpy()
    chosen: np.ndarray[Any, Any] = table[places[0][0].numpy()]
    return chosen


def _write_decoder(
    model: Any, weights: Weights, names: set[str], product: Product, path: Path
) -> CacheShape:
    config = model.config.text_config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    shape = CacheShape(config.num_hidden_layers, groups, width)
    if config.hidden_act != "silu":
        raise ModelError(f"a decoder memcli does not know: {config.hidden_act}")
    graph = GraphBuilder()
    linear = Linear(graph, weights, names, product)
    hidden = graph.input("inputs_embeds", _FLOAT, ["batch", "length", config.hidden_size])
    mask = graph.input("attention_mask", _INT64, ["batch", "total"])
    positions = graph.input("position_ids", _INT64, ["batch", "length"])
    bias = _bias(graph, hidden, mask, heads // groups)
    turn = _turn(graph, positions, model.model.text_model.rotary_emb)

    def norm(value: str, name: str) -> str:
        scale = graph.weight(f"{name}.weight", weights(f"{name}.weight"))
        squares = graph.op("Pow", value, graph.constant(2.0, "float32"))
        mean = graph.op("ReduceMean", squares, graph.constant([-1], "int64"), keepdims=1)
        root = graph.op(
            "Sqrt", graph.op("Add", mean, graph.constant(config.rms_norm_eps, "float32"))
        )
        return str(graph.op("Mul", graph.op("Div", value, root), scale))

    def split(value: str, count: int) -> str:
        cut = graph.op("Reshape", value, graph.constant([0, 0, count, width], "int64"))
        return str(graph.op("Transpose", cut, perm=[0, 2, 1, 3]))

    present: list[tuple[str, str]] = []
    parts: str | None = None
    for number in range(shape.layers):
        layer = f"model.text_model.layers.{number}"
        normed = norm(hidden, f"{layer}.input_layernorm")
        query, key, value = (
            split(linear(normed, f"{layer}.self_attn.{one}_proj"), count)
            for one, count in (("q", heads), ("k", groups), ("v", groups))
        )
        query, key = _turned(graph, query, turn), _turned(graph, key, turn)
        read: dict[str, str] = {}
        for kind, new in (("key", key), ("value", value)):
            name = f"{number}.{kind}"
            sizes = ["batch", groups, "past", width]
            read[kind] = graph.input(f"past_key_values.{name}", _FLOAT, sizes)
            recent = graph.input(f"recent.{name}", _FLOAT, ["batch", groups, "recent", width])
            present.append((name, graph.op("Concat", recent, new, axis=2)))
        recent_key, recent_value = present[-2][1], present[-1][1]
        # The queries that share a key become rows of one product: keys are not repeated.
        rows = graph.op("Reshape", query, graph.constant([0, groups, -1, width], "int64"))
        rows = graph.op("Mul", rows, graph.constant(width**-0.5, "float32"))
        scores = [
            graph.op("MatMul", rows, graph.op("Transpose", one, perm=[0, 1, 3, 2]))
            for one in (read["key"], recent_key)
        ]
        scores = graph.op("Add", graph.op("Concat", *scores, axis=-1), bias)
        shares = graph.op("Softmax", scores, axis=-1)
        if parts is None:
            parts = _parts(graph, read["key"], mask)
        before, after = graph.op("Split", shares, parts, axis=-1, outputs=2)
        found = graph.op(
            "Add",
            graph.op("MatMul", before, read["value"]),
            graph.op("MatMul", after, recent_value),
        )
        found = graph.op("Reshape", found, graph.constant([0, heads, -1, width], "int64"))
        found = graph.op("Transpose", found, perm=[0, 2, 1, 3])
        found = graph.op("Reshape", found, graph.constant([0, 0, heads * width], "int64"))
        hidden = graph.op("Add", hidden, linear(found, f"{layer}.self_attn.o_proj"))
        normed = norm(hidden, f"{layer}.post_attention_layernorm")
        gate = linear(normed, f"{layer}.mlp.gate_proj")
        gate = graph.op("Mul", gate, graph.op("Sigmoid", gate))
        inner = graph.op("Mul", gate, linear(normed, f"{layer}.mlp.up_proj"))
        hidden = graph.op("Add", hidden, linear(inner, f"{layer}.mlp.down_proj"))
    last = graph.op("Gather", hidden, graph.constant(-1, "int64"), axis=1)
    logits = linear(norm(last, "model.text_model.norm"), "lm_head")
    graph.output(logits, "logits", _FLOAT, ["batch", config.vocab_size])
    for name, made in present:
        graph.output(made, f"present.{name}", _FLOAT, ["batch", groups, "grown", width])
    graph.save(path)
    return shape


def _parts(graph: GraphBuilder, past: str, mask: str) -> str:
    """[2]: how many of the scores are of what `past` holds, and how many of the rest."""
    length = graph.op("Gather", graph.op("Shape", past), graph.constant([2], "int64"))
    total = graph.op("Gather", graph.op("Shape", mask), graph.constant([1], "int64"))
    return str(graph.op("Concat", length, graph.op("Sub", total, length), axis=0))


def _bias(graph: GraphBuilder, hidden: str, mask: str, share: int) -> str:
    """[batch, 1, share x length, total]: 0 where a token may look, else a large negative number."""
    axis = graph.constant(1, "int64")
    total = graph.op("Gather", graph.op("Shape", mask), axis)
    length = graph.op("Gather", graph.op("Shape", hidden), axis)
    zero, one = graph.constant(0, "int64"), graph.constant(1, "int64")
    places = graph.op("Range", zero, total, one)
    readers = graph.op("Range", graph.op("Sub", total, length), total, one)
    readers = graph.op("Unsqueeze", readers, graph.constant([1], "int64"))
    seen = graph.op("LessOrEqual", places, readers)
    there = graph.op("Cast", mask, to=TensorProto.BOOL)
    there = graph.op("Unsqueeze", there, graph.constant([1], "int64"))
    allowed = graph.op("And", there, seen)
    nothing, much = graph.constant(0.0, "float32"), graph.constant(_UNSEEN, "float32")
    bias = graph.op("Where", allowed, nothing, much)
    if share > 1:
        bias = graph.op("Concat", *[bias] * share, axis=1)
    return str(graph.op("Unsqueeze", bias, graph.constant([1], "int64")))


def _turn(graph: GraphBuilder, positions: str, rotary: Any) -> tuple[str, str]:
    """Cosine and sine [batch, 1, length, width] of the rotary positions.

    Raises ModelError for frequencies that change with the length of the text.
    """
    if getattr(rotary, "rope_type", "default") not in ("default", "linear", "llama3"):
        raise ModelError(f"rotary positions memcli does not know: {rotary.rope_type}")
    frequencies = rotary.inv_freq.detach().float().numpy()
    table = graph.weight("frequencies", np.concatenate([frequencies, frequencies]))
    angles = graph.op("Cast", positions, to=_FLOAT)
    angles = graph.op("Unsqueeze", angles, graph.constant([1, 3], "int64"))
    angles = graph.op("Mul", angles, table)
    scale = graph.constant(float(getattr(rotary, "attention_scaling", 1.0)), "float32")
    cos, sin = (graph.op("Mul", graph.op(kind, angles), scale) for kind in ("Cos", "Sin"))
    return cos, sin


def _turned(graph: GraphBuilder, vectors: str, turn: tuple[str, str]) -> str:
    """Rotary position: both halves of each vector as the two parts of complex numbers."""
    first, second = graph.op("Split", vectors, axis=-1, num_outputs=2, outputs=2)
    other = graph.op("Concat", graph.op("Neg", second), first, axis=-1)
    kept = graph.op("Mul", vectors, turn[0])
    return str(graph.op("Add", kept, graph.op("Mul", other, turn[1])))
