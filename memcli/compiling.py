"""What `memcli export --target tensorrt` (or `tensorrt-rtx`) does: a precision to an engine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.errors import EngineError, UsageError

if TYPE_CHECKING:
    from memcli.engines.bundle import Bundle
    from memcli.engines.tensorrt_flavour import FlavourName
    from memcli.engines.tensorrt_profile import BuildOptions
    from memcli.spec import Precision

Report = Callable[[str], None]
_MIB = 1 << 20


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built; None for the usual."""

    batch: tuple[int, int, int] | None = None
    """Clips in a batch: least, usual and most."""
    workspace: int | None = None
    """MiB of scratch memory that a kernel may take."""
    level: int | None = None
    """0 to 5: how long to look for faster kernels."""
    layer_names: bool = False
    """Keep what `memcli engines show --layers` tells in detail."""

    def check(self) -> None:
        """Raise UsageError for a batch whose sizes are not in order."""
        from memcli.engines.tensorrt_profile import Range

        if self.batch is not None:
            Range(*self.batch)

    def named(self) -> list[str]:
        """The options of the command that were given."""
        given = {
            "--batch": self.batch,
            "--workspace": self.workspace,
            "--level": self.level,
            "--layer-names": self.layer_names or None,
        }
        return [name for name, value in given.items() if value is not None]


def parse_batch(text: str) -> tuple[int, int, int]:
    """`1:16:64` to its three sizes. Raises UsageError for anything else."""
    parts = text.split(":")
    # Seven digits: more would not fit into the dimensions of a tensor with frames.
    if len(parts) == 3 and all(one.isdecimal() and len(one) < 8 for one in parts):
        return int(parts[0]), int(parts[1]), int(parts[2])
    raise UsageError(
        f"not a range of batches: {text!r}",
        next_step="Write MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, e.g. 1:16:64",
    )


def check_capability(text: str) -> None:
    """Raise UsageError for what is no compute capability."""
    if not re.fullmatch(r"[1-9]\d?\.\d", text, re.ASCII):
        raise UsageError(
            f"not a compute capability: {text!r}", next_step="Write it as two numbers, e.g. 8.9"
        )


def check_target(
    flavour: FlavourName, precisions: Iterable[Precision | None], target_capability: str | None
) -> None:
    """Whether engines of these precisions can be built here at all; nothing is computed.

    Raises MissingDependencyError without the runtime, DeviceError without a GPU where one is
    needed, UsageError for a capability that the runtime does not know, EngineError for arithmetic
    that the GPU does not have.
    """
    from memcli.engines.tensorrt_flavour import load_flavour
    from memcli.engines.tensorrt_plan import check_precision

    chosen = load_flavour(flavour)
    capability = target_capability
    if capability is None:
        from memcli.engines.cuda import Cuda

        capability = Cuda().facts().capability
    if chosen.builds_for_capability and target_capability is not None:
        try:
            chosen.capability(capability)
        except EngineError as error:
            raise UsageError(error.what, next_step=error.next_step) from error
    for precision in precisions:
        if precision is not None:
            check_precision(precision, capability)


def compile_engine(
    bundle: Bundle,
    precision: Precision | None,
    flavour: FlavourName,
    *,
    target_capability: str | None = None,
    options: EngineOptions | None = None,
    output: Path | None = None,
    check_files: bool = True,
    report: Report = lambda _: None,
) -> str:
    """Compile the engine of a precision, or of the best for GPUs that is installed; says where.

    Raises as `memcli.engines.tensorrt_plan.build_for_bundle`.
    """
    from memcli.engines.tensorrt_plan import build_for_bundle

    order: tuple[Precision, ...] = ("fp16", "bf16", "fp32")
    best: Precision = next((one for one in order if one in bundle.variants), "fp32")
    chosen = best if precision is None else precision
    given = options or EngineOptions()
    plan = build_for_bundle(
        bundle,
        chosen,
        flavour=flavour,
        target_capability=target_capability,
        ranges=None if given.batch is None else {"batch": given.batch},
        options=_build_options(given, flavour, target_capability),
        output=output,
        check_files=check_files,
        report=report,
    )
    return f"{bundle.model} {chosen}: engine for {flavour} in {plan.folder}"


def _build_options(
    given: EngineOptions, flavour: FlavourName, target_capability: str | None
) -> BuildOptions | None:
    """The usual options of the GPU with those that were given; None for the usual alone."""
    from memcli.engines.tensorrt_profile import LOW_MEMORY, BuildOptions

    changes: dict[str, Any] = {}
    if given.workspace is not None:
        changes["workspace_bytes"] = given.workspace * _MIB
    if given.level is not None:
        changes["level"] = given.level
    if given.layer_names:
        changes["layer_names"] = True
    if not changes:
        return None
    usual = BuildOptions()
    if target_capability is None:
        from memcli.engines.cuda import Cuda
        from memcli.engines.tensorrt_flavour import load_flavour

        load_flavour(flavour)  # a missing package is said before a missing GPU
        usual = LOW_MEMORY if Cuda().facts().is_small else usual
    return replace(usual, **changes)
