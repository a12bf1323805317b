"""Packing a model without the weights of its public encoders (`memcli export --light`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from memcli import store
from memcli.errors import ModelError

if TYPE_CHECKING:
    from memcli.engines.bundle import Bundle
    from memcli.train.run import Run


def pack_light(
    bundle: Bundle, target: Path, *, run: Path | None, offline: bool, report: Callable[[str], None]
) -> list[str]:
    """Write the fp32 precision of a bundle to the `.memcli` file `target` without what its
    encoders' checkpoints hold; gives lines that say what is left out.

    The checkpoints are those of the hub, or of the training `run`, by default the model's latest.
    Raises UsageError if nothing can be left out or nobody knows the encoder, ModelError if one
    cannot be had or the bundle is damaged, OutputError if the disk does not take the file.
    """
    from memcli.export.light import find_left_out, write_light
    from memcli.export.light_encoders import checkpoints_of, described

    folders = checkpoints_of(bundle, _run(bundle.model, run), offline=offline, report=report)
    report(f"looking for the weights of {bundle.model} in its encoders")
    table = find_left_out(bundle, folders)
    with store.new_archive(target) as archive:
        write_light(archive, bundle, table)
    names = bundle.variants["fp32"].files
    whole = sum((bundle.root / name).stat().st_size for name in names)
    needed = [one for one in bundle.spec.encoders if one.tower in table.towers()]
    return [
        f"packed into {target}: {_mb(target.stat().st_size)}; {_mb(table.left_out)} of"
        f" {_mb(whole)} are left out",
        *dict.fromkeys(f"memcli models add will need {described(one)}" for one in needed),
    ]


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _run(model: str, folder: Path | None) -> Run | None:
    """The run that was named, or the model's latest; None if it was not trained here."""
    from memcli.train.run import latest_run, read_run

    if folder is not None:
        return read_run(folder)
    try:
        return read_run(latest_run(model))
    except ModelError:
        return None
