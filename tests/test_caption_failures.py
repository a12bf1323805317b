"""Videos that the captioner cannot compute: their rows fail, the others get their captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the tiny captioner is exported")
pytest.importorskip("transformers", reason="as above")
pytest.importorskip("onnxruntime")

from media import make_video
from tiny_captioner import install_captioner

from memcli.caption_maker import CaptionMaker
from memcli.captioning.cache import captions_dir
from memcli.captioning.captioner import Captioner
from memcli.errors import EngineError
from memcli.journal import FileIdentity


def frames_of(maker: CaptionMaker, folder: Path, count: int) -> list[Any]:
    video = make_video(folder / "0.mp4", frames=4)
    paths = [folder / f"{number}.mp4" for number in range(count)]
    for path in paths[1:]:
        path.write_bytes(video.read_bytes())
    found: list[Any] = [
        maker.read(str(path), FileIdentity.of(str(path)), None, lambda: False) for path in paths
    ]
    for number, one in enumerate(found):
        one.clip.frames.flat[0] = number + 1  # so that a test knows them
    return found


def failing(
    monkeypatch: pytest.MonkeyPatch,
    bad: set[int],
    *,
    broken: bool = False,
    error: type[Exception] = EngineError,
) -> list[list[int]]:
    """The captioner fails on batches with a bad video. Returns what it is asked for."""
    asked: list[list[int]] = []
    caption = Captioner.caption

    def caption_or_fail(self: Captioner, clips: Sequence[Any], **options: Any) -> Any:
        asked.append([int(clip.flat[0]) for clip in clips])
        said = caption(self, clips, **options)
        if broken:
            pairs = zip(said, asked[-1], strict=True)
            return [replace(one, broken=number in bad) for one, number in pairs]
        if bad & set(asked[-1]):
            raise error("Failed to allocate memory")
        return said

    monkeypatch.setattr(Captioner, "caption", caption_or_fail)
    return asked


@pytest.mark.parametrize(
    ("broken", "error", "reason"),
    [
        (False, EngineError, "Failed to allocate memory"),
        (False, MemoryError, "there is not enough memory"),
        (True, EngineError, "computes numbers that are none"),
    ],
)
def test_one_video_that_fails_does_not_end_the_others(
    memcli_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: bool,
    error: type[Exception],
    reason: str,
) -> None:
    asked = failing(monkeypatch, {3}, broken=broken, error=error)
    with CaptionMaker(install_captioner(memcli_home), device="cpu", threads=1) as maker:
        made = maker.make(frames_of(maker, tmp_path, 5), lambda: False)
    assert [one.failure is None for one in made] == [True, True, False, True, True]
    assert reason in (made[2].problem or "")
    assert asked[1:] == ([] if broken else [[1, 2], [3, 4, 5], [3], [4, 5]])
    (kept,) = captions_dir().iterdir()
    assert len(kept.read_text().splitlines()) == 4  # what failed is tried again in another run


def test_the_last_video_alone_may_fail_too(
    memcli_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, {1})
    with CaptionMaker(install_captioner(memcli_home), device="cpu", threads=1) as maker:
        (made,) = maker.make(frames_of(maker, tmp_path, 1), lambda: False)
    assert made.problem == "the captioner failed: Failed to allocate memory"
    assert not captions_dir().exists()


def test_a_captioner_that_computes_nothing_ends_the_run(
    memcli_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = failing(monkeypatch, {0, 1, 2})
    with CaptionMaker(install_captioner(memcli_home), device="cpu", threads=1) as maker:
        frames = frames_of(maker, tmp_path, 2)
        with pytest.raises(EngineError, match="Failed to allocate"):
            maker.make(frames, lambda: False)
    assert asked == [[1, 2], [1], [2], [0]]


def test_a_video_too_large_for_memory_does_not_end_the_run(
    memcli_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Black frames are as small as the captioner takes: a large video is not all there is."""
    bundle = install_captioner(memcli_home)
    caption = Captioner.caption
    side = bundle.images.side

    def caption_or_fail(self: Captioner, clips: Sequence[Any], **options: Any) -> Any:
        if any(clip.shape[1] > side for clip in clips):
            raise MemoryError("Unable to allocate 8 GiB")
        return caption(self, clips, **options)

    monkeypatch.setattr(Captioner, "caption", caption_or_fail)
    images = replace(bundle.images, splitting=True, longest=None)
    with CaptionMaker(replace(bundle, images=images), device="cpu", threads=1) as maker:
        (made,) = maker.make(frames_of(maker, tmp_path, 1), lambda: False)
    assert made.problem == "the captioner failed: there is not enough memory"


def test_batches_are_as_large_as_asked_for(
    memcli_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    answer = Captioner._answer

    def counted(self: Captioner, prompts: Sequence[Any]) -> Any:
        sizes.append(len(prompts))
        return answer(self, prompts)

    monkeypatch.setattr(Captioner, "_answer", counted)
    with CaptionMaker(install_captioner(memcli_home), device="cpu", threads=1) as maker:
        maker.batch_size = 20
        assert len(maker.make(frames_of(maker, tmp_path, 20), lambda: False)) == 20
    assert sizes == [20]
