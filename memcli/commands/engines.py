"""`memcli engines`: list, show, verify, add, clear."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memcli.commands.options import OrderedGroup, json_option
from memcli.errors import ExitCode, MemcliError, UsageError
from memcli.text import plural, printable

if TYPE_CHECKING:
    from memcli.engines.plans import StoredPlan

_SHOWN = 12
"""Characters of a key; fewer do where they are unambiguous."""


@click.group(name="engines", cls=OrderedGroup, invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, check, add and delete compiled TensorRT engines.

    TensorRT compiles a model for one kind of GPU, which takes from seconds to minutes; the result
    is kept. Deleting it costs only that time.

    \b
    Examples:
      memcli engines
      memcli engines show 3f2a
      memcli engines verify
      memcli engines add ./engines-from-the-workstation
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@command.command(name="list")
@json_option("The list as JSON on standard output.")
def list_(as_json: bool = False) -> None:
    """List the engines that are kept on this machine.

    \b
    Examples:
      memcli engines list
      memcli engines list --json
    """
    from memcli.engines import plans
    from memcli.terminal import print_table

    found = plans.stored()
    if as_json:
        click.echo(json.dumps([_entry(plan) for plan in found], indent=2))
        return
    unreadable = plans.unreadable()
    if not found and not unreadable:
        click.echo("no engines: they are built at the first use of --engine tensorrt")
        return
    print_table(
        ("engine", "model", "runtime", "for", "shapes", "MB", "built in", "age", "file"),
        [_row(plan) for plan in found],
        right=("MB", "built in", "age"),
    )
    for name, problem in unreadable.items():
        click.echo(printable(f"{name[:_SHOWN]}  not usable: {problem}"))
    click.echo("Only sizes were looked at; memcli engines verify checks what is in the files.")


@command.command(name="show")
@click.argument("key")
@click.option("--layers", is_flag=True, help="What the engine computes, layer by layer, as JSON.")
@json_option("The entry as JSON on standard output.")
def show(key: str, layers: bool, as_json: bool) -> None:
    """Show what an engine was built from and for.

    KEY is the beginning of its name in `memcli engines list`. --layers needs the GPU that the
    engine is for.

    \b
    Examples:
      memcli engines show 3f2a
      memcli engines show 3f2a --layers
    """
    from memcli.engines import plans

    plan = plans.named(key)
    if layers:
        click.echo(_layers(plan))
        return
    if as_json:
        click.echo(json.dumps(_entry(plan), indent=2))
        return
    options = ", ".join(f"{name} {value}" for name, value in plan.key.options.items())
    for line in (
        f"engine    {plan.key.name()}",
        f"model     {plan.label or 'not named'} (graph {plan.key.graph[:_SHOWN]})",
        f"runtime   {plan.key.flavour} {plan.key.version}, {plan.key.platform}",
        f"for       {_target(plan)}",
        *(f"driver    {plan.key.driver}" for _ in range(plan.key.driver is not None)),
        *(f"{_axis(name)} {_range(sizes)}" for name, sizes in plan.key.profile.items()),
        f"options   {options}",
        f"built     {_date(plan.created)} in {plan.seconds:.0f} s",
        f"file      {plan.path} ({plan.size_bytes / 1e6:.1f} MB)",
        f"SHA-256   {plan.sha256}",
    ):
        click.echo(printable(line))


@command.command(name="verify")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.pass_context
def verify(ctx: click.Context, keys: tuple[str, ...]) -> None:
    """Check engines: their hash, and on their GPU whether they load.

    Without KEY all of them. Whether an engine gives the right scores is checked at its first use
    with a model. Exit code 3 if one is damaged or does not load.

    \b
    Examples:
      memcli engines verify
      memcli engines verify 3f2a
    """
    from memcli.engines import plans

    damaged = {
        name: problem
        for name, problem in plans.unreadable().items()
        if not keys or name.startswith(tuple(filter(None, keys)))
    }
    wanted = [key for key in keys if not key or not any(name.startswith(key) for name in damaged)]
    found = [plans.named(key) for key in wanted] if keys else plans.stored()
    bad = len(damaged)
    for name, problem in damaged.items():
        click.echo(printable(f"{name[:_SHOWN]}  not usable: {problem}"))
    for plan in found:
        trouble, note = _check(plan)
        bad += trouble is not None
        state = f"not usable: {trouble}" if trouble else f"ok, {note}"
        click.echo(printable(f"{plan.key.name()[:_SHOWN]}  {plan.label}: {state}"))
    if not found and not damaged:
        click.echo("no engines")
    if bad:
        ctx.exit(int(ExitCode.NOT_USABLE))


@command.command(name="add")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def add(folder: Path) -> None:
    """Install engines that were built on another machine.

    FOLDER is what `memcli export MODEL --target tensorrt-rtx --output FOLDER` wrote. An engine is
    machine code for the GPU: add only those of people you trust.

    \b
    Examples:
      memcli engines add ./engines
    """
    from memcli.engines import plans, records
    from memcli.progress import say

    before = {plan.key.name(): plan.sha256 for plan in plans.stored()}
    added = plans.add(folder, report=say)
    replaced = {before[plan.key.name()] for plan in added if plan.key.name() in before}
    # What was verified here was made here: what came from elsewhere is verified at its first use.
    records.forget(replaced | {plan.sha256 for plan in added})
    click.echo(printable(f"added {plural(len(added), 'engine')} to {plans.plans_dir()}"))


@command.command(name="clear")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--all", "everything", is_flag=True, help="All engines.")
def clear(keys: tuple[str, ...], everything: bool) -> None:
    """Delete engines. They are built again when they are needed.

    \b
    Examples:
      memcli engines clear 3f2a
      memcli engines clear --all
    """
    from memcli.engines import plans

    if everything == bool(keys):
        raise UsageError(
            "name the engines to delete, or --all", next_step="List them: memcli engines list"
        )
    if everything:
        click.echo(f"deleted {plural(plans.clear(), 'engine')}")
        return
    found = [plans.named(key) for key in keys]
    for plan in {one.key.name(): one for one in found}.values():
        plans.remove(plan)
        click.echo(printable(f"deleted {plan.key.name()[:_SHOWN]} {plan.label}"))


def _check(plan: StoredPlan) -> tuple[str | None, str]:
    """Why an engine is not usable, or None; and how far that was looked at."""
    from memcli.engines.cuda import Cuda
    from memcli.engines.tensorrt import deserialise
    from memcli.engines.tensorrt_flavour import load_flavour, make_log, reason

    if problem := plan.problem():
        return problem, ""
    try:
        flavour = load_flavour(_flavour(plan))
        if flavour.version != plan.key.version:
            return None, f"its hash; not loaded: {flavour.title} is {flavour.version} here"
        facts = Cuda().facts()
    except MemcliError as error:
        return None, f"its hash; not loaded: {error.what}"
    if facts.capability != plan.key.capability or plan.key.gpu not in (None, facts.name):
        return None, f"its hash; not loaded: it is for {_target(plan)}, not for {facts.name}"
    log = make_log(flavour.trt)
    try:
        content = plan.path.read_bytes()
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}", ""
    if deserialise(flavour, log, content) is None:
        return f"it does not load: {reason(log, 'no reason given')}", ""
    return None, "and it loads"


def _layers(plan: StoredPlan) -> str:
    from memcli.engines.tensorrt_build import layers
    from memcli.engines.tensorrt_flavour import load_flavour

    if problem := plan.problem():
        raise UsageError(problem, where=str(plan.path))
    return layers(load_flavour(_flavour(plan)), plan.path.read_bytes())


def _flavour(plan: StoredPlan) -> Any:
    from memcli.engines.candidates import TENSORRT

    if plan.key.flavour not in TENSORRT:
        raise UsageError(f"an engine of an unknown runtime {plan.key.flavour!r}")
    return plan.key.flavour


def _entry(plan: StoredPlan) -> dict[str, Any]:
    return {
        "name": plan.key.name(),
        "path": str(plan.path),
        "file": _file(plan),
        **plan.to_dict(),
    }


def _file(plan: StoredPlan) -> str:
    """What is known of the file without reading it."""
    return "not checked" if plan.is_there() else "damaged"


def _row(plan: StoredPlan) -> list[str]:
    shapes = ", ".join(f"{name} {_range(sizes)}" for name, sizes in plan.key.profile.items())
    return [
        plan.key.name()[:_SHOWN],
        plan.label or plan.key.graph[:_SHOWN],
        f"{plan.key.flavour} {plan.key.version}",
        _target(plan),
        shapes,
        f"{plan.size_bytes / 1e6:.1f}",
        f"{plan.seconds:.0f} s",
        _age(plan.created),
        _file(plan),
    ]


def _target(plan: StoredPlan) -> str:
    return plan.key.gpu or f"compute capability {plan.key.capability}"


def _range(sizes: list[int]) -> str:
    return f"{sizes[0]} to {sizes[2]}" if sizes[0] != sizes[2] else str(sizes[0])


def _axis(name: str) -> str:
    return name.ljust(9)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _age(created: float) -> str:
    days = max(0.0, time.time() - created) / 86400
    return f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} h"
