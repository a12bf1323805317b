"""`memcli doctor`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import click

from memcli.commands.options import json_option
from memcli.errors import ExitCode

_INDENT = "  "
_LABEL_WIDTH = 14


@click.command(name="doctor")
@click.option(
    "--forget",
    is_flag=True,
    help="First forget which engines passed verification and how fast they were: the next use"
    " verifies and measures them again.",
)
@json_option("The report as JSON on standard output.")
def command(forget: bool, as_json: bool) -> int:
    """Show what this machine has and what memcli will use.

    Ends with exit code 3, and the next step to take, if no video could be scored here.

    Engines are verified and measured once and kept by their speed. Use --forget if the machine was
    busy then, or is a different one now.

    \b
    Examples:
      memcli doctor
      memcli doctor --json
      memcli doctor --forget
    """
    from memcli.diagnosis import examine

    if forget:
        from memcli.engines import records

        records.clear()
    report = examine()
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        # Colour on a terminal only; NO_COLOR as in https://no-color.org.
        color = False if os.environ.get("NO_COLOR") else None
        for line in _lines(report):
            click.echo(line, color=color)
    return ExitCode.OK if report["usable"] else ExitCode.NOT_USABLE


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    yield f"memcli {report['memcli']}"
    for title, rows in (
        ("machine", _machine_rows(report["machine"])),
        ("packages", _package_rows(report["packages"], report["notes"])),
        ("extras", _extra_rows(report["extras"])),
        ("storage", _storage_rows(report["storage"])),
        ("models", _model_rows(report["models"])),
        ("captioners", _captioner_rows(report["captioners"])),
        ("memcli score", _score_rows(report["score"])),
    ):
        yield ""
        yield click.style(title, bold=True)
        for label, text in rows:
            yield _row(label, text)
    yield ""
    if report["usable"]:
        yield click.style("videos can be scored here", fg="green")
        return
    yield click.style(_safe(f"videos cannot be scored here: {report['problem']}"), fg="red")
    yield from (f"{_INDENT}{_safe(line)}" for line in report["next_step"].splitlines())


def _safe(text: str) -> str:
    from memcli.text import printable

    return printable(text)


def _row(label: str, text: str) -> str:
    """One aligned line; an error of several lines keeps them, indented."""
    first, *more = [_safe(line) for line in text.splitlines()] or [""]
    lead = " " * (len(_INDENT) + _LABEL_WIDTH + 1)
    return "\n".join(
        [f"{_INDENT}{_safe(label):<{_LABEL_WIDTH}} {first}", *(lead + line for line in more)]
    )


def _bytes(size: int | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


Rows = Iterator[tuple[str, str]]


def _machine_rows(machine: dict[str, Any]) -> Rows:
    if "problem" in machine:
        yield "problem", machine["problem"]
        return
    cpu, memory, nvidia = machine["cpu"], machine["memory"], machine["nvidia"]
    yield "system", f"{machine['system']}, {machine['architecture']}"
    yield "python", f"{machine['python']}, {machine['executable']}"
    quota = "" if cpu["quota"] is None else f", limited to {cpu['quota']:g}"
    yield "cpu", f"{cpu['name']}, {cpu['cores_usable']} of {cpu['cores_total']} cores{quota}"
    yield "", f"features: {' '.join(cpu['features']) or 'none that runtimes choose kernels by'}"
    limit = "" if memory["limit"] is None else f", limited to {_bytes(memory['limit'])}"
    yield "memory", f"{_bytes(memory['total'])}, {_bytes(memory['available'])} available{limit}"
    for gpu in nvidia["gpus"]:
        details = [gpu["name"]]
        if gpu["memory_bytes"]:
            details.append(_bytes(gpu["memory_bytes"]))
        if gpu["compute_capability"]:
            details.append(f"compute capability {gpu['compute_capability']}")
        yield "gpu", ", ".join(details)
    if nvidia["jetson"]:
        yield "jetson", nvidia["jetson"]
    if nvidia["driver"] or nvidia["cuda"]:
        yield "driver", f"{nvidia['driver'] or 'version unknown'}, CUDA {nvidia['cuda'] or '?'}"
    if nvidia["note"]:
        yield "gpu", nvidia["note"]
    elif not nvidia["gpus"]:
        yield "gpu", "no NVIDIA GPU found"


def _package_rows(packages: dict[str, Any], notes: list[str]) -> Rows:
    for name, found in packages.items():
        if found["problem"]:
            yield name, f"does not load: {found['problem']}"
        elif found["version"] is None:
            yield name, "not installed"
        else:
            facts = f": {', '.join(found['facts'])}" if found["facts"] else ""
            yield name, found["version"].partition("-")[0] + facts
    for note in notes:
        yield "note", note


def _extra_rows(extras: dict[str, Any]) -> Rows:
    if "problem" in extras:
        yield "problem", extras["problem"]
        return
    for name, extra in extras.items():
        missing = ", ".join(extra["missing"])
        state = f"lacks {missing}: {extra['install']}" if missing else "installed"
        if extra["replaced_by"]:
            state = f"an alternative to {extra['replaced_by']}, which is installed"
        yield name, f"{extra['purpose']}: {state}"


def _storage_rows(storage: dict[str, Any]) -> Rows:
    if "problem" in storage:
        yield "problem", storage["problem"]
        return
    state = "" if storage["exists"] else ", not there yet"
    state += "" if storage["writable"] else ", NOT WRITABLE"
    yield "home", f"{storage['home']} ({storage['chosen_by']}){state}"
    yield "bundles", _bytes(storage["bundles_bytes"])
    yield "caches", _bytes(storage["cache_bytes"])
    yield "captions", f"{_bytes(storage['captions_bytes'])}, made by captioners and kept"
    yield "free disk", _bytes(storage["free_bytes"])


def _model_rows(models: dict[str, Any]) -> Rows:
    from memcli.diagnosis import engine_name

    if "problem" in models:
        yield "problem", models["problem"]
        return
    if not models["installed"]:
        yield "none", "installed"
    for model in models["installed"]:
        if model["problem"]:
            yield model["model"], model["problem"]
            continue
        yield model["model"], f"{_bytes(model['size_bytes'])}, {model['license']}"
        for entry in model["engines"]:
            speed = f", {entry['speed']}" if entry["speed"] else ""
            difference = f", {entry['difference']}" if entry["difference"] else ""
            yield "", f"{engine_name(entry)}: {entry['state']}{speed}{difference}"


def _captioner_rows(captioners: dict[str, Any]) -> Rows:
    if "problem" in captioners:
        yield "problem", captioners["problem"]
        return
    if not captioners["installed"]:
        yield "none", "installed: memcli export captioner"
    for one in captioners["installed"]:
        yield (
            one["captioner"],
            one["problem"]
            or f"{one['precision']}, {_bytes(one['size_bytes'])}, {one['license']}:"
            f" {one['question']}",
        )


def _score_rows(score: dict[str, Any]) -> Rows:
    if "problem" in score:
        yield "problem", score["problem"]
        return
    fetch = score["fetch"]
    yield "model", f"{score['model']}{'' if score['installed'] else ', not installed'}"
    if fetch:
        yield "fetches", f"{fetch['package']}, {_bytes(fetch['size_bytes'])}, once"
        yield "licence", f"{fetch['license']}: {fetch['license_note']}"
    yield "engine", score["engine"] or "decided at the first use"
    yield "why", score["reason"]
