"""Device buffers of an ONNX Runtime session, used again from batch to batch.

Feeds are copied into device buffers of their shape, which are kept (four shapes at most), so that a
batch costs one copy and no allocation; those that are on the GPU are copied there. Where ONNX
Runtime offers memory that the GPU reads directly (`OrtEpDevice.memory_info(HOST_ACCESSIBLE)`),
feeds from the host pass through it.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import ModuleType
from typing import TYPE_CHECKING, Any

from memcli.engines.base import TensorSpec
from memcli.engines.cuda import DEFAULT_STREAM, Cuda, DeviceArray
from memcli.engines.ort_cuda import PROVIDER

if TYPE_CHECKING:
    from memcli.engines.base import Array

    Feeds = Mapping[str, Array | DeviceArray]

_SHAPES_KEPT = 4
_NOT_RECORDED = -1


@dataclass
class _Buffers:
    """What one shape of feeds needs."""

    binding: Any
    inputs: dict[str, Any]
    staging: dict[str, tuple[Any, Array]]
    """Per input memory that the GPU reads directly, and its bytes."""
    outputs: dict[str, Any] = field(default_factory=dict)
    """On the device, at addresses that a recorded graph writes to; empty where none is."""
    options: Any = None


class DeviceRunner:
    """Runs a session through device buffers. One thread at a time."""

    def __init__(
        self,
        ort: ModuleType,
        session: Any,
        device_id: int,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        records: bool,
    ):
        self._ort = ort
        self._session = session
        self._device_id = device_id
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._records = records
        self._kept: OrderedDict[tuple[Any, ...], _Buffers] = OrderedDict()
        self._host_memory = _host_memory(ort, device_id)
        self._cuda: Cuda | None = None

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Every output by name, as new arrays. Raises what the runtime raises."""
        import numpy as np

        buffers = self._buffers(feeds)
        for name, array in feeds.items():
            if isinstance(array, DeviceArray):
                self._copy_on_device(buffers.inputs[name].data_ptr(), array)
            elif name in buffers.staging:
                value, view = buffers.staging[name]
                np.copyto(view, array)
                buffers.inputs[name].update_inplace(value)
            else:
                buffers.inputs[name].update_inplace(np.ascontiguousarray(array))
        buffers.binding.synchronize_inputs()
        self._session.run_with_iobinding(buffers.binding, buffers.options)
        if buffers.outputs:
            buffers.binding.synchronize_outputs()
            # Copies: of host memory `numpy` gives a view, which the next run writes over.
            return {name: value.numpy().copy() for name, value in buffers.outputs.items()}
        values = buffers.binding.copy_outputs_to_cpu()
        return {spec.name: value for spec, value in zip(self._outputs, values, strict=True)}

    def close(self) -> None:
        """Free the buffers, before their session."""
        self._kept.clear()
        self._session = None

    def _copy_on_device(self, target: int, array: DeviceArray) -> None:
        """Into the kept buffer, whose address a recorded graph may hold."""
        if self._cuda is None:
            self._cuda = Cuda(self._device_id)
        self._cuda.use()
        self._cuda.on_device(target, array.pointer, array.nbytes, DEFAULT_STREAM)
        self._cuda.wait_stream(DEFAULT_STREAM)

    def _buffers(self, feeds: Feeds) -> _Buffers:
        shape = tuple((spec.name, feeds[spec.name].shape) for spec in self._inputs)
        if shape in self._kept:
            self._kept.move_to_end(shape)
            return self._kept[shape]
        sizes = _output_shapes(self._inputs, self._outputs, feeds) if self._records else None
        full = len(self._kept) >= _SHAPES_KEPT
        if full and not self._records:
            self._kept.popitem(last=False)  # before the new ones are allocated
        record = self._records and sizes is not None and not full
        buffers = self._allocate(feeds, sizes if record and sizes is not None else {})
        if self._records:
            buffers.options = self._ort.RunOptions()
            number = len(self._kept) + 1 if record else _NOT_RECORDED
            buffers.options.add_run_config_entry("gpu_graph_id", str(number))
        if record or not self._records:
            self._kept[shape] = buffers
        return buffers

    def _allocate(self, feeds: Feeds, output_shapes: dict[str, list[int]]) -> _Buffers:
        make = self._ort.OrtValue.ortvalue_from_shape_and_type
        place = ("cuda", self._device_id)
        binding = self._session.io_binding()
        inputs = {
            name: make(list(array.shape), array.dtype.type, *place) for name, array in feeds.items()
        }
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        outputs = {}
        for spec in self._outputs:
            if output_shapes:
                value = make(output_shapes[spec.name], _numpy_type(spec.dtype), *place)
                binding.bind_ortvalue_output(spec.name, value)
                outputs[spec.name] = value
            else:
                binding.bind_output(spec.name)  # a few numbers, straight to the host
        staging = {}
        if self._host_memory is not None:
            on_host = {n: a for n, a in feeds.items() if not isinstance(a, DeviceArray)}
            staging = {name: self._stage(array) for name, array in on_host.items()}
        return _Buffers(binding, inputs, staging, outputs)

    def _stage(self, like: Array) -> tuple[Any, Array]:
        import numpy as np

        value = self._ort.OrtValue.ortvalue_from_shape_and_type(
            list(like.shape), like.dtype.type, memory_info=self._host_memory
        )
        raw = (ctypes.c_uint8 * like.nbytes).from_address(value.data_ptr())
        return value, np.frombuffer(memoryview(raw), dtype=like.dtype).reshape(like.shape)


def _host_memory(ort: ModuleType, device_id: int) -> Any:
    """Where ONNX Runtime allocates memory that this GPU reads directly; None where it does not."""
    kinds = getattr(ort, "OrtDeviceMemoryType", None)
    if kinds is None or not hasattr(ort, "get_ep_devices"):
        return None
    for device in ort.get_ep_devices():
        if device.ep_name != PROVIDER or str(device_id) != device.ep_options.get("device_id", "0"):
            continue
        try:
            return device.memory_info(kinds.HOST_ACCESSIBLE)
        except RuntimeError:
            return None
    return None


def _output_shapes(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], feeds: Feeds
) -> dict[str, list[int]] | None:
    """Shapes of the outputs by the axes named as an input's; None if that is unclear."""
    known: dict[str, int] = {}
    for spec in inputs:
        for axis, size in zip(spec.shape, feeds[spec.name].shape, strict=True):
            if isinstance(axis, str) and known.setdefault(axis, size) != size:
                return None
    shapes: dict[str, list[int]] = {}
    for spec in outputs:
        sizes = [axis if isinstance(axis, int) else known.get(axis, 0) for axis in spec.shape]
        if prod(sizes) == 0:
            return None
        shapes[spec.name] = sizes
    return shapes


def _numpy_type(name: str) -> Any:
    import numpy as np

    return np.dtype(name).type
