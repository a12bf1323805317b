"""The captioner's graphs in ONNX Runtime. Keys and values stay on the device from step to step.

Keys and values of the prompt are read where they lie. Those of the new tokens come out of a step
joined to what was there (`present.*`) and are bound as the next step's input, without a copy to
the host. Were the prompt's joined, too, a step of 16 videos with 8 frames each would spend a third
of its time on copying them.

A long prompt is read piece by piece: attention needs memory for each pair of a token that reads and
one that is read. Where a prompt is cut depends on nothing but its length, so that int8, which
rounds what the products before it gave, computes the same whatever else is in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from memcli.captioning.bundle import CaptionerBundle
from memcli.captioning.generate import Floats, Integers
from memcli.captioning.stopping import Stopping
from memcli.closing import Closeable
from memcli.engines import ort_cuda
from memcli.engines.loading import import_runtime, one_line
from memcli.engines.onnxruntime import execution_providers
from memcli.errors import DeviceError, EngineError, MemcliError

_SEVERITY_ERROR = 3
_IMAGES_ON_GPU = 8
_IMAGES_ON_CPU = 1
"""A thousand patches keep a CPU busy; a second image would make it no faster."""
_TOKENS_AT_ONCE = 16_384
"""Prompt tokens of a batch, whose keys and values are held."""
_SCORES_AT_ONCE = 3
"""Copies of the scores that attention holds at a time, as measured."""
_PIECE_BYTES = 256 << 20
_BATCH_BYTES = 1 << 30


class CaptionerSessions(Closeable):
    """The three graphs on one device. One thread at a time."""

    def __init__(
        self,
        bundle: CaptionerBundle,
        device: str = "cpu",
        threads: int | None = None,
        *,
        emulate: bool = False,
    ):
        """Load the graphs on `cpu`, `cuda` or `cuda:N`.

        `emulate` lets a CPU run fp16, rounding as a GPU does but slowly, for the gate.
        Raises EngineError if a graph does not load, DeviceError if the device is not usable or
        not for this precision, MissingDependencyError without ONNX Runtime.
        """
        self._ort = import_runtime("onnxruntime")
        self.bundle = bundle
        self.device = device
        providers = execution_providers(self._ort, device)
        self._stopping: Stopping | None = None
        if device == "cpu" and bundle.precision == "fp16" and not emulate:
            raise DeviceError(
                "onnxruntime does not compute in fp16 on a CPU",
                where=str(bundle.folder),
                next_step="Export the captioner in another precision: --int8 or --fp32",
            )
        self._place = ("cpu", 0) if device == "cpu" else ("cuda", providers[0][1]["device_id"])
        options = self._ort.SessionOptions()
        options.log_severity_level = _SEVERITY_ERROR
        if threads is not None:
            options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions = {
            name: self._load(name, options, providers) for name in ("vision", "embed", "decoder")
        }

    def _load(self, name: str, options: Any, providers: list[Any]) -> Any:
        path = self.bundle.graph(name)
        if self._place[0] == "cuda":
            return ort_cuda.open_unrecorded(self._ort, path, options, self._place[1])
        try:
            return self._ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ORT's exceptions share no public base but Exception
            raise EngineError(
                f"onnxruntime cannot load the graph: {one_line(error)}", where=str(path)
            ) from error

    @contextmanager
    def stoppable(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        """What runs within it ends soon after `cancelled()` is true, which is asked from another
        thread, too: RunEndedError."""
        with Stopping(self._ort, cancelled) as self._stopping:
            try:
                yield
            finally:
                self._stopping = None

    def check(self) -> None:
        """Raise RunEndedError if the run was ended."""
        if self._stopping is not None:
            self._stopping.check()

    def together(self, length: int, width: int) -> int:
        """How many prompts of so many tokens, `width` wide, memory is spent on at once."""
        per_row = self.piece(length, width) * self._score_bytes(length, width)
        return max(1, min(_BATCH_BYTES // per_row, _TOKENS_AT_ONCE // length))

    def piece(self, length: int, width: int) -> int:
        """How many tokens of a prompt are read at once."""
        return max(1, min(length, _PIECE_BYTES // self._score_bytes(length, width)))

    def _score_bytes(self, length: int, width: int) -> int:
        """Of the scores of one token that reads a prompt of `length`, in all heads."""
        heads = max(width // self.bundle.cache.width, self.bundle.cache.heads)
        return heads * length * _SCORES_AT_ONCE * np.dtype(np.float32).itemsize

    def image_features(self, images: npt.NDArray[np.uint8]) -> Floats:
        """float32 [N, tokens, D] of uint8 [N, side, side, 3]. Raises EngineError."""
        most = _IMAGES_ON_CPU if self.device == "cpu" else _IMAGES_ON_GPU
        parts = [
            self._run("vision", {"frames": images[start : start + most]})
            for start in range(0, len(images), most)
        ]
        return np.concatenate(parts)

    def embeddings(self, ids: Integers) -> Floats:
        """float32 [B, L, D] of token ids [B, L]. Raises EngineError."""
        return self._run("embed", {"input_ids": ids})

    def decoder(self) -> OrtDecoder:
        """A decoder that has read nothing yet."""
        return OrtDecoder(self._ort, self._session("decoder"), self, self._place)

    def run_bound(self, name: str, binding: Any) -> None:
        """Run a session with what is bound. Raises EngineError."""
        with self._running(name) as options:
            self._session(name).run_with_iobinding(binding, options)

    def close(self) -> None:
        """Free the sessions; later calls raise EngineError."""
        self._sessions = {}

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            raise EngineError("this captioner is closed")
        return self._sessions[name]

    def _run(self, name: str, feeds: dict[str, Any]) -> Floats:
        with self._running(name) as options:
            value: Floats = self._session(name).run(None, feeds, options)[0]
            if value.ndim != 3:
                raise EngineError(f"the captioner's {name} graph gives no [N, L, D]")
        return value

    @contextmanager
    def _running(self, name: str) -> Iterator[Any]:
        """The options of a run. Raises RunEndedError or EngineError for whatever it fails with."""
        self.check()
        try:
            with _failing(name):
                yield None if self._stopping is None else self._stopping.options
        except EngineError:
            self.check()  # it may have failed because it was ended
            raise


@contextmanager
def _failing(name: str) -> Iterator[None]:
    """EngineError for whatever a graph, its inputs and its outputs fail with."""
    try:
        yield
    except MemcliError:
        raise
    except Exception as error:  # ORT's exceptions share no public base but Exception
        raise EngineError(f"the captioner's {name} graph failed: {one_line(error)}") from error


class OrtDecoder:
    """The decoder with the keys and values of one batch: see `generate.Decoder`."""

    def __init__(self, ort: Any, session: Any, sessions: CaptionerSessions, place: tuple[str, int]):
        self._ort = ort
        self._session = session
        self._sessions = sessions
        self._place = place
        shape = sessions.bundle.cache
        self._names = [
            f"{layer}.{kind}" for layer in range(shape.layers) for kind in ("key", "value")
        ]
        self._past: list[Any] = []
        self._recent: list[Any] = []
        self._unseen = 0
        self._length = 0

    def start(self, embeddings: Floats) -> Floats:
        """Read the prompts; see `generate.Decoder`. Raises EngineError."""
        shape = self._sessions.bundle.cache
        batch, length, width = embeddings.shape
        piece = self._sessions.piece(length, width)
        # The graph wants a past of one place at least: of a prompt it is one that nobody sees.
        self._unseen, self._length = 1, 0
        with _failing("decoder"):
            nothing = np.zeros((batch, shape.heads, 1, shape.width), shape.dtype)
            self._past = [self._value(nothing) for _ in self._names]
            self._recent = self._empty(batch)
            for first in range(0, length, piece):
                logits = self._run(embeddings[:, first : first + piece])
            self._past, self._recent = self._recent, self._empty(batch)
        self._unseen = 0
        return logits

    def step(self, ids: Integers) -> Floats:
        """Read one more token of each text; see `generate.Decoder`."""
        embedded = self._sessions.embeddings(ids[:, None])
        with _failing("decoder"):
            return self._run(embedded)

    def keep(self, rows: Integers) -> bool:
        """Go on with these rows: on the CPU, where keys and values can be picked out."""
        if self._place[0] != "cpu":
            return False
        with _failing("decoder"):
            self._past = [self._value(value.numpy()[rows]) for value in self._past]
            self._recent = [self._value(value.numpy()[rows]) for value in self._recent]
        return True

    def _run(self, embeddings: Floats) -> Floats:
        batch, length = embeddings.shape[:2]
        places = np.arange(self._length, self._length + length, dtype=np.int64)
        self._length += length
        mask = np.ones((batch, self._unseen + self._length), np.int64)
        mask[:, : self._unseen] = 0
        binding = self._session.io_binding()
        read = self._value(np.ascontiguousarray(embeddings))
        binding.bind_ortvalue_input("inputs_embeds", read)
        binding.bind_cpu_input("attention_mask", mask)
        binding.bind_cpu_input("position_ids", np.tile(places, (batch, 1)))
        for name, past, recent in zip(self._names, self._past, self._recent, strict=True):
            binding.bind_ortvalue_input(f"past_key_values.{name}", past)
            binding.bind_ortvalue_input(f"recent.{name}", recent)
        binding.bind_output("logits", "cpu")
        for name in self._names:
            binding.bind_output(f"present.{name}", *self._place)
        self._sessions.run_bound("decoder", binding)
        logits, *self._recent = binding.get_outputs()
        result: Floats = logits.numpy().astype(np.float32, copy=False)
        if result.ndim != 2 or len(result) != batch or not result.size:
            raise EngineError("the captioner's decoder graph gives no [batch, vocabulary]")
        return result

    def _empty(self, batch: int) -> list[Any]:
        shape = self._sessions.bundle.cache
        empty = np.zeros((batch, shape.heads, 0, shape.width), shape.dtype)
        return [self._value(empty) for _ in self._names]

    def _value(self, array: Any) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array, *self._place)
