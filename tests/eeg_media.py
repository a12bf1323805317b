"""EEG for tests: made in memory, written by other people's writers."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

NAMES = ("Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2", "T7", "T8", "P7", "P8")
NAMES = (*NAMES, "Fz", "Cz", "Pz", "Oz", "F7", "F8")


def real(part: str) -> Path:
    """A real recording, or a skip where none is at hand."""
    root = Path(__file__).parent.parent
    folders = [root.parent / "shared" / "data"]
    if named := os.environ.get("MEMCLI_TEST_DATA"):
        folders.insert(0, Path(named))
    for folder in folders:
        if (folder / "eeg" / part).exists():
            return folder / "eeg" / part
    pytest.skip(f"no real recordings (eeg/{part} below MEMCLI_TEST_DATA)")


def noise(channels: int, samples: int, seed: int = 0) -> np.ndarray:
    """Volts [channels, samples]: white noise and a slow wave, about 20 microvolts."""
    rng = np.random.default_rng(seed)
    slow = np.sin(np.arange(samples) / 200 + np.arange(channels)[:, None])
    return 1e-5 * (rng.standard_normal((channels, samples)) + slow)


def raw_of(
    names: Sequence[str] = NAMES,
    seconds: float = 30,
    sfreq: float = 256,
    events: Sequence[tuple[float, float, str]] = ((2, 0, "video"), (9, 0, "video")),
    types: Sequence[str] | None = None,
    seed: int = 0,
    data: np.ndarray | None = None,
    first_samp: int = 0,
):
    """MNE's Raw with annotations (onset, duration, name)."""
    import mne

    if data is None:
        data = noise(len(names), round(seconds * sfreq), seed)
    info = mne.create_info(list(names), sfreq, list(types) if types else "eeg", verbose="ERROR")
    raw = mne.io.RawArray(data, info, first_samp, verbose="ERROR")
    columns = [list(column) for column in zip(*events, strict=True)]
    raw.set_annotations(mne.Annotations(*columns) if events else None)
    return raw


def save_fif(path: Path, raw, **options) -> Path:
    raw.save(path, overwrite=True, verbose="ERROR", fmt="double", **options)
    return path


def save_edf(
    path: Path,
    data: np.ndarray,
    names: Sequence[str],
    sfreq: int,
    *,
    events: Sequence[tuple[float, float, str]] = (),
    unit: str = "uV",
    half_range: float = 300.0,
    extra: Sequence = (),
) -> Path:
    """EDF+ or BDF+ by the suffix, from numbers in `unit`."""
    edfio = pytest.importorskip("edfio")
    bdf = path.suffix == ".bdf"
    signal = edfio.BdfSignal if bdf else edfio.EdfSignal
    notes = [edfio.EdfAnnotation(*event) for event in events]
    span = (-half_range, half_range)
    signals = [
        signal(row, sfreq, label=name, physical_dimension=unit, physical_range=span)
        for row, name in zip(data, names, strict=True)
    ]
    (edfio.Bdf if bdf else edfio.Edf)([*signals, *extra], annotations=notes).write(path)
    return path
