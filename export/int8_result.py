"""What became of a graph in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memcli.export.evidence import FP32_GRAPH, GATE, Spread

if TYPE_CHECKING:
    from memcli.engines.comparison import Comparison
    from memcli.export.quantize import Scheme
    from memcli.export.ranges import Method


@dataclass(frozen=True)
class Int8Result:
    """What became of a graph."""

    holdout: Comparison
    """Against the installed fp32 graph, on inputs that had no part in the calibration."""
    float_layers: tuple[str, ...]
    """Layers left in floating point because they cost too much accuracy."""
    int8_layers: int
    scheme: Scheme
    method: Method
    inputs: str
    """What was checked with, e.g. `clips of 16 held-out videos`."""
    cosine_min: float | None = None
    """Of the holdout's embeddings with those of the fp32 graph; None if the graph names none."""
    cosine_mean: float | None = None
    spread: Spread | None = None
    """Of the fp32 graph's scores of the holdout."""
    runtime: str = ""
    """What computed the holdout."""
    real: bool = True
    """Whether the holdout is the user's."""
    signed: Int8Result | None = None
    """Of the all-signed twin, if one was asked for and the graph is not all-signed itself."""

    def reports(self) -> list[dict[str, Any]]:
        """What the manifest keeps, as JSON values; that of the graph itself is the last."""
        own = {
            **self.holdout.to_dict(),
            "role": GATE,
            "against": FP32_GRAPH,
            "inputs": self.inputs,
            "real": self.real,
            "runtime": self.runtime,
            **({} if self.spread is None else self.spread.to_dict()),
            "scheme": self.scheme,
            "calibration_method": self.method,
            "int8_layers": self.int8_layers,
            "float_layers": list(self.float_layers),
            "cosine_min": self.cosine_min,
            "cosine_mean": self.cosine_mean,
        }
        return [*(self.signed.reports() if self.signed is not None else []), own]
