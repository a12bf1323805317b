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
        self.cpu_was_forbidden = False
        """Whether the last session may not fall back to the CPU for any node."""
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
        self, path: str | bytes, options: Any, providers: list[Any], enable_fallback: int
    ) -> Any:
        assert enable_fallback == 0
        (name, values) = providers[0]
        assert name == "CUDAExecutionProvider"
        self.opened.append(values)
        if "enable_cuda_graph" in values and "record" in self._fails:
            raise self._fails["record"]
        if "open" in self._fails:
            raise self._fails["open"]
        try:
            entry = options.get_session_config_entry("session.disable_cpu_ep_fallback")
        except RuntimeError:  # not set
            entry = "0"
        self.cpu_was_forbidden = entry == "1"
        if self.cpu_was_forbidden:
            options = real.SessionOptions()  # here the CPU stands for the GPU
        session = real.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return _Session(session, self._starts, self._fails)


class _Session:
    def __init__(self, session: Any, starts: bool, fails: dict[str, Exception]):
        self._session = session
        self._starts = starts
        self._fails = fails
        self.get_inputs = session.get_inputs
        self.get_outputs = session.get_outputs

    def io_binding(self) -> Any:
        return _Binding(self._session.io_binding())

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"] * self._starts + ["CPUExecutionProvider"]

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        if "run" in self._fails:
            raise self._fails["run"]
        self._session.run_with_iobinding(iobinding.real, run_options and run_options.real)


class _Binding:
    """A real binding; addresses on the GPU are addresses here."""

    def __init__(self, binding: Any):
        self.real = binding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, ptr: int
    ) -> None:
        assert device_type == "cuda"
        self.real.bind_input(name, "cpu", 0, element_type, shape, ptr)

    def bind_output(self, name: str, *place: Any) -> None:
        if place:
            device_type, _device_id, element_type, shape, address = place
            assert device_type == "cuda"
            place = ("cpu", 0, element_type, shape, address)
        self.real.bind_output(name, *place)
