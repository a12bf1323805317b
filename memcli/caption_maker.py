"""The captioner at work: frames of videos in, kept captions out.

Its frames are decoded as the models' are, to the captioner's own size. Where it cuts no tiles, that
is one resize of each frame by `memcli.preprocess` (bicubic) in place of the image processor's two
(Lanczos); where it does, frames come at the size of the processor's first resize, and the tiles
are its own.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.captioning.bundle import CaptionerBundle
from memcli.captioning.cache import CaptionCache, MadeCaption, VideoKey
from memcli.captioning.choice import (
    choose_captioner,
    none_for,
    survey_captioners,
)
from memcli.captioning.stopping import RunEndedError
from memcli.closing import Closeable
from memcli.errors import EngineError, MemcliError, ModelError, UsageError
from memcli.journal import FileIdentity
from memcli.spec import FramePrep, Sampling
from memcli.text import printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from memcli.captioning.captioner import Caption, Captioner
    from memcli.video import Clip
    from memcli.video.nvdec import Nvdec

Report = Callable[[str], None]
BATCH_ON_GPU = 16
BATCH_ON_CPU = 8
_SECONDS_DIGITS = 3
_MOST_LONG = 4096
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class CaptionFrames:
    """A video as the captioner takes it."""

    key: VideoKey | None
    """None: its file told nothing of itself, so its caption is not kept."""
    clip: Clip


class CaptionMaker(Closeable):
    """A captioner with its cache. `read` may be called from several threads, `make` from one."""

    def __init__(
        self,
        bundle: CaptionerBundle,
        *,
        device: str,
        threads: int | None = None,
        sampling: Sampling = "exact",
        report: Report = lambda _: None,
    ):
        """Nothing is loaded before the first caption is made."""
        self.bundle = bundle
        self.device = device
        self.sampling: Sampling = sampling
        self.batch_size = BATCH_ON_CPU if device == "cpu" else BATCH_ON_GPU
        self.nvdec: Nvdec | None = None
        """Decodes the videos that it takes; None: the CPU decodes all."""
        self.turn: AbstractContextManager[Any] = nullcontext()
        """Held while captions are made; see `share`."""
        self._threads = threads
        self._report = report
        self._captioner: Captioner | None = None
        self._cache = CaptionCache(bundle.hash, sampling)
        side = bundle.images.side
        self._prep = FramePrep(
            frames=bundle.frames,
            resize_width=side,
            resize_height=side,
            crop_width=side,
            crop_height=side,
            filter="bicubic",
        )

    def __str__(self) -> str:
        return f"{self.label} on {self.device}"

    @property
    def label(self) -> str:
        """Name and hash: what the captions of one table have in common."""
        return f"{self.bundle.name} {self.bundle.hash}"

    def identity(self) -> dict[str, Any]:
        """For the identity of a table."""
        return {"captioner": self.label, "prompt": self.bundle.question}

    @property
    def clip_bytes(self) -> int:
        """Of one video under way; the most there can be, where its frames keep their shape."""
        images = self.bundle.images
        side = (images.longest or _MOST_LONG) if images.splitting else images.side
        return self.bundle.frames * side * side * 3

    def share(self, device: str) -> threading.Lock | None:
        """Take turns with an engine on the same CPU: each then computes with all threads, and
        neither slows down the other by waking more threads than there are cores. Gives what the
        engine is to hold; None where they are on different devices, or on a GPU, which shares
        itself."""
        if self.device != "cpu" or device != "cpu":
            return None
        lock = threading.Lock()
        self.turn = lock
        return lock

    def read(
        self,
        path: str,
        identity: FileIdentity | None,
        deadline: float | None,
        cancelled: Callable[[], bool],
    ) -> MadeCaption | CaptionFrames:
        """The caption of a video if it is kept, else its frames. Raises VideoError."""
        key = None
        if identity is not None:
            absolute = os.path.abspath(path)  # noqa: PTH100 (Path would keep `..`)
            key = VideoKey(absolute, identity.size, identity.mtime_ns)
            kept = self._cache.get(key)
            if kept is not None:
                return kept
        from memcli.video import read_clip

        clip = read_clip(
            path,
            self._prep,
            shaped=self._uncut if self.bundle.images.splitting else None,
            sampling=self.sampling,
            deadline=deadline,
            cancelled=cancelled,
            nvdec=None if self.nvdec is None or self.nvdec.resizer else self.nvdec,
        )
        return CaptionFrames(key, clip)

    def make(
        self, videos: Sequence[CaptionFrames], cancelled: Callable[[], bool]
    ) -> list[MadeCaption]:
        """Captions of a batch, which are kept.

        Where the captioner fails on a batch (out of memory, say) it is asked again for the halves,
        down to single videos; one that fails alone has a `failure` for a caption. If it captions
        none of them, nor black frames, it is not the videos: raises ModelError, EngineError,
        DeviceError.
        """
        with self.turn:
            captioner = self._open()
            with captioner.stoppable(cancelled):
                said = self._said(captioner, [video.clip.frames for video in videos])
                if all(isinstance(one, MemcliError) for one in said):
                    (black,) = self._said(captioner, [self._black()])
                    if isinstance(black, MemcliError):
                        raise black
        made = [_made(video.clip, one) for video, one in zip(videos, said, strict=True)]
        for video, one in zip(videos, made, strict=True):
            if video.key is not None and one.failure is None:
                self._keep(video.key, one)
        return made

    def _said(
        self, captioner: Captioner, clips: Sequence[npt.NDArray[np.uint8]]
    ) -> list[Caption | MemcliError]:
        failure: MemcliError
        try:
            found = captioner.caption(clips, batch_size=self.batch_size)
            return [_no_number() if one.broken else one for one in found]
        except RunEndedError:
            raise
        except (EngineError, ModelError) as error:
            failure = error
        except MemoryError:
            failure = EngineError("there is not enough memory")
        failure.__traceback__ = failure.__context__ = failure.__cause__ = None  # they hold a batch
        if len(clips) == 1:
            return [failure]
        half = len(clips) // 2
        return self._said(captioner, clips[:half]) + self._said(captioner, clips[half:])

    def _black(self) -> npt.NDArray[np.uint8]:
        """The smallest clip that the captioner is made for."""
        import numpy as np

        return np.zeros((self.bundle.frames, *self._prep.frame_shape()), np.uint8)

    def close(self) -> None:
        """Free the captioner."""
        if self._captioner is not None:
            self._captioner.close()
        self._captioner = None
        self._cache.close()

    def _keep(self, key: VideoKey, caption: MadeCaption) -> None:
        was = self._cache.problem
        self._cache.add(key, caption)
        if self._cache.problem is not None and was is None:
            self._report(
                f"captions are not kept for later runs: {self._cache.path}: {self._cache.problem}"
            )

    def _open(self) -> Captioner:
        if self._captioner is None:
            from memcli.captioning.bundle import check_files
            from memcli.captioning.captioner import Captioner
            from memcli.captioning.sessions import CaptionerSessions

            check_files(self.bundle)
            rules = self.bundle.images
            if not rules.splitting:  # frames come in the size that the tower takes
                rules = replace(rules, longest=None)
            bundle = replace(self.bundle, images=rules)
            sessions = CaptionerSessions(bundle, self.device, self._threads)
            self._captioner = Captioner(bundle, sessions)
        return self._captioner

    def _uncut(self, height: int, width: int) -> FramePrep:
        """Frames of this size as they are before the image processor cuts them."""
        from memcli.captioning.images import longest_size

        longest = self.bundle.images.longest or min(max(height, width), _MOST_LONG)
        height, width = longest_size(height, width, longest)
        return replace(
            self._prep,
            resize_width=width,
            resize_height=height,
            crop_width=width,
            crop_height=height,
        )


def _made(clip: Clip, said: Caption | MemcliError) -> MadeCaption:
    caption, failure = (None, said) if isinstance(said, MemcliError) else (said, None)
    info = clip.info
    return MadeCaption(
        text=_plain(caption.text) if caption else "",
        tokens=len(caption.tokens) if caption else 0,
        looping=caption is not None and caption.looping,
        cut=caption is not None and caption.cut,
        duration_s=None if info.duration_s is None else round(info.duration_s, _SECONDS_DIGITS),
        width=info.width,
        height=info.height,
        frames_used=clip.frames_used,
        damage=clip.damage,
        decoder=clip.decoder,
        failure=f"the captioner failed: {printable(failure.what)}" if failure else None,
    )


def _plain(text: str) -> str:
    """A caption in one line, without characters that do not print, but for the joiners of emoji and
    Persian: so it is the same text in the table, beside the video, in the cache and for the model.
    """
    line = " ".join(text.split())
    return "".join(one for one in line if one.isprintable() or one in _JOINERS).strip()


def _no_number() -> EngineError:
    return EngineError("it computes numbers that are none (NaN or infinite)")


def open_maker(
    name: str | None,
    *,
    device: str,
    threads: int | None,
    sampling: Sampling,
    report: Report,
) -> CaptionMaker | None:
    """The captioner for an engine on `device`, or None if none is installed that computes there.

    `name` is that of a captioner, a folder or a size; None chooses. On a device that ONNX Runtime
    cannot use the captioner runs on the CPU, which is said. Raises ModelError for a name that is
    not installed or does not compute there, MissingDependencyError without ONNX Runtime.
    """
    if name is None:
        installed, damaged = survey_captioners()
        for one in damaged:
            report(f"captioner: {one} is left out")
        if not installed:
            return None
    place = _place(device, report)
    memory = device_memory(place) if name is None else None
    chosen = choose_captioner(name, place, memory)
    if chosen is None:
        report(f"captioner: none; {none_for(place).what}")
        return None
    if chosen.note:
        report(chosen.note)
    return CaptionMaker(
        chosen.bundle, device=place, threads=threads, sampling=sampling, report=report
    )


def _place(device: str, report: Report) -> str:
    from memcli.engines.loading import import_runtime
    from memcli.engines.onnxruntime import execution_providers

    ort = import_runtime("onnxruntime")
    if not device.startswith("cuda"):
        return "cpu"
    try:
        execution_providers(ort, device)
    except MemcliError as error:
        report(f"captioner: on the CPU ({error.what})")
        return "cpu"
    return device


def captioning_device(device: str) -> str:
    """`cpu` or `cuda[:N]`; `auto` is the GPU where there is one that ONNX Runtime can use.

    Raises UsageError for another name, DeviceError for a GPU that cannot be used.
    """
    from memcli.engines.loading import import_runtime
    from memcli.engines.onnxruntime import execution_providers

    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is None:
        raise UsageError(f"no device {device!r}: choose auto, cpu, cuda or cuda:N")
    ort = import_runtime("onnxruntime")
    if device == "auto":
        from memcli import machine

        usable = "CUDAExecutionProvider" in ort.get_available_providers()
        return "cuda" if usable and machine.inspect().nvidia.gpus else "cpu"
    execution_providers(ort, device)
    return device


def expected_place(device: str) -> str:
    """Where the captioner of an engine on `device` runs, as far as is known before one is chosen:
    on the GPU if that can be. Raises nothing: what is wrong with a device, its engine says."""
    try:
        return captioning_device(device)
    except UsageError:
        return "cuda"
    except MemcliError:
        return "cpu"


def device_memory(device: str, root: Path = Path("/")) -> int | None:
    """Bytes that a device has; of a CPU, those of the machine or of this process's limit."""
    from memcli import machine

    found = machine.inspect(root)
    if device == "cpu":
        sizes = [size for size in (found.memory.total, found.memory.limit) if size]
        return min(sizes, default=None)
    index = device.partition(":")[2]
    gpus = found.nvidia.gpus
    place = int(index) if index.isdigit() else 0
    return gpus[place].memory_bytes if place < len(gpus) else None
