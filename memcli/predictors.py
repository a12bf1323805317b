"""What can be measured: a trained run (PyTorch), or a bundle as `memcli score` uses it.

Each is a `Predictor`: labelled videos in, scores out, with a reason for every video without one.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from memcli import extraction
from memcli.errors import ModelError, UsageError, VideoError, VideoErrorCode
from memcli.inputs import Source
from memcli.kinds import require_videos
from memcli.spec import ModelSpec, is_model_name
from memcli.text import plural, printable
from memcli.train.datasets import Dataset, DatasetError, Item
from memcli.training import inputs as inputs

if TYPE_CHECKING:
    from torch import nn

    from memcli.engines.bundle import Bundle
    from memcli.engines.candidates import EngineChoice, PrecisionChoice
    from memcli.scoring import Scorer, ScoreSettings
    from memcli.train.data import Examples
    from memcli.train.run import Run

_CAPTION_VIDEOS = 16
"""Videos per engine call of a model that reads captions only."""


@dataclass
class Predictions:
    """Scores by the ids of videos; each video is in one of the two."""

    scores: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Why a video has no score."""


class Predictor(Protocol):
    """A model that is measured."""

    kind: Literal["run", "bundle"]
    spec: ModelSpec
    folder: Path
    """Of what is measured."""

    def describe(self) -> str:
        """What is measured, in a few words."""
        ...

    def predict(self, dataset: Dataset, items: Sequence[Item], target: str) -> Predictions:
        """Scores of items that have a `target`. Raises MemcliError for what concerns all of them,
        DatasetError if not one of them can be scored."""
        ...


def find_predictor(
    name: str,
    *,
    use_run: bool = False,
    engine: EngineChoice = "auto",
    device: str = "auto",
    precision: PrecisionChoice = "auto",
    workers: int | None = None,
    offline: bool = False,
    progress: extraction.Progress,
) -> RunPredictor | BundlePredictor:
    """What `name` means: the folder of a run or of a bundle, or the name of a model.

    Of a model that is both installed and trained here, the bundle is taken, because that is what
    `memcli score` uses; with `use_run`, its newest run. Raises UsageError or ModelError if there is
    nothing of that name, UsageError for an `engine` or a `precision` of a run.
    """
    from memcli.store import ensure, is_installed
    from memcli.train.run import LATEST, RUN_FILE, read_run, runs_dir

    trained = is_model_name(name) and (runs_dir(name) / LATEST).is_file()
    if is_installed(name) and trained and not use_run:
        progress.message(f"{name}: the installed bundle is measured; its newest run with --run")
    elif use_run or trained or (Path(name) / RUN_FILE).is_file():
        run = read_run(name)
        require_videos(run.spec)
        if (engine, precision) != ("auto", "auto"):
            raise UsageError(
                "a training run is computed by PyTorch in fp32; engines and precisions are those"
                " of bundles",
                where=printable(str(run.folder)),
                next_step=f"Make one:  memcli export --run {shlex.quote(str(run.folder))}",
            )
        return RunPredictor(run, device, workers, offline, progress)
    from memcli.engines.bundle import MANIFEST
    from memcli.scoring import ScoreSettings

    if not is_installed(name) and (Path(name) / MANIFEST).is_file():
        name = str(Path(name).absolute())  # a bundle's folder, told from a name by its slashes
    bundle = ensure(name, offline=offline, report=progress.message)
    require_videos(bundle.spec)
    settings = ScoreSettings(
        name, engine=engine, device=device, precision=precision, workers=workers, offline=offline
    )
    return BundlePredictor(bundle, settings, progress)


class _LeftOut(inputs.LeftOut):
    """Any number may be left out of an evaluation, which says how many; only not all."""

    def __init__(self, items: Sequence[Item], root: Path):
        super().__init__(items, 1.0, root)
        self._all = len(items)

    def add(self, reasons: Mapping[str, str]) -> None:
        """Leave out more. Raises DatasetError if nothing is left."""
        self.reasons |= reasons
        if len(self.reasons) < self._all:
            return
        name, reason = next(iter(self.reasons.items()))
        raise DatasetError(
            f"not one of {self._all:,} videos can be scored; the first, {printable(name)}:"
            f" {printable(reason)}",
            where=str(self._root),
            next_step=f"See what is wrong:  memcli dataset check {shlex.quote(str(self._root))}",
        )


class RunPredictor:
    """The PyTorch model of a run, on cached features where its encoder was frozen."""

    kind: Literal["run", "bundle"] = "run"

    def __init__(
        self,
        run: Run,
        device: str,
        workers: int | None,
        offline: bool,
        progress: extraction.Progress,
    ):
        from memcli.train.trainer import Machine

        self.run = run
        self.spec = run.spec
        self.folder = run.folder
        self._machine = Machine(device)
        self._device = self._machine.torch_device()
        self._workers = workers
        self._offline = offline
        self._progress = progress

    def describe(self) -> str:
        """What is measured, in a few words."""
        return f"run {self.folder} (PyTorch, {self._device})"

    def predict(self, dataset: Dataset, items: Sequence[Item], target: str) -> Predictions:
        """Scores of items that have a `target`."""
        from memcli.train.loop import predict

        left_out = _LeftOut(items, dataset.root)
        if self.run.features is None:
            left_out.add(inputs.missing_inputs(items, self.spec))
        recipe = self.spec.recipe
        tuned = recipe is not None and recipe.fine_tune
        model, examples = self._prepared(dataset, items, target, left_out, tuned=tuned)
        size = max(1, recipe.batch_size // 8) if recipe is not None and tuned else None
        found = predict(model, examples, self._machine, batch_size=size).score.tolist()
        scores = dict(zip(examples.ids, found, strict=True))
        return _split(scores, left_out)

    def _prepared(
        self,
        dataset: Dataset,
        items: Sequence[Item],
        target: str,
        left_out: _LeftOut,
        *,
        tuned: bool,
    ) -> tuple[nn.Module, Examples]:
        """The model, or its head alone where embeddings are cached, and what goes into it."""
        from memcli.train.run import load_head, load_model

        if self.run.features is not None:
            folder = dataset.features.get(self.run.features)
            if folder is None:
                raise DatasetError(
                    f"the model was trained on features {printable(self.run.features)!r}, which"
                    f" {dataset.name} does not have",
                    where=str(dataset.root),
                )
            return load_head(self.run), inputs.feature_examples(items, target, folder, left_out)
        encoders = self._encoders()
        kept = left_out.kept(items)
        if tuned:
            model = load_model(self.run, offline=self._offline, report=self._progress.message)
            return model, inputs.raw_examples(
                kept, target, encoders, left_out, workers=self._workers, progress=self._progress
            )
        head = load_head(self.run)
        return head, inputs.frozen_examples(
            kept,
            target,
            encoders,
            left_out,
            device=self._device,
            workers=self._workers,
            progress=self._progress,
        )

    def _encoders(self) -> dict[inputs.Tower, inputs.Encoder]:
        """The encoders of the training, checked to be the same ones."""
        from memcli.train.run import (
            ADAPTED_FILE,
            TOKENIZER_FILE,
            encoder_of,
            read_weights,
            sha256_file,
        )

        run = self.run
        adapted = read_weights(run, ADAPTED_FILE) if ADAPTED_FILE in run.files else {}
        prefixes = {"vision": "frame_encoder.", "text": "text_encoder."}
        found: dict[inputs.Tower, inputs.Encoder] = {}
        for used in run.encoders:
            spec, checkpoint, prep = encoder_of(
                run, used, offline=self._offline, report=self._progress.message
            )
            prefix = prefixes[used.tower]
            own = {k.removeprefix(prefix): v for k, v in adapted.items() if k.startswith(prefix)}
            found[used.tower] = inputs.Encoder(
                spec,
                checkpoint,
                prep,
                tokenizer=run.tokenizer if used.tower == "text" else None,
                adapted=own or None,
                adapted_hash=run.files[ADAPTED_FILE] if own else "",
            )
        path = run.tokenizer
        expected = run.files.get(TOKENIZER_FILE)
        if path is not None and (not path.is_file() or sha256_file(path) != expected):
            raise ModelError(
                "the tokenizer is missing, or has changed since the training", where=str(path)
            )
        return found


@dataclass
class _DatasetCaptions:
    """The captions of the videos that the scoring engine is at."""

    name: str
    by_path: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        content = json.dumps(sorted(self.by_path.items()))
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def of(self, video: str) -> tuple[str, ...]:
        try:
            return self.by_path[video]
        except KeyError as error:
            raise VideoError(VideoErrorCode.NO_CAPTION, "no caption") from error


class BundlePredictor:
    """A bundle on the engine that `memcli score` would use, with the dataset's captions."""

    kind: Literal["run", "bundle"] = "bundle"

    def __init__(self, bundle: Bundle, settings: ScoreSettings, progress: extraction.Progress):
        self.spec = bundle.spec
        self.folder = bundle.root
        self.training = bundle.training
        self._settings = settings
        self._progress = progress
        self._engine = "not opened yet"

    def describe(self) -> str:
        """What is measured, in a few words; with the engine once it has been opened."""
        return f"bundle {self.folder} ({self._engine})"

    def predict(self, dataset: Dataset, items: Sequence[Item], target: str) -> Predictions:
        """Scores of items that have a `target`."""
        from memcli.opening import open_scorer

        left_out = _LeftOut(items, dataset.root)
        left_out.add(inputs.missing_inputs(items, self.spec))
        kept = left_out.kept(items)
        settings = self._settings
        captions = _DatasetCaptions(dataset.name)
        if self.spec.text is not None:
            settings = replace(settings, captions=captions)
        with open_scorer(settings, self._progress.message) as scorer:
            about = scorer.description
            self._engine = f"{about.engine} {about.version}, {about.device}, {about.precision}"
            counts = extraction.Counts("video", total=len(kept), cached=0)
            self._progress.message(f"scoring {plural(len(kept), 'video')}")
            if self.spec.prep is None:
                scores = self._read(scorer, kept, counts)
            else:
                scores = self._watched(scorer, kept, captions, left_out, counts)
        return _split(scores, left_out)

    def _watched(
        self,
        scorer: Scorer,
        items: Sequence[Item],
        captions: _DatasetCaptions,
        left_out: _LeftOut,
        counts: extraction.Counts,
    ) -> dict[str, float]:
        """Scores of videos; what cannot be decoded is left out."""
        scores: dict[str, float] = {}
        for videos in _rounds(items, with_captions=self.spec.text is not None):
            captions.by_path = {path: own[0].captions for path, own in videos.items()}
            with closing(scorer.score(Source(path) for path in videos)) as rows:
                for source, _, row in rows:
                    ids = [item.id for item in videos[source.path]]
                    if row.score is None:
                        counts.failed += len(ids)
                        left_out.add(dict.fromkeys(ids, row.error or "no score"))
                    else:
                        counts.done += len(ids)
                        scores |= dict.fromkeys(ids, row.score)
                        if row.error:
                            self._progress.message(f"{source.path}: {row.error}")
                    self._progress.advance(counts)
        return scores

    def _read(
        self, scorer: Scorer, items: Sequence[Item], counts: extraction.Counts
    ) -> dict[str, float]:
        """Scores of captions alone, for which no video file need be there."""
        from memcli.tokens import Tokeniser

        path = scorer.bundle.tokenizer_path(scorer.selection.variant)
        if self.spec.text is None or path is None:
            raise ModelError("this bundle has no tokenizer", where=str(self.folder))
        tokeniser = Tokeniser(self.spec.text, path)
        scores: dict[str, float] = {}
        for start in range(0, len(items), _CAPTION_VIDEOS):
            batch = items[start : start + _CAPTION_VIDEOS]
            tokens = tokeniser.encode([item.captions for item in batch])
            given: dict[str, Any] = {
                "input_ids": tokens.input_ids,
                "attention_mask": tokens.attention_mask,
            }
            found = scorer.selection.engine.run(given)["score"]
            scores |= {item.id: float(one) for item, one in zip(batch, found, strict=True)}
            counts.done += len(batch)
            self._progress.advance(counts)
        return scores


def _rounds(items: Sequence[Item], *, with_captions: bool) -> list[dict[str, list[Item]]]:
    """Items by the path of their video, each path once in a round.

    Several items may name one file. It is scored once for all of them; where captions matter, once
    for each of their captions, in rounds, because the engine knows captions by path.
    """
    rounds: list[dict[str, list[Item]]] = []
    for item in items:
        for videos in rounds:
            own = videos.setdefault(str(item.path), [item])
            if own[0] is item:
                break
            if not with_captions or own[0].captions == item.captions:
                own.append(item)
                break
        else:
            rounds.append({str(item.path): [item]})
    return rounds


def _split(scores: Mapping[str, float], left_out: _LeftOut) -> Predictions:
    """Finite scores, and the reasons of all others."""
    broken = [name for name, score in scores.items() if not math.isfinite(score)]
    left_out.add(dict.fromkeys(broken, "the model gave no finite score"))
    kept = {name: score for name, score in scores.items() if math.isfinite(score)}
    return Predictions(kept, left_out.reasons)
