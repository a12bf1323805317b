"""What every runtime looks like to the rest of memcli."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from memcli.engines.cuda import DeviceArray

    Array = npt.NDArray[np.generic]

EngineName = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
ENGINES: tuple[EngineName, ...] = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. A dynamic axis is a name, a fixed one a number."""

    name: str
    dtype: str
    """NumPy name of the element type, e.g. `uint8`."""
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class EngineDescription:
    """What really runs: the columns `engine`, `device` and `precision` of a row come from here."""

    engine: EngineName
    version: str
    device: str
    precision: str
    """The arithmetic actually used, asked of the runtime where it can say."""
    threads: int | None = None

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.threads else ""
        return f"{self.engine} {self.version} on {self.device}, {self.precision}{threads}"


class Engine(Protocol):
    """A loaded graph. `run` may be called from one thread at a time."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, Array]:
        """Every output by name, as new arrays. Raises EngineError if the runtime fails.

        Engines on a GPU also take arrays that are there.
        """
        ...

    def describe(self) -> EngineDescription: ...

    def close(self) -> None: ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
