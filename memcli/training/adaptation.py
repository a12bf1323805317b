"""The contrastive adaptation as a part of a training: which videos, which encoders, kept where.

Source: 001_de183854d7703535.txt, sections 4.1.1 and 4.3. The development videos are adapted to,
without their scores, and once for all folds: so the encoders have seen the frames and captions of
the videos that a fold then holds out, as in the paper. The videos of the dataset's test split,
whose scores are not needed for it, say when to stop; where a dataset has no test split, a tenth of
the development videos (whole groups) does that instead and is not adapted to. Both towers are
adapted together, so the result is kept for the trainings of the other tower and of the other
strategies.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from memcli import extraction
from memcli.errors import ModelError, OutputError
from memcli.home import cache_dir, make_dir
from memcli.spec import ModelSpec
from memcli.text import plural
from memcli.train.datasets import Dataset, DatasetError, Item
from memcli.train.datasets.folds import together
from memcli.training import inputs as inputs

if TYPE_CHECKING:
    from torch import Tensor

    from memcli.train.loop import FitSettings
    from memcli.train.run_folder import RunFolder
    from memcli.training.settings import Progress

_PREFIX: dict[inputs.Tower, str] = {"vision": "frame_encoder.", "text": "text_encoder."}
_MONITOR_SHARE = 0.1
_SUMMARY_FILE = "summary.json"
_LEAST = 2
"""Videos on each side: one alone has nothing to differ from."""


def adapt_encoders(
    spec: ModelSpec,
    towers: dict[inputs.Tower, inputs.Encoder],
    folder: RunFolder,
    dataset: Dataset,
    items: Sequence[Item],
    *,
    fit: FitSettings,
    epochs: int | None,
    workers: int | None,
    progress: Progress,
) -> None:
    """Give the model's encoder the weights of the adaptation, made now, earlier or in another run.

    They are also written to the run. Raises DatasetError if there are too few videos with captions.
    """
    from memcli.train.run import ADAPTED_FILE, read_weights

    (tower,) = towers
    if ADAPTED_FILE not in folder.run.files:
        state, summary = _adapted(
            spec,
            towers[tower],
            folder,
            dataset,
            items,
            fit=fit,
            epochs=epochs,
            workers=workers,
            progress=progress,
        )
        folder.save(adaptation=summary)
        folder.add_weights(
            ADAPTED_FILE, {_PREFIX[tower] + key: value for key, value in state.items()}
        )
    weights = read_weights(folder.run, ADAPTED_FILE)
    towers[tower].adapted = {
        key.removeprefix(_PREFIX[tower]): value for key, value in weights.items()
    }
    towers[tower].adapted_hash = folder.run.files[ADAPTED_FILE]


def monitoring_split(
    dataset: Dataset, items: Sequence[Item], seed: int
) -> tuple[list[Item], list[Item], str]:
    """Videos to adapt to, videos that say when to stop, and which these are, in words.

    Raises DatasetError for fewer than two on either side.
    """
    usable = [item for item in items if item.path is not None and item.captions]
    monitor = [
        item
        for item in dataset.items
        if item.split == "test" and item.path is not None and item.captions
    ]
    which = "the test split"
    if len(monitor) < _LEAST:
        which = "a held-out tenth (the dataset has no usable test split)"
        monitor = []
        groups: dict[int, list[Item]] = {}
        for number, item in zip(together(usable), usable, strict=True):
            groups.setdefault(number, []).append(item)

        def order(group: list[Item]) -> str:
            return _draw(seed, group[0].group or f"video {group[0].id}")

        for group in sorted(groups.values(), key=order):
            if len(monitor) >= max(_LEAST, _MONITOR_SHARE * len(usable)):
                break
            monitor += group
        held = {item.id for item in monitor}
        usable = [item for item in usable if item.id not in held]
    if len(usable) < _LEAST or len(monitor) < _LEAST:
        raise DatasetError(
            f"{plural(len(usable), 'video')} with captions to adapt to and"
            f" {plural(len(monitor), 'video')} to monitor with: the adaptation needs"
            f" {_LEAST} of each",
            where=str(dataset.root),
        )
    return usable, monitor, which


def _adapted(
    spec: ModelSpec,
    encoder: inputs.Encoder,
    folder: RunFolder,
    dataset: Dataset,
    items: Sequence[Item],
    *,
    fit: FitSettings,
    epochs: int | None,
    workers: int | None,
    progress: Progress,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict of the model's tower after the adaptation, and its summary."""
    from memcli.train.contrastive import MAX_EPOCHS, adapt

    pair = {encoder.spec.tower: encoder, _other(encoder): _other_tower(encoder, spec)}
    train, monitor, which = monitoring_split(dataset, items, fit.seed)
    most = epochs or MAX_EPOCHS
    kept = cache_dir("adapted") / _key(pair, train, monitor, fit, most)
    if (found := _read(kept, encoder.spec.tower)) is not None:
        progress.message("contrastive adaptation: taken from an earlier training")
        return found
    progress.message(
        f"contrastive adaptation to {plural(len(train), 'video')}, monitored on"
        f" {plural(len(monitor), 'video')}: {which}"
    )
    sides = []
    for side in (train, monitor):
        left_out = inputs.LeftOut(side, 1.0, dataset.root)
        sides.append(
            inputs.raw_examples(side, None, pair, left_out, workers=workers, progress=progress)
        )
    if min(map(len, sides)) < _LEAST:
        raise DatasetError(
            "too few videos that can be decoded to adapt to", where=str(dataset.root)
        )
    adapted = adapt(
        pair["vision"].load(),
        pair["text"].load(),
        sides[0],
        sides[1],
        fit,
        folder.work("adaptation"),
        max_epochs=most,
        tell=lambda epoch, found: progress.epoch("adaptation", epoch, most, found),
    )
    summary = adapted.summary | {"monitored_on": which, "videos": [len(one) for one in sides]}
    _keep(kept, {"vision": adapted.vision, "text": adapted.text}, summary)
    return (adapted.vision if encoder.spec.tower == "vision" else adapted.text), summary


def _other(encoder: inputs.Encoder) -> inputs.Tower:
    return "text" if encoder.spec.tower == "vision" else "vision"


def _other_tower(encoder: inputs.Encoder, spec: ModelSpec) -> inputs.Encoder:
    """The other tower of the same checkpoint. Raises ModelError if the two share no space."""
    from memcli.train import encoders

    wanted = replace(encoder.spec, tower=_other(encoder), pooling="projection")
    found, checkpoint = encoders.resolve(wanted, override=str(encoder.checkpoint.folder))
    if found.dim != encoder.spec.dim or "projection" not in (found.pooling, encoder.spec.pooling):
        raise ModelError(
            "contrastive adaptation needs a checkpoint of a vision and a text tower with one"
            " embedding space, as CLIP and SigLIP have",
            where=str(encoder.checkpoint.folder),
        )
    return inputs.tower_of(found, checkpoint, spec)


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).hexdigest()


def _key(
    pair: dict[inputs.Tower, inputs.Encoder],
    train: Sequence[Item],
    monitor: Sequence[Item],
    fit: FitSettings,
    epochs: int,
) -> str:
    """Everything that the adapted weights depend on."""
    from memcli.train import contrastive

    entry = {
        "format": 2,
        "digests": [pair[tower].checkpoint.digest for tower in ("vision", "text")],
        "preps": [dataclasses.asdict(pair[tower].prep) for tower in ("vision", "text")],
        "seed": fit.seed,
        "epochs": epochs,
        "precision": fit.machine.precision,
        "devices": fit.machine.devices,
        "batch_size": contrastive.BATCH_SIZE,
        "auto_batch": fit.auto_batch,  # then it may be less
        "videos": [
            [[extraction.video_key(str(item.path)), item.captions] for item in side]
            for side in (train, monitor)
        ],
    }
    text = json.dumps(entry, sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:24]


def _read(folder: Path, tower: inputs.Tower) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What an earlier adaptation left; None if it is not there or not whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        summary = json.loads((folder / _SUMMARY_FILE).read_text(encoding="utf-8"))
        return load_file(folder / f"{tower}.safetensors"), cast("dict[str, Any]", summary)
    except (OSError, ValueError, SafetensorError):
        return None


def _keep(folder: Path, states: dict[str, dict[str, Tensor]], summary: dict[str, Any]) -> None:
    """Write what `_read` finds: the whole folder at once, since two trainings may do so together.

    Where the other one was quicker, its result stays. Raises OutputError when the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)  # `_read` has found it damaged
    make_dir(folder.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as made:
            beside = Path(made) / "adapted"
            beside.mkdir()
            for tower, state in states.items():
                whole = {key: value.contiguous() for key, value in state.items()}
                save_file(whole, beside / f"{tower}.safetensors")
            (beside / _SUMMARY_FILE).write_text(json.dumps(summary), encoding="utf-8")
            try:
                beside.rename(folder)
            except OSError:
                if not (folder / _SUMMARY_FILE).exists():
                    raise
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"the adapted encoders cannot be written: {error}",
            where=str(folder),
            next_step="Make room and use --resume: the adaptation goes on where it was.",
        ) from error
