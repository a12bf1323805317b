"""From a graph to a plan: out of the cache, or built and kept there."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memcli.engines import plans
from memcli.engines.bundle import Bundle, Variant, verify_files
from memcli.engines.plans import PlanKey, StoredPlan
from memcli.engines.tensorrt_build import build
from memcli.engines.tensorrt_flavour import Flavour, FlavourName, load_flavour
from memcli.engines.tensorrt_graph import graph_digest
from memcli.engines.tensorrt_profile import LOW_MEMORY, BuildOptions, Profile, usual
from memcli.errors import EngineError, ModelError, OutputError, UsageError
from memcli.home import cache_dir

if TYPE_CHECKING:
    from memcli.engines.base import EngineName
    from memcli.engines.cuda import DeviceFacts
    from memcli.spec import Precision

Report = Callable[[str], None]
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Plan:
    """A plan with its bytes."""

    entry: StoredPlan
    content: bytes
    unkept: OutputError | None = None
    """Why the disk did not take it; None where it is kept."""

    @property
    def sha256(self) -> str:
        """Of its bytes."""
        return self.entry.sha256

    @property
    def profile(self) -> Profile:
        """Shapes that it was built for."""
        return Profile.from_dict(self.entry.key.profile)


def build_plan(
    graph: Path,
    *,
    flavour: FlavourName,
    profile: Profile,
    target_capability: str | None = None,
    options: BuildOptions | None = None,
    label: str = "",
    output: Path | None = None,
    report: Report = lambda _: None,
) -> StoredPlan:
    """The plan of a graph for a GPU, from the cache or built now.

    With `output` it is also written there, as a folder for `memcli engines add`, and there alone,
    which is reported, if the cache cannot take it.

    `target_capability`, e.g. "8.9", builds for another GPU than the one that is here, or on a
    machine that has none; only TensorRT-RTX can. Without it, it is the GPU that is here.

    Raises MissingDependencyError, DeviceError without a GPU where one is needed, UsageError for a
    target that the flavour cannot have, EngineError if the graph cannot be compiled, OutputError
    if the plan cannot be kept.
    """
    chosen = load_flavour(flavour)
    if target_capability is not None and not chosen.builds_for_capability:
        raise UsageError(
            "TensorRT builds engines on the GPU that runs them, for no other",
            next_step="Copy the model there (memcli export MODEL --output FILE.memcli), or build "
            "for --target tensorrt-rtx",
        )
    facts = None
    if target_capability is None:
        from memcli.engines.cuda import Cuda

        facts = Cuda().facts()
    if options is None:
        options = LOW_MEMORY if facts is not None and facts.is_small else BuildOptions()
    key = plan_key(chosen, graph, profile, options, facts=facts, capability=target_capability)
    lookup = plans.find(key)
    if lookup.plan is not None:
        report(f"{chosen.title} engine for compute capability {key.capability}: in the cache")
        return _written(lookup.plan, output, report)
    if output is None:
        plans.check_place(key)  # before minutes are spent
    plan = make_plan(chosen, graph, key, why=lookup.reason, label=label, report=report)
    if plan.unkept is None:
        return _written(plan.entry, output, report)
    if output is None:
        raise plan.unkept
    report(f"kept in {output} alone: {plan.unkept.where}: {plan.unkept.what}")
    return plans.export_plan(plan.entry, output, plan.content)


def _written(plan: StoredPlan, output: Path | None, report: Report) -> StoredPlan:
    if output is not None:
        report(f"written to {plans.export_plan(plan, output).folder}")
    return plan


def compiled_graph(bundle: Bundle, variant: Variant, flavour: FlavourName) -> Path:
    """The graph that is compiled: TensorRT-RTX takes TensorRT's where it has none of its own."""
    engine: EngineName = flavour if flavour in variant.graphs else "tensorrt"
    return bundle.graph_path(variant, engine)


def build_for_bundle(
    bundle: Bundle,
    precision: Precision,
    *,
    flavour: FlavourName,
    target_capability: str | None = None,
    ranges: Mapping[str, tuple[int, int, int]] | None = None,
    options: BuildOptions | None = None,
    output: Path | None = None,
    check_files: bool = True,
    report: Report = lambda _: None,
) -> StoredPlan:
    """The plan of one precision of a bundle, for the GPU that is here or for another.

    `ranges` replace those of the usual profile (`batch`, `time`, `captions`, `tokens`: least,
    usual, most). `output` is as in `build_plan`. The files of the bundle are checked first, with
    `check_files`.

    Raises ModelError if the bundle is damaged or lacks the precision, EngineError if the precision
    was not made for the flavour, and as `build_plan`.
    """
    variant = bundle.variants.get(precision)
    if variant is None:
        raise ModelError(
            f"{bundle.model} is installed at {', '.join(bundle.variants)}, not at {precision}",
            next_step=f"Make it: memcli export {bundle.model} --{precision}",
        )
    check_made_for(bundle, variant, flavour)
    facts = None
    if target_capability is None:
        from memcli.engines.cuda import Cuda

        load_flavour(flavour)  # that it is missing is to be said first
        facts = Cuda().facts()
    check_precision(precision, target_capability or (facts.capability if facts else ""))
    if check_files:
        verify_files(bundle, variant)
    profile, options = usual(
        bundle.spec, small=facts is not None and facts.is_small, options=options
    )
    profile = profile.with_ranges(ranges or {})
    return build_plan(
        compiled_graph(bundle, variant, flavour),
        flavour=flavour,
        profile=profile,
        target_capability=target_capability,
        options=options,
        label=f"{bundle.model} {precision}",
        output=output,
        report=report,
    )


def check_made_for(bundle: Bundle, variant: Variant, flavour: FlavourName) -> None:
    """Raises EngineError for a variant that the flavour would never be given to run."""
    if flavour in variant.engines:
        return
    title = "TensorRT-RTX" if flavour == "tensorrt-rtx" else "TensorRT"
    why = f"it was made for {', '.join(variant.engines)}"
    if variant.precision == "int8":
        why += "; TensorRT computes in int8 with signed values only, and this has no such graph"
    raise EngineError(
        f"{title} cannot run {bundle.model} at {variant.precision}: {why}",
        next_step=f"Make another precision: memcli export {bundle.model} --fp16 --target {flavour}",
    )


def check_precision(precision: Precision, capability: str) -> None:
    """Raises EngineError for arithmetic that GPUs of a compute capability do not have."""
    major, _, minor = capability.partition(".")
    if precision == "fp8" and (int(major), int(minor or 0)) < (8, 9):
        raise EngineError(
            f"GPUs of compute capability {capability} do not compute in fp8: 8.9 and newer do",
            next_step="Use --precision int8 or --precision fp16",
        )


def plan_key(
    flavour: Flavour,
    graph: Path,
    profile: Profile,
    options: BuildOptions,
    *,
    facts: DeviceFacts | None,
    capability: str | None = None,
    digest: str | None = None,
) -> PlanKey:
    """The key of a plan for the GPU `facts`, or for a compute capability.

    `digest` is the graph's where it is known. Raises EngineError for a capability that the flavour
    does not know.
    """
    target = capability or (facts.capability if facts is not None else "")
    own = not flavour.builds_for_capability and facts is not None
    if flavour.builds_for_capability:
        flavour.capability(target)
    return PlanKey(
        graph=digest or graph_digest(graph),
        flavour=flavour.name,
        version=flavour.version,
        platform=flavour.platform(),
        capability=target,
        gpu=facts.name if own and facts is not None else None,
        driver=facts.driver if own and facts is not None else None,
        profile=profile.to_dict(),
        options=options.to_dict(),
    )


def make_plan(
    flavour: Flavour,
    graph: Path,
    key: PlanKey,
    *,
    why: str,
    label: str,
    use_device: Callable[[], None] = lambda: None,
    report: Report,
) -> Plan:
    """Build the plan of `key` and keep it, if the disk takes it; `why` it is built is told.

    `use_device` makes the GPU that of the thread which builds: `Cuda.use`. Raises EngineError.
    """
    name = f" of {label}" if label else ""
    report(f"building the {flavour.title} engine{name} for {_for(key)}: {why}")
    timing = _TimingCache(flavour, key)
    built = build(
        flavour,
        graph,
        Profile.from_dict(key.profile),
        BuildOptions(**key.options),
        capability=key.capability if flavour.builds_for_capability else None,
        timing_cache=timing.read(),
        use_device=use_device,
        report=report,
    )
    if built.timing_cache is not None:
        timing.write(built.timing_cache)
    report(f"built in {built.seconds:.0f} s, {len(built.plan) / 1e6:.0f} MB")
    plan = Plan(plans.new_plan(key, built.plan, label=label, seconds=built.seconds), built.plan)
    try:
        plans.store(plan.entry, plan.content)
    except OutputError as error:
        return replace(plan, unkept=error)
    return plan


def _for(key: PlanKey) -> str:
    return key.gpu or f"compute capability {key.capability}"


class HashedFile:
    """A small cache on disk whose damage is noticed: SHA-256, then the content."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> bytes | None:
        """The content; None if there is none, or it is damaged."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        digest, value = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return value if hashlib.sha256(value).digest() == digest else None

    def write(self, value: bytes) -> None:
        """Replace the content as a whole; a disk that refuses only costs time later."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(hashlib.sha256(value).digest() + value)
            temporary.replace(self.path)


class _TimingCache(HashedFile):
    """Of one GPU, driver and version of TensorRT; shared by all models."""

    def __init__(self, flavour: Flavour, key: PlanKey):
        words = "\n".join(map(str, (flavour.name, flavour.version, key.gpu, key.driver)))
        name = hashlib.sha256(words.encode()).hexdigest()[:16]
        super().__init__(cache_dir("tensorrt-timing") / name)
