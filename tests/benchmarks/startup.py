"""How long until `memcli --help` answers, against the bare interpreter.

    python -m tests.benchmarks.startup [--runs N] [--json]

The commands take turns, medians are compared. Target: at most 4 times `python -c pass`. Where it
is missed, the imports that cost most follow (`-X importtime`).
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from memcli.machine import cpu_label

TARGET = 4.0
_SHOWN_IMPORTS = 12
BARE = (sys.executable, "-c", "pass")
HELP = (sys.executable, "-m", "memcli", "--help")


def commands() -> dict[str, tuple[str, ...]]:
    """What is measured, by name; the first is the measure of the others."""
    found = {
        "python -c pass": BARE,
        # Editable installs and other .pth files slow the bare interpreter, and flatter the ratio.
        "python -S -c pass": (sys.executable, "-S", "-c", "pass"),
        "python -m memcli --help": HELP,
        "python -c 'import click'": (sys.executable, "-c", "import click"),
    }
    script = shutil.which("memcli")
    if script is not None:
        found["memcli --help"] = (script, "--help")
    return found


def wall_and_cpu(command: Sequence[str]) -> tuple[float, float]:
    """Seconds of wall clock and of processor time of one run."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(runs: int) -> dict[str, tuple[float, float]]:
    """Median wall and processor seconds of each command, in turns; one turn to warm up."""
    chosen = commands()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    for turn in range(runs + 1):
        for name, command in chosen.items():
            taken = wall_and_cpu(command)
            if turn > 0:
                times[name].append(taken)
    return {
        name: (
            statistics.median(wall for wall, _ in taken),
            statistics.median(spent for _, spent in taken),
        )
        for name, taken in times.items()
    }


def costly_imports() -> list[tuple[str, float]]:
    """Modules of `memcli --help` beyond the bare interpreter's, by their own milliseconds."""
    ours, bare = _import_times(HELP), _import_times(BARE)
    extra = [(name, own) for name, own in ours.items() if name not in bare]
    return sorted(extra, key=lambda entry: -entry[1])


def _import_times(command: Sequence[str]) -> dict[str, float]:
    done = subprocess.run(
        [command[0], "-X", "importtime", *command[1:]], check=True, capture_output=True, text=True
    )
    found = re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", done.stderr, re.MULTILINE)
    return {name: int(microseconds) / 1000 for microseconds, name in found}


def main() -> None:
    """Measure and print; always ends with 0."""
    parser = argparse.ArgumentParser(description="Start of the command line.")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    times = measure(arguments.runs)
    bare_wall, bare_cpu = next(iter(times.values()))
    rows = {
        name: {
            "wall_ms": wall * 1000,
            "cpu_ms": spent * 1000,
            "ratio": wall / bare_wall,
            "cpu_ratio": spent / bare_cpu if bare_cpu else None,
        }
        for name, (wall, spent) in times.items()
    }
    helps = [row["ratio"] or 0.0 for name, row in rows.items() if name.endswith("--help")]
    imports = costly_imports()[:_SHOWN_IMPORTS] if max(helps) > TARGET else []
    if arguments.json:
        head = {"machine": cpu_label(), "runs": arguments.runs, "target": TARGET}
        print(json.dumps({**head, "commands": rows, "costly_imports": imports}, indent=2))
        return
    print(f"{cpu_label()}, Python {sys.version.split()[0]}, medians of {arguments.runs}\n")
    print("| command | wall ms | cpu ms | ratio | cpu ratio | met |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for name, row in rows.items():
        ratio = row["ratio"] or 0.0
        met = ("yes" if ratio <= TARGET else "NO") if name.endswith("--help") else ""
        cpu_ratio = f"{row['cpu_ratio']:.2f}" if row["cpu_ratio"] else ""
        print(
            f"| `{name}` | {row['wall_ms']:.1f} | {row['cpu_ms']:.1f} | {ratio:.2f} |"
            f" {cpu_ratio} | {met} |"
        )
    if imports:
        print("\n| import | own ms |\n| --- | ---: |")
        for name, own in imports:
            print(f"| {name} | {own:.1f} |")


if __name__ == "__main__":
    main()
