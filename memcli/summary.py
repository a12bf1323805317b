"""What the summaries of all runs have in common: counts, the time left, the exit code."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from memcli.errors import ExitCode
from memcli.text import plural, printable

LISTED_FAILURES = 20


@dataclass(kw_only=True)
class RunSummary:
    """What a run did. Counts and speeds are of this run, not of the earlier ones it resumed."""

    output: str
    total: int
    """Files asked for."""
    resumed: int
    """Of these, already in the table."""
    resumed_failed: int
    """Of these, failed."""
    ok: int = 0
    partial: int = 0
    failed: int = 0
    elapsed_s: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of the first failures."""
    interrupted: bool = False

    @property
    def done(self) -> int:
        """Files of this run that have their rows."""
        return self.ok + self.partial + self.failed

    @property
    def eta_s(self) -> float:
        """Seconds left at the speed so far."""
        left = self.total - self.resumed - self.done
        return left * self.elapsed_s / self.done if self.done else 0.0

    @property
    def exit_code(self) -> ExitCode:
        """Of the command."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        failed = self.failed + self.resumed_failed
        return ExitCode.SOME_INPUTS_FAILED if failed else ExitCode.OK

    def count_video(self, status: str, path: str, error: str | None) -> None:
        """Take a row with one file's `status` into the figures."""
        if status == "ok":
            self.ok += 1
        elif status == "partial":
            self.partial += 1
        else:
            self.failed += 1
            self.note_failure(path, error)

    def note_failure(self, where: str, error: str | None) -> None:
        """Keep one of the first failures to list."""
        if len(self.failures) < LISTED_FAILURES:
            self.failures.append((where, error or ""))

    def resumed_lines(self, noun: str) -> list[str]:
        """How many `noun`s the table had already; no line if none."""
        if not self.resumed:
            return []
        failed = f" ({self.resumed_failed:,} of them failed)" if self.resumed_failed else ""
        return [f"  {plural(self.resumed, noun)} already in {self.output}{failed}"]

    def failed_lines(self, noun: str, failed: int) -> list[str]:
        """What `failed` and why, as far as it is kept, and how many `noun`s did in earlier runs."""
        lines = ["failed:"] if self.failures else []
        lines += [f"  {printable(where)}: {reason}" for where, reason in self.failures]
        if self.failures and failed > len(self.failures):
            lines.append(f"  and {failed - len(self.failures):,} more, in the table")
        if self.resumed_failed:
            count = plural(self.resumed_failed, noun)
            lines.append(f"failed in an earlier run: {count} (--retry-failed tries again)")
        return lines

    def last_lines(self) -> list[str]:
        """Where the table is, and how to go on with it."""
        again = ["interrupted: run the same command again to go on"] if self.interrupted else []
        return [*again, f"table: {self.output}"]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "done": self.done, "exit_code": int(self.exit_code)}
