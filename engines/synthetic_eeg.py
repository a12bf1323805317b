"""Synthetic EEG that is the same on every platform and numpy version.

As with the frames of `memcli.engines.reference`, a bundle stores no epochs: integer arithmetic
throughout, random numbers from PCG64's raw output, and a last division by a power of two.

Amplitudes and spectrum are those of recordings: a background whose power falls with frequency and
that neighbouring channels share, alpha that comes and goes, blinks, an evoked response, gains and
offsets that differ between channels. Some epochs are padded, and some have flat channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memcli.spec import EegPrep

Wave = NDArray[np.int64]
"""Values in 1/64 microvolt, [samples]."""

_UNIT = 64
_SOURCES = 6
"""Of the background; every channel is a mixture of them."""
_OCTAVES = 9
_KINDS = 6
"""Epochs 0, 2, 4 of each six are whole."""


class SyntheticEpochs(NamedTuple):
    """Epochs as a graph takes them."""

    eeg: NDArray[np.float32]
    """Microvolts, [epochs, channels, samples], 0 where there is nothing."""
    samples: NDArray[np.int64]
    """How many are there, [epochs]."""
    subject: NDArray[np.int64]
    """[epochs]: each of the model's subjects in turn, and 0 for somebody unknown."""


def synthetic_epochs(prep: EegPrep, epochs: int, seed: int) -> SyntheticEpochs:
    """Epochs for `prep`, each a function of `prep`, its number and `seed` alone."""
    channels, length = prep.epoch_shape()
    eeg = np.zeros((epochs, channels, length), np.float32)
    samples = np.zeros(epochs, np.int64)
    for number in range(epochs):
        made = _Epoch(prep, number, seed)
        samples[number] = made.samples
        eeg[number, :, : made.samples] = made.draw()[:, : made.samples]
    return SyntheticEpochs(eeg, samples, np.arange(epochs) % (len(prep.subjects) + 1))


class _Epoch:
    """One epoch under construction."""

    def __init__(self, prep: EegPrep, number: int, seed: int):
        # Another stream than those of frames and captions of the same number.
        self._bits = np.random.PCG64([seed, number, 2])
        self.number = number
        self.channels, self.length = prep.epoch_shape()
        self.alpha_period = max(2, round(prep.sfreq_hz / 10))
        self.second = max(4, round(prep.sfreq_hz))
        self.samples = self._samples(prep.window_samples)
        self.time = np.arange(self.length, dtype=np.int64)

    def integers(self, low: int, high: int, count: int) -> Wave:
        """`count` integers in [low, high); the modulo's bias (2**-48) is of no matter."""
        raw = np.asarray(self._bits.random_raw(count), dtype=np.uint64)
        result: Wave = low + (raw % np.uint64(high - low)).astype(np.int64)
        return result

    def integer(self, low: int, high: int) -> int:
        """One integer in [low, high)."""
        return int(self.integers(low, high, 1)[0])

    def _samples(self, window: int) -> int:
        kind = self.number % _KINDS
        if kind == 1:  # cut somewhere in its second half
            return self.length - self.integer(0, self.length // 2 + 1)
        if kind == 3:  # a whole number of windows
            return window * self.integer(1, self.length // window + 1)
        if kind == 5:  # short; of every twelve, one has a single sample
            return 1 if self.number % (2 * _KINDS) == 2 * _KINDS - 1 else self.integer(1, window)
        return self.length

    def draw(self) -> NDArray[np.float32]:
        """Microvolts [channels, samples]."""
        sources = np.stack([self.background() for _ in range(_SOURCES)])
        weights = self.integers(-8, 9, self.channels * _SOURCES).reshape(self.channels, _SOURCES)
        eeg = (weights @ sources) >> 4
        for wave, most in ((self.alpha(), 16), (self.evoked(), 24), (self.blinks(), 32)):
            shares = self.integers(-most, most + 1, self.channels)
            eeg += (shares[:, None] * wave) >> 4
        noise = self.integers(-2 * _UNIT, 2 * _UNIT + 1, eeg.size).reshape(eeg.shape)
        gains = self.integers(8, 33, self.channels)[:, None]
        eeg = ((eeg + noise) * gains) >> 4
        eeg += self.integers(-400 * _UNIT, 400 * _UNIT, self.channels)[:, None]
        if self.number % 4 == 2:  # a channel that stays the same, at 0 or elsewhere
            flat = self.integer(0, self.channels)
            eeg[flat] = 0 if self.number % 8 == 2 else eeg[flat, :1]
        return (eeg / _UNIT).astype(np.float32)  # exact: below 2**24, by a power of two

    def background(self) -> Wave:
        """Noise whose power falls with frequency: an octave lower is as strong in half the band."""
        total = np.zeros(self.length, np.int64)
        for octave in range(_OCTAVES):
            step = 1 << octave
            nodes = self.integers(-5 * _UNIT, 5 * _UNIT + 1, self.length // step + 2)
            place, rest = self.time >> octave, self.time & (step - 1)
            total += (nodes[place] * (step - rest) + nodes[place + 1] * rest) >> octave
        return total

    def alpha(self) -> Wave:
        """Waves of about 10 Hz under an envelope of a second's pace."""
        phase = (self.time + self.integer(0, self.alpha_period)) * 1024 // self.alpha_period
        wave = _parabola(phase % 1024 - 512)
        nodes = self.integers(0, 13, self.length // self.second + 2)
        place, rest = self.time // self.second, self.time % self.second
        envelope = nodes[place] * (self.second - rest) + nodes[place + 1] * rest
        return wave * envelope * _UNIT // (self.second * 65536)

    def evoked(self) -> Wave:
        """A deflection of half a second, up and down, at some time."""
        start, half = self.integer(0, self.length), max(2, self.second // 2)
        phase = (self.time - start) * 1024 // half - 512
        there = (phase >= -512) & (phase < 512)
        return np.where(there, _parabola(np.clip(phase, -512, 511)) * 8 * _UNIT // 65536, 0)

    def blinks(self) -> Wave:
        """One or two peaks of a third of a second, as large as blinks are at the eyes."""
        total = np.zeros(self.length, np.int64)
        for _ in range(self.integer(0, 3)):
            away = np.abs(self.time - self.integer(0, self.length)) * 1024 * 6 // self.second
            total += np.maximum(0, 1024 - away) * 60 * _UNIT // 1024
        return total


def _parabola(x: Wave) -> Wave:
    """One period of nearly a sine, -65536 to 65536, for x from -512 to 512: two parabolas."""
    result: Wave = x * (512 - np.abs(x))
    return result
