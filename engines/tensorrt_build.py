"""Building a plan: an ONNX graph compiled by TensorRT for one GPU and a range of shapes.

Networks are strongly typed: the precision is the graph's, and TensorRT changes none. TF32 is off,
so that what the graph leaves in fp32 is computed in fp32.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.engines.aside import run_aside
from memcli.engines.tensorrt_flavour import Flavour, make_log, reason
from memcli.engines.tensorrt_graph import prepare
from memcli.engines.tensorrt_profile import BuildOptions, Profile
from memcli.errors import EngineError, is_interrupt

if TYPE_CHECKING:
    from types import ModuleType

Report = Callable[[str], None]
_REPORT_EVERY_S = 5.0


@dataclass(frozen=True)
class Built:
    """A plan in memory."""

    plan: bytes
    seconds: float
    timing_cache: bytes | None
    """What was timed, for the next build; None where the flavour keeps nothing."""


def build(
    flavour: Flavour,
    graph: Path,
    profile: Profile,
    options: BuildOptions,
    *,
    capability: str | None,
    timing_cache: bytes | None = None,
    use_device: Callable[[], None] = lambda: None,
    report: Report = lambda _: None,
) -> Built:
    """Compile a graph; seconds for TensorRT-RTX, minutes for TensorRT.

    `capability` is for flavours that build for one, and None else. What happens is told through
    `report`. TensorRT runs in a thread of its own, which an interrupt ends at its next step; the
    thread first calls `use_device`. Raises EngineError, with TensorRT's reason, if the graph cannot
    be parsed or compiled.
    """
    monitor = _make_monitor(flavour.trt, report, f"{flavour.title}: building")
    with tempfile.TemporaryDirectory(prefix="memcli-", ignore_cleanup_errors=True) as folder:

        def work() -> Built:
            use_device()
            return _build(
                flavour, graph, Path(folder), profile, options, capability, timing_cache, monitor
            )

        return run_aside(work, monitor.stop)


def _build(
    flavour: Flavour,
    graph: Path,
    folder: Path,
    profile: Profile,
    options: BuildOptions,
    capability: str | None,
    timing_cache: bytes | None,
    monitor: Any,
) -> Built:
    trt = flavour.trt
    log = make_log(trt)
    start = time.perf_counter()
    try:
        builder = trt.Builder(log)
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)
        parser = trt.OnnxParser(network, log)
        config = builder.create_builder_config()
    except (RuntimeError, TypeError) as error:  # pybind: the C++ object could not be made
        raise _cannot(flavour, graph, "cannot start a build", reason(log, str(error))) from error
    if not parser.parse_from_file(str(prepare(graph, folder))):
        raise _cannot(flavour, graph, "cannot parse the graph", _parser_error(parser, log))
    _configure(flavour, config, options, capability)
    shapes = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes.set_shape(tensor.name, *profile.shapes(tensor.name, tuple(tensor.shape)))
    config.add_optimization_profile(shapes)
    cache = None
    if flavour.has_timing_cache:
        cache = config.create_timing_cache(timing_cache or b"")
        # Of another GPU or version it is refused, and the build times everything itself.
        if not config.set_timing_cache(cache, False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
    config.progress_monitor = monitor
    memory = builder.build_serialized_network(network, config)
    if monitor.raised is not None:
        raise monitor.raised
    if memory is None:
        raise _cannot(flavour, graph, "cannot compile the graph", reason(log, "no reason given"))
    timed = bytes(cache.serialize()) if cache is not None else None
    return Built(bytes(memory), time.perf_counter() - start, timed)


def _configure(
    flavour: Flavour, config: Any, options: BuildOptions, capability: str | None
) -> None:
    trt = flavour.trt
    config.clear_flag(trt.BuilderFlag.TF32)
    config.builder_optimization_level = options.level
    verbosity = trt.ProfilingVerbosity
    config.profiling_verbosity = (
        verbosity.DETAILED if options.layer_names else verbosity.LAYER_NAMES_ONLY
    )
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.low_memory:
        config.max_aux_streams = 0
        if not flavour.builds_for_capability:
            limit = options.workspace_bytes or 512 << 20
            config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, 2 * limit)
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(flavour.capability(capability), 0)


def _cannot(flavour: Flavour, graph: Path, what: str, why: str) -> EngineError:
    hint = "Use another precision, or --engine onnxruntime"
    if "workspace" in why:
        hint = "Give kernels more scratch memory: --workspace MIB, or none of that option"
    return EngineError(
        f"{flavour.title} {flavour.version} {what}: {why}",
        where=str(graph),
        next_step=hint,
    )


def _parser_error(parser: Any, log: Any) -> str:
    """The parser's first error with the operator it is about."""
    if not parser.num_errors:
        return reason(log, "no reason given")
    problem = parser.get_error(0)
    about = " ".join(part for part in (problem.node_operator(), problem.node_name()) if part)
    lines = [line.strip() for line in str(problem.desc()).splitlines() if line.strip()]
    telling = [
        line for line in lines if "Invalid Node" not in line and "catchCudaError" not in line
    ]
    text = (telling or lines or ["no reason given"])[0]
    return f"{about}: {text[:300]}" if about else text[:300]


def _make_monitor(trt: ModuleType, report: Report, prefix: str) -> Any:
    """Tells how far a build is, every few seconds; ends it if telling fails or it is stopped."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self._outer: dict[str, int] = {}
            self._told = time.monotonic()
            self._stopped = False

        def stop(self) -> None:
            """End the build at its next step; called from another thread."""
            self._stopped = True

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if not parent:
                self._outer[phase] = steps

        def phase_finish(self, phase: str) -> None:
            self._outer.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            # Nothing may be raised into TensorRT; the build ends, and then the error is raised.
            try:
                self._tell(phase, step)
            except BaseException as error:
                if self.raised is None or is_interrupt(error):
                    self.raised = error
            return self.raised is None and not self._stopped

        def _tell(self, phase: str, step: int) -> None:
            now = time.monotonic()
            steps = self._outer.get(phase)
            if steps and now - self._told >= _REPORT_EVERY_S:
                self._told = now
                report(f"{prefix} ({phase}, step {step + 1} of {steps})")

    return Monitor()


def layers(flavour: Flavour, plan: bytes) -> str:
    """What the engine inspector says of a plan, as JSON text. Needs the GPU.

    Raises EngineError if the plan cannot be loaded here.
    """
    log = make_log(flavour.trt)
    runtime = flavour.trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"{flavour.title} cannot load the plan: {reason(log, 'no reason given')}",
            next_step="Layers can be shown on the GPU that the plan is for only.",
        )
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(flavour.trt.LayerInformationFormat.JSON))
