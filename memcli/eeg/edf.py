"""Headers of EDF and BDF: what MNE does not say of them.

Whether the file is cut short, and which signals have another sampling rate than its EEG (MNE would
bring all to the highest rate, differently for each stretch that is read).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from memcli.eeg.names import kind_of
from memcli.errors import RecordingError, RecordingErrorCode

_FIXED = 256
_PER_SIGNAL = 256


@dataclass(frozen=True)
class EdfHeader:
    """What is needed of a header."""

    labels: tuple[str, ...]
    samples: tuple[int, ...]
    """Of each signal in a record."""
    odd: tuple[str, ...]
    """Labels of signals at another rate than the EEG."""


def read_edf_header(path: str) -> EdfHeader:
    """Read and check the header. Raises RecordingError for a file cut short or no EDF or BDF."""
    with Path(path).open("rb") as file:
        fixed = file.read(_FIXED)
        try:
            count = int(fixed[252:256])
            records = int(fixed[236:244])
            if not 0 < count < 10_000:
                raise ValueError(count)
            signals = file.read(count * _PER_SIGNAL)
            labels = [signals[i * 16 : i * 16 + 16].decode("latin-1").strip() for i in range(count)]
            samples = [int(signals[i * 8 + 216 * count :][:8]) for i in range(count)]
            if min(samples) < 1:
                raise ValueError(min(samples))
        except ValueError:
            raise RecordingError(
                RecordingErrorCode.DAMAGED,
                "no EDF or BDF header that can be read",
                where=path,
                next_step="Is it whole, and what its name says? Copy or export it again.",
            ) from None
    width = 3 if fixed[:1] == b"\xff" else 2
    record = width * sum(samples)
    held = Path(path).stat().st_size - _FIXED - count * _PER_SIGNAL
    if held < max(records, 1) * record:  # -1 records: a recording that was not closed
        raise RecordingError(
            RecordingErrorCode.DAMAGED,
            f"cut short: {max(held, 0) // record:,} of {max(records, 1):,} records are there",
            where=path,
            next_step="Copy or export it again.",
        )
    brain = [
        n
        for label, n in zip(labels, samples, strict=True)
        if kind_of(label) is None and "annotations" not in label.lower()
    ]
    usual = Counter(brain).most_common(1)[0][0] if brain else 0
    odd = {
        label
        for label, n in zip(labels, samples, strict=True)
        if brain and n != usual and "annotations" not in label.lower()
    }
    same_name = {label for label, n in zip(labels, samples, strict=True) if n == usual}
    return EdfHeader(tuple(labels), tuple(samples), tuple(sorted(odd - same_name)))
