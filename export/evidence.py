"""What a row of the parity report says besides its differences: on what, against what, what for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from memcli.spec import ModelSpec, Tolerance

GATE = "gate"
"""The precision was installed because of this row, and would not have been without."""
ENGINE = "engine check"
"""A runtime executes the graph as it is meant to; its own tolerance holds."""
SHOWN = "shown only"
FP32_GRAPH = "fp32 graph"
PYTORCH = "PyTorch model"
OWN_SCORES = "the graph's own scores when it was made"
_REFERENCE = "synthetic reference {}"


def noun_of(spec: ModelSpec) -> str:
    """What a model scores."""
    return "clips" if spec.eeg is None else "epochs"


def synthetic_inputs(spec: ModelSpec) -> str:
    """What a gate without anything of the user's rests on."""
    return f"synthetic {noun_of(spec)}"


def reference_inputs(noun: str) -> str:
    """What a bundle keeps to check engines with, of clips or epochs."""
    return _REFERENCE.format(noun)


@dataclass(frozen=True)
class Spread:
    """Of the scores that something is compared with."""

    min: float
    max: float
    std: float

    def narrow(self, tolerance: Tolerance) -> bool:
        """Whether the scores differ from each other no more than they may be wrong by.

        A graph that always gave their mean would then hardly be noticed by differences.
        """
        return self.std <= tolerance.max_abs

    def to_dict(self) -> dict[str, float]:
        """What a row has of it."""
        return {"reference_min": self.min, "reference_max": self.max, "reference_std": self.std}


def spread_of(scores: npt.NDArray[np.floating[Any]]) -> Spread:
    """The spread of scores [N], N >= 1."""
    values = scores.astype(np.float64)
    return Spread(float(values.min()), float(values.max()), float(values.std()))


def narrow_warning(report: Mapping[str, Any], tolerance: Tolerance | None) -> str:
    """About a row of the gate whose reference scores are too much alike; empty for any other."""
    if report.get("role") != GATE or tolerance is None:
        return ""
    values = [report.get(name) for name in ("reference_min", "reference_max", "reference_std")]
    if not all(isinstance(one, (int, float)) for one in values):
        return ""
    spread = Spread(*map(float, values))  # type: ignore[arg-type]
    if not spread.narrow(tolerance):
        return ""
    return (
        f"the {report.get('clips')} reference scores are nearly alike ({spread.min:.4g} to "
        f"{spread.max:.4g}, standard deviation {spread.std:.2g}): differences up to "
        f"{tolerance.max_abs:g} say little of them, SRCC and cosine say more"
    )


def inputs_of(report: Mapping[str, Any]) -> str:
    """What a row was measured on."""
    found = report.get("inputs") or report.get("frames_of")
    return str(found or reference_inputs(str(report.get("of") or "clips")))


def runtime_of(report: Mapping[str, Any]) -> str:
    """What computed a row's scores."""
    return str(report.get("runtime") or report.get("engine") or "not recorded")


def is_real(report: Mapping[str, Any]) -> bool:
    """Whether a row was measured on videos or captions of the user."""
    return report.get("real") is True


def verified_on(reports: list[dict[str, Any]]) -> str:
    """The inputs that the gate of a precision rests on, in words."""
    found = [f"{one.get('clips')} {inputs_of(one)}" for one in reports if one.get("role") == GATE]
    return " and ".join(dict.fromkeys(found))
