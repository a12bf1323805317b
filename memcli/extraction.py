"""Features of videos and captions by an encoder, computed once and kept in a FeatureStore.

Frames go the way that scoring goes: decode workers, a bounded queue, one thread that encodes.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from memcli.engines.loading import usable_cpus
from memcli.errors import DeviceError, EngineError
from memcli.journal import FileIdentity
from memcli.pipeline import QUEUE_BYTES, Outcome, Pipeline
from memcli.spec import FramePrep
from memcli.text import plural, printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from memcli.tokens import Tokeniser
    from memcli.train.features import FeatureStore
    from memcli.video import Clip

    Array = npt.NDArray[Any]

FILE_TIMEOUT_S = 300.0
_CORE_FRAMES = 8
"""Frames at a time per core: fewer leave matrix products too small, more only cost memory."""
_GPU_FRAMES = 256
CAPTION_BATCH = 64


@dataclass
class Counts:
    """How far an extraction is. Speeds are of this run, not of what it found in the store."""

    what: Literal["video", "caption"]
    total: int
    """Different ones asked for."""
    cached: int
    """Of these, already in the store."""
    done: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def per_s(self) -> float:
        """Computed ones per second; failures are quick and would flatter."""
        return self.done / self.elapsed_s if self.done else 0.0

    @property
    def eta_s(self) -> float:
        """Seconds left at the speed so far; 0 before anything is done."""
        left = self.total - self.cached - self.done - self.failed
        return left / self.per_s if self.done else 0.0


class Progress(Protocol):
    """Who watches an extraction."""

    def message(self, text: str) -> None:
        """Something worth saying, e.g. that a file is damaged."""
        ...

    def begin(self, counts: Counts) -> None: ...

    def advance(self, counts: Counts) -> None:
        """One or more were done or failed."""
        ...

    def end(self) -> None:
        """The extraction is over, however it ended; called once."""
        ...


class NoProgress:
    """Says nothing."""

    def message(self, text: str) -> None: ...

    def begin(self, counts: Counts) -> None: ...

    def advance(self, counts: Counts) -> None: ...

    def end(self) -> None: ...


_NO_PROGRESS = NoProgress()


def video_key(path: str | os.PathLike[str]) -> str | None:
    """The key of a video's features: its absolute path, size and time of change.

    None where there is no file to look at.
    """
    absolute = os.path.abspath(path)  # noqa: PTH100 (Path would keep `..`)
    identity = FileIdentity.of(absolute)
    if identity is None:
        return None
    return json.dumps([absolute, identity.size, identity.mtime_ns])


def caption_key(caption: str) -> str:
    """The key of a caption's features: the SHA-256 of its text."""
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()


def frame_features(
    videos: Mapping[str, str | os.PathLike[str]], store: FeatureStore
) -> dict[str, Array]:
    """Features [T, D] of the videos that the store has, by id; memory-mapped."""
    keys = {name: video_key(path) for name, path in videos.items()}
    return {name: store.get(key) for name, key in keys.items() if key is not None and key in store}


def caption_features(captions: Sequence[str], store: FeatureStore) -> Array:
    """Features [C, D] of captions, in their order. Raises KeyError for one not in the store."""
    import numpy as np

    return np.concatenate([store.get(caption_key(caption)) for caption in captions])


@dataclass
class _Item:
    """A video under way. Its key is taken just before it is read: a file that is replaced later
    has another."""

    path: str
    key: str | None = None


@dataclass(frozen=True)
class _Encoded:
    features: Array
    damage: str | None


def extract_frames(
    videos: Mapping[str, str | os.PathLike[str]],
    prep: FramePrep,
    encode: Callable[[npt.NDArray[np.uint8]], Array],
    store: FeatureStore,
    *,
    workers: int | None = None,
    batch_frames: int | None = None,
    file_timeout_s: float | None = FILE_TIMEOUT_S,
    progress: Progress = _NO_PROGRESS,
) -> dict[str, str]:
    """Have the features of every video (id -> path) in `store`; those there are not computed.

    `encode` takes uint8 [B, T, H, W, 3], prepared by `prep`, and gives [B, T, *store.tail]; it is
    called in a thread of its own, with about `batch_frames` frames (B >= 1 videos; by default
    what suits a CPU) at a time, while `workers` threads decode. Identity is an encoder, too: the
    store then holds the frames.

    Returns why a video has no features, by id: a bad file never stops the others. A damaged one
    whose frames can be shown in part has features of these, and is named to `progress`.
    What was done before an interrupt or an error of `encode` is kept. Raises OutputError when
    the disk is full.
    """
    names: dict[str, list[str]] = {}
    for name, path in videos.items():
        names.setdefault(os.path.abspath(path), []).append(name)  # noqa: PTH100
    pending = [path for path in names if (key := video_key(path)) is None or key not in store]
    counts = Counts("video", total=len(names), cached=len(names) - len(pending))
    workers = workers or min(4, max(2, usable_cpus() // 2))
    batch_size = max(1, (batch_frames or frames_at_a_time("cpu")) // prep.frames)
    pipeline: Pipeline[_Item, Clip, _Encoded] = Pipeline(
        partial(_read, prep),
        partial(_encode, encode),
        workers=workers,
        queue_size=min(QUEUE_BYTES // prep.clip_bytes(), 2 * (batch_size + workers)),
        batch_size=batch_size,
        file_timeout_s=file_timeout_s,
    )
    failures: dict[str, str] = {}
    progress.begin(counts)
    try:
        with closing(pipeline.run(_Item(path) for path in pending)) as outcomes:
            for outcome in outcomes if pending else ():
                reason = _keep(outcome, store, progress)
                if reason is None:
                    counts.done += 1
                else:
                    counts.failed += 1
                    failures |= dict.fromkeys(names[outcome.source.path], reason)
                progress.advance(counts)
    finally:
        progress.end()
        store.flush()
    return failures


def extract_captions(
    captions: Iterable[str],
    tokeniser: Tokeniser,
    encode: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], Array],
    store: FeatureStore,
    *,
    batch_size: int = CAPTION_BATCH,
    progress: Progress = _NO_PROGRESS,
) -> None:
    """Have the features of every caption in `store`, each different text once.

    `encode` takes token ids and attention mask, int64 [N, L] each, and gives [N, *store.tail].
    Captions of like length share a batch, so that little padding is computed; the longest come
    first, so that a batch too large for the memory fails at once and not at the end.

    What was done before an interrupt or an error is kept. Raises OutputError when the disk is full,
    EngineError if features are not finite.
    """
    unique = {caption_key(caption): caption for caption in captions}
    pending = sorted(
        ((key, caption) for key, caption in unique.items() if key not in store),
        key=lambda entry: len(entry[1]),
        reverse=True,
    )
    counts = Counts("caption", total=len(unique), cached=len(unique) - len(pending))
    cut = 0
    progress.begin(counts)
    try:
        for start in range(0, len(pending), batch_size):
            batch = pending[start : start + batch_size]
            tokens = tokeniser.encode([[caption] for _, caption in batch])
            features = encode(tokens.input_ids[:, 0], tokens.attention_mask[:, 0])
            if not _is_finite(features):
                raise EngineError("the encoder gave no finite features of a caption")
            for place, (key, _) in enumerate(batch):
                store.add(key, features[place : place + 1])
            cut += tokens.cut
            counts.done += len(batch)
            progress.advance(counts)
        if cut:
            progress.message(f"{plural(cut, 'caption')} cut: longer than the encoder takes")
    finally:
        progress.end()
        store.flush()


def frames_at_a_time(device: str) -> int:
    """How many frames a call of an encoder should have to keep a device busy."""
    return _CORE_FRAMES * usable_cpus() if device == "cpu" else _GPU_FRAMES


def torch_frames(
    encoder: torch.nn.Module, device: str = "cpu"
) -> Callable[[npt.NDArray[np.uint8]], Array]:
    """An `encode` for `extract_frames` of an encoder uint8 [N, H, W, 3] -> float [N, D].

    The encoder is moved to the device and put in evaluation mode. Raises DeviceError, saying what
    was tried, when a batch does not fit into memory.
    """
    run = _on_device(encoder, device)

    def encode(frames: npt.NDArray[np.uint8]) -> Array:
        flat = frames.reshape(-1, *frames.shape[2:])
        return run(flat, what="frames").reshape(*frames.shape[:2], -1)

    return encode


def torch_captions(
    encoder: torch.nn.Module, device: str = "cpu"
) -> Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], Array]:
    """An `encode` for `extract_captions` of an encoder of ids and mask [N, L] -> float [N, D]."""
    return partial(_on_device(encoder, device), what="captions")


class _Run(Protocol):
    def __call__(self, *inputs: Array, what: str) -> Array: ...


def _on_device(encoder: torch.nn.Module, device: str) -> _Run:
    """Runs an encoder. On a CPU each thread takes a part of the batch by itself: threads that
    share every operation wait for each other in each, and decoding keeps some from their core.
    On two busy cores this is 1.3 times as fast as torch's own way (CLIP B/32 and SigLIP B/16)."""
    import torch

    from memcli.train.memory import is_out_of_memory

    encoder = encoder.to(device).eval()

    def infer(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return encoder(*(one.to(device) for one in inputs)).float().cpu()

    def run(*inputs: Array, what: str) -> Array:
        tensors = [torch.from_numpy(one) for one in inputs]
        try:
            found = infer(*tensors) if device != "cpu" else _side_by_side(infer, tensors)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise DeviceError(
                    f"not enough memory to encode {len(inputs[0])} {what} at a time",
                    where=device,
                    next_step="Use a machine with more memory."
                    if device == "cpu"
                    else "Use another device:  --device cpu",
                ) from error
            raise
        array: Array = found.numpy()
        return array

    return run


def _side_by_side(
    infer: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]
) -> torch.Tensor:
    """`infer` on equal parts of a batch, one part in each of as many threads as torch may use."""
    import torch

    threads = torch.get_num_threads()
    count = min(threads, len(inputs[0]))
    parts = list(zip(*(one.tensor_split(count) for one in inputs), strict=True))
    if len(parts) == 1:
        return infer(*parts[0])
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(len(parts)) as pool:
            return torch.cat(list(pool.map(lambda part: infer(*part), parts)))
    finally:
        torch.set_num_threads(threads)


def _read(
    prep: FramePrep, item: _Item, deadline: float | None, cancelled: Callable[[], bool]
) -> Clip:
    from memcli.video import read_clip

    item.key = video_key(item.path)
    return read_clip(item.path, prep, deadline=deadline, cancelled=cancelled)


def _encode(
    encode: Callable[[npt.NDArray[np.uint8]], Array], clips: Sequence[Clip]
) -> list[_Encoded]:
    import numpy as np

    frames = clips[0].frames[None] if len(clips) == 1 else np.stack([one.frames for one in clips])
    return [
        _Encoded(features, clip.damage)
        for features, clip in zip(encode(frames), clips, strict=True)
    ]


def _keep(outcome: Outcome[_Item, _Encoded], store: FeatureStore, progress: Progress) -> str | None:
    """Add the features of a video to the store; why there are none, else None."""
    if outcome.error is not None:
        return printable(outcome.error.what)
    result, key = outcome.result, outcome.source.key
    if result is None or key is None:
        return "the file was removed while it was read"
    if not _is_finite(result.features):
        return "the encoder gave no finite features"
    store.add(key, result.features)
    if result.damage:
        progress.message(f"{outcome.source.path}: {result.damage}")
    return None


def _is_finite(features: Array) -> bool:
    import numpy as np

    return features.dtype.kind != "f" or bool(np.isfinite(features).all())
