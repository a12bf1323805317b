"""Facts about this machine: system, processor, memory, GPUs, and the packages memcli can use.

Every probe returns what it could find: a machine without /proc or nvidia-smi is no error. Packages
are imported in processes of their own, because a broken one may take its process with it.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_TOOL_TIMEOUT_S = 10.0
_IMPORT_TIMEOUT_S = 120.0
_NVIDIA_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")
_MIB = 1 << 20
# Version 1 and 2 of control groups; a container's limit is often below the machine's memory.
_MEMORY_LIMITS = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")

# What a package is imported as, first that is there, and what is worth knowing of it.
_PROBES: dict[str, tuple[tuple[str, ...], str]] = {
    "onnxruntime": (("onnxruntime",), "m.get_available_providers()"),
    "openvino": (
        ("openvino",),
        "[d + ': ' + c.get_property(d, 'FULL_DEVICE_NAME')"
        " for c in [m.Core()] for d in c.available_devices]",
    ),
    "tensorrt": (("tensorrt", "tensorrt_bindings"), "[]"),
    "tensorrt-rtx": (("tensorrt_rtx", "tensorrt_rtx_bindings"), "[]"),
    "av": (
        ("av",),
        "[f'{name} {a}.{b}.{c}' for name, (a, b, c) in m.library_versions.items()]",
    ),
    "numpy": (("numpy",), "[]"),
}
# The path of this process, so that both find the same packages; the last line of the output, since
# packages may print when they are imported.
_PROBE_SCRIPT = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
try:
    m = importlib.import_module({module!r})
    answer = {{"version": m.__version__, "facts": {facts}}}
except Exception as error:
    answer = {{"problem": type(error).__name__ + ": " + str(error)}}
print()
print(json.dumps(answer))
"""

_EXPORT = ("torch", "transformers", "onnxscript")
_TRAIN = (*_EXPORT, "lightning", "matplotlib", "scikit-learn", "scipy", "tensorboard")
_EEG = ("mne", "mne-bids", "pandas")
EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cpu": ("scoring on this CPU", ("onnxruntime", "openvino")),
    "gpu": ("scoring on an NVIDIA GPU", ("onnxruntime-gpu", "cuda-python", "PyNvVideoCodec")),
    "tensorrt-rtx": (
        "TensorRT-RTX engines",
        ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings", "cuda-python"),
    ),
    "parquet": ("tables in Parquet", ("pyarrow",)),
    "export": ("exports from PyTorch", _EXPORT),
    "train": ("training", _TRAIN),
    "eeg": ("EEG recordings", _EEG),
    "eeg-baselines": ("peers of the EEG model", (*_TRAIN, *_EEG, "braindecode", "pyriemann")),
}
"""Extra -> what it is for, and the distributions it consists of (a test holds it against
pyproject.toml)."""


@dataclass(frozen=True)
class Package:
    """One package that memcli can use."""

    version: str | None = None
    """As the package says itself; None if it is not installed or does not load."""
    problem: str | None = None
    """Why it does not load; None if it does, and if it is not installed."""
    facts: tuple[str, ...] = ()
    """Execution providers, devices or libraries."""

    @property
    def usable(self) -> bool:
        return self.version is not None


@dataclass(frozen=True)
class Cpu:
    """The processor as this process may use it."""

    name: str
    features: tuple[str, ...]
    """Extensions that runtimes choose their kernels by; empty where the system does not tell."""
    cores_usable: int
    """Processors that the scheduler gives to this process."""
    cores_total: int
    quota: float | None
    """Processors' worth of time that the control group allows; None for no limit."""


@dataclass(frozen=True)
class Memory:
    """Bytes; None where the system does not tell."""

    total: int | None
    available: int | None
    limit: int | None
    """Of the control group; None for no limit."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    memory_bytes: int | None = None
    compute_capability: str | None = None


@dataclass(frozen=True)
class Nvidia:
    """NVIDIA hardware and driver. `note` says what is odd, e.g. a driver without a device."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    """Newest CUDA version that the driver supports."""
    jetson: str | None = None
    """Board and L4T release on a Jetson."""
    note: str | None = None


@dataclass(frozen=True)
class Machine:
    """Everything above in one."""

    system: str
    architecture: str
    python: str
    executable: str
    cpu: Cpu
    memory: Memory
    nvidia: Nvidia

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON."""
        return asdict(self)


def inspect(root: Path = Path("/")) -> Machine:
    """Look at this machine; takes milliseconds, and a second where there is a GPU.

    `root` is where `proc`, `sys` and `etc` are looked for. Raises nothing.
    """
    return Machine(
        system=_system(root),
        architecture=platform.machine(),
        python=platform.python_version(),
        executable=sys.executable,
        cpu=_cpu(root),
        memory=_memory(root),
        nvidia=_nvidia(root),
    )


def inspect_packages() -> dict[str, Package]:
    """Import each package that is installed, all at once; takes a second or two. Raises nothing."""
    with ThreadPoolExecutor(len(_PROBES)) as pool:
        return dict(zip(_PROBES, pool.map(_package, _PROBES), strict=True))


def missing_of(extra: str) -> tuple[str, ...]:
    """Distributions of an extra that are not installed here."""
    return tuple(name for name in EXTRAS[extra][1] if not _is_distribution(name))


def onnxruntime_builds() -> tuple[str, ...]:
    """Installed distributions of ONNX Runtime: two overwrite each other's files."""
    builds = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
    return tuple(name for name in builds if _is_distribution(name))


def cpu_label() -> str:
    """Processor, cores and extensions in one line, for the head of a measurement."""
    cpu = _cpu(Path("/"))
    features = f" ({' '.join(cpu.features)})" if cpu.features else ""
    return f"{cpu.name}{features}, {cpu.cores_usable} cores"


def _read(path: Path) -> str:
    """A small text file, or nothing at all."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", "").strip()
    except OSError:
        return ""


def _system(root: Path) -> str:
    names = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', _read(root / "etc/os-release"), re.MULTILINE))
    kernel = f"{platform.system()} {platform.release()}"
    return f"{names['PRETTY_NAME']} ({kernel})" if names.get("PRETTY_NAME") else kernel


def _cpu(root: Path) -> Cpu:
    from memcli.engines.loading import cpu_features, cpu_name

    total = os.cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)
    return Cpu(
        name=cpu_name(),
        features=cpu_features(),
        cores_usable=len(affinity(0)) if affinity else total,
        cores_total=total,
        quota=_quota(_read(root / "sys/fs/cgroup/cpu.max")),
    )


def _quota(text: str) -> float | None:
    """`200000 100000` (microseconds per period) to 2.0; `max 100000` to None."""
    match = re.fullmatch(r"(\d+) (\d+)", text)
    return int(match[1]) / int(match[2]) if match and int(match[2]) else None


def _memory(root: Path) -> Memory:
    text = _read(root / "proc/meminfo")
    sizes = {name: int(kib) << 10 for name, kib in re.findall(r"(\w+):\s+(\d+) kB", text)}
    total = sizes.get("MemTotal")
    limits = [int(text) for path in _MEMORY_LIMITS if (text := _read(root / path)).isdigit()]
    # "No limit" is a very large number in version 1.
    limit = next((size for size in limits if total is None or size < total), None)
    return Memory(total=total, available=sizes.get("MemAvailable"), limit=limit)


def _nvidia(root: Path) -> Nvidia:
    jetson = _jetson(root)
    gpus, driver, note = _ask_nvidia_smi()
    if not driver:
        driver = _driver_of_proc(_read(root / "proc/driver/nvidia/version"))
    if not gpus:
        gpus = _gpus_of_proc(root / "proc/driver/nvidia/gpus")
    if not gpus and jetson:
        gpus = (Gpu(f"integrated GPU of {jetson.partition(',')[0]}"),)
    if not gpus and not driver:
        note = note and f"nvidia-smi: {note}"
    return Nvidia(gpus, driver, _cuda_of_driver(), jetson, note)


def _ask_nvidia_smi() -> tuple[tuple[Gpu, ...], str | None, str | None]:
    """GPUs, driver version and what went wrong; nothing of all three where there is no tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return (), None, None
    command = [tool, f"--query-gpu={','.join(_NVIDIA_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(  # noqa: S603 (the tool found on PATH is the one to ask)
            command, capture_output=True, text=True, errors="replace", timeout=_TOOL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return (), None, f"it did not answer within {_TOOL_TIMEOUT_S:.0f} s"
    except OSError as error:
        return (), None, f"it cannot be run: {error.strerror}"
    if done.returncode != 0:
        message = (done.stdout.strip() or done.stderr.strip()).splitlines()
        return (), None, message[0] if message else f"it failed with code {done.returncode}"
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    rows = [row for row in rows if len(row) == len(_NVIDIA_FIELDS)]
    gpus = tuple(
        Gpu(
            name=name,
            # Boards with unified memory answer "[N/A]".
            memory_bytes=int(memory) * _MIB if memory.isdigit() else None,
            compute_capability=capability if re.fullmatch(r"\d+\.\d+", capability) else None,
        )
        for name, _, memory, capability in rows
    )
    return gpus, rows[0][1] if rows else None, None


def _driver_of_proc(text: str) -> str | None:
    """The version in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu ...`."""
    match = re.search(r"Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return match[1] if match else None


def _gpus_of_proc(folder: Path) -> tuple[Gpu, ...]:
    try:
        files = sorted(folder.glob("*/information"))
    except OSError:
        return ()
    models = [re.search(r"^Model:\s*(.+)$", _read(path), re.MULTILINE) for path in files]
    return tuple(Gpu(match[1].strip()) for match in models if match)


def _cuda_of_driver() -> str | None:
    """Asked of the driver's library; this call needs no device and starts nothing on one."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _jetson(root: Path) -> str | None:
    """E.g. `NVIDIA Jetson Orin Nano Developer Kit, L4T R36.4.0`."""
    release = re.search(r"#\s*R(\d+).*?REVISION:\s*([\d.]+)", _read(root / "etc/nv_tegra_release"))
    if release is None:
        return None
    board = _read(root / "proc/device-tree/model") or "Jetson"
    return f"{board}, L4T R{release[1]}.{release[2]}"


def _is_distribution(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _package(name: str) -> Package:
    modules, facts = _PROBES[name]
    module = next((module for module in modules if _is_module(module)), None)
    if module is None:
        return Package()
    return _ask_package(_PROBE_SCRIPT.format(module=module, facts=facts))


def _ask_package(script: str) -> Package:
    command = [sys.executable, "-c", script, json.dumps(sys.path)]
    try:
        done = subprocess.run(  # noqa: S603 (our own interpreter and script)
            command, capture_output=True, text=True, errors="replace", timeout=_IMPORT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return Package(problem=f"it does not load within {_IMPORT_TIMEOUT_S:.0f} s")
    except OSError as error:
        return Package(problem=f"Python cannot be started: {error.strerror}")
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        if "problem" in answer:
            return Package(problem=str(answer["problem"]))
        return Package(version=str(answer["version"]), facts=tuple(map(str, answer["facts"])))
    except (IndexError, ValueError, KeyError, TypeError):
        return Package(problem=f"importing it ends Python ({_exit_text(done.returncode)})")


def _exit_text(code: int) -> str:
    """`exit code 1`, or the signal's name, e.g. SIGILL for instructions this CPU lacks."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
