"""Every trained model finds a planted signal, and none finds one that is not there.

Clips of tests/planted.py, tiny random encoders and small heads; the scores are of held-out clips.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import planted
import pytest
import tiny_hub
from tiny_models import CHECKPOINT_KINDS, TRAINED

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("lightning")

from memcli.models import MODELS
from memcli.training import TrainSettings, train_model

CLIPS = 160
_SMALL: dict[str, dict[str, int | float | str]] = {
    "FusionTransformer": {"width": 32, "depth": 2, "heads": 4, "feed_forward": 64, "dropout": 0.0},
    "LateFusion": {"width": 32, "depth": 2, "heads": 4, "feed_forward": 64, "dropout": 0.0},
    "TemporalHead": {"hidden": 16, "layers": 2, "dropout": 0.0},
}
_RECIPES = {
    "FusionTransformer": (30, 2e-3, 32),
    "LateFusion": (40, 3e-3, 32),
    "TextPerceptron": (60, 3e-3, 16),
    "TemporalHead": (30, 2e-3, 32),
    "RegressionHead": (60, 3e-2, 32),
}
"""Epochs, learning rate and batch size by head."""


def way_of_training(name: str) -> tuple[object, ...]:
    """By what a model could see a held-out score: its head, its loss, what of it is trained."""
    spec = MODELS[name]
    assert spec.head is not None
    assert spec.recipe is not None
    towers = tuple(one.tower for one in spec.encoders)
    recipe = spec.recipe
    return (spec.head.kind, towers, recipe.loss, recipe.fine_tune, recipe.contrastive)


WAYS = tuple({way_of_training(name): name for name in TRAINED}.values())
CASES = [(name, False) for name in TRAINED] + [(name, True) for name in WAYS]
_SHUFFLED_EPOCHS = 10

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("hub")
    return {
        kind: str(tiny_hub.MAKERS[kind](folder / kind)) for kind in set(CHECKPOINT_KINDS.values())
    }


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The planted set, and the same clips with their scores shuffled."""
    folder = tmp_path_factory.mktemp("planted")
    planted.make_planted(folder, CLIPS)
    planted.make_planted(folder, CLIPS, shuffle=True, name="shuffled.csv")
    return {False: folder / "planted.csv", True: folder / "shuffled.csv"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: the clips' features are the same whatever their scores."""
    return tmp_path_factory.mktemp("home")


def settings(name: str, table: Path, hub: dict[str, str], output: Path) -> TrainSettings:
    """Small heads, and rates and epochs for the embeddings of tiny encoders."""
    spec = MODELS[name]
    assert spec.head is not None
    assert spec.recipe is not None
    towers = {one.tower: hub[CHECKPOINT_KINDS[one.repository]] for one in spec.encoders}
    asked = TrainSettings(
        model=name,
        dataset="csv",
        data=table,
        folds=2,
        encoder=towers.get("vision", towers.get("text")),
        text_encoder=towers.get("text") if len(towers) == 2 else None,
        options=_SMALL.get(spec.head.kind, {}),
        device="cpu",
        output=output,
        seed=3,
    )
    if spec.recipe.loss == "bayesian-ridge":
        return asked
    epochs, learning_rate, batch_size = _RECIPES[spec.head.kind]
    if spec.recipe.fine_tune:
        epochs, learning_rate, batch_size = 12, 2e-3, 32
    return replace(
        asked,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        adaptation_epochs=1,
    )


@pytest.mark.parametrize(
    ("name", "shuffled"),
    CASES,
    ids=[f"{name}-{'shuffled' if shuffled else 'planted'}" for name, shuffled in CASES],
)
def test_a_model_learns_what_is_there_and_nothing_else(
    name: str,
    shuffled: bool,
    datasets: dict[bool, Path],
    hub: dict[str, str],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEMCLI_HOME", str(home))
    asked = settings(name, datasets[shuffled], hub, tmp_path / "run")
    if not shuffled:
        run = train_model(replace(asked, split="official"))
        assert run.metrics["mean_srcc"] >= 0.8
        return
    # Both folds, because 32 clips of the dev split would give such a correlation by chance.
    if asked.epochs is not None:
        asked = replace(asked, epochs=min(asked.epochs, _SHUFFLED_EPOCHS))
    run = train_model(asked)
    assert len(run.folds) == 2
    assert abs(run.metrics["mean_srcc"]) <= 0.2
