"""ONNX Runtime's GPU build on a machine without a GPU: the installed package, on CPU memory.

Sessions, bindings and values are the real ones; only where they live is not what is asked for. So
every call is checked by the package itself.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnxruntime as real


class FakeGpuBuild:
    """Stands for the module `onnxruntime`."""

    def __init__(
        self,
        *,
        host_memory: bool = False,
        starts: bool = True,
        fails: dict[str, Exception] | None = None,
    ):
        self.opened: list[dict[str, str]] = []
        """Provider options of every session."""
        self.allocated: list[tuple[tuple[int, ...], str]] = []
        """Shape and place of every buffer."""
        self.graph_ids: list[str] = []
        self._host_memory = host_memory
        self._starts = starts
        self._fails = fails or {}
        self.__version__ = real.__version__
        self.__file__ = real.__file__
        self.SessionOptions = real.SessionOptions
        self.OrtDeviceMemoryType = SimpleNamespace(HOST_ACCESSIBLE="host accessible")
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self._make)

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def set_default_logger_severity(self, severity: int) -> None:
        assert severity in range(5)

    def preload_dlls(self) -> None:
        print("libcudnn.so.9 is not found")  # as the real one does

    def get_ep_devices(self) -> list[Any]:
        if not self._host_memory:
            return []

        def memory_info(kind: str) -> str:
            assert kind == "host accessible"
            return "CudaPinned"

        return [
            SimpleNamespace(ep_name=name, ep_options={"device_id": number}, memory_info=memory_info)
            for name in ("CPUExecutionProvider", "CUDAExecutionProvider")
            for number in ("0", "1")
        ]

    def RunOptions(self) -> Any:
        options = real.RunOptions()

        def add(key: str, value: str) -> None:
            assert key == "gpu_graph_id"
            self.graph_ids.append(value)

        return SimpleNamespace(add_run_config_entry=add, real=options)

    def _make(
        self, shape: list[int], kind: Any, device: str = "cpu", device_id: int = 0, **more: Any
    ) -> Any:
        place = more.get("memory_info") or f"{device}:{device_id}"
        self.allocated.append((tuple(shape), place))
        return real.OrtValue.ortvalue_from_shape_and_type(shape, kind)

    def InferenceSession(
        self, path: str, options: Any, providers: list[Any], enable_fallback: int
    ) -> Any:
        assert enable_fallback == 0
        (name, values) = providers[0]
        assert name == "CUDAExecutionProvider"
        self.opened.append(values)
        if "enable_cuda_graph" in values and "record" in self._fails:
            raise self._fails["record"]
        if "open" in self._fails:
            raise self._fails["open"]
        session = real.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return _Session(session, self._starts, self._fails)


class _Session:
    def __init__(self, session: Any, starts: bool, fails: dict[str, Exception]):
        self._session = session
        self._starts = starts
        self._fails = fails
        self.get_inputs = session.get_inputs
        self.get_outputs = session.get_outputs
        self.io_binding = session.io_binding

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"] * self._starts + ["CPUExecutionProvider"]

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        if "run" in self._fails:
            raise self._fails["run"]
        self._session.run_with_iobinding(iobinding, run_options and run_options.real)
