"""What the EEG training finds in planted data: strategies, peers, and what nobody may find.

    python -m tests.benchmarks.eeg_training [--parts strategies peers null pretext] [--json]
        [--subjects 8] [--epochs 40] [--channels 32] [--passes 60] [--folds 4] [--seed 0]

strategies  the default model with each pretext task, on folds of subjects. Target of the default:
            an AUROC of at least 0.85 on subjects it has not seen.
peers       the baselines that can be imported here, in the same folds.
null        labels shuffled, and labels that only the stimulus channel tells: 0.5 +- 0.07.
pretext     how well windows are told apart, with a component that drifts and without one.

Data are made at the model's own rate and never written: `memcli.train.eeg.planted`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from memcli.errors import MissingDependencyError
from memcli.models.eeg import CHANNELS_32, EEG_CNN
from memcli.spec import EegPrep, EegRecipe
from memcli.train.eeg import baselines
from memcli.train.eeg.data import EegExamples
from memcli.train.eeg.folds import monitoring_part, subject_folds
from memcli.train.eeg.loading import Source, load
from memcli.train.eeg.loop import Schedule, cross_entropy, fit, predict
from memcli.train.eeg.metrics import auroc
from memcli.train.eeg.network import EegModel
from memcli.train.eeg.planted import Planted, write_planted
from memcli.train.eeg.pretext import pretrain
from memcli.train.provenance import seeded
from tests.planted_eeg import planted_examples

PARTS = ("strategies", "peers", "null", "pretext")
TARGET = 0.85
NULL = 0.07
_PRETEXTS = ("none", "tcl", "tcl-regress", "tcl-regress-exp")

Scores = Callable[[EegExamples, EegExamples, EegExamples], list[float]]


class Benchmark:
    """One set of arguments."""

    def __init__(self, given: argparse.Namespace):
        self.given = given
        self.planted = Planted(
            CHANNELS_32[: given.channels],
            subjects=given.subjects,
            epochs=given.epochs,
            seed=given.seed,
            sfreq_hz=100.0,
        )
        assert EEG_CNN.eeg is not None
        self.spec = replace(EEG_CNN, eeg=replace(EEG_CNN.eeg, channels=self.planted.channels))
        self.prep = replace(EEG_CNN.eeg, channels=self.planted.channels)
        self.recipe = EegRecipe(epochs=given.passes, pretext_epochs=given.passes // 2)

    def row(self, part: str, name: str, examples: EegExamples, scores: Scores) -> dict[str, Any]:
        """Mean AUROC over folds of subjects."""
        labels = [int(one) for one in examples.labels]
        subjects = [str(one) for one in examples.subject.tolist()]
        found = []
        began = time.monotonic()
        for held in subject_folds(labels, subjects, self.given.folds, self.given.seed):
            rest = sorted(set(range(len(labels))) - set(held))
            train, monitor = monitoring_part(rest, subjects, labels, self.given.seed)
            sides = [examples.subset(one) for one in (train, monitor, held)]
            value = auroc(sides[2].labels.numpy(), scores(*sides))
            assert value is not None
            found.append(value)
        return {
            "part": part,
            "name": name,
            "auroc": round(statistics.fmean(found), 4),
            "std": round(statistics.stdev(found), 4),
            "seconds": round(time.monotonic() - began, 1),
        }

    def model(self, pretext: str) -> Scores:
        recipe = replace(self.recipe, pretext=pretext)  # type: ignore[arg-type]

        def scores(train: EegExamples, monitor: EegExamples, held: EegExamples) -> list[float]:
            seed = self.given.seed
            with seeded(seed):
                model = EegModel(self.spec)
            if pretext != "none":
                pretrain(
                    model, self.prep, recipe, train, monitor,
                    seed=seed, device="cpu", tell=lambda *_: None,
                )  # fmt: skip
            schedule = Schedule(recipe.epochs, recipe.batch_size, recipe.learning_rate)
            fit(model, cross_entropy(model), train, monitor, schedule, seed=seed, device="cpu")
            found: list[float] = predict(model, held, "cpu").tolist()
            return found

        return scores

    def peer(self, name: str) -> Scores:
        return lambda train, monitor, held: baselines.held_out_scores(
            name, train, monitor, held, self.prep, self.recipe,
            seed=self.given.seed, device="cpu", tell=lambda *_: None,
        )  # fmt: skip

    def pretext_row(self, drift: float) -> dict[str, Any]:
        planted = replace(self.planted, effect=0.0, evoked=0.0, drift=drift)
        examples = planted_examples(planted)
        numbers = examples.subject.tolist()
        held = [i for i, one in enumerate(numbers) if one > 0.75 * planted.subjects]
        rest = sorted(set(range(len(numbers))) - set(held))
        with seeded(self.given.seed):
            model = EegModel(self.spec)
        recipe = replace(self.recipe, pretext="tcl")
        _, found = pretrain(
            model, self.prep, recipe, examples.subset(rest), examples.subset(held),
            seed=self.given.seed, device="cpu", tell=lambda *_: None,
        )  # fmt: skip
        return {"part": "pretext", "name": f"tcl, drift {drift:g}"} | found

    def rows(self, part: str) -> list[dict[str, Any]]:
        if part == "strategies":
            examples = planted_examples(self.planted)
            return [self.row(part, one, examples, self.model(one)) for one in _PRETEXTS]
        if part == "null":
            shuffled = planted_examples(replace(self.planted, shuffled=True))
            leak = leaking_examples(self.planted, self.prep)
            return [
                self.row(part, "labels shuffled", shuffled, self.model("none")),
                self.row(part, "labels in the stimulus channel", leak, self.model("none")),
            ]
        if part == "pretext":
            return [self.pretext_row(4.0), self.pretext_row(0.0)]
        found = []
        for name in baselines.PEERS:
            if missing := _missing(name):
                print(f"{name}: not measured, {missing}", file=sys.stderr)
            else:
                examples = planted_examples(self.planted)
                found.append(self.row(part, name, examples, self.peer(name)))
        return found


def _missing(name: str) -> str:
    """Why a baseline cannot be imported here; empty if it can."""
    try:
        baselines.require((name,))
    except MissingDependencyError as error:
        return error.what
    return ""


def leaking_examples(planted: Planted, prep: EegPrep) -> EegExamples:
    """Epochs without any effect, from files whose stimulus channel tells the labels."""
    with tempfile.TemporaryDirectory() as folder:
        leak = replace(planted, effect=0.0, leak=True)
        found = load(Source(write_planted(leak, Path(folder) / "data")), prep)
    names = sorted(set(found.subjects))
    numbers = [names.index(one) + 1 for one in found.subjects]
    return replace(found.examples, subject=torch.tensor(numbers))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", action="store_true")
    for name, default in (
        ("subjects", 8),
        ("epochs", 40),
        ("channels", 32),
        ("passes", 60),
        ("folds", 4),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    benchmark = Benchmark(given)
    good = True
    for part in given.parts:
        for row in benchmark.rows(part):
            print(json.dumps(row) if given.json else row, flush=True)
            if part == "strategies" and row["name"] == "none":
                good &= row["auroc"] >= TARGET
            if part == "null":
                good &= abs(row["auroc"] - 0.5) <= NULL
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
