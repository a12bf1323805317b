"""What a request for an engine, device and precision allows here; `auto` allows several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memcli.engines.base import ENGINES, EngineName
from memcli.engines.bundle import Bundle, Variant
from memcli.engines.loading import import_runtime, installed_runtimes, no_runtime_error
from memcli.errors import EngineError, MemcliError, ModelError, UsageError
from memcli.spec import PRECISIONS, Precision

EngineChoice = Literal["auto"] | EngineName
PrecisionChoice = Literal["auto"] | Precision


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

    Raises as `open_engine` does.
    """
    _check_request(engine, device, precision)
    if precision != "auto" and precision not in bundle.variants and device in ("auto", "cpu"):
        _check_cpu(precision)
    variants = _variants(bundle, precision)
    engines = (engine,) if engine != "auto" else _installed(device)
    candidates = [
        Candidate(variant, name, place)
        for variant in variants
        for name in engines
        if name in variant.engines
        for place in _devices(name, device)
    ]
    if not candidates:
        wanted = f"{engine if engine != 'auto' else ' or '.join(engines)} on {device}"
        fit = "; ".join(f"{v.precision}: {', '.join(v.engines)}" for v in variants)
        raise EngineError(
            f"{bundle.model} cannot run with {wanted} at precision {precision}",
            next_step=f"It was made for {fit}.",
        )
    if device.startswith("cuda"):
        _check_cuda(candidates[0].engine, device)  # before a verification is announced
    return candidates


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
    if engine == "tensorrt":
        raise EngineError(
            "TensorRT engines are not available in this version",
            next_step="Use --engine openvino or --engine onnxruntime",
        )


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
            next_step=f"Make it: memcli export {bundle.model} --{precision} --calibration VIDEOS",
        )
    return [bundle.variants[precision]]


def _installed(device: str) -> tuple[EngineName, ...]:
    names = installed_runtimes()
    if not names:
        raise no_runtime_error()
    # Only ONNX Runtime reaches CUDA; asking OpenVINO would hide what is missing behind its error.
    return ("onnxruntime",) if device.startswith("cuda") else names


def _devices(name: EngineName, device: str) -> tuple[str, ...]:
    """Places to try one runtime in. `auto` is the CPU, and CUDA where the runtime has it."""
    if device != "auto":
        return (device,)
    if name == "onnxruntime" and _has_cuda():
        return ("cuda", "cpu")
    return ("cpu",)


def _has_cuda() -> bool:
    try:
        return "CUDAExecutionProvider" in import_runtime("onnxruntime").get_available_providers()
    except MemcliError:
        return False
