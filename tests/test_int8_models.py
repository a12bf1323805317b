"""int8 of every kind of model that is trained: what is calibrated with, and the whole road."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import TEXT_PREP, TINY_PREP, text_spec, write_tokenizer

from memcli.engines.reference import synthetic_frames
from memcli.errors import ModelError, UsageError, VideoError, VideoErrorCode
from memcli.export.calibration import CalibrationClips, make_calibration_set
from memcli.export.calibration_captions import (
    CalibrationCaptions,
    captions_of_file,
    captions_of_videos,
    synthetic_calibration_captions,
)
from memcli.export.int8 import make_int8

CLIPS = list(synthetic_frames(TINY_PREP, 30, 6, seed=1))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    write_tokenizer(path)
    return path


def test_captions_are_calibrated_with_one_by_one(tokenizer: Path) -> None:
    """Without padding: what a padded row computes is no input of anything."""
    spec = text_spec("text", frames=False)
    captions = synthetic_calibration_captions()
    data = make_calibration_set(spec, captions=captions, tokenizer=tokenizer)
    assert data.captions == "synthetic captions"
    assert (len(data.batches), len(data.holdout)) == (64, 64)
    assert all(feeds["attention_mask"].all() for feeds in data.batches)
    lengths = {feeds["input_ids"].shape for feeds in data.batches}
    assert len(lengths) > 3
    assert max(shape[2] for shape in lengths) <= TEXT_PREP.max_tokens


def test_synthetic_captions_are_all_different() -> None:
    made = synthetic_calibration_captions()
    sentences = [text for texts in (*made.calibration, *made.holdout) for text in texts]
    assert len(set(sentences)) == len(sentences) == 128
    assert made == synthetic_calibration_captions()
    with pytest.raises(UsageError, match="synthetic captions only"):
        synthetic_calibration_captions(4000, 4000)


def test_frames_and_captions_go_together(tokenizer: Path) -> None:
    spec = text_spec("both", frames=True)
    captions = CalibrationCaptions(
        tuple((f"a dog {i}", "b") for i in range(14)), (("c", "d e"),) * 16, "captions of x.csv"
    )
    data = make_calibration_set(
        spec, CLIPS[:14], CLIPS[14:], captions=captions, tokenizer=tokenizer
    )
    assert (len(data.batches), len(data.holdout)) == (14, 16)
    assert {feeds["frames"].shape[:2] for feeds in data.batches} == {(1, 4)}
    assert {feeds["input_ids"].shape[:2] for feeds in data.batches} == {(1, 1)}
    assert {feeds["frames"].shape[:2] for feeds in data.holdout} == {(1, 6)}
    assert {feeds["input_ids"].shape[:2] for feeds in data.holdout} == {(1, 2)}
    np.testing.assert_array_equal(data.batches[3]["frames"][0], CLIPS[3][[0, 2, 3, 5]])
    with pytest.raises(ModelError, match="needs some"):
        make_calibration_set(spec, CLIPS[:14], CLIPS[14:], tokenizer=tokenizer)


def test_models_of_whole_clips_get_frames_of_every_clip() -> None:
    spec = dataclasses.replace(text_spec("clips", frames=True), text=None)
    data = make_calibration_set(spec, CLIPS[:14], CLIPS[14:])
    assert {feeds["frames"].shape[:2] for feeds in data.batches} == {(1, 4)}
    assert len(data.batches) == 14
    with pytest.raises(UsageError, match="at least 64 frames"):
        make_calibration_set(spec, CLIPS[:2], CLIPS[14:])


def test_captions_of_a_file() -> None:
    videos = [(f"first {i}", f"second {i}", "the same everywhere") for i in range(200)]
    found = captions_of_file(videos, "x.csv")
    assert found.source == "captions of x.csv"
    assert (len(found.calibration), len(found.holdout)) == (96, 96)
    sides = [
        {text for texts in side for text in texts} for side in (found.calibration, found.holdout)
    ]
    assert not sides[0] & sides[1]
    with pytest.raises(UsageError, match="captions of 128 videos, not of 3"):
        captions_of_file(videos[:3], "x.csv")


def test_clips_without_captions_are_left_out() -> None:
    def of(path: str) -> tuple[str, ...]:
        if path == "b.mp4":
            raise VideoError(VideoErrorCode.NO_CAPTION, "none")
        return (f"caption of {path}",)

    clips = CalibrationClips(CLIPS[:2], CLIPS[2:3], ["a.mp4", "b.mp4"], ["c.mp4"])
    said: list[str] = []
    kept, captions = captions_of_videos(clips, of, "x.csv", said.append)
    assert kept.calibration_paths == ["a.mp4"]
    assert kept.calibration[0] is CLIPS[0]
    assert captions.holdout == (("caption of c.mp4",),)
    assert said == ["not used: b.mp4: no caption of it in x.csv"]
    with pytest.raises(UsageError, match="no captions of the videos"):
        captions_of_videos(CalibrationClips([], CLIPS[:1], [], ["a.mp4"]), of, "x.csv", said.append)


def test_captions_of_the_holdout_are_not_calibrated_with() -> None:
    texts = {
        "a.mp4": ("a dog", "a cat"),
        "b.mp4": ("a dog", "a dog runs"),
        "c.mp4": ("a dog runs",),
        "d.mp4": ("a dog runs", "two dogs"),
    }
    paths = list(texts)
    clips = CalibrationClips(CLIPS[:3], CLIPS[3:4], paths[:3], paths[3:])
    said: list[str] = []
    kept, captions = captions_of_videos(clips, texts.__getitem__, "x.csv", said.append)
    assert kept.calibration_paths == ["a.mp4", "b.mp4"]
    assert kept.holdout_paths == ["d.mp4"]
    assert captions.calibration == (("a dog", "a cat"), ("a dog",))
    assert captions.holdout == (texts["d.mp4"],)
    assert said == [
        "not used: c.mp4: a video to check with has its captions, too",
        "not calibrated with: 2 captions that videos to check with have, too",
    ]


def test_a_caption_on_both_sides_is_refused(tokenizer: Path) -> None:
    spec = text_spec("text", frames=False)
    good = synthetic_calibration_captions()
    both = dataclasses.replace(good, holdout=(*good.holdout, ("x", *good.calibration[5])))
    with pytest.raises(UsageError, match="a caption is both in the calibration and in the holdout"):
        make_calibration_set(spec, captions=both, tokenizer=tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["early-fusion", "vision", "clip-gru", "clip-vision"])
def test_int8_of_models_that_look_at_frames(name: str, tiny_export: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    made = tiny_export(name)
    tiny = made.tiny
    fp32 = made.copy_graph(tmp_path)
    assert tiny.spec.prep is not None
    clips = list(synthetic_frames(tiny.spec.prep, 40, 6, seed=3))
    captions = synthetic_calibration_captions(20, 20) if tiny.spec.text is not None else None
    data = make_calibration_set(
        tiny.spec, clips[:20], clips[20:], captions=captions, tokenizer=tiny.tokenizer
    )
    (tmp_path / "int8").mkdir()
    graph = tmp_path / "int8" / "model.onnx"
    tolerance = dataclasses.replace(tiny.spec.tolerances["int8"], min_srcc=0.9)
    result = make_int8(fp32, graph, data, tolerance, lambda _: None)
    assert result.scheme == "s8s8"
    assert result.int8_layers >= 5
    assert result.holdout.max_abs <= tolerance.max_abs
    assert result.cosine_min is not None
    assert result.cosine_min > 0.99


@pytest.mark.slow
def test_int8_of_a_text_model_end_to_end(tiny_export: Any) -> None:
    """From the export to scores, in both runtimes."""
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    from memcli.engines.bundle import read_bundle, write_manifest
    from memcli.engines.select import open_engine
    from memcli.export.precision import make_variant
    from memcli.home import bundles_dir

    bundle = tiny_export("text").copied(bundles_dir() / "text")
    tolerances = dict(bundle.spec.tolerances)
    tolerances["int8"] = dataclasses.replace(tolerances["int8"], min_srcc=0.9)
    spec = dataclasses.replace(bundle.spec, tolerances=tolerances)
    write_manifest(dataclasses.replace(bundle, spec=spec))
    bundle = read_bundle(bundle.root)
    said: list[str] = []
    variant = make_variant(bundle, "int8", report=said.append)
    assert "int8: no captions given: calibrated and checked with synthetic ones" in said
    assert variant.engines == ("openvino", "onnxruntime", "tensorrt", "tensorrt-rtx")
    assert variant.graphs == {}
    assert variant.parity[-1]["clips"] == 64
    assert variant.parity[-1]["inputs"] == "held-out synthetic captions"
    installed = read_bundle(bundle.root)
    assert installed.tokenizer_path(variant) is not None
    for name in ("openvino", "onnxruntime"):
        with open_engine(installed, engine=name, precision="int8").engine as engine:
            assert engine.describe().precision == "int8+fp32"
