"""Bidirectional GRU, in PyTorch and as one ONNX operator per layer.

Source: 002_1ca569390f82ecec.txt, section 2: 6 layers with 64 hidden units, each followed by
dropout of 0.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memcli.errors import MissingDependencyError


class BiGru(nn.Module):
    """Stack of bidirectional GRU layers, each followed by dropout; the mean of its states."""

    def __init__(self, frame_dim: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        self.dim = 2 * hidden
        self.gru = nn.GRU(
            frame_dim,
            hidden,
            num_layers=layers,
            dropout=dropout if layers > 1 else 0.0,
            bidirectional=True,
            batch_first=True,
        )
        self.dropout = nn.Dropout(dropout)  # nn.GRU has none after its last layer

    def states(self, frames: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, 2 * hidden]: first the forward states, then the backward ones."""
        if torch.onnx.is_in_onnx_export():
            return _onnx_states(self.gru, frames)
        states: Tensor = self.dropout(self.gru(frames)[0])
        return states

    def forward(self, frames: Tensor) -> Tensor:
        """[B, T, D] -> [B, 2 * hidden]."""
        return self.states(frames).mean(dim=1)


def _onnx_states(gru: nn.GRU, frames: Tensor) -> Tensor:
    """The states [B, T, 2 * hidden] in evaluation mode as ONNX GRU operators.

    Left to itself the exporter writes out the loop over time: for the T it traced, or as a Loop
    operator for each layer and direction. The operator takes any T and every runtime has it.
    """
    if not hasattr(torch.onnx, "ops"):
        raise MissingDependencyError(
            "PyTorch 2.8 or newer",
            purpose="exporting a GRU",
            install="pip install --upgrade 'memcli[export]'",
        )
    states = frames.transpose(0, 1)
    time, batch = states.shape[:2]
    for layer in range(gru.num_layers):
        states = torch.onnx.ops.symbolic(
            "GRU",
            (
                states,
                _both_directions(gru, f"weight_ih_l{layer}"),
                _both_directions(gru, f"weight_hh_l{layer}"),
                torch.cat(
                    [
                        _both_directions(gru, f"bias_ih_l{layer}"),
                        _both_directions(gru, f"bias_hh_l{layer}"),
                    ],
                    dim=1,
                ),
            ),
            {
                "hidden_size": gru.hidden_size,
                "direction": "bidirectional",
                # The candidate state is computed as PyTorch does: the reset gate is applied after
                # the matrix product.
                "linear_before_reset": 1,
            },
            dtype=states.dtype,
            shape=(time, 2, batch, gru.hidden_size),
        )
        states = states.transpose(1, 2).flatten(2)
    return states.transpose(0, 1)


def _both_directions(gru: nn.GRU, name: str) -> Tensor:
    """A parameter of both directions, [2, 3 * hidden, ...], gates in the order of ONNX.

    PyTorch has reset, update, new; ONNX has update, reset, new.
    """
    third = gru.hidden_size
    directions = []
    for suffix in ("", "_reverse"):
        values = getattr(gru, name + suffix)
        reset, update, new = values[:third], values[third : 2 * third], values[2 * third :]
        directions.append(torch.cat([update, reset, new]))
    return torch.stack(directions)
