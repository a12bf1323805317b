"""Who watches a run: a live bar on a terminal, a line now and then elsewhere, JSON for programs.

Everything here goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from memcli.text import plural, printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar

    from memcli.results import Row
    from memcli.summary import RunSummary
    from memcli.table import Progress, Summary

_PLAIN_INTERVAL_S = 10.0
_JSON_INTERVAL_S = 1.0


class FailedRow(Protocol):
    """What a watcher asks of a row."""

    @property
    def path(self) -> str: ...

    @property
    def status(self) -> str: ...

    @property
    def error_code(self) -> str | None: ...

    @property
    def error(self) -> str | None: ...


class Counts(Protocol):
    """What a watcher asks of a summary."""

    @property
    def done(self) -> int: ...

    @property
    def resumed(self) -> int: ...

    @property
    def total(self) -> int: ...

    @property
    def failed(self) -> int: ...

    @property
    def eta_s(self) -> float: ...

    def to_dict(self) -> dict[str, Any]: ...


C = TypeVar("C", bound=Counts)


@dataclass(frozen=True)
class Wording(Generic[C]):
    """How one kind of run is told."""

    opening: Callable[[C], list[str]]
    """Before the first row."""
    unit: str
    """Of the counts, e.g. `videos`."""
    speed: Callable[[C], str]
    rates: Callable[[C], dict[str, float]]
    """Speeds of a `progress` event."""


def make_progress(*, quiet: bool, as_json: bool) -> Progress[Row, Summary]:
    """The watcher of `memcli score` that fits the options and the terminal."""
    return watcher(SCORING, quiet=quiet, as_json=as_json)


def watcher(wording: Wording[C], *, quiet: bool, as_json: bool) -> QuietProgress[C]:
    """The watcher that fits the options and the terminal."""
    if as_json:
        return JsonProgress(wording)
    if quiet:
        return QuietProgress(wording)
    return BarProgress(wording) if sys.stderr.isatty() else PlainProgress(wording)


def say(text: str) -> None:
    """One message on standard error, made safe to show.

    A reader that went away or a full disk behind it ends the messages, never the run.
    """
    try:
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)
    except OSError:
        from memcli.app import silence

        silence(sys.stderr)


class QuietProgress(Generic[C]):
    """Says nothing."""

    def __init__(self, wording: Wording[C]):
        self._wording = wording

    def message(self, text: str) -> None: ...

    def begin(self, summary: C) -> None: ...

    def advance(self, row: FailedRow, summary: C) -> None: ...

    def end(self) -> None: ...


class PlainProgress(QuietProgress[C]):
    """A line every ten seconds, for logs."""

    _next = 0.0

    def message(self, text: str) -> None:
        say(text)

    def begin(self, summary: C) -> None:
        for line in self._wording.opening(summary):
            say(line)
        self._next = time.monotonic() + _PLAIN_INTERVAL_S

    def advance(self, row: FailedRow, summary: C) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PLAIN_INTERVAL_S
            say(
                f"{summary.done + summary.resumed}/{summary.total} {self._wording.unit},"
                f" {summary.failed} failed,"
                f" {self._wording.speed(summary)}"
                + (f", {clock(summary.eta_s)} left" if summary.done else "")
            )


class JsonProgress(QuietProgress[C]):
    """One JSON object a line: `message`, `begin`, `progress` (at most one a second), `failed`."""

    _next = 0.0

    def message(self, text: str) -> None:
        json_event("message", text=text)

    def begin(self, summary: C) -> None:
        json_event("begin", **summary.to_dict())

    def advance(self, row: FailedRow, summary: C) -> None:
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
                **{name: round(rate, 3) for name, rate in self._wording.rates(summary).items()},
                eta_s=round(summary.eta_s, 1),
            )


def json_event(event: str, **values: Any) -> None:
    """One line of JSON on standard error."""
    say(json.dumps({"event": event, **values}))


def conclude(
    summary: RunSummary,
    lines: Iterable[str],
    *,
    quiet: bool,
    as_json: bool,
    show: Callable[[], None] | None = None,
) -> int:
    """The end of a command: rows, if `show` shows them, and summary; gives the exit code."""
    if as_json:
        json_event("summary", **summary.to_dict())
    elif not quiet:
        if show is not None:
            with suppress(BrokenPipeError):  # `| head`; the exit code is that of the run
                show()
        for line in lines:
            say(line)
    return int(summary.exit_code)


class BarProgress(QuietProgress[C]):
    """A live bar: what is done and failed, speed, time left."""

    _bar: RichBar | None = None

    def message(self, text: str) -> None:
        say(text)

    def begin(self, summary: C) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichBar

        for line in self._wording.opening(summary):
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

    def advance(self, row: FailedRow, summary: C) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=summary.resumed + summary.done,
                failed=summary.failed,
                speed=self._wording.speed(summary),
            )

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
    if summary.captioner:
        lines.append(f"  captioner: {summary.captioner}, for videos without captions")
    return lines + summary.resumed_lines("video")


def closing_lines(summary: Summary) -> list[str]:
    """What was done, how fast, what limits it, and what failed and why."""
    counts = [plural(summary.ok, "video") + " scored"]
    if summary.partial:
        counts.append(f"{summary.partial:,} partially")
    counts.append(f"{summary.failed:,} failed")
    lines = [f"{', '.join(counts)} in {clock(summary.elapsed_s)}"]
    if summary.bottleneck:
        lines[0] += f" ({_speed(summary)})"
        busy = summary.captioner_busy_s
        captions = f" captioner {busy:.1f} s," if busy else ""
        lines.append(
            f"bottleneck: {summary.bottleneck} (engine busy {summary.engine_busy_s:.1f} s,"
            f"{captions} decoding {summary.decode_busy_s:.1f} s"
            f" over {plural(summary.workers, 'worker')})"
        )
    if summary.decoder != "cpu" and (on_cpu := summary.decoded_by.get("cpu")):
        lines.append(f"decoder: {plural(on_cpu, 'video')} on the CPU, which NVDEC does not take")
    if summary.decoder != "nvdec" and (on_host := summary.decoded_by.get("nvdec")):
        lines.append(f"decoder: {plural(on_host, 'video')} by NVDEC but resized on the CPU")
    lines += summary.failed_lines("video", summary.failed)
    if summary.caption_sources:
        counts = [f"{count:,} {name}" for name, count in sorted(summary.caption_sources.items())]
        lines.append(f"captions: {', '.join(counts)}")
    if summary.caption_notes:
        count = plural(summary.caption_notes, "video")
        lines.append(f"beside {count}: a file without captions in it; see caption_note")
    if summary.captions_cut:
        count = plural(summary.captions_cut, "caption")
        lines.append(f"cut: {count}, longer than the model reads")
    if summary.left_out:
        lines.append(f"left out: {plural(summary.left_out, 'file')} without the name of a video")
    return lines + summary.last_lines()


def _speed(summary: Summary) -> str:
    """Videos and frames per second; only videos for a model that looks at no frames."""
    frames = f", {summary.frames_per_s:.1f} frames/s" if summary.frames_per_s else ""
    return f"{summary.videos_per_s:.2f} videos/s{frames}"


SCORING: Wording[Summary] = Wording(
    opening=opening_lines,
    unit="videos",
    speed=_speed,
    rates=lambda summary: {
        "videos_per_s": summary.videos_per_s,
        "frames_per_s": summary.frames_per_s,
    },
)


def clock(seconds: float) -> str:
    """`4.2 s`, or `1:02:03` from a minute on."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
