"""TensorRT and TensorRT-RTX: what is different between them. All else is one implementation.

TensorRT chooses kernels by timing them on the GPU that will execute them; its plans are for that
GPU, driver and version. TensorRT-RTX compiles ahead of time for a compute capability, on any
machine, and finishes on the GPU at run time; its plans are for all GPUs of that capability.
Supported: TensorRT 10.3 (JetPack 6) to 11, TensorRT-RTX 1.x.
"""

from __future__ import annotations

import logging
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from memcli.engines.loading import import_runtime
from memcli.errors import EngineError

FlavourName = Literal["tensorrt", "tensorrt-rtx"]
_KEPT_ERRORS = 20
_OLDEST = (10, 3)


@dataclass(frozen=True)
class Flavour:
    """One of the two, as it is installed here. Made by `load_flavour`."""

    name: FlavourName
    title: str
    trt: ModuleType
    """The package."""
    version: str
    builds_for_capability: bool
    """Whether plans are for a compute capability, and made on a machine without a GPU."""
    has_timing_cache: bool
    """Whether what was timed in one build is kept for the next."""
    has_runtime_cache: bool
    """Whether what is compiled at run time is kept for the next start."""

    def platform(self) -> str:
        """Operating system and processor, e.g. `linux-x86_64`: plans are for one."""
        return f"{platform.system().lower()}-{platform.machine()}"

    def capabilities(self) -> tuple[str, ...]:
        """Compute capabilities that plans can be built for here, e.g. ("8.6", "8.9")."""
        if not self.builds_for_capability:
            return ()
        matches = (re.fullmatch(r"SM(\d+)(\d)", name) for name in dir(self.trt.ComputeCapability))
        found = sorted((int(match[1]), int(match[2])) for match in matches if match)
        return tuple(f"{major}.{minor}" for major, minor in found)

    def capability(self, text: str) -> Any:
        """The enumerator of a compute capability such as "8.9".

        Raises EngineError, naming the known ones, for one that this version does not know.
        """
        if text not in self.capabilities():
            raise EngineError(
                f"{self.title} {self.version} builds no engines for compute capability {text}",
                next_step=f"It knows {', '.join(self.capabilities())}; on other GPUs use "
                "--engine tensorrt or --engine onnxruntime",
            )
        return getattr(self.trt.ComputeCapability, f"SM{text.replace('.', '')}")


def load_flavour(name: FlavourName) -> Flavour:
    """The installed TensorRT or TensorRT-RTX.

    Raises MissingDependencyError, naming how to get it, EngineError if it does not load or is too
    old.
    """
    trt = import_runtime(name)
    version = str(trt.__version__)
    rtx = name == "tensorrt-rtx"
    title = "TensorRT-RTX" if rtx else "TensorRT"
    if not rtx and tuple(map(int, re.findall(r"\d+", version)[:2])) < _OLDEST:
        raise EngineError(
            f"TensorRT {version} is too old",
            next_step="memcli needs TensorRT 10.3 (JetPack 6) or newer.",
        )
    return Flavour(
        name=name,
        title=title,
        trt=trt,
        version=version,
        builds_for_capability=rtx,
        has_timing_cache=not rtx,
        has_runtime_cache=rtx,
    )


def make_log(trt: ModuleType) -> Any:
    """A logger for TensorRT that keeps its last errors, as `lines`, and tells `memcli -v`.

    TensorRT calls it from threads of its own, where nothing may be raised.
    """
    records = logging.getLogger("memcli.engines.tensorrt")
    levels = {
        "INTERNAL_ERROR": logging.INFO,
        "ERROR": logging.INFO,
        "WARNING": logging.DEBUG,
        "INFO": logging.DEBUG,
    }

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity.name)
            if level is None:
                return
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                self.lines = [*self.lines, message][-_KEPT_ERRORS:]
            # C++ cannot hand on what is raised here: a message that cannot be told is not told.
            with suppress(Exception):
                records.log(level, "%s", message)

    return Log()


def reason(log: Any, fallback: str) -> str:
    """The most telling of the errors that a log kept, in one line."""
    telling = [line for line in log.lines if "catchCudaError::" not in line]
    lines = telling or log.lines
    if not lines:
        return fallback
    # The first error names the cause; later ones say what could not go on.
    text = re.sub(r"\s+", " ", lines[0]).strip()
    text = re.sub(r"\(?In [\w:~]+ at [^ ]+?\.(?:cpp|h):\d+ ?\)?", "", text).strip()
    return text if len(text) <= 300 else f"{text[:299]}…"
