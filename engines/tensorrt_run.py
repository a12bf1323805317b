"""Batches through a loaded TensorRT engine: two of everything, so that copies hide behind work.

Each of two slots has an execution context, pinned host memory and device buffers. A batch goes
host -> pinned -> device on one stream and is computed on another, which also brings the few output
bytes back; while slot 1 computes, slot 2 copies. Scratch memory is one for both, of the size that
the shapes need: contexts of one stream never compute at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from memcli.engines.cuda import Cuda, DeviceArray, DeviceBuffer, PinnedBuffer
from memcli.engines.tensorrt_flavour import Flavour, reason
from memcli.errors import EngineError

if TYPE_CHECKING:
    from memcli.engines.base import Array, TensorSpec

SLOTS = 2


@dataclass
class _Slot:
    context: Any
    copied: Any
    """Event: the inputs are on the device."""
    done: Any
    """Event: the outputs are in pinned memory."""
    pinned: dict[str, PinnedBuffer]
    device: dict[str, DeviceBuffer]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of the outputs of the batch in flight."""
    clips: int = 0
    """Of that batch, without those that only fill it up."""
    feeds: Mapping[str, Array | DeviceArray] | None = None
    """Kept while the GPU reads them."""


class Runner:
    """Slots, streams and buffers of one engine."""

    def __init__(
        self,
        cuda: Cuda,
        flavour: Flavour,
        log: Any,
        engine: Any,
        runtime_config: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ):
        """`runtime_config` is of flavours that have one, else None. Raises EngineError."""
        self._cuda = cuda
        self._flavour = flavour
        self._log = log
        self._inputs = inputs
        self._outputs = outputs
        self._copying: Any = None
        self._computing: Any = None
        self._scratch = DeviceBuffer(cuda)
        self._slots: list[_Slot] = []
        try:
            self._copying = cuda.stream()
            self._computing = cuda.stream()
            for _ in range(SLOTS):
                self._slots.append(self._make_slot(engine, runtime_config))
        except BaseException:
            self.close()
            raise

    def _make_slot(self, engine: Any, runtime_config: Any) -> _Slot:
        by_hand = self._flavour.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if runtime_config is not None:
            runtime_config.set_execution_context_allocation_strategy(by_hand)
            context = engine.create_execution_context(runtime_config)
        else:
            context = engine.create_execution_context(by_hand)
        if context is None:
            raise self._failed("cannot make an execution context")
        names = [one.name for one in (*self._inputs, *self._outputs)]
        return _Slot(
            context=context,
            copied=self._cuda.event(),
            done=self._cuda.event(),
            pinned={name: PinnedBuffer(self._cuda) for name in names},
            device={name: DeviceBuffer(self._cuda) for name in names},
        )

    def start(
        self, number: int, feeds: Mapping[str, Array | DeviceArray], *, least: int = 1
    ) -> None:
        """Queue a batch in a slot that is free; returns before the GPU has done anything.

        A batch of fewer than `least` clips, which the profile does not take, is filled up with its
        last one; `finish` gives no results of these.
        """
        slot = self._slots[number]
        context = slot.context
        slot.feeds = feeds
        slot.clips = next(iter(feeds.values())).shape[0]
        for spec in self._inputs:
            array = feeds[spec.name]
            shape = (max(slot.clips, least), *array.shape[1:])
            if not isinstance(array, DeviceArray):
                address = self._upload(slot, spec, array, shape)
            elif shape == array.shape:
                address = array.pointer
            else:
                address = self._filled_up(slot, spec, array, shape[0])
            self._accepted(context.set_input_shape(spec.name, shape), spec.name)
            self._accepted(context.set_tensor_address(spec.name, address), spec.name)
        size = int(context.update_device_memory_size_for_shapes())
        context.set_device_memory(self._scratch.reserve(size), self._scratch.size)
        for spec in self._outputs:
            shape = tuple(context.get_tensor_shape(spec.name))
            slot.shapes[spec.name] = shape
            size = _bytes(shape, spec.dtype)
            slot.pinned[spec.name].reserve(size)
            self._accepted(
                context.set_tensor_address(spec.name, slot.device[spec.name].reserve(size)),
                spec.name,
            )
        self._cuda.record(slot.copied, self._copying)
        self._cuda.wait(self._computing, slot.copied)
        if not context.execute_async_v3(int(self._computing)):
            raise self._failed("cannot run the engine")
        for spec in self._outputs:
            size = _bytes(slot.shapes[spec.name], spec.dtype)
            source, target = slot.device[spec.name].pointer, slot.pinned[spec.name].pointer
            self._cuda.to_host(target, source, size, self._computing)
        self._cuda.record(slot.done, self._computing)

    def finish(self, number: int) -> dict[str, Array]:
        """Wait for the batch of a slot; its outputs as new arrays. The slot is free then."""
        slot = self._slots[number]
        self._cuda.wait_here(slot.done)
        slot.feeds = None
        return {spec.name: self._whole(slot, spec)[: slot.clips].copy() for spec in self._outputs}

    def close(self) -> None:
        """Wait for the GPU and free everything."""
        for stream in (self._computing, self._copying):
            if stream is not None:
                self._cuda.free_stream(stream)
        self._copying = self._computing = None
        for slot in self._slots:
            slot.context = slot.feeds = None
            for event in (slot.copied, slot.done):
                self._cuda.free_event(event)
            for name in slot.pinned:
                slot.pinned[name].free()
                slot.device[name].free()
        self._slots = []
        self._scratch.free()

    @staticmethod
    def _whole(slot: _Slot, spec: TensorSpec) -> Array:
        """An output as the GPU gave it, in pinned memory."""
        return slot.pinned[spec.name].view(slot.shapes[spec.name], spec.dtype)

    def _upload(self, slot: _Slot, spec: TensorSpec, array: Array, shape: tuple[int, ...]) -> int:
        """The address of `array` in GPU memory, filled up to `shape`."""
        pinned, device = slot.pinned[spec.name], slot.device[spec.name]
        size = _bytes(shape, spec.dtype)
        pinned.reserve(size)
        address = device.reserve(size)
        view = pinned.view(shape, array.dtype)
        view[: len(array)] = array
        view[len(array) :] = array[-1]
        self._cuda.to_device(address, pinned.pointer, size, self._copying)
        return address

    def _filled_up(self, slot: _Slot, spec: TensorSpec, array: DeviceArray, clips: int) -> int:
        """The address of a copy of `array` with `clips` clips, made within the GPU."""
        here = array.shape[0]
        last = array.rows(here - 1, here)
        address = slot.device[spec.name].reserve(last.nbytes * clips)
        self._cuda.on_device(address, array.pointer, array.nbytes, self._copying)
        for index in range(here, clips):
            target = address + index * last.nbytes
            self._cuda.on_device(target, last.pointer, last.nbytes, self._copying)
        return address

    def _accepted(self, ok: bool, name: str) -> None:
        if not ok:
            raise self._failed(f"refuses the tensor {name}")

    def _failed(self, what: str) -> EngineError:
        why = reason(self._log, "no reason given")
        return EngineError(f"{self._flavour.title} {what}: {why}")


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    import numpy as np

    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
