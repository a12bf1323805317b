"""`report.md` and `report.json` from what `tests/gpu/run.sh` left in a folder."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.gpu.throughput import COMPILED, EAGER


def main(arguments: Sequence[str]) -> None:
    """`report.py FOLDER`: reads tests.xml and benchmark.json there, either of which may be missing
    because its step failed."""
    (folder,) = map(Path, arguments)
    report = {"tests": _tests(folder / "tests.xml"), "benchmark": _json(folder / "benchmark.json")}
    report["targets"] = targets(report["benchmark"])
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _tests(path: Path) -> list[dict[str, str]] | None:
    if not path.exists():
        return None
    cases = []
    for case in ElementTree.parse(path).iter("testcase"):
        problem = next((one for one in case if one.tag in ("failure", "error", "skipped")), None)
        outcome = "passed" if problem is None else problem.tag
        lines = "" if problem is None else problem.get("message", "")
        said = next(iter(lines.splitlines()), "")
        cases.append({"name": case.get("name", ""), "outcome": outcome, "message": said})
    return cases


def targets(found: Any) -> list[dict[str, Any]]:
    """Each target with what was measured; `met` is None where there is nothing to compare."""
    if found is None:
        return []
    speeds = {one["name"]: one["frames_per_s"] for one in found["throughput"]}
    engines = {name: rate for name, rate in speeds.items() if not name.startswith("PyTorch")}
    best = max((rate for name, rate in engines.items() if "fp16" in name and rate), default=None)
    rows = []
    for peer, least in ((COMPILED, 1.0), (EAGER, 2.0)):
        other = speeds.get(peer)
        ratio = best / other if best and other else None
        rows.append(_target(f"best fp16 engine over {peer}", f"≥ {least:g} ×", ratio, least))
    for row in found["end_to_end"]:
        name = f"{row['candidate']}, decoding on {row['decoder']}"
        ratio = 1 / row["ratio"] if row.get("ratio") else None
        rows.append(_target(f"end to end over the slower stage: {name}", "≥ 0.9 ×", ratio, 0.9))
        if row.get("bottleneck") == "engine":
            idle = row.get("gpu_idle_share")
            met = None if idle is None else idle < 0.1
            what = f"GPU idle: {name}"
            rows.append({"what": what, "target": "< 0.1", "measured": idle, "met": met})
    return rows


def _target(what: str, target: str, measured: float | None, least: float) -> dict[str, Any]:
    met = None if measured is None else measured >= least
    return {"what": what, "target": target, "measured": measured, "met": met}


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    found = report["benchmark"]
    lines = ["# GPU report", ""]
    if found is not None and found["rehearsal"]:
        lines += ["**A rehearsal: a tiny model on the CPU. No number here means anything.**", ""]
    lines += _machine_lines(found)
    lines += ["## Tests", "", *_test_lines(report["tests"]), ""]
    if found is None:
        return "\n".join([*lines, "The benchmark did not finish.", ""])
    lines += ["## Targets", "", "| what | target | measured | |", "| --- | --- | ---: | --- |"]
    for row in report["targets"]:
        met = {True: "met", False: "missed", None: "not measured"}[row["met"]]
        lines.append(f"| {row['what']} | {row['target']} | {_number(row['measured'])} | {met} |")
    lines += ["", f"## Frames per second, {found['batch']} frames at once", ""]
    lines.append(f"Measured matrix rate: {found['matrix_flops'] / 1e12:.1f} TFLOP/s (fp16).")
    lines += ["", "| what | frames/s | share of the matrix rate |", "| --- | ---: | ---: |"]
    for row in found["throughput"]:
        share = _number(row["share_of_matrix_rate"])
        said = row["problem"] or _number(row["frames_per_s"])
        lines.append(f"| {row['name']} | {said} | {share} |")
    lines += [f"\nNot made: {name}: {why}" for name, why in found["not_made"].items()]
    lines += ["", "## End to end", ""]
    lines.append("| engine | decoder | decode | engine alone | together | bottleneck | GPU idle |")
    lines.append("| --- | --- | ---: | ---: | ---: | --- | ---: |")
    for row in found["end_to_end"]:
        rates = [_number((row.get(k) or {}).get("videos_per_s")) for k in _STAGES]
        last = [row.get("bottleneck") or row.get("problem", ""), _number(row.get("gpu_idle_share"))]
        lines.append(f"| {' | '.join([row['candidate'], row['decoder'], *rates, *last])} |")
    lines += [f"\n{row['decoder']}: {row['decoder_reason']}" for row in _chosen(found)]
    return "\n".join([*lines, ""])


_STAGES = ("decode", "engine", "end_to_end")


def _chosen(found: Any) -> list[dict[str, Any]]:
    return [row for row in found["end_to_end"] if "decoder_reason" in row]


def _machine_lines(found: Any) -> list[str]:
    if found is None:
        return []
    nvidia = found["machine"]["nvidia"]
    gpus = ", ".join(gpu["name"] for gpu in nvidia["gpus"]) or "no GPU"
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return [
        f"**Machine**: {gpus}, driver {nvidia['driver']}, {found['machine']['cpu']['name']},"
        f" {found['machine']['cpu']['cores_usable']} cores, {found['machine']['system']},"
        f" Python {found['machine']['python']}.",
        f"**Packages**: torch {found['torch']}; {packages}.",
        "",
    ]


def _test_lines(cases: list[dict[str, str]] | None) -> list[str]:
    if cases is None:
        return ["The tests did not finish."]
    passed = sum(case["outcome"] == "passed" for case in cases)
    rest = [case for case in cases if case["outcome"] != "passed"]
    listed = [f"- {case['name']}: {case['outcome']}: {case['message']}" for case in rest]
    return [f"{passed} of {len(cases)} passed.", *listed]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main(sys.argv[1:])
