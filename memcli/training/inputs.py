"""From a dataset to the examples of a training: which videos, which encoders, which features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from memcli import extraction
from memcli.errors import UsageError
from memcli.spec import MAX_FRAMES, EncoderSpec, FramePrep, ModelSpec, TextPrep
from memcli.text import plural, printable
from memcli.train.datasets import Dataset, DatasetError, Item, load_dataset, raise_on_errors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from memcli.train.data import Examples
    from memcli.train.encoders import Checkpoint
    from memcli.train.features import FeatureStore
    from memcli.train.run import EncoderUse

Tower = Literal["vision", "text"]
_SHOWN = 3
_HELD_BYTES = 4 << 30
"""Frame embeddings up to this size are read into memory."""


@dataclass
class Encoder:
    """One tower, found but not yet loaded."""

    spec: EncoderSpec
    checkpoint: Checkpoint
    prep: FramePrep | TextPrep
    tokenizer: Path | None = None
    adapted: dict[str, Tensor] | None = None
    """State dict after contrastive adaptation; None: as published."""
    adapted_hash: str = ""

    def load(self) -> nn.Module:
        """The module, with the adapted weights if there are any."""
        from memcli.train.encoders import load_encoder

        module: nn.Module = load_encoder(self.spec, self.checkpoint, self.prep)
        if self.adapted is not None:
            module.load_state_dict(self.adapted)
        return module

    @property
    def digest(self) -> str:
        """Of the weights that `load` gives: what features are kept under."""
        digest = self.checkpoint.digest
        return f"{digest}+{self.adapted_hash}" if self.adapted_hash else digest


def labelled_items(
    name: str, root: Path, target: str | None, *, features: str | None
) -> tuple[Dataset, str, tuple[Item, ...]]:
    """A dataset, the target, and the items to develop on: labelled, and not of the test split.

    Raises DatasetError for a dataset with errors (missing files and captions are counted later),
    without such a target, features or labelled videos.
    """
    dataset = load_dataset(name, root)
    raise_on_errors(dataset, needs=())
    target = target or dataset.default_target
    items = tuple(item for item in dataset.labelled(target) if item.split != "test")
    if not items:
        raise DatasetError(
            f"no labelled videos outside the test split for {target}", where=str(root)
        )
    if features is not None and features not in dataset.features:
        known = ", ".join(dataset.features) or "none"
        raise DatasetError(
            f"{dataset.name} has no features called {printable(features)!r}",
            where=str(root),
            next_step=f"It has: {known}.",
        )
    return dataset, target, items


def at_revisions(spec: ModelSpec, used: Iterable[EncoderUse]) -> ModelSpec:
    """The spec at the commits that a run has used: the newest may be another one by now."""
    revisions = {(one.tower, one.repository): one.revision for one in used}
    known = (
        replace(one, revision=revisions.get((one.tower, one.repository), one.revision))
        for one in spec.encoders
    )
    return replace(spec, encoders=tuple(known))


def named_encoders(
    spec: ModelSpec, encoder: str | None, text_encoder: str | None
) -> dict[Tower, str | None]:
    """What each tower's encoder is asked to be; None: as the spec has it.

    `encoder` names the encoder; of a model with two towers the vision tower, and the text tower too
    if both are one checkpoint. `text_encoder` names that of the text tower. Raises UsageError if
    there is no text tower.
    """
    if text_encoder is not None and spec.encoder("text") is None:
        raise UsageError(f"{spec.name} reads no captions", where="--text-encoder")
    both = len(spec.encoders) == 1 or len({one.repository for one in spec.encoders}) == 1
    named: dict[Tower, str | None] = {one.tower: encoder for one in spec.encoders}
    if "text" in named:
        named["text"] = text_encoder or (encoder if both else None)
    return named


def find_encoders(
    spec: ModelSpec,
    named: Mapping[Tower, str | None],
    *,
    frames: int | None,
    offline: bool,
    report: Callable[[str], None],
) -> tuple[ModelSpec, dict[Tower, Encoder]]:
    """The encoders of a model, and the spec with what they really are.

    `named` is as `named_encoders` gives it. `frames` replaces the number of frames. Raises
    ModelError and UsageError as `memcli.train.encoders.resolve`.
    """
    from memcli.train import encoders

    if frames is not None and spec.prep is None:
        raise UsageError(f"{spec.name} does not look at frames", where="--frames")
    found: dict[Tower, Encoder] = {}
    for one in spec.encoders:
        resolved, checkpoint = encoders.resolve(
            one, override=named[one.tower], offline=offline, report=report
        )
        found[one.tower] = tower_of(resolved, checkpoint, spec)
    if frames is not None and "vision" in found:
        prep = cast(FramePrep, found["vision"].prep)
        found["vision"].prep = replace(prep, frames=frames)
    spec = replace(
        spec,
        encoders=tuple(one.spec for one in found.values()),
        prep=cast(FramePrep, found["vision"].prep) if "vision" in found else spec.prep,
        text=cast(TextPrep, found["text"].prep) if "text" in found else spec.text,
    )
    try:
        return ModelSpec.from_dict(spec.to_dict()), found
    except ValueError as error:
        raise UsageError(f"{spec.name} cannot be made so: {error}") from error


def tower_of(resolved: EncoderSpec, checkpoint: Checkpoint, spec: ModelSpec) -> Encoder:
    """One tower with the preparation of its inputs; frames and sampling are the model's."""
    from memcli.models.encoders import CLIP_PREP
    from memcli.train import encoders

    if resolved.tower == "vision":
        return Encoder(
            resolved, checkpoint, encoders.frame_prep(checkpoint, spec.prep or CLIP_PREP)
        )
    prep, tokenizer = encoders.text_prep(checkpoint)
    return Encoder(resolved, checkpoint, prep, tokenizer)


class LeftOut:
    """Videos that cannot be used, each with its reason; too many of them are an error."""

    def __init__(self, items: Sequence[Item], limit: float, root: Path):
        self.reasons: dict[str, str] = {}
        self._items = {item.id: item for item in items}
        self._limit = limit
        self._root = root

    def add(self, reasons: Mapping[str, str]) -> None:
        """Leave out more. Raises DatasetError when they exceed the limit."""
        self.reasons |= reasons
        share = len(self.reasons) / max(1, len(self._items))
        if share <= self._limit and len(self.reasons) < len(self._items):
            return
        lines = [
            f"  {printable(item.file)}:{item.line}: {printable(item.id)}: {printable(reason)}"
            for item, reason in ((self._items[name], why) for name, why in self.reasons.items())
        ]
        if len(lines) > _SHOWN:
            lines[_SHOWN:] = [f"  and {len(lines) - _SHOWN:,} more"]
        raise DatasetError(
            "\n".join(
                [
                    f"{len(self.reasons):,} of {plural(len(self._items), 'video')} cannot be used"
                    f" ({share:.0%}; {self._limit:.0%} may be left out)",
                    *lines,
                ]
            ),
            where=str(self._root),
            next_step="Complete the dataset, or allow more to be left out:"
            f"  --max-missing {min(100, int(share * 100) + 1)}",
        )

    def kept(self, items: Iterable[Item]) -> tuple[Item, ...]:
        """The items that can be used."""
        return tuple(item for item in items if item.id not in self.reasons)


def missing_inputs(items: Sequence[Item], spec: ModelSpec) -> dict[str, str]:
    """Items without what the model looks at."""
    missing = {}
    for item in items:
        if spec.prep is not None and item.path is None:
            missing[item.id] = "no video file"
        elif spec.text is not None and not item.captions:
            missing[item.id] = "no caption"
    return missing


def frozen_examples(
    items: Sequence[Item],
    target: str,
    encoders: Mapping[Tower, Encoder],
    left_out: LeftOut,
    *,
    device: str,
    workers: int | None,
    progress: extraction.Progress,
) -> Examples:
    """Embeddings of all items, from the cache or computed now; unusable ones are left out."""
    import torch

    from memcli.train.data import Examples, HeldFrames, StoredFrames
    from memcli.train.features import open_features

    features: dict[str, Any] = {}
    if (vision := encoders.get("vision")) is not None:
        prep = cast(FramePrep, vision.prep)
        with _open(open_features, vision, progress) as store:
            features = _frames(
                items,
                prep,
                _lazy_frames(vision, device),
                store,
                left_out,
                workers,
                progress,
                batch_frames=extraction.frames_at_a_time(device),
            )
    items = left_out.kept(items)
    frames = captions = mask = None
    if vision is not None:
        arrays = [features[item.id] for item in items]
        held = sum(array.nbytes for array in arrays) <= _HELD_BYTES
        frames = HeldFrames(torch.from_numpy(np.stack(arrays))) if held else StoredFrames(arrays)
    if (text := encoders.get("text")) is not None:
        captions, mask = _captions(items, text, device, progress)
    return Examples(_ids(items), _scores(items, target), frames, captions, mask)


def raw_examples(
    items: Sequence[Item],
    target: str | None,
    encoders: Mapping[Tower, Encoder],
    left_out: LeftOut,
    *,
    workers: int | None,
    progress: extraction.Progress,
) -> Examples:
    """Prepared frames and token ids of all items, for encoders that are trained themselves.

    Without `target` the scores are 0: the contrastive adaptation does not look at them.
    """
    import torch

    from memcli.train.data import Examples, StoredFrames
    from memcli.train.features import open_prepared_frames

    stored: dict[str, Any] = {}
    if (vision := encoders.get("vision")) is not None:
        prep = cast(FramePrep, vision.prep)
        with open_prepared_frames(prep, on_wait=_waiter(progress)) as store:
            stored = _frames(items, prep, lambda frames: frames, store, left_out, workers, progress)
    items = left_out.kept(items)
    frames = StoredFrames([stored[item.id] for item in items]) if vision is not None else None
    ids = mask = None
    if (text := encoders.get("text")) is not None:
        from memcli.tokens import Tokeniser

        tokens = Tokeniser(cast(TextPrep, text.prep), cast(Path, text.tokenizer)).encode(
            [item.captions for item in items]
        )
        ids, mask = torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.attention_mask)
    trim = text is not None and isinstance(text.prep, TextPrep) and not text.prep.fixed_length
    return Examples(_ids(items), _scores(items, target), frames, ids, mask, trim=trim)


def feature_examples(
    items: Sequence[Item], target: str, folder: Path, left_out: LeftOut
) -> Examples:
    """Precomputed features `folder`/<id>.npy, [D] or [T, D] of one T, as frames [N, T, D]."""
    import torch

    from memcli.train.data import Examples, HeldFrames
    from memcli.train.datasets.videm import open_feature

    arrays: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for item in items:
        try:
            array = np.asarray(open_feature(folder / f"{item.id}.npy"), np.float32)
        except (OSError, ValueError, EOFError) as error:
            missing[item.id] = f"no usable feature: {error}"
            continue
        if not np.isfinite(array).all():
            missing[item.id] = "a feature that is not finite"
            continue
        arrays[item.id] = array.reshape(-1, array.shape[-1])
    left_out.add(missing)
    first = next(iter(arrays.values()))
    for name, array in arrays.items():
        if array.shape != first.shape:
            raise DatasetError(
                f"the feature of {printable(name)} is {array.shape}, others are {first.shape}",
                where=str(folder),
                next_step="Only features of one shape can be trained on.",
            )
    if len(first) > MAX_FRAMES:
        raise DatasetError(
            f"features of {len(first):,} frames each; a model takes at most {MAX_FRAMES}",
            where=str(folder),
        )
    items = left_out.kept(items)
    stacked = torch.from_numpy(np.stack([arrays[item.id] for item in items]))
    return Examples(_ids(items), _scores(items, target), HeldFrames(stacked))


def _frames(
    items: Sequence[Item],
    prep: FramePrep,
    encode: Callable[[Any], Any],
    store: FeatureStore,
    left_out: LeftOut,
    workers: int | None,
    progress: extraction.Progress,
    *,
    batch_frames: int | None = None,
) -> dict[str, Any]:
    videos = {item.id: item.path for item in left_out.kept(items) if item.path is not None}
    failures = extraction.extract_frames(
        videos,
        prep,
        encode,
        store,
        workers=workers,
        batch_frames=batch_frames,
        progress=progress,
    )
    left_out.add(failures)
    found = extraction.frame_features(videos, store)
    lost = [name for name in videos if name not in found and name not in failures]
    left_out.add(dict.fromkeys(lost, "the file changed while it was read"))
    return found


def _captions(
    items: Sequence[Item], text: Encoder, device: str, progress: extraction.Progress
) -> tuple[Tensor, Tensor]:
    """Embeddings [N, C, D] and mask [N, C] of all captions."""
    import torch

    from memcli.tokens import Tokeniser
    from memcli.train.features import open_features

    tokeniser = Tokeniser(cast(TextPrep, text.prep), cast(Path, text.tokenizer))
    module: list[Callable[[Any, Any], Any]] = []

    def encode(input_ids: Any, mask: Any) -> Any:
        if not module:
            module.append(extraction.torch_captions(text.load(), device))
        return module[0](input_ids, mask)

    most = max(len(item.captions) for item in items)
    captions = torch.zeros(len(items), most, text.spec.dim)
    mask = torch.zeros(len(items), most)
    with _open(open_features, text, progress) as store:
        extraction.extract_captions(
            (caption for item in items for caption in item.captions),
            tokeniser,
            encode,
            store,
            progress=progress,
        )
        for row, item in enumerate(items):
            count = len(item.captions)
            found = extraction.caption_features(item.captions, store)
            captions[row, :count] = torch.from_numpy(np.array(found))
            mask[row, :count] = 1
    return captions, mask


def _lazy_frames(vision: Encoder, device: str) -> Callable[[Any], Any]:
    """An `encode` that loads the encoder only if something has to be computed."""
    module: list[Callable[[Any], Any]] = []

    def encode(frames: Any) -> Any:
        if not module:
            module.append(extraction.torch_frames(vision.load(), device))
        return module[0](frames)

    return encode


def _open(open_store: Any, encoder: Encoder, progress: extraction.Progress) -> FeatureStore:
    return cast(
        "FeatureStore",
        open_store(encoder.digest, encoder.spec, encoder.prep, on_wait=_waiter(progress)),
    )


def _waiter(progress: extraction.Progress) -> Callable[[], None]:
    return lambda: progress.message("another memcli is computing these features: waiting")


def _ids(items: Sequence[Item]) -> tuple[str, ...]:
    return tuple(item.id for item in items)


def _scores(items: Sequence[Item], target: str | None) -> Tensor:
    import torch

    scores = [0.0 if target is None else item.scores[target] for item in items]
    return torch.tensor(scores, dtype=torch.float32)
