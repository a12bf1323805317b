"""Rows of `memcli eeg`: one per epoch, or one that says why a recording has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memcli.results import Layout, Status

DEMONSTRATION = "demonstration: trained on planted data; probabilities mean nothing for people"
"""The note of every row, report and summary of such a model."""


@dataclass(frozen=True)
class EpochRow:
    """One epoch of a table. A recording that failed has one row without an epoch."""

    path: str
    subject: str | None
    epoch: int | None
    """Its place among the chosen events of the recording, from 0; also of those left out."""
    onset_s: float | None
    """Of the event, in seconds from the start of the recording; of existing epochs where the file
    says."""
    event: str | None
    status: Status
    """ok or failed."""
    probability: float | None
    """That the viewer recognised the clip, 0 to 1."""
    recognised: bool | None
    """Whether the probability reaches the threshold."""
    flags: str | None
    """What is unusual about the epoch, joined by `; `: padded, flat:CHANNEL, ..."""
    label: int | None
    """1 recognised, 0 not, where the epochs' metadata or the table of onsets say."""
    model: str
    bundle: str
    engine: str
    device: str
    precision: str
    note: str | None
    """What to know about all probabilities of this model."""
    error_code: str | None = None
    error: str | None = None
    read_ms: float | None = None
    infer_ms: float | None = None
    contributions: list[float] | None = None
    """What each window adds to the logit of the probability; in JSON lines and Parquet."""


EPOCHS = Layout(EpochRow, ("contributions",))
MEASURED_COLUMNS = ("read_ms", "infer_ms")
"""Columns that differ between two runs over the same recordings."""


def label_of(metadata: Mapping[str, Any]) -> int | None:
    """The label 0 or 1 that metadata hold, however it is spelled; None if they hold none."""
    value = metadata.get("label")
    try:
        number = float(value) if value is not None else None
    except (TypeError, ValueError):
        return None
    return int(number) if number in (0.0, 1.0) else None
