"""TensorRT (10.3 to 11) and TensorRT-RTX on an NVIDIA GPU.

The plan is taken from the cache or built at the first use. One that does not load (another
version, driver or GPU; damage) is built again, and why is said.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.closing import Closeable
from memcli.engines import plans
from memcli.engines.base import EngineDescription, TensorSpec
from memcli.engines.cuda import Cuda, DeviceArray, DeviceFacts, device_index
from memcli.engines.loading import check_feeds
from memcli.engines.tensorrt_flavour import Flavour, FlavourName, load_flavour, make_log, reason
from memcli.engines.tensorrt_graph import graph_digest
from memcli.engines.tensorrt_plan import HashedFile, Plan, check_precision, make_plan, plan_key
from memcli.engines.tensorrt_profile import AXES, BATCH, BuildOptions, Profile, usual
from memcli.engines.tensorrt_run import SLOTS, Runner
from memcli.errors import DeviceError, EngineError

if TYPE_CHECKING:
    from memcli.engines.base import Array
    from memcli.spec import ModelSpec, Precision

    Feeds = Mapping[str, Array | DeviceArray]

_DTYPES = {"UINT8": "uint8", "INT8": "int8", "INT32": "int32", "INT64": "int64"}
_DTYPES |= {"HALF": "float16", "FLOAT": "float32", "BOOL": "bool"}


@dataclass
class _Loaded:
    """A plan on the GPU."""

    plan: Plan
    engine: Any
    runner: Runner
    runtime_cache: Any
    """What was compiled at run time; None where the flavour keeps nothing."""
    cache_file: HashedFile | None

    def close(self) -> None:
        self.runner.close()
        if self.runtime_cache is not None and self.cache_file is not None:
            content = bytes(self.runtime_cache.serialize())
            if content and content != self.cache_file.read():
                self.cache_file.write(content)


class TensorRtEngine(Closeable):
    """A plan with two execution contexts. Made by `open_tensorrt`."""

    def __init__(
        self,
        cuda: Cuda,
        load: Callable[[Profile | None], _Loaded],
        description: EngineDescription,
        check: Callable[[TensorRtEngine], None] = lambda _: None,
    ):
        """`load` gives the plan of a profile, or whichever fits where that is None.

        `check` is as in `open_tensorrt`.
        """
        self._cuda = cuda
        self._load = load
        self._description = description
        self._check = check
        self._loaded: _Loaded | None = load(None)
        self._inputs, self._outputs = tensors(self._loaded.engine, "INPUT", "OUTPUT")

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def profile(self) -> Profile:
        """Shapes that run without another build."""
        return self._open().plan.profile

    @property
    def plan_sha256(self) -> str:
        """SHA-256 of the plan that computes now; a wider one replaces it."""
        return self._open().plan.sha256

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Every output by name. Raises EngineError if TensorRT refuses the input or fails.

        Feeds may be arrays, or `DeviceArray`s that are read in place. More clips than the profile
        has are run in parts, copies overlapped with work, and fewer are filled up; more frames,
        captions or tokens build a wider plan first.
        """
        (outputs,) = self.stream([feeds])
        return outputs

    def stream(self, batches: Iterable[Feeds]) -> Iterator[dict[str, Array]]:
        """The outputs of each batch, in order; the next is copied while one is computed.

        A batch is taken from `batches` before the results of the one before it are given.
        Raises as `run`; after that, nothing of what was in flight is given.
        """
        import numpy as np

        self._open()
        self._cuda.use()
        flying: deque[tuple[int, list[dict[str, Array]]]] = deque()
        turn = 0
        before: list[dict[str, Array]] | None = None

        def land() -> None:
            number, parts = flying.popleft()
            parts.append(self._open().runner.finish(number))

        def joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
            if len(parts) == 1:
                return parts[0]
            names = [one.name for one in self._outputs]
            return {name: np.concatenate([part[name] for part in parts]) for name in names}

        try:
            for feeds in batches:
                check_feeds(feeds, self._inputs)
                shapes = {name: tuple(array.shape) for name, array in feeds.items()}
                wider = self.profile.widened(shapes)
                if wider is not None:
                    while flying:
                        land()
                    self._replace(wider)
                parts: list[dict[str, Array]] = []
                batch = self.profile.axes[BATCH]
                for part in _parts(feeds, batch.max):
                    if len(flying) == SLOTS:
                        land()
                    self._open().runner.start(turn, part, least=batch.min)
                    flying.append((turn, parts))
                    turn = (turn + 1) % SLOTS
                if before is not None:
                    while any(sink is before for _, sink in flying):
                        land()
                    yield joined(before)
                before = parts
            while flying:
                land()
            if before is not None:
                yield joined(before)
        finally:
            if self._loaded is not None:
                while flying:  # a batch that nobody waits for must not be in the way of the next
                    land()

    def describe(self) -> EngineDescription:
        return self._description

    def close(self) -> None:
        """Free the GPU's memory; a later `run` raises EngineError."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._cuda.use()
            loaded.close()

    def _replace(self, profile: Profile) -> None:
        """Close the plan before the wider one is loaded: the GPU may not have room for both.

        The wider one was not looked at yet: nothing is computed with it for others unless `check`
        allows it.
        """
        self.close()
        self._loaded = self._load(profile)
        try:
            self._check(self)
        except BaseException:
            self.close()
            raise

    def _open(self) -> _Loaded:
        if self._loaded is None:
            raise EngineError("this engine is closed")
        return self._loaded


def open_tensorrt(
    graph: Path,
    *,
    flavour: FlavourName,
    device: str,
    precision: Precision,
    spec: ModelSpec,
    label: str = "",
    options: BuildOptions | None = None,
    report: Callable[[str], None] = lambda _: None,
    check: Callable[[TensorRtEngine], None] = lambda _: None,
) -> TensorRtEngine:
    """Load a graph's plan on `cuda[:N]`, from the cache or built now; that takes minutes.

    `precision` is the graph's: TensorRT changes none. `check` is called with the engine when a
    wider plan has replaced its first, before that gives outputs; the engine is closed, and `run`
    raises, if it raises. Raises MissingDependencyError, DeviceError
    without driver or GPU and for `cpu`, EngineError if the graph cannot be compiled or run here.
    """
    check_device(flavour, device)
    chosen = load_flavour(flavour)
    cuda = Cuda(device_index(device))
    facts = cuda.facts()
    check_precision(precision, facts.capability)
    loader = _Loader(chosen, cuda, facts, graph, graph_digest(graph), label, report)
    profile, chosen_options = usual(spec, small=facts.is_small, options=options)
    return TensorRtEngine(
        cuda,
        lambda wanted: loader.load(wanted or profile, chosen_options, exact=wanted is not None),
        EngineDescription(
            engine=flavour,
            version=chosen.version,
            device=f"cuda:{facts.index}",
            precision=precision,
        ),
        check,
    )


def check_device(flavour: FlavourName, device: str) -> None:
    """Raises DeviceError for all but `cuda[:N]` and `auto`."""
    if device.partition(":")[0] not in ("cuda", "auto"):
        title = "TensorRT-RTX" if flavour == "tensorrt-rtx" else "TensorRT"
        raise DeviceError(
            f"{title} runs on NVIDIA GPUs, not on {device!r}",
            next_step="Use --device cuda, or --engine openvino on the CPU",
        )


@dataclass(frozen=True)
class _Loader:
    """Plans of one graph on one GPU."""

    flavour: Flavour
    cuda: Cuda
    facts: DeviceFacts
    graph: Path
    digest: str
    label: str
    report: Callable[[str], None]

    def load(self, profile: Profile, options: BuildOptions, *, exact: bool) -> _Loaded:
        """The plan of a profile, `exact`ly or the newest of this GPU whatever its profile."""
        key = plan_key(
            self.flavour, self.graph, profile, options, facts=self.facts, digest=self.digest
        )
        lookup = plans.find(key) if exact else plans.find_usable(key)
        why = "shapes beyond the profile" if exact else lookup.reason
        log = make_log(self.flavour.trt)
        if lookup.plan is not None and lookup.content is not None:
            plan = Plan(lookup.plan, lookup.content)
            engine = deserialise(self.flavour, log, plan.content)
            if engine is not None:
                return self._start(plan, engine, log)
            why = f"the cached one does not load: {reason(log, 'no reason given')}"
            log = make_log(self.flavour.trt)
        plan = make_plan(
            self.flavour, self.graph, key, why=why, label=self.label,
            use_device=self.cuda.use, report=self.report,
        )  # fmt: skip
        if plan.unkept is not None:
            self.report(f"{plan.unkept.where}: {plan.unkept.what}: the next run builds it again")
        engine = deserialise(self.flavour, log, plan.content)
        if engine is None:
            raise EngineError(
                f"{self.flavour.title} {self.flavour.version} does not load the engine that it "
                f"built: {reason(log, 'no reason given')}",
                where=self.facts.name,
                next_step="Check driver and GPU: memcli doctor",
            )
        return self._start(plan, engine, log)

    def _start(self, plan: Plan, engine: Any, log: Any) -> _Loaded:
        runtime_config = runtime_cache = cache_file = None
        if self.flavour.has_runtime_cache:
            runtime_config = engine.create_runtime_config()
            runtime_cache = runtime_config.create_runtime_cache()
            if plan.unkept is None:
                words = f"{self.facts.name}\n{self.facts.driver}"
                name = f"runtime-{hashlib.sha256(words.encode()).hexdigest()[:12]}.cache"
                cache_file = HashedFile(plan.entry.folder / name)
                content = cache_file.read()
                if content:
                    runtime_cache.deserialize(content)  # one that it refuses is an empty one
            runtime_config.set_runtime_cache(runtime_cache)
        inputs, outputs = tensors(engine, "INPUT", "OUTPUT")
        runner = Runner(self.cuda, self.flavour, log, engine, runtime_config, inputs, outputs)
        return _Loaded(plan, engine, runner, runtime_cache, cache_file)


def deserialise(flavour: Flavour, log: Any, plan: bytes) -> Any | None:
    """A plan on the GPU; None, with the reason in `log`, if TensorRT does not take it."""
    runtime = flavour.trt.Runtime(log)
    try:
        return runtime.deserialize_cuda_engine(plan)
    except (RuntimeError, TypeError) as error:
        log.lines = [*log.lines, str(error)]
        return None


def tensors(engine: Any, *modes: str) -> tuple[tuple[TensorSpec, ...], ...]:
    """The engine's tensors by mode, `INPUT` or `OUTPUT`."""
    found: dict[str, list[TensorSpec]] = {mode: [] for mode in modes}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        names = AXES.get(name, (BATCH,))
        shape = tuple(
            int(size) if size >= 0 else names[axis] if axis < len(names) else f"axis {axis}"
            for axis, size in enumerate(engine.get_tensor_shape(name))
        )
        spec = TensorSpec(name, _DTYPES.get(kind, kind.lower()), shape)
        found[engine.get_tensor_mode(name).name].append(spec)
    return tuple(tuple(specs) for specs in found.values())


def _parts(feeds: Feeds, most: int) -> Iterator[Feeds]:
    """`feeds` in parts of at most `most` clips, without copies."""
    clips = next(iter(feeds.values())).shape[0]
    if clips <= most:
        yield feeds
        return
    for start in range(0, clips, most):
        yield {
            name: array.rows(start, start + most)
            if isinstance(array, DeviceArray)
            else array[start : start + most]
            for name, array in feeds.items()
        }
