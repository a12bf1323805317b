"""Going on with an interrupted training: is everything still the same, wherever it lies now?

What has changed or is gone is a UsageError (exit code 2), dataset and encoder alike: the command
cannot be carried out as asked, and no part of memcli is unusable.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from memcli.errors import ModelError, UsageError, is_interrupt
from memcli.spec import ModelSpec
from memcli.text import printable
from memcli.train.datasets import DatasetError
from memcli.training.inputs import Encoder, Tower, named_encoders
from memcli.training.settings import TrainSettings

if TYPE_CHECKING:
    from memcli.train.run import EncoderUse, Run

_OPTIONS: dict[Tower, str] = {"vision": "--encoder", "text": "--text-encoder"}
_RENAMED = {"options": "set", "precision": "mixed-precision"}
_NO_OPTIONS = ("model", "output", "device", "workers", "offline", "save_every_s")


def train_anew(settings: TrainSettings) -> str:
    """The command that begins the same training again, in another folder."""
    words = ["memcli", "train", settings.model]
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        if one.name in _NO_OPTIONS or value in (None, one.default, {}):
            continue
        if one.name == "devices" and value == 1:
            continue
        option = f"--{_RENAMED.get(one.name, one.name.replace('_', '-'))}"
        if value is True:
            words.append(option)
        elif isinstance(value, dict):
            for key, chosen in value.items():
                words += [option, f"{key}={chosen}"]
        else:
            text = format(value * 100, ".12g") if one.name == "max_missing" else str(value)
            words += [option, text]
    return " ".join(map(shlex.quote, words))


def tell(run: Run, error: BaseException, say: Callable[[str], None]) -> None:
    """Say how to go on with a training that `error` ended, if that is of any use."""
    if helps(error):
        say(
            "what is finished is kept; to go on:\n"
            f"  memcli train {run.model} --resume {shlex.quote(str(run.folder))}"
        )


def helps(error: BaseException) -> bool:
    """Whether the same command, given again with `--resume`, may get further than `error`.

    It does after an interrupt and once there is memory or room; what is wrong with the dataset, an
    encoder or a setting stays so.
    """
    return is_interrupt(error) or not isinstance(error, (UsageError, ModelError))


def check_dataset_is_there(settings: TrainSettings) -> None:
    """Raises DatasetError, saying where the dataset of a resumed run was, if it is gone."""
    if not settings.data.exists():
        raise DatasetError(
            f"the dataset of this run was at {printable(str(settings.data))}",
            next_step="Put it back, or name it:  --data DIR",
        )


def check_same_dataset(run: Run, key: str, digest: str, settings: TrainSettings) -> None:
    """Raises DatasetError if the run has another `digest` under the `key` of its dataset."""
    if run.dataset.get(key, digest) != digest:
        raise DatasetError(
            "the dataset has changed since this training began",
            where=str(settings.data),
            next_step="Put it back as it was, or name a copy of that:  --data DIR\n"
            f"Or train anew:  {train_anew(settings)}",
        )


def encoder_names(spec: ModelSpec, settings: TrainSettings, run: Run) -> dict[Tower, str | None]:
    """What each tower's encoder of a resumed run is found by: as `named_encoders`, but at the
    commit that the run has used, and in the folder that it lies in.

    `spec` is the registry's, `settings` are resumed. Raises UsageError if that folder is gone.
    """
    names = named_encoders(spec, settings.encoder, settings.text_encoder)
    before = named_encoders(spec, run.settings["encoder"], run.settings["text_encoder"])
    for used in run.encoders:
        if names[used.tower] != before[used.tower]:
            continue
        if _was_local(used):
            names[used.tower] = _folder(used, names[used.tower])
        elif names[used.tower] is not None and used.revision is not None:
            names[used.tower] = f"{used.repository}@{used.revision}"
    return names


def keep_encoders(encoders: Mapping[Tower, Encoder], settings: TrainSettings, run: Run) -> None:
    """Take what the run has recorded of its encoders, in the places where they were found now.

    Raises UsageError for an encoder that is not the run's.
    """
    for used in run.encoders:
        one = encoders[used.tower]
        if one.checkpoint.digest != used.digest:
            raise UsageError(
                f"the {used.tower} encoder is not the one that this training began with"
                f" (SHA-256 {one.checkpoint.digest[:12]}, not {used.digest[:12]})",
                where=str(one.checkpoint.folder),
                next_step=f"Put it back as it was, or name a copy of that:"
                f"  {_OPTIONS[used.tower]} FOLDER\n"
                f"Or train anew:  {train_anew(settings)}",
            )
        recorded = run.spec.encoder(used.tower)
        assert recorded is not None  # or the run could not have been read
        one.spec = replace(recorded, repository=one.spec.repository, revision=one.spec.revision)


def _was_local(used: EncoderUse) -> bool:
    return used.revision is None and used.repository == used.folder


def _folder(used: EncoderUse, name: str | None) -> str:
    """The folder of a run's encoder, by the name it was given or by its real path."""
    for path in (name, used.folder):
        if path is not None and Path(path).expanduser().is_dir():
            return path
    raise UsageError(
        f"the encoder folder {printable(name or used.folder)} of this run is gone",
        next_step=f"Put it back, or name where it lies now:  {_OPTIONS[used.tower]} FOLDER",
    )
