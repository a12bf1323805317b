"""`memcli export captioner`: from a checkpoint to an installed captioner."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from memcli.errors import MissingDependencyError, UsageError
from memcli.spec import PRECISIONS

_TAKEN = ("fp32", "fp16", "int8")
_OWN = (*_TAKEN, "checkpoint", "size", "offline")
_DEFAULTS = {"target": "onnx"}


def run_export(models: Sequence[str], options: Mapping[str, Any]) -> None:
    """Make the captioners asked for and say what became of them.

    `options` are those of the command by name. Raises UsageError for options of other exports,
    MissingDependencyError without torch or transformers, and what `export_captioner` raises.
    """
    if len(models) > 1:
        raise UsageError("a captioner is exported alone: memcli export captioner")
    other: list[str] = [one for one in PRECISIONS if options.get(one) and one not in _TAKEN]
    other += [
        name
        for name, value in options.items()
        if name not in (*_OWN, *PRECISIONS) and value and value != _DEFAULTS.get(name)
    ]
    if other:
        raise UsageError(
            f"--{other[0].replace('_', '-')} does not apply to a captioner",
            next_step="Options: --checkpoint --size --fp32 --fp16 --int8 --offline",
        )
    if options.get("checkpoint") and options.get("size"):
        raise UsageError("--checkpoint and --size both say which captioner: name one")
    for package in ("torch", "transformers", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(
                package, purpose="exporting a captioner", install="pip install 'memcli[export,cpu]'"
            )
    import click

    from memcli.export.captioner import export_captioner
    from memcli.export.captioner_checkpoint import DEFAULT_SIZE, locate_captioner
    from memcli.progress import say
    from memcli.text import printable

    checkpoint = locate_captioner(
        options.get("checkpoint"),
        options.get("size") or DEFAULT_SIZE,
        offline=bool(options.get("offline")),
        report=say,
    )
    for precision in [name for name in _TAKEN if options.get(name)] or ["fp32"]:
        bundle = export_captioner(checkpoint, precision=precision, report=say)
        parity = bundle.parity
        line = (
            f"{bundle.name} ({bundle.precision}): {parity['agreement']:.1%} of {parity['tokens']} "
            f"tokens as by transformers, on {parity['frame_sets']} frame sets; {bundle.folder}"
        )
        click.echo(printable(line))
