"""A planted signal: EEG whose label is a component of the evoked response.

Each epoch is pink noise that channels share in part, alpha of waxing and waning strength over the
back of the head, blinks over its front, the hum of the mains, an evoked response that every epoch
has, and, where the clip was "recognised", a late positivity over parietal channels, after the
old/new effect of memory research: 300 to 900 ms after onset, jittered from epoch to epoch. Each
subject has a gain, a latency and a topography of its own. It validates code: what a model says
about such data means nothing for people.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.eeg.names import repeated
from memcli.errors import MissingDependencyError, OutputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

DESCRIPTION_FILE = "dataset.json"
LINE_HZ = 50.0
_FRONT = ("Fp", "AF")
_BACK = ("O", "PO", "P")
_PARIETAL = ("CP", "P", "PO", "C")


@dataclass(frozen=True)
class Planted:
    """What to plant. Amplitudes in microvolts before a subject's gain."""

    channels: tuple[str, ...]
    subjects: int = 8
    epochs: int = 40
    """Per subject; each is one video, the same ones for everybody."""
    seed: int = 0
    sfreq_hz: float = 250.0
    duration_s: float = 11.0
    effect: float = 6.0
    """Peak of the late positivity of recognised clips; 0: nothing tells the labels."""
    evoked: float = 6.0
    """Peak of the response that all epochs have."""
    drift: float = 0.0
    """How much alpha grows over an epoch: its amplitude is multiplied by 1 + drift at the end."""
    recognised: float = 0.4
    """Share of label 1; MediaEval 2025 has 1362 of 3484."""
    test_share: float = 0.0
    """Videos whose epochs have the split `test`."""
    shuffled: bool = False
    """Labels dealt out anew, so that they mean nothing."""
    leak: bool = False
    """The stimulus channel tells the labels, which nobody may find."""


@dataclass(frozen=True)
class PlantedSubject:
    """The epochs of one subject."""

    name: str
    data: Array
    """[epochs, channels, samples] in microvolts."""
    labels: tuple[int, ...]
    videos: tuple[str, ...]
    splits: tuple[str, ...]


def planted_subject(planted: Planted, index: int) -> PlantedSubject:
    """The epochs of subject `index`, from 0; the same for the same `planted`."""
    import numpy as np

    rng = np.random.default_rng((planted.seed, index))
    samples = round(planted.duration_s * planted.sfreq_hz)
    shape = (planted.epochs, len(planted.channels), samples)
    time = np.arange(samples) / planted.sfreq_hz
    labels = _labels(planted, rng)
    seen = rng.permutation(labels) if planted.shuffled else labels
    data = _background(planted, rng, shape, time)
    spread = rng.uniform(0.7, 1.3, len(planted.channels))
    late = rng.normal(0.6, 0.03)
    everywhere = 0.5 + 0.5 * _weights(planted.channels, _BACK)
    parietal = _weights(planted.channels, _PARIETAL) * spread
    for epoch in range(planted.epochs):
        response = planted.evoked * (_bump(time, 0.10, 0.02) - 1.2 * _bump(time, 0.17, 0.03))
        data[epoch] += everywhere[:, None] * response
        positivity = planted.effect * labels[epoch] * rng.uniform(0.7, 1.3)
        data[epoch] += np.outer(parietal, positivity * _bump(time, rng.normal(late, 0.03), 0.12))
    data *= np.exp(rng.normal(0, 0.4))
    tested = math.ceil(planted.test_share * planted.epochs)
    return PlantedSubject(
        f"{index + 1:02d}",
        data,
        tuple(int(one) for one in seen),
        tuple(f"video-{number + 1:03d}" for number in range(planted.epochs)),
        tuple("train" if i < planted.epochs - tested else "test" for i in range(planted.epochs)),
    )


def write_planted(planted: Planted, folder: Path) -> Path:
    """Write `sub-XX-epo.fif` for each subject and what they are; returns the folder.

    The files also have an eye channel and a stimulus channel. Raises UsageError for a folder that
    is not empty, MissingDependencyError without MNE, and OutputError.
    """
    _check(planted)
    try:
        import mne  # noqa: F401
        import pandas as pd  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            error.name or "MNE", purpose="writing EEG", install="pip install 'memcli[eeg]'"
        ) from error
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            "planted data goes into a new or empty folder",
            where=str(folder),
            next_step="Name another:  memcli dataset planted-eeg DIR",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(planted.subjects):
            _write_subject(planted, index, folder)
        text = {"demonstration": True, "what": (__doc__ or "").strip().splitlines()[0]}
        described: dict[str, Any] = text | {"planted": asdict(planted)}
        (folder / DESCRIPTION_FILE).write_text(json.dumps(described, indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(folder)) from error
    return folder


def _write_subject(planted: Planted, index: int, folder: Path) -> None:
    import mne
    import numpy as np
    import pandas as pd

    subject = planted_subject(planted, index)
    rng = np.random.default_rng((planted.seed, index, 1))
    count, _, samples = subject.data.shape
    eye = rng.normal(0, 30, (count, 1, samples))
    stimulus = np.zeros((count, 1, samples))
    stimulus[:, 0, : samples // 2] = 1.0
    if planted.leak:
        stimulus[:, 0, : samples // 2] += np.array(subject.labels)[:, None]
    info = mne.create_info(
        [*planted.channels, "EOG1", "STI 014"],
        planted.sfreq_hz,
        ["eeg"] * len(planted.channels) + ["eog", "stim"],
    )
    epochs = mne.EpochsArray(
        np.concatenate([subject.data * 1e-6, eye * 1e-6, stimulus], axis=1),
        info,
        events=np.column_stack(
            [np.arange(count) * samples, np.zeros(count, int), np.ones(count, int)]
        ),
        event_id={"clip": 1},
        metadata=pd.DataFrame(
            {
                "subject": [f"sub-{subject.name}"] * count,
                "label": subject.labels,
                "video": subject.videos,
                "split": subject.splits,
            }
        ),
        verbose="error",
    )
    path = folder / f"sub-{subject.name}-epo.fif"
    epochs.save(path, fmt="single", overwrite=False, verbose="error")


def _check(planted: Planted) -> None:
    for value, least, name in (
        (planted.subjects, 1, "subjects"),
        (planted.epochs, 2, "epochs"),
        (len(planted.channels), 1, "channels"),
    ):
        if value < least:
            raise UsageError(f"{value} {name}; at least {least} are needed")
    if repeated(planted.channels):
        raise UsageError("a channel is named twice", where="--channels")


def _labels(planted: Planted, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """0 or 1 for each epoch, both there, recognised ones by their share."""
    import numpy as np

    labels = np.zeros(planted.epochs, np.int64)
    labels[: min(max(1, round(planted.recognised * planted.epochs)), planted.epochs - 1)] = 1
    return rng.permutation(labels)


def _background(
    planted: Planted, rng: np.random.Generator, shape: tuple[int, int, int], time: Array
) -> Array:
    """Everything that has nothing to do with the clip."""
    import numpy as np

    epochs, channels, samples = shape
    sources = max(2, channels // 2)
    mixing = rng.normal(0, 1 / math.sqrt(sources), (channels, sources))
    data: Array = 8.0 * np.einsum("cs,est->ect", mixing, _pink(rng, (epochs, sources, samples)))
    data += 4.0 * _pink(rng, shape)
    back = _weights(planted.channels, _BACK)
    front = _weights(planted.channels, _FRONT)
    mains = rng.uniform(0.5, 2.0, channels)
    growth = 1 + planted.drift * time / time[-1]
    rate = rng.normal(10.0, 0.5)
    for epoch in range(epochs):
        phase = rng.uniform(0, 2 * math.pi, 2)
        envelope = 1 + 0.5 * np.sin(2 * math.pi * 0.3 * time + phase[0])
        alpha = 6.0 * growth * envelope * np.sin(2 * math.pi * rate * time + phase[1])
        data[epoch] += np.outer(0.2 + back, alpha)
        for at in rng.uniform(0, planted.duration_s, rng.poisson(planted.duration_s / 4)):
            data[epoch] += np.outer(front, rng.uniform(60, 120) * _bump(time, at, 0.08))
        if planted.sfreq_hz > 2 * LINE_HZ:
            hum = np.sin(2 * math.pi * LINE_HZ * time + rng.uniform(0, 2 * math.pi))
            data[epoch] += np.outer(mains, hum)
    return data


def _pink(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Noise whose power falls with the frequency, with a standard deviation near 1."""
    import numpy as np

    samples = shape[-1]
    spectrum = np.fft.rfft(rng.normal(size=shape), axis=-1)
    bins = np.arange(spectrum.shape[-1], dtype=np.float64)
    bins[0] = math.inf
    noise: Array = np.fft.irfft(spectrum / np.sqrt(bins), samples, axis=-1)
    return noise / noise.std()


def _bump(time: Array, centre: float, width: float) -> Array:
    import numpy as np

    found: Array = np.exp(-0.5 * ((time - centre) / width) ** 2)
    return found


def _weights(channels: Sequence[str], where: tuple[str, ...]) -> Array:
    """1 for channels whose names begin so and go on with a number or z, a tenth for others.

    Where no channel is called so (names of another system), every third has 1.
    """
    import numpy as np

    names = [channel.rstrip("0123456789zZ") for channel in channels]
    found = np.array([1.0 if name in where else 0.1 for name in names])
    if found.max() < 1:
        found[::3] = 1.0
    return found
