"""Resizing NVDEC's frames on the GPU where they are, to the bytes that the CPU would have given.

The graph of `memcli.engines.resize_graph` runs on CUDA in ONNX Runtime, one frame at a time, and
reads and writes GPU memory in place. Nothing is taken on trust: for every file, noise in a frame
that has all the properties of its frames (size, matrix, range, place of chroma) goes through
swscale and through the GPU, and only where both give the same bytes is the file resized there. The
GPU's side of this is kept, so that it costs a file one pass of swscale.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import av
import numpy as np
import numpy.typing as npt

from memcli.engines import ort_cuda
from memcli.engines.cuda import DEFAULT_STREAM, Cuda, DeviceArray
from memcli.engines.loading import import_runtime
from memcli.engines.resize_graph import CHROMA, COLOUR, FRAME, LUMA, WEIGHTS, make_resize_graph
from memcli.preprocess import FramePreparer
from memcli.spec import FramePrep
from memcli.swscale import POSITIONS, colour_terms, make_tables
from memcli.video.nvdec_frames import NotForNvdecError, write_planes
from memcli.video.source import frame_rotation
from memcli.video.types import Clip, DeviceFrames, DevicePlanes

if TYPE_CHECKING:
    Bytes = npt.NDArray[np.uint8]

_FULL_RANGE = 2
"""FFmpeg's AVCOL_RANGE_JPEG."""
_TABLES_KEPT = 6
"""Kinds whose weights stay in GPU memory: 7 MB each for 1080p to 384 x 384."""
_NOISE_KEPT = 32
"""Kinds whose resized noise stays in host memory: one prepared frame each."""
_NOISE_BYTES = 1_048_573
"""Prime, so that no row of a frame repeats another."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Kind:
    """What decides how frames are resized."""

    width: int
    height: int
    space: int
    full_range: bool
    position: str
    """Of chroma: a key of POSITIONS."""
    pitch: int


@dataclass(frozen=True)
class _DeviceClip:
    """Prepared frames of a clip, uint8 [T, h, w, 3], in memory that ONNX Runtime owns."""

    value: Any

    def host(self) -> Bytes:
        frames: Bytes = self.value.numpy().copy()
        return frames


class _Kept(Generic[_T]):
    """The last few of something. Made twice if two threads want it at once."""

    def __init__(self, most: int):
        self._most = most
        self._lock = threading.Lock()
        self._content: OrderedDict[_Kind, _T] = OrderedDict()

    def get_or_make(self, kind: _Kind, make: Callable[[_Kind], _T]) -> _T:
        with self._lock:
            if kind in self._content:
                self._content.move_to_end(kind)
                return self._content[kind]
        made = make(kind)
        with self._lock:
            self._content[kind] = made
            if len(self._content) > self._most:
                self._content.popitem(last=False)
        return made


class GpuResizer:
    """One GPU's resize for one model. May be used from several threads; `gather` from one."""

    def __init__(self, prep: FramePrep, gpu: int = 0):
        """Raises MissingDependencyError, DeviceError or EngineError where CUDA cannot be had."""
        self._prep = prep
        self._gpu = gpu
        self._cuda = Cuda(gpu)
        self._ort = import_runtime("onnxruntime")
        self._session = ort_cuda.open_stage(self._ort, make_resize_graph(), gpu)
        self._running = threading.Lock()  # one frame at a time bounds the memory for it
        self._tables: _Kept[dict[str, Any]] = _Kept(_TABLES_KEPT)
        self._resized_noise: _Kept[Bytes] = _Kept(_NOISE_KEPT)

    def plan(self, example: av.VideoFrame) -> _Plan | None:
        """For frames like `example`, which is filled with noise; None where the GPU's differ."""
        full_range = example.color_range == _FULL_RANGE or example.format.name == "yuvj420p"
        space = int(example.colorspace)
        if frame_rotation(example) or colour_terms(space, full_range=full_range) is None:
            return None
        luma, chroma = _noise(example.width, example.height)
        write_planes(example, (luma, chroma[..., 0], chroma[..., 1]))
        expected = FramePreparer(self._prep).prepare(example)
        size = (example.width, example.height)
        for position in POSITIONS:
            kind = _Kind(*size, space, full_range, position, pitch=example.width)
            found = self._resized_noise.get_or_make(kind, self._of_noise)
            if np.array_equal(found, expected):
                return _Plan(self, kind)
        return None

    def gather(self, clips: Sequence[Clip]) -> DeviceArray:
        """Frames of clips as one new array on the GPU; those on the host are brought there."""
        self._cuda.use()
        shape = (len(clips), _frames_of(clips[0]), *self._prep.frame_shape())
        whole = self._new(shape)
        size = int(np.prod(shape[1:]))
        for number, clip in enumerate(clips):
            target = whole.data_ptr() + number * size
            if isinstance(clip.device_frames, _DeviceClip):
                source = clip.device_frames.value.data_ptr()
                self._cuda.on_device(target, source, size, DEFAULT_STREAM)
            else:
                source = clip.frames.ctypes.data
                self._cuda.to_device(target, source, size, DEFAULT_STREAM)
        self._cuda.wait_stream(DEFAULT_STREAM)
        return DeviceArray(whole.data_ptr(), shape, np.dtype(np.uint8), owner=whole)

    def new_clip(self, count: int) -> _DeviceClip:
        return _DeviceClip(self._new((count, *self._prep.frame_shape())))

    def put(self, kind: _Kind, planes: DevicePlanes, clip: DeviceFrames, slot: int) -> None:
        """As `ResizePlan.put`. Raises NotForNvdecError if the GPU fails."""
        if not isinstance(clip, _DeviceClip):
            raise TypeError("a clip of another resizer")
        tables = self._tables.get_or_make(replace(kind, pitch=planes.pitch), self._make_tables)
        height, width, _ = shape = self._prep.frame_shape()
        target = clip.value.data_ptr() + slot * height * width * 3
        binding = self._session.io_binding()
        place = ("cuda", self._gpu, np.uint8)
        luma_shape = (kind.height, planes.pitch)
        chroma_shape = (kind.height // 2, planes.pitch // 2, 2)
        binding.bind_input(LUMA, *place, luma_shape, planes.luma)
        binding.bind_input(CHROMA, *place, chroma_shape, planes.chroma)
        for name, value in tables.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(FRAME, *place, shape, target)
        try:
            with self._running:
                self._session.run_with_iobinding(binding)
                binding.synchronize_outputs()
        except Exception as error:  # ORT's exceptions share no public base but Exception
            raise NotForNvdecError("its frames cannot be resized on the GPU") from error

    def _of_noise(self, kind: _Kind) -> Bytes:
        on_device = [self._upload(plane) for plane in _noise(kind.width, kind.height)]
        planes = DevicePlanes(on_device[0].data_ptr(), on_device[1].data_ptr(), kind.width)
        clip = self.new_clip(1)
        self.put(kind, planes, clip, 0)
        frame: Bytes = clip.host()[0]
        return frame

    def _make_tables(self, kind: _Kind) -> dict[str, Any]:
        colour = colour_terms(kind.space, full_range=kind.full_range)
        if colour is None:
            raise ValueError(f"no factors for the matrix {kind.space}")
        position = POSITIONS[kind.position]
        tables = make_tables(self._prep, kind.width, kind.height, colour, position)
        arrays = {name: getattr(tables, name).astype(np.float32) for name in WEIGHTS}
        for name in ("across", "across_chroma"):
            padding = (kind.pitch if name == "across" else kind.pitch // 2) - len(arrays[name])
            arrays[name] = np.pad(arrays[name], ((0, padding), (0, 0)))  # of no weight
        values = {name: self._upload(array) for name, array in arrays.items()}
        return {**values, COLOUR: self._upload(colour)}

    def _upload(self, array: npt.NDArray[np.generic]) -> Any:
        value = self._new(array.shape, array.dtype.type)
        value.update_inplace(np.ascontiguousarray(array))
        return value

    def _new(self, shape: Sequence[int], kind: Any = np.uint8) -> Any:
        make = self._ort.OrtValue.ortvalue_from_shape_and_type
        return make(list(shape), kind, "cuda", self._gpu)


@dataclass(frozen=True)
class _Plan:
    """A file's way through the resizer."""

    resizer: GpuResizer
    kind: _Kind

    def new_clip(self, count: int) -> _DeviceClip:
        return self.resizer.new_clip(count)

    def put(self, planes: DevicePlanes, clip: DeviceFrames, slot: int) -> None:
        self.resizer.put(self.kind, planes, clip, slot)


def _frames_of(clip: Clip) -> int:
    if isinstance(clip.device_frames, _DeviceClip):
        return int(clip.device_frames.value.shape()[0])
    return len(clip.frames)


def _noise(width: int, height: int) -> tuple[Bytes, Bytes]:
    """Luma [H, W] and chroma [H / 2, W / 2, 2], the same at every call."""
    whole = np.resize(_noise_block(), width * height * 3 // 2)
    luma, chroma = whole[: width * height], whole[width * height :]
    return luma.reshape(height, width), chroma.reshape(height // 2, width // 2, 2)


@cache
def _noise_block() -> Bytes:
    return np.random.default_rng(0).integers(0, 256, _NOISE_BYTES, np.uint8)
