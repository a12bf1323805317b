"""From a dataset on disk to a run folder, on tiny encoders and a few clips."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import tiny_hub
import torch

from memcli.errors import DeviceError, ModelError, UsageError
from memcli.train.datasets import DatasetError
from memcli.train.run import (
    ADAPTED_FILE,
    MODEL_FILE,
    Run,
    load_head,
    load_model,
    read_run,
    read_weights,
    runs_dir,
)
from memcli.train.run_folder import Prediction, read_predictions
from memcli.training import NoProgress, TrainSettings, train_model
from memcli.training.results import choose_alpha, summary, with_alpha

CLIPS = 20
NARROW: dict[str, int | float | str] = {"width": 16, "depth": 1, "heads": 2, "feed_forward": 16}


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    planted.make_planted(folder, CLIPS)
    return folder


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("hub")
    kinds = ("siglip", "clip", "roberta")
    return {kind: str(tiny_hub.MAKERS[kind](folder / kind)) for kind in kinds}


class Watch(NoProgress):
    """Notes what is told; interrupts where it is asked to."""

    def __init__(self, stop_at: tuple[str, int] | None = None) -> None:
        self.messages: list[str] = []
        self.epochs: list[tuple[str, int]] = []
        self.encoded = 0
        self._stop_at = stop_at

    def message(self, text: str) -> None:
        self.messages.append(text)

    def begin(self, counts: Any) -> None:
        self.encoded += counts.total - counts.cached

    def epoch(self, part: str, number: int, of: int, metrics: dict[str, float]) -> None:
        self.epochs.append((part, number))
        if (part, number) == self._stop_at:
            raise KeyboardInterrupt


def settings(model: str, clips: Path, **changes: Any) -> TrainSettings:
    return TrainSettings(model, "csv", clips, device="cpu", **({"folds": 2} | changes))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_whole_training(clips: Path, hub: dict[str, str]) -> None:
    watch = Watch()
    wanted = settings("vision", clips, encoder=hub["siglip"], epochs=2, options=NARROW, seed=5)
    run = train_model(wanted, watch)
    assert run == read_run("vision")
    assert run.folder.parent == runs_dir("vision")
    assert (run.status, run.seed, run.dims) == ("complete", 5, {"frame": tiny_hub.HIDDEN})
    assert run.spec.head is not None
    assert run.spec.head.options["width"] == 16
    assert run.spec.prep is not None
    assert (run.spec.prep.frames, run.spec.prep.crop_width) == (16, tiny_hub.IMAGE)
    assert run.spec.encoders[0].repository == hub["siglip"]
    assert run.dataset["videos"] == CLIPS
    assert [entry["fold"] for entry in run.folds] == [1, 2]
    assert run.full["epochs"] == 2
    assert {"torch", "memcli", "lightning"} <= set(run.versions)
    assert set(run.files) == {MODEL_FILE, "fold-1.safetensors", "fold-2.safetensors"}
    assert not (run.folder / "work").exists()
    assert list((run.folder / "logs").rglob("events.out.tfevents.*"))
    split = table(run.folder / "split.csv")
    folds = {row["id"]: row["fold"] for row in split}
    assert len(folds) == CLIPS
    # Two clips of one film are never on both sides.
    films = {row["path"]: row["group"] for row in table(clips / "planted.csv")}
    for film in set(films.values()):
        own = {folds[name] for name in folds if films[_path_of(name, films)] == film}
        assert len(own) == 1
    predictions = read_predictions(run)
    assert {one.id: str(one.fold) for one in predictions} == folds
    # What the fold's model says of a held-out video is what the table has.
    model = load_model(run, report=lambda _: None, fold=1)
    held = [one for one in predictions if one.fold == 1]
    frames = torch.from_numpy(np.stack([_frames(clips, one.id, run) for one in held]))
    with torch.no_grad():
        found = model(frames).score
    assert found.tolist() == pytest.approx([one.predicted for one in held], abs=1e-5)
    metrics = run.folds[0]["metrics"]
    assert metrics["n"] == len(held)
    assert run.metrics["mean_srcc"] == pytest.approx(
        np.mean([entry["metrics"]["srcc"]["value"] for entry in run.folds])
    )


def _path_of(name: str, films: dict[str, str]) -> str:
    return next(path for path in films if Path(path).stem in name)


def _frames(clips: Path, name: str, run: Run) -> Any:
    from memcli.video import read_clip

    assert run.spec.prep is not None
    stem = re.search(r"clip\d+", name)
    assert stem is not None
    return read_clip(str(clips / "videos" / f"{stem.group()}.mp4"), run.spec.prep).frames


def test_same_seed_same_predictions_and_features_once(clips: Path, hub: dict[str, str]) -> None:
    wanted = settings("early-fusion", clips, encoder=hub["siglip"], epochs=2, options=NARROW)
    watches = Watch(), Watch()
    runs = [train_model(wanted, watch) for watch in watches]
    texts = [(run.folder / "predictions.csv").read_text() for run in runs]
    assert texts[0] == texts[1]
    assert runs[0].folder != runs[1].folder
    assert watches[0].encoded > CLIPS
    assert watches[1].encoded == 0
    other = train_model(replace(wanted, seed=1))
    assert (other.folder / "predictions.csv").read_text() != texts[0]
    assert {"tokenizer.json", MODEL_FILE} <= set(runs[0].files)
    assert [one.tower for one in runs[0].encoders] == ["vision", "text"]


def test_late_fusion_chooses_alpha(clips: Path, hub: dict[str, str]) -> None:
    wanted = settings("late-fusion", clips, encoder=hub["siglip"], epochs=2, choose_alpha=True)
    options = NARROW | {"text_width": 16}
    run = train_model(replace(wanted, text_encoder=hub["roberta"], options=options))
    assert run.spec.head is not None
    alpha = float(run.spec.head.options["alpha"])
    predictions = read_predictions(run)
    assert alpha == choose_alpha(predictions)
    for one in predictions:
        vision, text = one.branches
        assert one.predicted == pytest.approx(alpha * vision + (1 - alpha) * text, abs=1e-12)
    assert load_head(run).alpha == alpha
    assert [one.repository for one in run.encoders] == [hub["siglip"], hub["roberta"]]


def test_alpha_is_the_best_of_the_grid() -> None:
    random = np.random.default_rng(0)
    rows = []
    for fold in (1, 2):
        for _ in range(40):
            truth, vision, text = random.random(3)
            branches = (truth + vision / 2, truth + text)
            rows.append(Prediction("x", fold, truth, 0.0, branches))
    best = choose_alpha(rows)
    assert 0 < best < 1
    grid = np.arange(0, 1.01, 0.05).round(2)
    scores = {alpha: summary_srcc(with_alpha(rows, alpha)) for alpha in grid}
    assert best == max(scores, key=scores.__getitem__)
    perfect = [replace(one, branches=(1 - one.truth, one.truth)) for one in rows]
    assert choose_alpha(perfect) == 0.45  # of all weights below a half the nearest to 0.7


def summary_srcc(rows: list[Prediction]) -> float:
    from memcli.training.results import fold_metrics

    folds = [
        {"metrics": fold_metrics([one for one in rows if one.fold == fold], 0)} for fold in (1, 2)
    ]
    return float(summary(folds, rows, 0)["mean_srcc"])


def test_official_split(clips: Path, hub: dict[str, str]) -> None:
    run = train_model(settings("clip-text", clips, encoder=hub["clip"], split="official", epochs=2))
    roles = [row["role"] for row in table(run.folder / "split.csv")]
    assert roles == ["train"] * (CLIPS * 4 // 5) + ["validation"] * (CLIPS // 5)
    assert set(run.files) == {MODEL_FILE, "tokenizer.json"}
    assert len(read_predictions(run)) == CLIPS // 5
    assert run.folds[0]["learning_rate_from"] in ("range test", "fall-back")
    assert run.full == {}


def test_full_split_measures_nothing(clips: Path, hub: dict[str, str]) -> None:
    watch = Watch()
    short = {"encoder": hub["clip"], "epochs": 2, "learning_rate": 1e-3}
    run = train_model(settings("clip-vision", clips, split="full", **short), watch)
    assert (run.metrics, run.folds) == ({}, ())
    assert any("none say when to stop: all 2 epochs" in one for one in watch.messages)
    assert set(run.files) == {MODEL_FILE}


@pytest.mark.parametrize(
    ("model", "prefix"),
    [("clip-vision-tuned", "frame_encoder."), ("clip-text-tuned", "text_encoder.")],
)
def test_fine_tuning_trains_the_encoder(
    clips: Path, hub: dict[str, str], model: str, prefix: str
) -> None:
    run = train_model(
        settings(model, clips, encoder=hub["clip"], epochs=1, batch_size=8, learning_rate=1e-3)
    )
    weights = read_weights(run, MODEL_FILE)
    trained = load_model(run, report=lambda _: None)
    fold = load_model(run, report=lambda _: None, fold=1)
    key = next(name for name in weights if name.startswith(prefix) and name.endswith("fc1.weight"))
    assert torch.equal(trained.state_dict()[key], weights[key])
    assert not torch.equal(fold.state_dict()[key], weights[key])
    full = read_run(run.folder).full
    assert full["epochs_because"] == "median of the folds' best epochs"


def test_contrastive_adaptation_is_done_once_for_both_towers(
    clips: Path, hub: dict[str, str]
) -> None:
    short = {
        "encoder": hub["clip"],
        "epochs": 1,
        "adaptation_epochs": 2,
        "batch_size": 16,
        "learning_rate": 1e-3,
    }
    # First the published encoder: its features must not be taken for those of the adapted one.
    plain = train_model(settings("clip-vision", clips, **short))
    watches = Watch(), Watch()
    vision = train_model(settings("fclip-vision", clips, **short), watches[0])
    text = train_model(settings("fclip-text", clips, **short), watches[1])
    assert any(part == "adaptation" for part, _ in watches[0].epochs)
    assert not any(part == "adaptation" for part, _ in watches[1].epochs)
    assert vision.adaptation == text.adaptation
    assert "held-out tenth" in vision.adaptation["monitored_on"]
    assert sum(vision.adaptation["videos"]) == CLIPS
    key, value = next(iter(read_weights(vision, ADAPTED_FILE).items()))
    assert key.startswith("frame_encoder.")
    adapted = load_model(vision, report=lambda _: None)
    assert torch.equal(adapted.state_dict()[key], value)
    same = load_model(plain, report=lambda _: None).state_dict()
    assert any(
        not torch.equal(value, same[key])
        for key, value in read_weights(vision, ADAPTED_FILE).items()
    )
    # The head was trained on what the adapted encoder says.
    prediction = read_predictions(vision)[0]
    model = load_model(vision, report=lambda _: None, fold=prediction.fold)
    frames = torch.from_numpy(_frames(clips, prediction.id, vision))
    with torch.no_grad():
        assert float(model(frames[None]).score) == pytest.approx(prediction.predicted, abs=1e-5)


def test_unusable_videos_are_left_out_and_counted(
    clips: Path, hub: dict[str, str], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(clips, data)
    (data / "videos" / "clip0003.mp4").write_bytes(b"no video")
    wanted = settings("brr", data, encoder=hub["siglip"], max_missing=0.06)
    run = train_model(wanted, Watch())
    (left_out,) = run.dataset["left_out"].items()
    assert "clip0003" in left_out[0]
    assert run.dataset["videos"] == CLIPS - 1
    assert {row["role"] for row in table(run.folder / "split.csv")} == {"train", "left out"}
    before = sorted(runs_dir("brr").iterdir())
    (data / "videos" / "clip0004.mp4").write_bytes(b"no video")
    with pytest.raises(DatasetError, match=r"2 of 20 videos cannot be used \(10%; 6%") as error:
        train_model(wanted)
    assert re.search(r"planted\.csv:\d+: .*clip0003", str(error.value))
    assert sorted(runs_dir("brr").iterdir()) == before


def test_precomputed_features(tmp_path: Path) -> None:
    folder = tmp_path / "features" / "ViT"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    direction = random.normal(size=6)
    with (tmp_path / "devset_videolist_GT.csv").open("w") as stream:
        stream.write("id,memorability_score\n")
        for number in range(30):
            feature = random.normal(size=(4, 6)).astype(np.float32)
            np.save(folder / f"-v{number}.npy", feature)
            score = 1 / (1 + np.exp(-feature.mean(0) @ direction))
            stream.write(f"-v{number},{score:.6f}\n")
    wanted = TrainSettings("brr", "videm", tmp_path, features="ViT", device="cpu")
    run = train_model(wanted)
    assert (run.features, run.encoders, run.dims) == ("ViT", (), {"frame": 6})
    assert run.metrics["mean_srcc"] > 0.8
    with pytest.raises(ModelError, match="precomputed"):
        load_model(run, report=lambda _: None)
    with pytest.raises(DatasetError, match="no features called 'I3D'"):
        train_model(replace(wanted, features="I3D"))
    with pytest.raises(UsageError, match="precomputed features"):
        train_model(replace(wanted, model="text"))
    with (folder / "-v0.npy").open("wb") as stream:
        np.save(stream, np.zeros((600, 6), np.float32))
    for number in range(1, 30):
        shutil.copy(folder / "-v0.npy", folder / f"-v{number}.npy")
    with pytest.raises(DatasetError, match="features of 600 frames each"):
        train_model(wanted)


def test_held_out_videos_are_not_trained_on(tmp_path: Path) -> None:
    """More features than videos and scores that mean nothing: whoever has seen a video knows it."""
    folder = tmp_path / "features" / "noise"
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    lines = ["id,memorability_score"]
    for number in range(60):
        np.save(folder / f"v{number}.npy", random.normal(size=200))
        lines.append(f"v{number},{random.random():.6f}")
    (tmp_path / "devset_videolist_GT.csv").write_text("\n".join(lines) + "\n")
    wanted = TrainSettings("vision", "videm", tmp_path, features="noise", device="cpu", folds=3)
    options = {**NARROW, "dropout": 0.0}
    wanted = replace(wanted, options=options, epochs=60, learning_rate=1e-2)
    run = train_model(wanted)
    assert run.folds[0]["history"][-1]["train_loss"] < 0.01
    assert abs(run.metrics["held_out"]["srcc"]["value"]) <= 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resmem"}, "weights are published"),
        ({"model": "visoin"}, "did you mean 'vision'"),
        ({"folds": 15}, "too few for 15 folds"),
        ({"target": "long-term"}, "no long-term scores"),
        ({"options": {"widht": 3}}, "no option 'widht'"),
        ({"options": {"width": -3}}, "width"),
        ({"choose_alpha": True}, "no alpha"),
        ({"text_encoder": "x"}, "reads no captions"),
        ({"frames": 100_000}, "frames"),
        ({"encoder": "/nowhere/at/all"}, "neither a folder nor a name"),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"data": Path("/nowhere")}, "nowhere"),
        ({"learning_rate": -1.0}, "not positive"),
        ({"features": "ViT"}, "take the place of encoder"),
        ({"features": "ViT", "encoder": None}, "no features called"),
        ({"features": "ViT", "encoder": None, "frames": 3}, "take the place of encoder"),
        ({"model": "brr", "options": {}}, "brr is fitted in one step"),
        ({"split": "half"}, "no split"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    clips: Path, hub: dict[str, str], changes: dict[str, Any], message: str
) -> None:
    wanted = settings("vision", clips, encoder=hub["siglip"], epochs=1, options=NARROW)
    with pytest.raises((UsageError, ModelError, DeviceError), match=message):
        train_model(replace(wanted, **changes))
    assert not runs_dir("vision").exists()
