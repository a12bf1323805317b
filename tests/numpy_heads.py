"""The forward passes of the heads in plain numpy, float64, from the formulas of the papers.

Written without a look at `memcli.train.heads`: only the parameters' names are theirs. `weights` is
a head's state dict as numpy arrays; frames [B, T, D], captions [B, C, D], mask [B, C].
"""

from __future__ import annotations

from typing import Any

import numpy as np

Weights = dict[str, Any]


def part(weights: Weights, prefix: str) -> Weights:
    found = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
    assert found, prefix
    return found


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def linear(weights: Weights, name: str, x: Any) -> Any:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(weights: Weights, name: str, x: Any) -> Any:
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    normed = (x - mean) / np.sqrt(variance + 1e-5)
    return normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def positions(length: int, width: int) -> Any:
    """Vaswani et al. (2017), section 3.5, entry by entry."""
    table = np.zeros((length, width))
    for position in range(length):
        for column in range(width):
            angle = position / 10000 ** (2 * (column // 2) / width)
            table[position, column] = np.cos(angle) if column % 2 else np.sin(angle)
    return table


def attention(weights: Weights, x: Any, heads: int) -> Any:
    """One sequence [T, width]: softmax(Q K^T / sqrt(d)) V for each head, concatenated."""
    query, key, value = (linear(weights, name, x) for name in ("query", "key", "value"))
    size = x.shape[1] // heads
    mixed = []
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        scores = query[:, columns] @ key[:, columns].T / np.sqrt(size)
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
        mixed.append(softmax @ value[:, columns])
    return linear(weights, "output", np.concatenate(mixed, axis=1))


def block(weights: Weights, x: Any, heads: int) -> Any:
    normed = layer_norm(weights, "attention_norm", x)
    x = x + attention(part(weights, "attention."), normed, heads)
    normed = layer_norm(weights, "feed_forward_norm", x)
    return x + linear(weights, "reduce", np.maximum(linear(weights, "expand", normed), 0))


def stack(weights: Weights, x: Any, heads: int, depth: int) -> Any:
    inner = part(weights, "transformer.")
    for index in range(depth):
        x = block(part(inner, f"blocks.{index}."), x, heads)
    return layer_norm(inner, "norm", x)


def masked_mean(values: list[float], mask: Any) -> float:
    present = [value for value, there in zip(values, mask, strict=True) if there]
    return float(np.mean(present))


def fusion_transformer(
    weights: Weights, frames: Any, captions: Any, mask: Any, *, heads: int, depth: int
) -> Any:
    def score(tokens: Any) -> float:
        placed = tokens + positions(*tokens.shape)
        pooled = stack(weights, placed, heads, depth).mean(axis=0)
        return float(sigmoid(linear(weights, "score", pooled))[0])

    text = "text_projection" if "text_projection.weight" in weights else "projection"
    scores = []
    for video in range(len(frames)):
        tokens = linear(weights, "projection", frames[video])
        if captions is None:
            scores.append(score(tokens))
            continue
        each = [
            score(np.vstack([tokens, linear(weights, text, caption)]))
            for caption in captions[video]
        ]
        scores.append(masked_mean(each, mask[video]))
    return np.array(scores)


def text_perceptron(weights: Weights, captions: Any, mask: Any) -> Any:
    x = captions
    for index in (0, 2, 4):
        x = np.maximum(linear(weights, f"layers.{index}", x), 0)
    each = sigmoid(linear(weights, "layers.6", x))[..., 0]
    return np.array([masked_mean(list(row), m) for row, m in zip(each, mask, strict=True)])


def regression(weights: Weights, embeddings: Any) -> Any:
    """001, equations 11 and 12, of each embedding: [B, N, D] -> [B, N]."""
    normed = layer_norm(weights, "norm", embeddings)
    return sigmoid(normed @ weights["score.weight"][0] + weights["score.bias"][0])


def gru_direction(weights: Weights, suffix: str, x: Any, hidden: int) -> Any:
    """One sequence [T, D] through one direction of a layer, step by step; Cho et al. (2014)."""
    inputs, recurrent = weights[f"weight_ih_{suffix}"], weights[f"weight_hh_{suffix}"]
    input_bias, recurrent_bias = weights[f"bias_ih_{suffix}"], weights[f"bias_hh_{suffix}"]
    reset, update, new = (slice(i * hidden, (i + 1) * hidden) for i in range(3))
    steps = list(range(len(x)))
    if suffix.endswith("_reverse"):
        steps.reverse()
    state = np.zeros(hidden)
    states = np.zeros((len(x), hidden))
    for step in steps:
        a = inputs @ x[step] + input_bias
        b = recurrent @ state + recurrent_bias
        r = sigmoid(a[reset] + b[reset])
        z = sigmoid(a[update] + b[update])
        n = np.tanh(a[new] + r * b[new])
        state = (1 - z) * n + z * state
        states[step] = state
    return states


def bigru(weights: Weights, x: Any, hidden: int, layers: int) -> Any:
    for layer in range(layers):
        both = [gru_direction(weights, f"l{layer}{end}", x, hidden) for end in ("", "_reverse")]
        x = np.concatenate(both, axis=1)
    return x


def temporal(
    weights: Weights, frames: Any, *, aggregator: str, predictor: str, hidden: int, layers: int
) -> Any:
    inner = part(weights, "aggregator.")
    scores = []
    for video in frames:
        e = video / np.linalg.norm(video, axis=1, keepdims=True)
        if aggregator == "average":
            x = linear(inner, "reduce", e).mean(axis=0)
        elif aggregator == "gru":
            x = bigru(part(inner, "gru."), e, hidden, layers).mean(axis=0)
        elif aggregator == "gru-attention":
            h = bigru(part(inner, "gru.gru."), e, hidden, layers)
            w = linear(inner, "weight", h)[:, 0]
            x = sum(e[t] * w[t] for t in range(len(e))) / len(e)  # 002, equation 1
        else:
            x = stack(inner, linear(inner, "reduce", e), heads=4, depth=2).mean(axis=0)
        last = 0
        if predictor == "mlp":
            for index in (0, 2):
                x = np.maximum(linear(weights, f"predictor.{index}", x), 0)
            last = 4
        scores.append(float(sigmoid(linear(weights, f"predictor.{last}", x))[0]))
    return np.array(scores)
