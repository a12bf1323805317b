"""Which runtime, device and precision: as asked, or the fastest that passed verification here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from memcli.engines import records
from memcli.engines.base import Engine
from memcli.engines.bundle import Bundle, Variant, verify_files
from memcli.engines.candidates import (
    TENSORRT,
    Candidate,
    EngineChoice,
    PrecisionChoice,
    list_candidates,
)
from memcli.engines.loading import import_runtime
from memcli.engines.verify import ParityReport, verify
from memcli.errors import EngineError, MemcliError, ModelError, ParityError
from memcli.spec import Precision

__all__ = [
    "Candidate",
    "EngineChoice",
    "PrecisionChoice",
    "Selection",
    "list_candidates",
    "open_candidate",
    "open_engine",
]


@dataclass(frozen=True)
class Selection:
    """An open engine and why it is this one. The caller closes the engine."""

    engine: Engine
    variant: Variant
    reason: str
    """One line for people."""
    parity: ParityReport


@dataclass
class _Trial:
    """What is known so far about the candidates of one request."""

    bundle: Bundle
    threads: int | None
    report: Callable[[str], None]
    passed: dict[Candidate, ParityReport] = field(default_factory=dict)
    rejected: dict[Candidate, MemcliError] = field(default_factory=dict)
    open: dict[Candidate, Engine] = field(default_factory=dict)
    checked: set[Precision] = field(default_factory=set)

    def fastest(self) -> Candidate:
        return max(self.passed, key=lambda candidate: self.passed[candidate].clips_per_s)


def open_engine(
    bundle: Bundle,
    *,
    engine: EngineChoice = "auto",
    device: str = "auto",
    precision: PrecisionChoice = "auto",
    threads: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Selection:
    """Open the engine that was asked for; `auto` is the fastest that passed verification.

    `device` is `auto`, `cpu` or `cuda[:N]`. The first use of a variant on a machine verifies it
    and measures its speed, which takes seconds and is announced through `report`; the result is
    kept in `verified.json`. The hashes of the variant's files are checked every time.

    Raises UsageError for a request that makes no sense, ModelError if the bundle is damaged or
    lacks the precision, MissingDependencyError, EngineError or DeviceError if what was asked for
    is not here, ParityError if no candidate reproduces the reference. Never opens anything else
    than what was asked for.
    """
    candidates = list_candidates(bundle, engine=engine, device=device, precision=precision)
    trial = _Trial(bundle, threads, report)
    try:
        for candidate in candidates:
            _try(trial, candidate)
        while trial.passed:
            winner = trial.fastest()
            if winner in trial.open:
                reason = _reason(trial, winner, asked=len(candidates) == 1)
                chosen = trial.open.pop(winner)
                return Selection(chosen, winner.variant, reason, trial.passed[winner])
            parity = trial.passed.pop(winner)
            if winner.engine in TENSORRT:
                _try(trial, winner)  # its plan may be another by now
            elif _open(trial, winner):
                trial.passed[winner] = parity
    finally:
        for opened in trial.open.values():
            opened.close()
    raise _none_passed(trial)


def open_candidate(
    bundle: Bundle,
    candidate: Candidate,
    *,
    threads: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Selection:
    """Open just this one; verifies and raises as `open_engine` does."""
    return open_engine(
        bundle,
        engine=candidate.engine,
        device=candidate.device,
        precision=candidate.variant.precision,
        threads=threads,
        report=report,
    )


def _try(trial: _Trial, candidate: Candidate) -> None:
    """Find out whether a candidate passes: from the records, else by verifying it now.

    What was verified is a compiled plan, where there is one: only the loaded plan says which.
    """
    try:
        plan = None
        if candidate.engine in TENSORRT:
            if not _open(trial, candidate):
                return
            plan = _plan_of(trial.open[candidate])
        parity = records.load(_key(trial, candidate, plan))
        if parity is None:
            trial.report(f"verifying {candidate} (first use on this machine) ...")
            if candidate not in trial.open and not _open(trial, candidate):
                return
            parity = _verify_now(trial, candidate, trial.open[candidate])
    except ModelError:
        raise  # a damaged bundle ends the request: the next precision would be something else
    except MemcliError as error:
        _reject(trial, candidate, error)
        return
    if not parity.passed:
        _reject(trial, candidate, _parity_error(trial.bundle, candidate, parity))
        return
    trial.passed[candidate] = parity
    for loser in [other for other in trial.open if other != trial.fastest()]:
        trial.open.pop(loser).close()  # one large model in memory at a time


def _plan_of(engine: Engine) -> str | None:
    """SHA-256 of the plan that an engine computes with, None where it has none."""
    from memcli.engines.tensorrt import TensorRtEngine

    return engine.plan_sha256 if isinstance(engine, TensorRtEngine) else None


def _key(trial: _Trial, candidate: Candidate, plan: str | None) -> records.RecordKey:
    return records.RecordKey(
        candidate.variant,
        candidate.engine,
        import_runtime(candidate.engine).__version__,
        candidate.device,
        None if candidate.engine in TENSORRT else trial.threads,
        plan,
    )


def _verify_now(trial: _Trial, candidate: Candidate, engine: Engine) -> ParityReport:
    parity = verify(engine, trial.bundle, candidate.variant)
    plan = _plan_of(engine) if candidate.engine in TENSORRT else None
    records.store(_key(trial, candidate, plan), parity)
    trial.report(f"{candidate}: {_verdict(parity)}")
    return parity


def _check_wider(trial: _Trial, candidate: Candidate, engine: Engine) -> None:
    """Verify the plan that replaced an engine's first. Raises ParityError."""
    parity = records.load(_key(trial, candidate, _plan_of(engine)))
    if parity is None:
        trial.report(f"verifying {candidate} with wider shapes ...")
        parity = _verify_now(trial, candidate, engine)
    if not parity.passed:
        raise _parity_error(trial.bundle, candidate, parity)


def _open(trial: _Trial, candidate: Candidate) -> bool:
    """Open a candidate after checking its files; False, with the error kept, if that fails."""
    variant = candidate.variant
    if variant.precision not in trial.checked:
        verify_files(trial.bundle, variant)
        trial.checked.add(variant.precision)
    try:
        trial.open[candidate] = _open_graph(trial, candidate)
    except MemcliError as error:
        _reject(trial, candidate, error)
        return False
    return True


def _open_graph(trial: _Trial, candidate: Candidate) -> Engine:
    bundle, variant = trial.bundle, candidate.variant
    if candidate.engine == "tensorrt" or candidate.engine == "tensorrt-rtx":
        from memcli.engines.tensorrt import open_tensorrt
        from memcli.engines.tensorrt_plan import compiled_graph

        return open_tensorrt(
            compiled_graph(bundle, variant, candidate.engine),
            flavour=candidate.engine,
            device=candidate.device,
            precision=variant.precision,
            spec=bundle.spec,
            label=f"{bundle.model} {variant.precision}",
            report=trial.report,
            check=lambda engine: _check_wider(trial, candidate, engine),
        )
    from memcli.engines.onnxruntime import open_onnxruntime
    from memcli.engines.openvino import open_openvino

    open_graph = open_openvino if candidate.engine == "openvino" else open_onnxruntime
    return open_graph(
        bundle.graph_path(variant, candidate.engine),
        device=candidate.device,
        precision=variant.precision,
        threads=trial.threads,
    )


def _reject(trial: _Trial, candidate: Candidate, error: MemcliError) -> None:
    trial.rejected[candidate] = error
    if candidate in trial.open:
        trial.open.pop(candidate).close()


def _parity_error(bundle: Bundle, candidate: Candidate, parity: ParityReport) -> ParityError:
    again = f"pull {bundle.model}" if bundle.spec.weights is not None else "add FILE.memcli"
    return ParityError(
        f"{candidate} does not reproduce the scores of {bundle.model}: {parity.numbers()}",
        next_step=f"Use another engine, or install the model again: memcli models {again}",
    )


def _verdict(parity: ParityReport) -> str:
    if not parity.passed:
        return f"refused, {parity.numbers()}"
    return f"passed, {parity.rate:.1f} {parity.unit}"


def _reason(trial: _Trial, winner: Candidate, *, asked: bool) -> str:
    """E.g. `openvino at fp32: fastest of 2 verified (8.1 against 6.0 frames/s)`."""
    ranked = sorted(trial.passed.values(), key=lambda parity: -parity.clips_per_s)
    best = ranked[0]
    if len(ranked) > 1:
        others = ", ".join(f"{parity.rate:.1f}" for parity in ranked[1:])
        reason = f"fastest of {len(ranked)} verified ({best.rate:.1f} against {others} {best.unit})"
    else:
        reason = "as asked" if asked else "the only one that passed verification"
        reason += f", verified ({best.rate:.1f} {best.unit})"
    refused = "".join(f"; not {loser}: {error.what}" for loser, error in trial.rejected.items())
    return f"{winner}: {reason}{refused}"


def _none_passed(trial: _Trial) -> MemcliError:
    """The one error, or all of them in one, of the most telling kind."""
    errors = trial.rejected
    if len(errors) == 1:
        return next(iter(errors.values()))
    kind = ParityError if any(isinstance(e, ParityError) for e in errors.values()) else EngineError
    return kind(
        f"no engine can run {trial.bundle.model}",
        next_step="\n".join(f"{candidate}: {error.what}" for candidate, error in errors.items()),
    )
