"""The captioner as a stage between decoding and the engine: turns, slots, shapes, endings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the tiny captioner is exported")
pytest.importorskip("transformers", reason="as above")
pytest.importorskip("onnxruntime")

from captioned import CLIPS, make_videos
from tiny_bundle import make_text_bundle
from tiny_captioner import install_captioner

from memcli.errors import EngineError


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return make_videos(tmp_path / "videos")


def test_on_a_cpu_captioner_and_engine_take_turns(
    memcli_home: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memcli.captioning.captioner import Captioner
    from memcli.inputs import Source
    from memcli.opening import open_scorer
    from memcli.scoring import ScoreSettings

    make_text_bundle(memcli_home, frames=True)
    install_captioner(memcli_home)
    held: list[str] = []
    settings = ScoreSettings(model="tiny-fusion", engine="onnxruntime", threads=1, workers=1)
    with open_scorer(settings, lambda text: None) as scorer:
        assert scorer.maker is not None
        lock = scorer.maker.turn
        engine, caption = scorer.selection.engine, Captioner.caption
        run = engine.run

        def watched_run(feeds: Any) -> Any:
            assert lock.locked()  # type: ignore[attr-defined]
            held.append("engine")
            return run(feeds)

        def watched_caption(self: Captioner, *arguments: Any, **options: Any) -> Any:
            assert lock.locked()  # type: ignore[attr-defined]
            held.append("captioner")
            return caption(self, *arguments, **options)

        monkeypatch.setattr(engine, "run", watched_run)
        monkeypatch.setattr(Captioner, "caption", watched_caption)
        rows = list(scorer.score(Source(str(videos / name)) for name in CLIPS))
        assert not lock.locked()  # type: ignore[attr-defined]
        assert scorer.maker.share("cuda") is None
    assert {row.status for _, _, row in rows} == {"ok"}
    assert set(held) == {"engine", "captioner"}


def test_frames_of_a_captioner_with_tiles_keep_their_shape(
    memcli_home: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from memcli import video
    from memcli.caption_maker import CaptionMaker

    bundle = install_captioner(memcli_home)
    read = video.read_clip
    decoded: list[Any] = []
    monkeypatch.setattr(
        video, "read_clip", lambda *args, **options: decoded.append(args) or read(*args, **options)
    )
    for longest, size in ((48, (32, 48)), (None, (64, 96))):
        images = replace(bundle.images, splitting=True, longest=longest)
        for sampling in ("exact", "keyframe"):
            with CaptionMaker(
                replace(bundle, images=images), device="cpu", sampling=sampling
            ) as maker:
                found = maker.read(str(videos / "a.mp4"), None, None, lambda: False)
                assert found.clip.frames.shape == (2, *size, 3)  # type: ignore[union-attr]
                assert found.clip.frames.any()  # type: ignore[union-attr]
    assert len(decoded) == 4  # each video once: its size is not asked for beforehand


def test_a_run_that_is_ended_ends_the_captioner_but_not_the_next_run(
    memcli_home: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memcli.caption_maker import CaptionMaker
    from memcli.captioning.sessions import OrtDecoder

    ended = [False]
    steps = []
    step = OrtDecoder.step

    def end_after_two(self: OrtDecoder, ids: Any) -> Any:
        logits = step(self, ids)
        steps.append(len(ids))
        ended[0] = len(steps) == 2
        return logits

    with CaptionMaker(install_captioner(memcli_home), device="cpu", threads=1) as maker:
        frames: Any = maker.read(str(videos / "a.mp4"), None, None, lambda: False)
        (first,) = maker.make([frames], lambda: ended[0])
        monkeypatch.setattr(OrtDecoder, "step", end_after_two)
        with pytest.raises(EngineError, match="the run was ended"):
            maker.make([frames], lambda: ended[0])
        assert len(steps) == 2
        assert maker.make([frames], lambda: False) == [first]


def test_large_clips_of_a_captioner_are_few(
    memcli_home: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memcli import scoring
    from memcli.caption_maker import CaptionMaker
    from memcli.inputs import Source
    from memcli.opening import open_scorer
    from memcli.pipeline import Pipeline
    from memcli.scoring import ScoreSettings

    make_text_bundle(memcli_home, frames=True)
    install_captioner(memcli_home)
    slots: list[int] = []

    class Noted(Pipeline[Any, Any, Any]):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options)
            slots.append(self._slots._value)

    monkeypatch.setattr(scoring, "Pipeline", Noted)
    settings = ScoreSettings(model="tiny-fusion", engine="onnxruntime", threads=1, workers=1)
    for size in (1000, 100_000_000):
        monkeypatch.setattr(CaptionMaker, "clip_bytes", size)
        with open_scorer(settings, lambda text: None) as scorer:
            rows = list(scorer.score(Source(str(videos / name)) for name in CLIPS))
        assert {row.status for _, _, row in rows} == {"ok"}
    assert slots[0] > slots[1] == 2
