"""`memcli evaluate` of training runs: the same scores as the model, folds, what was trained on."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_hub
from planted import make_planted
from tiny_bundle import make_tiny_bundle

from memcli.app import run as memcli
from memcli.home import HOME_VARIABLE

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("lightning")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from memcli.train.run import Run, load_model, read_run  # noqa: E402
from memcli.training import TrainSettings, train_model  # noqa: E402

pytestmark = pytest.mark.slow

NARROW: dict[str, int | float | str] = {"width": 16, "depth": 1, "heads": 2, "feed_forward": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_planted(tmp_path_factory.mktemp("planted"), 10)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home-of-runs")


@pytest.fixture(scope="module")
def runs(data: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trained once each: (model, split) -> run."""
    hub = tmp_path_factory.mktemp("hub")
    tiny_hub.make_siglip(hub / "siglip")
    tiny_hub.make_clip(hub / "clip")
    made: dict[tuple[str, str], Run] = {}

    def train(model: str, split: Any = "folds", **changes: Any) -> Run:
        if (model, split) not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(HOME_VARIABLE, str(home))
                made[model, split] = train_model(
                    TrainSettings(
                        model=model,
                        dataset="csv",
                        data=data,
                        split=split,
                        folds=2 if split == "folds" else None,
                        epochs=1,
                        batch_size=4,
                        learning_rate=1e-3,
                        frames=changes.pop("frames", None),
                        encoder=str(hub / changes.pop("encoder", "siglip")),
                        options=changes.pop("options", {}),
                        device="cpu",
                    )
                )
        return made[model, split]

    return train


@pytest.fixture(autouse=True)
def in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(home))


def evaluate(out: Path, *arguments: Any, code: int = 0) -> tuple[dict[str, Any], dict[str, float]]:
    """What metrics.json says, and the predictions by the id of the video."""
    command = ["evaluate", *map(str, arguments), "--output", str(out), "--device", "cpu"]
    assert memcli(command) == code
    with (out / "predictions.csv").open(newline="") as stream:
        rows = {row["id"]: float(row["predicted"]) for row in csv.DictReader(stream)}
    return json.loads((out / "metrics.json").read_text()), rows


def original(run: Run, data: Path) -> dict[str, float]:
    """Scores of the whole PyTorch model, video by video, with nothing of the evaluation."""
    from memcli.tokens import Tokeniser
    from memcli.train.datasets import load_dataset
    from memcli.video import read_clip

    model = load_model(run, offline=True, report=lambda _: None)
    scores = {}
    for item in load_dataset("csv", data).items:
        frames = ids = mask = None
        if run.spec.prep is not None:
            assert item.path is not None
            clip = read_clip(str(item.path), run.spec.prep)
            frames = torch.from_numpy(np.array(clip.frames))[None]
        if run.spec.text is not None:
            assert run.tokenizer is not None
            tokens = Tokeniser(run.spec.text, run.tokenizer).encode([item.captions])
            ids, mask = torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.attention_mask)
        with torch.no_grad():
            scores[item.id] = float(model(frames, ids, mask).score[0])
    return scores


def test_run_of_frames_and_captions(
    runs: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs("early-fusion", frames=3, options=NARROW)
    entry, found = evaluate(tmp_path, run.folder, "--dataset", "csv", "--data", data)
    shown = capsys.readouterr()
    assert found == pytest.approx(original(run, data), abs=1e-5)
    assert entry["kind"] == "run"
    assert entry["trained_on"] == 10
    assert "10 of the 10 measured videos were trained on" in shown.err
    validation = entry["cross_validation"]
    assert [fold["fold"] for fold in validation["folds"]] == [1, 2]
    assert sum(fold["metrics"]["n"] for fold in validation["folds"]) == 10
    for own, theirs in zip(validation["folds"], run.folds, strict=True):
        value = own["metrics"]["srcc"]["value"]
        assert value == pytest.approx(theirs["metrics"]["srcc"]["value"], abs=1e-9)
    assert validation["mean_srcc"] == pytest.approx(run.metrics["mean_srcc"])
    assert (entry["headline"], entry["metrics_of"]) == ("cross_validation", "training videos")
    assert list(entry).index("cross_validation") < list(entry).index("metrics")
    lines = shown.out.splitlines()
    (held,) = (
        n for n, x in enumerate(lines) if x.startswith("held-out videos of the training (10")
    )
    (seen,) = (n for n, line in enumerate(lines) if line.startswith("training videos (10 of 10): "))
    tables = [n for n, line in enumerate(lines) if line.startswith("SRCC")]
    assert held < tables[0] < seen < tables[1]
    own, whole = validation["held_out"]["srcc"]["value"], entry["metrics"]["srcc"]["value"]
    assert float(lines[tables[0]].split()[1]) == pytest.approx(own, abs=5e-5)
    assert float(lines[tables[1]].split()[1]) == pytest.approx(whole, abs=5e-5)
    with (tmp_path / "predictions.csv").open(newline="") as stream:
        assert {row["fold"] for row in csv.DictReader(stream)} == {"1", "2"}


def test_features_are_taken_from_the_cache(
    runs: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memcli import extraction

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the encoder was loaded although its features are cached")

    run = runs("early-fusion", frames=3, options=NARROW)
    monkeypatch.setattr(extraction, "torch_frames", never)
    monkeypatch.setattr(extraction, "torch_captions", never)
    evaluate(tmp_path, run.folder, "--dataset", "csv", "--data", data)


def test_run_with_a_trained_encoder(runs: Any, data: Path, tmp_path: Path) -> None:
    run = runs("clip-vision-tuned", "official", encoder="clip")
    entry, found = evaluate(tmp_path, run.folder, "--dataset", "csv", "--data", data)
    assert found == pytest.approx(original(run, data), abs=1e-5)
    assert entry["trained_on"] == 8  # the last fifth is the dev split
    assert entry["cross_validation"]["held_out"]["n"] == 2
    assert entry["metrics_of"] == "training videos and others"


def test_run_with_an_adapted_encoder(runs: Any, data: Path, tmp_path: Path) -> None:
    """FCLIP, frozen: the encoder is the adapted one, not the published one."""
    run = runs("fclip-vision", "official", encoder="clip")
    _, found = evaluate(tmp_path, run.folder, "--dataset", "csv", "--data", data)
    assert found == pytest.approx(original(run, data), abs=1e-5)


def test_held_out_split_has_not_been_trained_on(
    runs: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs("clip-vision-tuned", "official", encoder="clip")
    arguments = (run.folder, "--dataset", "csv", "--data", data, "--split", "dev")
    entry, found = evaluate(tmp_path, *arguments)
    assert (len(found), entry["trained_on"], entry["warnings"]) == (2, 0, [])
    assert (entry["headline"], entry["metrics_of"]) == ("metrics", "other videos")
    assert "warning" not in capsys.readouterr().err


def test_the_generic_form_by_its_other_name_is_the_same_data(
    runs: Any, data: Path, tmp_path: Path
) -> None:
    run = runs("clip-vision-tuned", "official", encoder="clip")
    entry, _ = evaluate(tmp_path, run.folder, "--dataset", "moviemem", "--data", data)
    assert entry["trained_on"] == 8
    assert entry["metrics_of"] == "training videos and others"


def test_scores_of_another_table_are_not_the_runs_own(
    runs: Any, data: Path, tmp_path: Path
) -> None:
    run = runs("early-fusion", frames=3, options=NARROW)
    folder = tmp_path / "data"
    shutil.copytree(data.parent, folder)
    make_planted(folder, 10, shuffle=True)
    arguments = (run.folder, "--dataset", "csv", "--data", folder / data.name)
    entry, _ = evaluate(tmp_path / "out", *arguments)
    assert entry["cross_validation"] is None
    assert (entry["headline"], entry["metrics_of"]) == (None, "training videos")
    assert entry["trained_on"] == 10


def test_bundle_goes_before_the_run_of_that_name(
    runs: Any, home: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs("early-fusion", frames=3, options=NARROW)
    arguments = ("early-fusion", "--dataset", "csv", "--data", data)
    assert evaluate(tmp_path / "1", *arguments)[0]["kind"] == "run"
    bundle = make_tiny_bundle(home, "early-fusion")
    try:
        capsys.readouterr()
        assert evaluate(tmp_path / "2", *arguments)[0]["kind"] == "bundle"
        assert "the installed bundle is measured; its newest run with --run" in (
            capsys.readouterr().err
        )
        assert evaluate(tmp_path / "3", *arguments, "--run")[0]["kind"] == "run"
        asked = (*map(str, arguments), "--run", "--precision", "fp16", "--output", "x")
        assert memcli(["evaluate", *asked]) == 2
        error = capsys.readouterr().err
        assert "computed by PyTorch in fp32" in error
        assert "memcli export --run " in error
    finally:
        shutil.rmtree(bundle.root)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "split.csv"])
def test_damaged_runs_are_refused(
    runs: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = runs("early-fusion", frames=3, options=NARROW)
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    (folder / name).write_bytes(b'{"not": "what it was"}')
    assert read_run(folder).model == "early-fusion"
    command = ["evaluate", str(folder), "--dataset", "csv", "--data", str(data)]
    assert memcli([*command, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 3
    error = capsys.readouterr().err
    assert name in error
    assert "Traceback" not in error
    assert not list((tmp_path / "out").iterdir())
