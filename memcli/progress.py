"""Who watches a run: a live bar on a terminal, a line now and then elsewhere, JSON for programs.

Everything here goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from memcli.text import plural, printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar

    from memcli.results import Row
    from memcli.table import Progress, Summary

_PLAIN_INTERVAL_S = 10.0
_JSON_INTERVAL_S = 1.0


def make_progress(*, quiet: bool, as_json: bool) -> Progress:
    """The watcher that fits the options and the terminal."""
    if as_json:
        return JsonProgress()
    if quiet:
        return QuietProgress()
    return BarProgress() if sys.stderr.isatty() else PlainProgress()


def say(text: str) -> None:
    """One message on standard error, made safe to show.

    A reader that went away or a full disk behind it ends the messages, never the run.
    """
    try:
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)
    except OSError:
        from memcli.app import silence

        silence(sys.stderr)


class QuietProgress:
    """Says nothing."""

    def message(self, text: str) -> None: ...

    def begin(self, summary: Summary) -> None: ...

    def advance(self, row: Row, summary: Summary) -> None: ...

    def end(self) -> None: ...


class PlainProgress(QuietProgress):
    """A line every ten seconds, for logs."""

    def __init__(self) -> None:
        self._next = 0.0

    def message(self, text: str) -> None:
        say(text)

    def begin(self, summary: Summary) -> None:
        for line in opening_lines(summary):
            say(line)
        self._next = time.monotonic() + _PLAIN_INTERVAL_S

    def advance(self, row: Row, summary: Summary) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PLAIN_INTERVAL_S
            say(
                f"{summary.done + summary.resumed}/{summary.total} videos, {summary.failed} failed,"
                f" {_speed(summary)},"
                f" {_clock(summary.eta_s)} left"
            )


class JsonProgress(QuietProgress):
    """One JSON object a line: `message`, `begin`, `progress` (at most one a second), `failed`."""

    def __init__(self) -> None:
        self._next = 0.0

    def message(self, text: str) -> None:
        json_event("message", text=text)

    def begin(self, summary: Summary) -> None:
        json_event("begin", **summary.to_dict())

    def advance(self, row: Row, summary: Summary) -> None:
        if row.status == "failed":
            json_event("failed", path=row.path, error_code=row.error_code, error=row.error)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _JSON_INTERVAL_S
            json_event(
                "progress",
                done=summary.done,
                resumed=summary.resumed,
                total=summary.total,
                failed=summary.failed,
                videos_per_s=round(summary.videos_per_s, 3),
                frames_per_s=round(summary.frames_per_s, 3),
                eta_s=round(summary.eta_s, 1),
            )


def json_event(event: str, **values: Any) -> None:
    """One line of JSON on standard error."""
    say(json.dumps({"event": event, **values}))


class BarProgress(QuietProgress):
    """A live bar: videos done and failed, videos/s, frames/s, time left."""

    def __init__(self) -> None:
        self._bar: RichBar | None = None

    def message(self, text: str) -> None:
        say(text)

    def begin(self, summary: Summary) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichBar

        for line in opening_lines(summary):
            say(line)
        self._bar = RichBar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(
            "scoring", total=summary.total, completed=summary.resumed, failed=0, speed=""
        )
        self._bar.start()

    def advance(self, row: Row, summary: Summary) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=1, failed=summary.failed, speed=_speed(summary))

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def opening_lines(summary: Summary) -> list[str]:
    """Model, licence and engine, before the first video."""
    lines = [
        f"{summary.bundle} with {summary.engine}",
        f"  {summary.reason}",
        f"  weights: {summary.weights_license}",
    ]
    if summary.decoder_reason:
        lines.append(f"  decoder: {summary.decoder} ({summary.decoder_reason})")
    if summary.resumed:
        failed = f" ({summary.resumed_failed:,} of them failed)" if summary.resumed_failed else ""
        lines.append(f"  {plural(summary.resumed, 'video')} already in {summary.output}{failed}")
    return lines


def closing_lines(summary: Summary) -> list[str]:
    """What was done, how fast, what limits it, and what failed and why."""
    counts = [plural(summary.ok, "video") + " scored"]
    if summary.partial:
        counts.append(f"{summary.partial:,} partially")
    counts.append(f"{summary.failed:,} failed")
    lines = [f"{', '.join(counts)} in {_clock(summary.elapsed_s)}"]
    if summary.bottleneck:
        lines[0] += f" ({_speed(summary)})"
        lines.append(
            f"bottleneck: {summary.bottleneck} (engine busy {summary.engine_busy_s:.1f} s,"
            f" decoding {summary.decode_busy_s:.1f} s over {plural(summary.workers, 'worker')})"
        )
    if summary.decoder != "cpu" and (on_cpu := summary.decoded_by.get("cpu")):
        lines.append(f"decoder: {plural(on_cpu, 'video')} on the CPU, which NVDEC does not take")
    if summary.decoder != "nvdec" and (on_host := summary.decoded_by.get("nvdec")):
        lines.append(f"decoder: {plural(on_host, 'video')} by NVDEC but resized on the CPU")
    if summary.failures:
        lines.append("failed:")
        lines += [f"  {printable(path)}: {reason}" for path, reason in summary.failures]
        if summary.failed > len(summary.failures):
            lines.append(f"  and {summary.failed - len(summary.failures):,} more, in the table")
    if summary.resumed_failed:
        count = plural(summary.resumed_failed, "video")
        lines.append(f"failed in an earlier run: {count} (--retry-failed tries again)")
    if summary.captions_cut:
        count = plural(summary.captions_cut, "caption")
        lines.append(f"cut: {count}, longer than the model reads")
    if summary.left_out:
        lines.append(f"left out: {plural(summary.left_out, 'file')} without the name of a video")
    if summary.interrupted:
        lines.append("interrupted: run the same command again to go on")
    lines.append(f"table: {summary.output}")
    return lines


def _speed(summary: Summary) -> str:
    """Videos and frames per second; only videos for a model that looks at no frames."""
    frames = f", {summary.frames_per_s:.1f} frames/s" if summary.frames_per_s else ""
    return f"{summary.videos_per_s:.2f} videos/s{frames}"


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
