"""Which checkpoint stands behind each encoder of a light file: where it is packed, and where it
is filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memcli.errors import ModelError, UsageError
from memcli.export.encoder_weights import EncoderWeights
from memcli.export.light_table import LightTable, Tower
from memcli.spec import EncoderSpec
from memcli.train.checkpoints import locate

if TYPE_CHECKING:
    from memcli.engines.bundle import Bundle
    from memcli.train.run import Run

Report = Callable[[str], None]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOCAL = "local folder "
"""How a bundle names an encoder that was no repository of the hub."""


def on_hub(spec: EncoderSpec) -> bool:
    """Whether the spec names one state of a repository on the hub."""
    return spec.revision is not None and _COMMIT.fullmatch(spec.revision) is not None


def described(spec: EncoderSpec) -> str:
    """An encoder in a few words, for people."""
    if on_hub(spec):
        return f"{spec.repository} at revision {spec.revision}"
    return repr(spec.repository)[1:-1]


def checkpoints_of(
    bundle: Bundle, run: Run | None, *, offline: bool, report: Report
) -> dict[Tower, Path]:
    """The folders of a bundle's encoders on the machine that has it.

    An encoder of the hub is found there or in its cache; for a local folder, `run` is the training
    that used it. Raises UsageError if the model has no encoder or nobody knows the folder;
    ModelError if it cannot be had.
    """
    if not bundle.spec.encoders:
        raise UsageError(f"{bundle.model} has no encoder to leave out: pack it without --light")
    folders: dict[Tower, Path] = {}
    for spec in bundle.spec.encoders:
        if on_hub(spec):
            folders[spec.tower] = locate(spec, offline=offline, report=report).folder
            continue
        used = next((one for one in run.encoders if one.tower == spec.tower), None) if run else None
        if used is None or not Path(used.folder).is_dir():
            raise UsageError(
                f"the {spec.tower} encoder of {bundle.model} is {described(spec)}, and the"
                " training that used it is not on this machine",
                next_step="Name its run (--run DIR), or pack the model without --light.",
            )
        folders[spec.tower] = Path(used.folder)
    return folders


@dataclass(frozen=True)
class Given:
    """A folder from `--encoder`."""

    folder: Path
    repository: str | None
    """None: of any."""


def find_given(values: Sequence[str], encoders: Sequence[EncoderSpec]) -> list[Given]:
    """`DIR` and `REPOSITORY=DIR` as folders.

    Raises UsageError for one that is no folder, or of a repository that the model does not use.
    """
    given = []
    for value in values:
        folder, repository = Path(value).expanduser(), None
        if not folder.is_dir() and "=" in value:
            repository, _, name = value.partition("=")
            folder = Path(name).expanduser()
        if not folder.is_dir():
            raise UsageError(f"there is no folder {str(folder)!r}", where="--encoder")
        known = {name for spec in encoders for name in _names(spec)}
        if repository is not None and repository not in known:
            raise UsageError(
                f"the model was not made with {repository!r}",
                where="--encoder",
                next_step=f"Its encoders: {', '.join(described(one) for one in encoders)}",
            )
        given.append(Given(folder.resolve(), repository))
    return given


def _names(spec: EncoderSpec) -> tuple[str, ...]:
    return (spec.repository, spec.repository.removeprefix(_LOCAL))


def given_or_hub(
    needed: Mapping[Tower, EncoderSpec],
    given: Sequence[Given],
    table: LightTable,
    offline: bool,
    report: Report,
) -> dict[Tower, Path]:
    """The folder of each encoder that is needed.

    A given folder without a repository is that of the encoders whose tensors it has, by name; of a
    model with a single repository it is that one. Raises UsageError for a given folder that is of
    no encoder, ModelError for an encoder that cannot be had.
    """
    single = len({spec.repository for spec in needed.values()}) == 1
    folders: dict[Tower, Path] = {}
    for tower, spec in needed.items():
        named = [one for one in given if one.repository in _names(spec)]
        plain = [one for one in given if one.repository is None]
        names = {one.tensor for one in table.tensors if one.tower == tower}
        fitting = named or [one for one in plain if single or _has(one.folder, names)]
        folders[tower] = fitting[0].folder if fitting else _from_hub(spec, offline, report)
    for one in given:
        if one.folder not in folders.values():
            raise UsageError(
                "this is none of the encoders that the model was made with",
                where=str(one.folder),
                next_step=f"They are: {', '.join(described(one) for one in needed.values())}",
            )
    return folders


def _has(folder: Path, names: set[str]) -> bool:
    with EncoderWeights(folder) as weights:
        return names <= weights.tensors.keys()


def _from_hub(spec: EncoderSpec, offline: bool, report: Report) -> Path:
    if not on_hub(spec):
        raise ModelError(
            f"this model was packed without its {spec.tower} encoder, {described(spec)}, which is"
            " not on the hub",
            next_step="Copy that folder here, and name it:  --encoder DIR",
        )
    try:
        return locate(spec, offline=offline, report=report).folder
    except UsageError as error:  # a name that nobody on the command line gave
        again = "The file is damaged: pack the model again."
        raise ModelError(error.what, next_step=again) from error
