"""How fast is `memcli eeg`, and does its memory stay flat?

    python -m tests.benchmarks.eeg [--parts speed memory] [--minutes 60] [--epochs 300]
                                    [--rounds 3] [--json]

A recording of 64 channels at 512 Hz (FIF), pink noise with an event every 12 s.

speed   `Recogniser` from file to rows, on a bundle of the untrained default model, against the same
        steps by the book in MNE and PyTorch, epoch by epoch: crop, load, pick, resample, cut, then
        the same model in eager mode. Three rounds in turns in one process, medians. With polyphase
        resampling, as memcli does it, and with MNE's default, by FFT. Target: at least 5.
memory  peak memory of processes of their own: `memcli eeg` on one recording, on ten such
        recordings, and MNE loading one whole. Targets: at most a third of loading it whole, each
        all with what Python and its imports need; ten at most 1.1 of one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from memcli.machine import cpu_label
from memcli.models.eeg import EEG_CNN
from memcli.spec import ModelSpec

SPEED_TARGET = 5.0
WHOLE_TARGET = 1 / 3
TEN_TARGET = 1.1
RATE_HZ = 512.0
CHANNELS = 64
ROUNDS = 3
MANY = 10
NAME = "eeg-bench"
PARTS = ("speed", "memory")
# A process started by fork and exec inherits the peak memory of the one that forked it; so a small
# process in between starts the one that is measured.
_MEASURE = """
import os, subprocess, sys, time
started = time.perf_counter()
with open(sys.argv[1], "wb") as errors:
    process = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL, stderr=errors)
    _, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss << 10, time.perf_counter() - started)
"""
_IMPORTS = "import mne, scipy.signal, numpy; mne.io.read_raw_fif"
_WHOLE = """
import sys, mne
raw = mne.io.read_raw_fif(sys.argv[1], preload=True, verbose="error")
events, ids = mne.events_from_annotations(raw, verbose="error")
raw.resample(100, verbose="error")
"""


@dataclass(frozen=True)
class Figure:
    """One line of the result."""

    what: str
    measured: str
    ratio: float
    target: str
    met: bool


def channel_names() -> list[str]:
    """64 names of the extended 10-20 system."""
    import mne

    return list(mne.channels.make_standard_montage("biosemi64").ch_names)[:CHANNELS]


def bench_spec() -> ModelSpec:
    """The default model for 64 channels."""
    assert EEG_CNN.eeg is not None
    return replace(EEG_CNN, name=NAME, eeg=replace(EEG_CNN.eeg, channels=tuple(channel_names())))


def write_recording(path: Path, minutes: float, epochs: int, seed: int) -> None:
    """A FIF recording of pink noise in single precision, `epochs` events at equal distances."""
    import mne

    names = channel_names()
    samples = round(minutes * 60 * RATE_HZ)
    rng = np.random.default_rng(seed)
    data = np.empty((len(names), samples), np.float64)
    block = rng.normal(0, 1, 1 << 17)
    spectrum = np.fft.rfft(block) / np.sqrt(np.maximum(1, np.arange(len(block) // 2 + 1)))
    pink = np.fft.irfft(spectrum)
    pink *= 15e-6 / pink.std()
    for channel in data:
        shift = int(rng.integers(len(pink)))
        channel[:] = np.resize(np.roll(pink, shift), samples)
    info = mne.create_info(names, RATE_HZ, "eeg")
    raw = mne.io.RawArray(data, info, copy=None, verbose="error")
    onsets = np.linspace(0, minutes * 60 - 12, epochs)
    raw.set_annotations(mne.Annotations(onsets, 0.0, "clip"))
    raw.save(path, overwrite=True, verbose="error")


def make_bundle(spec: ModelSpec, home: Path) -> Any:
    """A bundle of the untrained model in `home`, and the model itself."""
    import torch

    from memcli.export.trained import export_model
    from memcli.train.eeg.network import EegModel

    os.environ["MEMCLI_HOME"] = str(home)
    torch.manual_seed(0)
    model = EegModel(spec).eval()
    export_model(
        model,
        spec,
        tokenizer=None,
        training={"demonstration": True},
        made_by={"benchmark": "eeg"},
        license_text="none",
        target=home / "bundles" / spec.name,
        report=lambda _: None,
    )
    return model


def by_the_book(path: Path, spec: ModelSpec, model: Any, *, fft: bool) -> list[float]:
    """The same steps in MNE and PyTorch, one epoch after the other."""
    import mne
    import torch

    prep = spec.eeg
    assert prep is not None
    method: dict[str, Any] = {} if fft else {"method": "polyphase"}
    scores = []
    raw = mne.io.read_raw_fif(path, preload=False, verbose="error")
    for onset in raw.annotations.onset:
        end = min(raw.times[-1], onset + prep.duration_s - 1 / raw.info["sfreq"])
        part = raw.copy().crop(onset, end).load_data(verbose="error")
        part.pick(list(prep.channels), verbose="error")
        part.resample(prep.sfreq_hz, verbose="error", **method)
        found = part.get_data() * 1e6
        data = np.zeros((1, *prep.epoch_shape()), np.float32)
        count = min(prep.samples, found.shape[1])
        data[0, :, :count] = found[:, :count]
        with torch.inference_mode():
            result = model(torch.from_numpy(data), torch.tensor([count]))
        scores.append(float(result.score[0]))
    return scores


def measure_speed(folder: Path, minutes: float, epochs: int, rounds: int) -> list[Figure]:
    """memcli against MNE and PyTorch, in turns."""
    from memcli.eeg import find_recordings
    from memcli.recognition.settings import EegSettings, open_recogniser

    spec = bench_spec()
    path = folder / "one_raw.fif"
    write_recording(path, minutes, epochs, seed=0)
    model = make_bundle(spec, folder / "home")
    with open_recogniser(EegSettings(model=NAME), lambda _: None) as recogniser:

        def ours() -> list[float]:
            rows = [row for _, row in recogniser.recognise(find_recordings([path])) if row]
            rows.sort(key=lambda row: row.epoch or 0)
            return [row.probability or 0.0 for row in rows]

        ways: dict[str, Callable[[], list[float]]] = {
            "memcli": ours,
            "polyphase": lambda: by_the_book(path, spec, model, fft=False),
            "FFT": lambda: by_the_book(path, spec, model, fft=True),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                found[name] = way()
                times[name].append(time.perf_counter() - started)
        reason = recogniser.selection.reason
    medians = {name: statistics.median(values) for name, values in times.items()}
    assert len(found["memcli"]) == len(found["FFT"]) == epochs
    apart = float(np.max(np.abs(np.subtract(found["memcli"], found["polyphase"]))))
    figures = []
    for name in ("polyphase", "FFT"):
        ratio = medians[name] / medians["memcli"]
        figures.append(
            Figure(
                f"MNE + PyTorch eager, resampling by {name}, against memcli",
                f"{medians[name]:.2f} s against {medians['memcli']:.2f} s"
                f" ({epochs} epochs, {reason})",
                ratio,
                f"at least {SPEED_TARGET:g}",
                ratio >= SPEED_TARGET,
            )
        )
    print(f"largest difference of a probability, polyphase: {apart:.2g}", file=sys.stderr)
    return figures


def peak_bytes(*command: str | os.PathLike[str], home: Path, cwd: Path) -> int:
    """Peak resident memory of a process that must end well."""
    words = [sys.executable, "-c", _MEASURE, os.fspath(cwd / "errors.txt")]
    environment = {**os.environ, "MEMCLI_HOME": str(home)}
    done = subprocess.run(
        [*words, *map(os.fspath, command)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=True,
    )
    code, peak, _ = done.stdout.split()
    if code != "0":
        raise SystemExit((cwd / "errors.txt").read_text())
    return int(peak)


def measure_memory(folder: Path, minutes: float, epochs: int) -> list[Figure]:
    """One recording, ten, and one loaded whole; each in a process of its own."""
    home = folder / "home"
    spec = bench_spec()
    if not (home / "bundles" / NAME).is_dir():
        make_bundle(spec, home)
    ten = folder / "ten"
    ten.mkdir()
    first = ten / "0_raw.fif"
    write_recording(first, minutes, epochs, seed=1)
    for number in range(1, MANY):
        os.link(first, ten / f"{number}_raw.fif")  # ten recordings to the program, one to the disk
    python = (sys.executable, "-c")
    scoring = (sys.executable, "-m", "memcli", "eeg", "--model", NAME, "--quiet", "-o")
    peaks = {
        "empty": peak_bytes(*python, _IMPORTS, home=home, cwd=folder),
        "whole": peak_bytes(*python, _WHOLE, first, home=home, cwd=folder),
        "first use": peak_bytes(*scoring, folder / "0.csv", first, home=home, cwd=folder),
        "one": peak_bytes(*scoring, folder / "1.csv", first, home=home, cwd=folder),
        "ten": peak_bytes(*scoring, folder / "10.csv", ten, home=home, cwd=folder),
    }
    shown = ", ".join(f"{name} {peak / 2**20:.0f} MiB" for name, peak in peaks.items())
    whole = peaks["one"] / peaks["whole"]
    many = peaks["ten"] / peaks["one"]
    return [
        Figure(
            "peak memory, memcli against loading the recording whole",
            shown,
            whole,
            f"at most {WHOLE_TARGET:.2f}",
            whole <= WHOLE_TARGET,
        ),
        Figure(
            "peak memory, ten recordings against one",
            shown,
            many,
            f"at most {TEN_TARGET:g}",
            many <= TEN_TARGET,
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "speed" in options.parts:
            figures += measure_speed(folder, options.minutes, options.epochs, options.rounds)
        if "memory" in options.parts:
            figures += measure_memory(folder, options.minutes, options.epochs)
    if options.json:
        print(json.dumps({"cpu": cpu_label(), "figures": [asdict(figure) for figure in figures]}))
        return
    print(cpu_label())
    for figure in figures:
        verdict = "yes" if figure.met else "NO"
        print(
            f"{figure.what}: {figure.ratio:.2f} ({figure.target}: {verdict})\n  {figure.measured}"
        )


if __name__ == "__main__":
    main()
