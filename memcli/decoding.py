"""Which decoder reads the videos of a run: the CPU's, or a GPU's NVDEC where that is faster.

`auto` measures: it decodes the first clips both ways, with as many workers as the run will have,
and says what it found. Either way NVDEC is used only after it gave the same frames as the CPU, byte
for byte, on this machine and for clips of this run. That also holds where the GPU resizes, which is
done only on request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from memcli.errors import DeviceError, MemcliError, UsageError, VideoError
from memcli.spec import FramePrep, Sampling

if TYPE_CHECKING:
    from memcli.video import Clip
    from memcli.video.nvdec import Nvdec

DecoderChoice = Literal["auto", "cpu", "nvdec", "nvdec+gpu-resize"]
DECODERS: tuple[DecoderChoice, ...] = get_args(DecoderChoice)
PROBE_CLIPS = 8
"""How many of the first videos are decoded both ways."""
_PROBE_S = 10.0
"""A video that takes longer says nothing for less: it is left out of the probe."""
_JETSON_FILES = ("etc/nv_tegra_release", "proc/device-tree/model")


@dataclass(frozen=True)
class Decoding:
    """What decodes, and why."""

    nvdec: Nvdec | None
    """None: the CPU."""
    reason: str
    """One line for people."""

    @property
    def name(self) -> str:
        """As the rows of videos say for which it did all that it can."""
        return "cpu" if self.nvdec is None else self.nvdec.name


@dataclass(frozen=True)
class ProbeRequest:
    """What a run will decode, and how."""

    prep: FramePrep
    frames: int
    sampling: Sampling
    workers: int


def choose_decoder(
    choice: DecoderChoice,
    request: ProbeRequest | None,
    *,
    device: str,
    paths: Callable[[], Sequence[str]],
    root: Path = Path("/"),
) -> Decoding:
    """The decoder of a run. `request` of None: the model looks at no frames.

    `device` is the engine's: on `cuda:N` the same GPU decodes. `paths` gives the first videos; it
    is asked only where there is something to measure.

    Raises UsageError, DeviceError, EngineError or MissingDependencyError where NVDEC was asked for
    and cannot be had. `auto` is then the CPU, and its reason says why if the engine is on a GPU.
    """
    if request is None:
        return Decoding(None, "the model looks at no frames")
    if choice == "cpu":
        return Decoding(None, "as asked")
    try:
        nvdec = _open_nvdec(request, device, root, resize=choice == "nvdec+gpu-resize")
    except MemcliError as error:
        if choice != "auto":
            raise
        # A machine without a GPU has no choice of which it would have to be told.
        return Decoding(None, "" if device == "cpu" else error.what)
    found = probe(nvdec, request, list(paths())[:PROBE_CLIPS])
    who = "NVDEC" if nvdec.resizer is None else "NVDEC with the GPU's resize"
    if found.differs is not None:
        reason = f"{who} gives other frames than the CPU for {Path(found.differs).name}"
        if choice != "auto":
            other = "cpu" if choice == "nvdec" else "nvdec"
            raise DeviceError(reason, where=found.differs, next_step=f"Use --decoder {other}")
        return Decoding(None, reason)
    if choice != "auto":
        return Decoding(nvdec, f"as asked; {found.checked(who)}")
    if not found.clips:
        return Decoding(None, found.checked(who))
    nvdec_is_faster = found.nvdec_s < found.cpu_s
    return Decoding(nvdec if nvdec_is_faster else None, found.speeds())


def check_decoder(
    choice: DecoderChoice, sampling: Sampling, *, device: str, root: Path = Path("/")
) -> None:
    """Refuse a decoder that cannot be had, before the minutes that an engine may take.

    For models that look at frames. `device` is the one asked for, which may be `auto`; nothing is
    decoded, and `choose_decoder` has the last word. Raises as that does.
    """
    if choice == "auto" or choice == "cpu":
        return
    resize = choice == "nvdec+gpu-resize"
    _check_nvdec(sampling, device, root, resize=resize and device != "auto")
    from memcli.video import nvdec

    nvdec.load(_gpu_of(device))
    if resize:
        from memcli.engines.cuda import Cuda

        Cuda(_gpu_of(device))


@dataclass(frozen=True)
class Probe:
    """What decoding the first videos both ways found."""

    clips: int
    """Videos that both decoded."""
    cpu_s: float = 0.0
    nvdec_s: float = 0.0
    differs: str | None = None
    """A video whose frames are not the same."""

    def checked(self, who: str) -> str:
        """What was compared."""
        if not self.clips:
            return f"{who} takes none of the first videos"
        return f"the same frames as the CPU for the first {self.clips} videos"

    def speeds(self) -> str:
        """What was measured."""
        ahead, behind = sorted([(self.cpu_s, "CPU"), (self.nvdec_s, "NVDEC")])
        rates = [f"{self.clips / max(seconds, 1e-9):.1f}" for seconds, _ in (ahead, behind)]
        return (
            f"{ahead[1]} decoded {rates[0]} videos/s and {behind[1]} {rates[1]}"
            f" of the first {self.clips}"
        )


def probe(nvdec: Nvdec, request: ProbeRequest, paths: Sequence[str]) -> Probe:
    """Decode `paths` both ways, compare the frames, and time those that NVDEC takes.

    The first round on NVDEC is not timed: it starts the GPU and makes the decoders that later files
    use again. Videos that do not decode say nothing here; the run will say why.
    """
    with ThreadPoolExecutor(request.workers) as pool:
        first, _ = _round(pool, request, paths, nvdec)
        taken = [path for path, clip in zip(paths, first, strict=True) if _is_of(nvdec, clip)]
        on_cpu, cpu_s = _round(pool, request, taken, None)
        again, nvdec_s = _round(pool, request, taken, nvdec)
    same = 0
    for path, ours, theirs in zip(taken, on_cpu, again, strict=True):
        if ours is None or theirs is None:
            continue
        if not _is_same(ours, theirs):
            return Probe(same, cpu_s, nvdec_s, differs=path)
        same += 1
    return Probe(same, cpu_s, nvdec_s)


def _round(
    pool: ThreadPoolExecutor, request: ProbeRequest, paths: Sequence[str], nvdec: Nvdec | None
) -> tuple[list[Clip | None], float]:
    from memcli.video import read_clip

    def read(path: str) -> Clip | None:
        try:
            return read_clip(
                path,
                request.prep,
                frames=request.frames,
                sampling=request.sampling,
                deadline=time.monotonic() + _PROBE_S,
                nvdec=nvdec,
            )
        except VideoError:
            return None

    started = time.perf_counter()
    clips = list(pool.map(read, paths))
    return clips, time.perf_counter() - started


def _is_of(nvdec: Nvdec, clip: Clip | None) -> bool:
    return clip is not None and clip.decoder == nvdec.name


def _is_same(ours: Clip, theirs: Clip) -> bool:
    import numpy as np

    return np.array_equal(ours.host_frames(), theirs.host_frames()) and np.array_equal(
        ours.times_s, theirs.times_s
    )


def _check_nvdec(sampling: Sampling, device: str, root: Path, *, resize: bool) -> None:
    """Raise UsageError or DeviceError where NVDEC is not for this request or machine."""
    if sampling == "keyframe":
        raise UsageError(
            "key frames alone are decoded on the CPU", next_step="Leave out --decoder nvdec"
        )
    if resize and not device.startswith("cuda"):
        raise UsageError(
            f"frames are resized on the GPU for an engine that runs there, not on {device}",
            next_step="Use --decoder nvdec, or --device cuda",
        )
    if is_jetson(root):
        raise DeviceError(
            "on a Jetson videos are decoded on the CPU: its NVDEC is not the Video Codec SDK's",
            next_step="Use --decoder cpu",
        )


def _gpu_of(device: str) -> int:
    """N of `cuda:N`; else the first, which also decodes for an engine on the CPU."""
    index = device.partition(":")[2]
    return int(index) if index.isdigit() else 0


def _open_nvdec(request: ProbeRequest, device: str, root: Path, *, resize: bool) -> Nvdec:
    _check_nvdec(request.sampling, device, root, resize=resize)
    from memcli.video.nvdec import Nvdec

    gpu = _gpu_of(device)
    if not resize:
        return Nvdec(gpu)
    from memcli.gpu_resize import GpuResizer

    return Nvdec(gpu, GpuResizer(request.prep, gpu))


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether this is one of NVIDIA's boards with a shared memory and a decoder of its own."""
    release, model = (root / name for name in _JETSON_FILES)
    try:
        return release.exists() or "jetson" in model.read_text(errors="replace").lower()
    except OSError:
        return False
