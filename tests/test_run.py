"""Run folders: what is written is read again, and nothing in one is believed."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_hub
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memcli.errors import MemcliError, ModelError, OutputError, UsageError
from memcli.models import get_model
from memcli.spec import HeadSpec, ModelSpec
from memcli.train import encoders, provenance, run_folder
from memcli.train.heads import HEADS, make_head, option_defaults
from memcli.train.run import (
    ADAPTED_FILE,
    MODEL_FILE,
    PREDICTIONS_FILE,
    RUN_FILE,
    SPLIT_FILE,
    EncoderUse,
    Run,
    fold_file,
    latest_run,
    load_head,
    load_model,
    read_run,
    runs_dir,
)
from memcli.train.run_folder import Prediction, RunFolder, read_predictions

LATE_OPTIONS = option_defaults(HEADS["LateFusion"])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hub.make_clip(tmp_path_factory.mktemp("clip"))


def spec_with(folder: Path) -> tuple[ModelSpec, EncoderUse]:
    spec = get_model("clip-vision")
    resolved, found = encoders.resolve(spec.encoders[0], override=str(folder))
    assert spec.prep is not None
    prep = encoders.frame_prep(found, spec.prep)
    use = EncoderUse("vision", found.repository, None, found.digest, str(found.folder))
    return replace(spec, encoders=(resolved,), prep=prep), use


def started(clip: Path, output: Path | None = None, **changes: Any) -> RunFolder:
    spec, use = spec_with(clip)
    run = Run(Path(), spec, {"name": "csv"}, 3, (use,), {"frame": spec.encoders[0].dim}, "training")
    return RunFolder.create(replace(run, **changes), output)


def head_of(run: Run, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    assert run.spec.head is not None
    return make_head(run.spec.head, run.dims["frame"], None)


def prefixed(module: torch.nn.Module, prefix: str = "head.") -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in module.state_dict().items()}


def finished(clip: Path, output: Path | None = None, **changes: Any) -> Run:
    with started(clip, output, **changes) as folder:
        folder.add_weights(MODEL_FILE, prefixed(head_of(folder.run)))
        folder.add_weights(fold_file(1), prefixed(head_of(folder.run, 1)))
        return folder.finish()


def test_what_is_written_is_read(clip: Path) -> None:
    run = finished(
        clip,
        metrics={"mean_srcc": float("nan"), "interval": (0.1, 0.2)},
        folds=({"fold": 1, "metrics": {}},),
        versions=provenance.versions(),
    )
    found = read_run(run.folder)
    assert found == replace(run, metrics={"mean_srcc": None, "interval": [0.1, 0.2]})
    assert found == read_run("clip-vision")
    assert found.versions["torch"] == torch.__version__.split("+")[0] or found.versions["torch"]
    frames = torch.randn(2, 3, run.dims["frame"])
    for fold, seed in ((None, 0), (1, 1)):
        expected = head_of(run, seed)(frames, None, None).score
        assert torch.equal(load_head(found, fold=fold)(frames, None, None).score, expected)


def test_the_model_looks_at_frames_with_the_encoder_of_the_training(clip: Path) -> None:
    run = finished(clip)
    model = load_model(run, report=lambda _: None)
    assert not model.training
    frames = torch.randint(0, 256, (2, 3, 32, 32, 3), dtype=torch.uint8)
    spec, _ = spec_with(clip)
    assert spec.prep is not None
    resolved, found = encoders.resolve(spec.encoders[0])
    encoder = encoders.load_encoder(resolved, found, spec.prep)
    with torch.no_grad():
        embeddings = encoder(frames.flatten(0, 1)).unflatten(0, (2, 3))
        assert torch.equal(model(frames).score, head_of(run)(embeddings, None, None).score)


@pytest.mark.parametrize("name", [ADAPTED_FILE, MODEL_FILE])
def test_trained_encoder_weights_replace_the_published_ones(clip: Path, name: str) -> None:
    with started(clip) as folder:
        plain = load_model(finished(clip), report=lambda _: None)
        changed = {
            f"frame_encoder.{key}": value + 1
            for key, value in plain.frame_encoder.state_dict().items()
            if value.is_floating_point()
        }
        weights = prefixed(head_of(folder.run))
        folder.add_weights(MODEL_FILE, weights | (changed if name == MODEL_FILE else {}))
        if name == ADAPTED_FILE:
            folder.add_weights(ADAPTED_FILE, changed)
        model = load_model(folder.finish(), report=lambda _: None)
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in changed.items())


def test_another_encoder_is_refused(clip: Path, tmp_path: Path) -> None:
    run = finished(clip)
    other = replace(run.encoders[0], digest="0" * 64)
    with pytest.raises(ModelError, match="not those of the training"):
        load_model(replace(run, encoders=(other,)), report=lambda _: None)


def test_changed_missing_and_foreign_weights_are_refused(clip: Path) -> None:
    run = finished(clip)
    with pytest.raises(ModelError, match="missing"):
        load_head(run, fold=7)
    path = run.folder / MODEL_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ModelError, match="changed since"):
        load_head(run)
    wider = make_head(HeadSpec("RegressionHead"), 99, None)
    other = make_head(HeadSpec("RidgeHead"), run.dims["frame"], None)
    for module in (wider, other):
        with started(clip) as folder:
            folder.add_weights(MODEL_FILE, prefixed(module))
            strange = folder.finish()
        with pytest.raises(ModelError, match="another model or version"):
            load_head(strange)


def test_a_run_json_cannot_ask_for_more_memory_than_its_weights_take(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest head of allowed options has 27e9 parameters."""
    made: list[bool] = []

    def noting(*parts: Any) -> torch.nn.Module:
        made.append(torch.zeros(1).is_meta)
        return make_head(*parts)

    monkeypatch.setattr("memcli.train.heads.make_head", noting)
    text = {"text_width": 8192, "feed_forward": 8192, "width": 8192, "depth": 64}
    head = HeadSpec("LateFusion", {k: v for k, v in text.items() if k in LATE_OPTIONS})
    run = finished(clip)
    load_head(run)
    assert made == [True, False]
    made.clear()
    large = replace(run, spec=replace(run.spec, head=head), dims={"frame": 65536, "text": 65536})
    for load in (load_head, partial(load_model, report=lambda _: None)):
        with pytest.raises(ModelError, match="another model or version"):
            load(large)
    assert made == [True, True]


def test_a_model_of_precomputed_features_has_a_head_only(clip: Path) -> None:
    run = finished(clip, features="ViT")
    with pytest.raises(ModelError, match="precomputed features 'ViT'"):
        load_model(run, report=lambda _: None)
    assert load_head(run) is not None


def test_unfinished_runs_are_for_resuming_only(clip: Path) -> None:
    with started(clip) as folder:
        place = folder.run.folder
        with pytest.raises(UsageError, match="another memcli"):
            RunFolder.resume(place)
    with pytest.raises(ModelError, match="not finished") as error:
        read_run(place)
    assert f"--resume {place}" in str(error.value)
    with RunFolder.resume(place) as folder:
        folder.add_weights(MODEL_FILE, prefixed(head_of(folder.run)))
        folder.finish()
    with pytest.raises(UsageError, match="complete"):
        RunFolder.resume(place)
    with pytest.raises(UsageError, match="no run"):
        RunFolder.resume(place / "nowhere")


def test_latest_names_the_newest_complete_run(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not been trained"):
        latest_run("clip-vision")
    first = finished(clip)
    with started(clip) as folder:
        assert latest_run("clip-vision") == first.folder
        second = folder.finish()
    assert second.folder != first.folder
    assert latest_run("clip-vision") == second.folder
    third = finished(clip, tmp_path / "elsewhere")
    assert latest_run("clip-vision") == third.folder
    assert (runs_dir("clip-vision") / "latest").read_text().strip() == str(third.folder)


def test_nothing_is_overwritten(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        started(clip, tmp_path / "a")
    with pytest.raises(UsageError, match="a file"):
        started(clip, tmp_path / "a" / "mine.txt")
    assert [one.name for one in (tmp_path / "a").iterdir()] == ["mine.txt"]
    (tmp_path / "b").mkdir()
    with started(clip, tmp_path / "b") as folder:
        assert folder.run.folder == tmp_path / "b"


def test_a_folder_without_a_run_can_be_used_again(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the disk was full before anything was written."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        started(clip, tmp_path / "a")
    monkeypatch.undo()
    with started(clip, tmp_path / "a") as folder:
        assert read_run(folder.run.folder, unfinished=True).status == "training"


def test_resuming_sees_what_another_process_has_just_finished(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(clip) as folder:
        place = folder.run.folder
    lock = run_folder._locked

    def late(path: Path) -> int:
        monkeypatch.setattr(run_folder, "_locked", lock)
        with RunFolder.resume(path) as other:
            other.add_weights(MODEL_FILE, prefixed(head_of(other.run)))
            other.finish()
        return lock(path)

    monkeypatch.setattr(run_folder, "_locked", late)
    with pytest.raises(UsageError, match="complete"):
        RunFolder.resume(place)
    assert read_run(place).files
    os.close(lock(place))  # nobody holds it


def test_tables(clip: Path) -> None:
    rows = [
        Prediction("'=1+1", 1, 0.1, 1 / 3),
        Prediction("b,\n", 2, 0.25, 2 / 3),
    ]
    with started(clip) as folder:
        assert read_predictions(folder.run) == []
        folder.write_split([("=1+1", 1, "train"), ("b,\n", None, "left out")])
        folder.write_predictions(rows)
        assert read_predictions(folder.run) == rows
        with (folder.run.folder / SPLIT_FILE).open(newline="") as stream:
            assert list(csv.reader(stream)) == [
                ["id", "fold", "role"],
                ["'=1+1", "1", "train"],
                ["b,\n", "", "left out"],
            ]
        fused = [Prediction("a", 1, 0.1, 0.2, (0.3, 0.4))]
        folder.write_predictions(fused)
        assert read_predictions(folder.run) == fused
        for text in (
            "id,fold\n",
            "id,fold,truth,predicted\na,1,nan,0\n",
            "id,fold,truth,predicted\na\n",
        ):
            (folder.run.folder / PREDICTIONS_FILE).write_text(text)
            with pytest.raises(ModelError, match="not the predictions"):
                read_predictions(folder.run)


def test_a_full_disk_is_said(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with started(clip) as folder:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            folder.save(metrics={"a": 1})
        monkeypatch.undo()
        assert read_run(folder.run.folder, unfinished=True).metrics == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(data=st.data())
@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_hostile_run_json_is_an_error_in_plain_words(
    clip: Path, tmp_path: Path, data: st.DataObject
) -> None:
    if not (tmp_path / "run").exists():
        finished(clip, tmp_path / "run")
    text = (tmp_path / "run" / RUN_FILE).read_text()
    entry = json.loads(text)
    part = data.draw(st.sampled_from(sorted(entry)))
    if data.draw(st.booleans()) and isinstance(entry[part], dict) and entry[part]:
        entry[part][data.draw(st.sampled_from(sorted(entry[part])))] = data.draw(JSON)
    else:
        entry[part] = data.draw(JSON)
    other = tmp_path / "other"
    other.mkdir(exist_ok=True)
    (other / RUN_FILE).write_text(json.dumps(entry))
    try:
        run = read_run(other)
        load_head(run)
    except MemcliError:
        return
    raise AssertionError("it has no weights")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"schema": 2}', "\xff"])
def test_what_is_no_run_json(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(ModelError):
        read_run(tmp_path)


def test_files_cannot_lie_elsewhere(clip: Path) -> None:
    run = finished(clip)
    entry = json.loads((run.folder / RUN_FILE).read_text())
    entry["files"] = {"../model.safetensors": "0"}
    (run.folder / RUN_FILE).write_text(json.dumps(entry))
    with pytest.raises(ModelError, match="strange entry"):
        read_run(run.folder)


def test_revision_of_the_code(tmp_path: Path) -> None:
    assert provenance.git_revision(tmp_path) is None
    found = provenance.git_revision()
    assert found is None or len(found.removesuffix("-dirty")) == 40


def test_seeded_leaves_no_trace() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with provenance.seeded(7):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with provenance.seeded(7):
        assert torch.equal(torch.rand(3), first)
