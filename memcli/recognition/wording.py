"""What `memcli eeg` says before, during and after a run."""

from __future__ import annotations

from memcli.progress import Wording, clock
from memcli.recognition.run import EegSummary
from memcli.text import plural


def opening_lines(summary: EegSummary) -> list[str]:
    """Model and engine, before the first epoch."""
    lines = [f"{summary.bundle} with {summary.engine}", f"  {summary.reason}"]
    if summary.note:
        lines.append(f"  {summary.note}")
    return lines + summary.resumed_lines("recording")


def closing_lines(summary: EegSummary) -> list[str]:
    """What was done, how fast, what limits it, and what failed and why."""
    counts = [f"{plural(summary.epochs, 'epoch')} of {plural(summary.ok, 'recording')} scored"]
    counts += [f"{plural(summary.failed, 'recording')} failed"]
    if summary.resumed == summary.total:
        counts = ["nothing left to score: the table has all that was asked for"]
    if summary.epochs_failed:
        counts.append(f"{plural(summary.epochs_failed, 'epoch')} without a probability")
    lines = [f"{', '.join(counts)} in {clock(summary.elapsed_s)}"]
    if summary.bottleneck:
        lines[0] += f" ({_speed(summary)})"
        lines.append(
            f"bottleneck: {summary.bottleneck} (engine busy {summary.engine_busy_s:.1f} s,"
            f" reading {summary.read_busy_s:.1f} s over {plural(summary.readers, 'reader')})"
        )
    if summary.epochs:
        lines.append(
            f"recognised: {summary.recognised:,} of {plural(summary.epochs, 'epoch')}"
            f" at {summary.threshold:g} or more"
        )
    if summary.flagged:
        lines.append(f"flagged: {plural(summary.flagged, 'epoch')} (column flags)")
    if summary.skipped:
        count = plural(summary.skipped, "epoch")
        lines.append(f"left out: {count}, bad or with less than a window there")
    lines += summary.failed_lines("recording", summary.failed + summary.epochs_failed)
    lines += summary.last_lines()
    if summary.report and not summary.interrupted:
        lines.append(f"report: {summary.report}")
    if summary.note:
        lines.append(f"note: {summary.note}")
    return lines


def _speed(summary: EegSummary) -> str:
    return f"{summary.epochs_per_s:.1f} epochs/s"


RECOGNITION: Wording[EegSummary] = Wording(
    opening=opening_lines,
    unit="recordings",
    speed=_speed,
    rates=lambda summary: {"epochs_per_s": summary.epochs_per_s},
)
