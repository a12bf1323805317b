"""What a request for an engine, device and precision allows here; `auto` allows several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memcli.engines import plans, records
from memcli.engines.base import ENGINES, EngineName
from memcli.engines.bundle import Bundle, Variant
from memcli.engines.loading import (
    CPU_INSTALL,
    import_runtime,
    installed_runtimes,
    installed_tensorrt,
    no_runtime_error,
)
from memcli.engines.tensorrt_flavour import FlavourName
from memcli.engines.verify import ParityReport
from memcli.errors import EngineError, MemcliError, ModelError, UsageError
from memcli.spec import PRECISIONS, Precision

EngineChoice = Literal["auto"] | EngineName
PrecisionChoice = Literal["auto"] | Precision
TENSORRT: tuple[FlavourName, ...] = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Candidate:
    """One way to execute a bundle."""

    variant: Variant
    engine: EngineName
    device: str

    def __str__(self) -> str:
        device = "" if self.device == "cpu" else f" on {self.device}"
        return f"{self.engine}{device} at {self.variant.precision}"


def list_candidates(
    bundle: Bundle, *, engine: EngineChoice, device: str, precision: PrecisionChoice
) -> list[Candidate]:
    """What a request allows, given the bundle and the installed runtimes; at least one.

    TensorRT, whose first use takes minutes, is among what `auto` allows where it was verified on
    this GPU before, or where nothing else can run the bundle. Where it is to build an engine now,
    that is none of fp32 unless asked for, or the bundle has nothing else for it.

    Raises as `open_engine` does.
    """
    _check_request(engine, device, precision)
    if engine == "tensorrt" or engine == "tensorrt-rtx":
        _check_tensorrt(engine, device)
    elif precision != "auto" and precision not in bundle.variants and device in ("auto", "cpu"):
        _check_cpu(precision)
    variants = _variants(bundle, precision)
    engines = (engine,) if engine != "auto" else _installed(device)
    candidates = [
        Candidate(variant, name, place)
        for variant in variants
        for name in engines
        if name in variant.engines
        for place in _devices(name, device)
        if place != "cpu" or engine != "auto" or _cpu_computes(name, variant.precision)
    ]
    if not candidates and precision != "auto" and device in ("auto", "cpu"):
        _check_cpu(precision)
    if engine in TENSORRT and precision == "auto":
        candidates = _worth_building(candidates)
    if engine == "auto":
        compiled = _compiled(variants, device)
        others = candidates if not device.startswith("cuda") or _has_cuda() else []
        if others or not compiled:
            compiled = [one for one in compiled if _is_verified(one)]
        elif precision == "auto":
            compiled = _worth_building(compiled)
        candidates = [*others, *compiled] or candidates
    if not candidates:
        wanted = f"{engine if engine != 'auto' else ' or '.join(engines)} on {device}"
        fit = "; ".join(f"{v.precision}: {', '.join(v.engines)}" for v in variants)
        way_out = _way_out(bundle, variants, engine, device, precision)
        raise EngineError(
            f"{bundle.model} cannot run with {wanted} at precision {precision}",
            next_step=f"It was made for {fit}.\n{way_out}",
        )
    if device.startswith("cuda") and candidates[0].engine not in TENSORRT:
        _check_cuda(candidates[0].engine, device)  # before a verification is announced
    return candidates


def _way_out(
    bundle: Bundle, variants: list[Variant], engine: str, device: str, precision: str
) -> str:
    """What to do where the variants are for none of the engines that were asked for."""
    if engine in TENSORRT:
        return f"Make one: {_export(bundle, 'fp16')}"
    made_for = dict.fromkeys(name for one in variants for name in one.engines)
    on_cpu = [name for name in made_for if name in installed_runtimes()]
    compiled = [one for one in TENSORRT if one in made_for and installed_tensorrt(one) is not None]
    ways = [f"--engine {name}" for name in compiled if device != "cpu"]
    if device.startswith("cuda"):
        ways += ["--device cpu"] * bool(on_cpu)
    else:
        ways = [*(f"--engine {name}" for name in on_cpu), *ways]
    ways += ["another --precision"] * (precision != "auto")
    return f"Use {' or '.join(ways)}" if ways else f"Install a runtime for it: {CPU_INSTALL}"


def _export(bundle: Bundle, precision: Precision) -> str:
    """The command that makes a precision of a bundle."""
    command = f"memcli export {bundle.model} --{precision}"
    calibrated = precision in ("int8", "fp8") and bundle.spec.prep is not None
    return f"{command} --calibration VIDEOS" if calibrated else command


def _check_request(engine: str, device: str, precision: str) -> None:
    if engine not in ("auto", *ENGINES):
        raise UsageError(f"no engine {engine!r}: choose auto, {', '.join(ENGINES)}")
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"no precision {precision!r}: choose auto, {', '.join(PRECISIONS)}")
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (":" in device and not index.isdigit()):
        raise UsageError(f"no device {device!r}: choose auto, cpu, cuda or cuda:N")
    if index and kind != "cuda":
        raise UsageError(f"no device {device!r}: only cuda takes a number")


def _check_tensorrt(name: FlavourName, device: str) -> None:
    """Raise, naming what is missing, unless package, driver and GPU are here."""
    from memcli.engines.cuda import Cuda, device_index
    from memcli.engines.tensorrt import check_device
    from memcli.engines.tensorrt_flavour import load_flavour

    check_device(name, device)
    load_flavour(name)
    Cuda(device_index(device))


def _compiled(variants: list[Variant], device: str) -> list[Candidate]:
    """What TensorRT could run here; nothing where package, driver or GPU is missing."""
    found: list[Candidate] = []
    for name in TENSORRT:
        wanted = [variant for variant in variants if name in variant.engines]
        if not wanted or device == "cpu" or installed_tensorrt(name) is None:
            continue
        try:
            _check_tensorrt(name, device)
        except MemcliError:
            continue
        place = "cuda" if device == "auto" else device
        found += [Candidate(variant, name, place) for variant in wanted]
    return found


def _worth_building(compiled: list[Candidate]) -> list[Candidate]:
    """Without fp32 that was not verified yet, where other precisions are there: minutes for the
    slowest of them."""
    lower = [one for one in compiled if one.variant.precision != "fp32"]
    return [one for one in compiled if one in lower or not lower or _is_verified(one)]


def _is_verified(candidate: Candidate) -> bool:
    """Whether it passed on this GPU, with this version and driver and a plan that is kept."""
    found = known_record(candidate, import_runtime(candidate.engine).__version__)
    return found is not None and found.passed


def known_record(candidate: Candidate, version: str) -> ParityReport | None:
    """What the verification of a candidate gave, with this version of its runtime.

    Of several compiled plans it is the newest that has a record and is still kept; which of them
    is used is known when it is opened.
    """
    key = records.RecordKey(candidate.variant, candidate.engine, version, candidate.device, None)
    if candidate.engine not in TENSORRT:
        return records.load(key)
    found = records.load_plans(key)
    kept = (plan.sha256 for plan in plans.stored()) if found else ()
    return next((found[sha256] for sha256 in kept if sha256 in found), None)


def _cpu_computes(name: EngineName, precision: Precision) -> bool:
    """Whether a runtime computes in a precision on any CPU: `auto` does not try others."""
    return precision not in ("fp16", "fp8") and (name != "onnxruntime" or precision != "bf16")


def _check_cpu(precision: Precision) -> None:
    """A precision that this CPU cannot have must not be advised to be made."""
    from memcli.engines.openvino import require_cpu_precision

    if "openvino" in installed_runtimes():
        require_cpu_precision(precision)


def _check_cuda(engine: EngineName, device: str) -> None:
    from memcli.engines.onnxruntime import execution_providers
    from memcli.engines.openvino import check_device

    if engine == "openvino":
        check_device(device)
    else:
        execution_providers(import_runtime("onnxruntime"), device)


def _variants(bundle: Bundle, precision: PrecisionChoice) -> list[Variant]:
    if precision == "auto":
        if not bundle.variants:
            raise ModelError("the bundle holds no graph", where=str(bundle.root))
        return list(bundle.variants.values())
    if precision not in bundle.variants:
        raise ModelError(
            f"{bundle.model} is installed at {', '.join(bundle.variants)}, not at {precision}",
            next_step=f"Make it: {_export(bundle, precision)}",
        )
    return [bundle.variants[precision]]


def _installed(device: str) -> tuple[EngineName, ...]:
    names = installed_runtimes()
    if not names and not any(map(installed_tensorrt, TENSORRT)):
        raise no_runtime_error()
    # Only ONNX Runtime reaches CUDA; asking OpenVINO would hide what is missing behind its error.
    wanted: tuple[EngineName, ...] = ("onnxruntime",) if device.startswith("cuda") else names
    return wanted if names else ()


def _devices(name: EngineName, device: str) -> tuple[str, ...]:
    """Places to try one runtime in. `auto` is the CPU, and CUDA where the runtime has it."""
    if device != "auto":
        return (device,)
    if name in TENSORRT:
        return ("cuda",)
    if name == "onnxruntime" and _has_cuda():
        return ("cuda", "cpu")
    return ("cpu",)


def _has_cuda() -> bool:
    try:
        return "CUDAExecutionProvider" in import_runtime("onnxruntime").get_available_providers()
    except MemcliError:
        return False
