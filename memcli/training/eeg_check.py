"""`memcli dataset check --dataset eeg`: what a training would work on, and what is wrong with it.

Nothing is trained and nothing kept in memory; torch is not needed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.text import plural, printable
from memcli.training.eeg_settings import EegSettings, make_eeg_spec, source_of

if TYPE_CHECKING:
    from memcli.train.datasets import DatasetError
    from memcli.train.eeg.reading import Labelled

NAME = "eeg"
_KINDS_SHOWN = 20
_OF_A_KIND = 5


@dataclass(frozen=True)
class EegCheck:
    """What was found."""

    root: str
    labelled: Labelled
    problems: tuple[DatasetError, ...]
    """Each once: one that every recording has is said of the first."""

    def report(self) -> dict[str, Any]:
        """As JSON values."""
        return self._summary() | {
            "problems": [
                {
                    "severity": "error",
                    "what": problem.what,
                    "where": problem.where,
                    "next_step": problem.next_step,
                }
                for problem in self.problems
            ]
        }

    def lines(self) -> list[str]:
        """The same for people."""
        report = self._summary()
        counts = report["subjects"].values()
        shown = report | {
            "subjects": f"{len(counts):,}, of {min(counts):,} to {max(counts):,} epochs"
            if counts
            else "0",
            "channels": f"{len(report['channels'])}: {' '.join(report['channels'])}",
            "notes": "; ".join(report["notes"]) or "none",
        }
        lines = [f"{key.replace('_', ' '):<14}{value}" for key, value in shown.items()]
        return [*lines, "", *self._listing()]

    def _summary(self) -> dict[str, Any]:
        found = self.labelled
        train = [row for row in found.rows if row.split != "test"]
        return {
            "dataset": NAME,
            "root": self.root,
            "recordings": found.recordings,
            "epochs": len(train),
            "recognised": sum(row.label for row in train),
            "subjects": dict(sorted(Counter(row.person for row in train).items())),
            "videos": len({row.video for row in train if row.video is not None}),
            "test_epochs": len(found.rows) - len(train),
            "channels": list(found.prep.channels) if found.rows else [],
            "demonstration": found.demonstration,
            "notes": list(found.notes),
        }

    def _listing(self) -> list[str]:
        if not self.problems:
            return ["no problem found"]
        groups: defaultdict[str, list[DatasetError]] = defaultdict(list)
        for problem in self.problems:
            groups[problem.what].append(problem)
        lines = []
        for what, found in list(groups.items())[:_KINDS_SHOWN]:
            lines += [
                f"{problem.where}: {what}" if problem.where else what
                for problem in found[:_OF_A_KIND]
            ]
            if len(found) > _OF_A_KIND:
                lines.append(f"  and {len(found) - _OF_A_KIND:,} more of these (--json lists all)")
            lines += [f"  {line}" for line in (found[0].next_step or "").splitlines()]
        if len(groups) > _KINDS_SHOWN:
            rest = sum(map(len, list(groups.values())[_KINDS_SHOWN:]))
            lines.append(f"and {plural(rest, 'other problem')} (--json lists all)")
        return [*lines, plural(len(self.problems), "error")]


def check_eeg(settings: EegSettings) -> EegCheck:
    """All problems that the data of a training with `settings` has.

    Raises UsageError for contradicting settings and where there is no recording at all, and
    MissingDependencyError without MNE.
    """
    from memcli.train.eeg.reading import read

    prep = make_eeg_spec(settings).eeg
    assert prep is not None
    found: dict[tuple[str, str | None], DatasetError] = {}

    def note(problem: DatasetError) -> None:
        found.setdefault((problem.what, problem.where), problem)

    labelled = read(source_of(settings), prep, keep=False, on_problem=note)
    return EegCheck(printable(str(Path(settings.data))), labelled, tuple(found.values()))
