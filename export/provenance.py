"""What a bundle tells of its making: the training, and the terms of the weights.

Bundles travel: folders, user names and the names of videos stay where the training was.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memcli.train.run import Run

_PLACE = re.compile(r"/|~|\.{1,2}([/\\]|$)|[A-Za-z]:[/\\]|\\\\|file:")
_DATASET = ("name", "target", "videos", "split")
_FOLD = ("fold", "metrics", "epochs", "best_epoch", "learning_rate")


def training_report(run: Run) -> dict[str, Any]:
    """What the manifest tells of a run: dataset, split, seed, metrics, encoders; JSON values.

    Places on the machine that trained and names of videos are left out. `demonstration` is there,
    and true, if the data was made up.
    """
    return {
        **({"demonstration": True} if run.dataset.get("demonstration") is True else {}),
        "dataset": {key: run.dataset[key] for key in _DATASET if key in run.dataset},
        "seed": run.seed,
        "metrics": run.metrics,
        "folds": [{key: fold[key] for key in _FOLD if key in fold} for fold in run.folds],
        "encoders": [
            {
                "tower": used.tower,
                "repository": without_paths(used.repository),
                "revision": used.revision,
                "digest": used.digest,
            }
            for used in run.encoders
        ],
        "versions": run.versions,
        "git_revision": run.git_revision,
        "created": run.created,
    }


def license_text_of(run: Run) -> str:
    """`LICENSE.weights.txt`: whose weights are in the bundle and on what terms."""
    dataset = str(run.dataset.get("name", "a dataset"))
    if run.spec.eeg is not None:
        return _eeg_license(run, dataset)
    lines = [f"The weights of {run.model} are of several origins.", ""]
    for used in run.encoders:
        encoder = run.spec.encoder(used.tower)
        terms = encoder.license if encoder is not None else "unknown"
        revision = f", revision {used.revision}" if used.revision else ""
        lines += [
            f"{used.tower.capitalize()} encoder: {without_paths(used.repository)}{revision}",
            f"  Licence: {terms}",
            f"  SHA-256 of its files: {used.digest}",
            *(["  Its weights were changed by the training."] if _changed(run) else []),
            "",
        ]
    lines += [
        f"The head was trained by the user of memcli on {dataset}. The terms of {dataset} may",
        "restrict the use of what was trained on it, commercial use above all: see there.",
        "",
    ]
    return "\n".join(lines)


def _eeg_license(run: Run, dataset: str) -> str:
    lines = [
        f"The weights of {run.model} were trained by the user of memcli on {dataset}.",
        "The terms of the recordings, and what the people who were recorded have agreed to, may",
        "restrict the use of what was trained on them.",
    ]
    if run.dataset.get("demonstration") is True:
        lines = [
            f"The weights of {run.model} are a demonstration: they were trained on recordings that",
            "were made up. Its probabilities mean nothing for people.",
        ]
    return "\n".join([*lines, ""])


def _changed(run: Run) -> bool:
    recipe = run.spec.recipe
    return recipe is not None and (recipe.fine_tune or recipe.contrastive)


def without_paths(value: Any) -> Any:
    """`value`, of JSON, with every string that is a place on a machine cut to its last part."""
    if isinstance(value, dict):
        return {key: without_paths(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(one) for one in value]
    if isinstance(value, str) and _PLACE.match(value):
        name = PurePosixPath(PureWindowsPath(value.removeprefix("file:")).as_posix()).name
        return f"local folder {name}".strip()
    return value
