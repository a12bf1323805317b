"""Extraction: every video and caption once, a bad file stops nothing, what is done is kept."""

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from memcli.errors import DeviceError, EngineError, OutputError
from memcli.extraction import (
    Counts,
    NoProgress,
    caption_features,
    caption_key,
    extract_captions,
    extract_frames,
    frame_features,
    torch_captions,
    torch_frames,
    video_key,
)
from memcli.spec import FramePrep, TextPrep
from memcli.tokens import Tokeniser
from memcli.train.features import FeatureStore
from memcli.video import read_clip
from tests.media import make_video

PREP = FramePrep(frames=4, resize_width=16, resize_height=12, crop_width=16, crop_height=12)
DIM = 6
CHANNEL = np.random.default_rng(0).random((3, DIM), dtype=np.float32)


def encode(frames: np.ndarray) -> np.ndarray:
    """Mean colour times a matrix: [B, T, H, W, 3] -> [B, T, DIM]."""
    return (frames.mean((2, 3), dtype=np.float32) @ CHANNEL).astype(np.float32)


class Watcher(NoProgress):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.seen: list[tuple[int, int]] = []
        self.counts: Counts | None = None
        self.ended = 0

    def message(self, text: str) -> None:
        self.messages.append(text)

    def begin(self, counts: Counts) -> None:
        assert self.counts is None
        self.counts = counts

    def advance(self, counts: Counts) -> None:
        self.seen.append((counts.done, counts.failed))
        assert counts.per_s >= 0
        assert counts.eta_s >= 0

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    with FeatureStore.open(tmp_path / "store", (DIM,), "float32", {"of": "test"}) as opened:
        yield opened


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {f"clip{n}": make_video(folder / f"{n}.mp4", frames=9 + 4 * n) for n in range(5)}


def test_features_are_those_of_the_frames_that_scoring_sees(
    clips: dict[str, Path], store: FeatureStore
) -> None:
    watcher = Watcher()
    # Batches of two videos, so that they span files.
    assert extract_frames(clips, PREP, encode, store, batch_frames=8, progress=watcher) == {}
    found = frame_features(clips, store)
    assert found.keys() == clips.keys()
    for name, path in clips.items():
        expected = encode(read_clip(path, PREP).frames[None])[0]
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)
    assert watcher.seen == [(n, 0) for n in range(1, 6)]
    assert watcher.ended == 1
    assert watcher.counts is not None
    assert (watcher.counts.total, watcher.counts.cached) == (5, 0)
    assert watcher.counts.per_s > 0


def test_what_is_there_is_not_computed_again_and_changed_files_are(
    clips: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    calls = 0

    def counted(frames: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += len(frames)
        return encode(frames)

    mine = make_video(tmp_path / "mine.mp4", frames=8)
    videos = {**clips, "mine": mine, "same": mine, "spelt": tmp_path / "x" / ".." / "mine.mp4"}
    extract_frames(videos, PREP, counted, store)
    assert calls == 6  # one file under three names is one video
    watcher = Watcher()
    extract_frames(videos, PREP, counted, store, progress=watcher)
    assert calls == 6
    assert watcher.counts is not None
    assert watcher.counts.cached == 6
    assert watcher.ended == 1
    old = frame_features(videos, store)["same"]
    make_video(mine, frames=30)
    extract_frames(videos, PREP, counted, store)
    assert calls == 7
    assert not np.array_equal(frame_features(videos, store)["mine"], old)


def test_bad_videos_have_reasons_and_stop_nothing(
    clips: dict[str, Path], store: FeatureStore, tmp_path: Path
) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video\x1b[31m")
    bad = {
        "missing": tmp_path / "missing.mp4",
        "empty": tmp_path / "empty.mp4",
        "text": tmp_path / "text.mp4",
        "twin": tmp_path / "empty.mp4",
        "folder": tmp_path,
    }
    watcher = Watcher()
    failures = extract_frames({**bad, **clips}, PREP, encode, store, progress=watcher)
    assert failures.keys() == bad.keys()
    assert "no such file" in failures["missing"]
    assert failures["empty"] == failures["twin"]
    assert frame_features({**bad, **clips}, store).keys() == clips.keys()
    assert watcher.counts is not None
    assert (watcher.counts.done, watcher.counts.failed) == (5, 4)


def test_a_damaged_video_has_features_and_is_named(store: FeatureStore, tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mkv", frames=100, options={"g": "10"})
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    watcher = Watcher()
    assert extract_frames({"cut": cut}, PREP, encode, store, progress=watcher) == {}
    assert frame_features({"cut": cut}, store)["cut"].shape == (4, DIM)
    assert len(watcher.messages) == 1
    assert str(cut) in watcher.messages[0]


def test_features_that_are_not_finite_are_not_kept(
    clips: dict[str, Path], store: FeatureStore
) -> None:
    def broken(frames: np.ndarray) -> np.ndarray:
        return np.full((*frames.shape[:2], DIM), np.nan, np.float32)

    failures = extract_frames(clips, PREP, broken, store)
    assert set(failures.values()) == {"the encoder gave no finite features"}
    assert len(store) == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EngineError("broken")])
def test_what_is_done_is_kept_when_the_run_ends_early(
    clips: dict[str, Path], tmp_path: Path, error: BaseException
) -> None:
    class Stops(Watcher):
        def advance(self, counts: Counts) -> None:
            if counts.done == 3:
                raise error

    watcher = Stops()
    opened = FeatureStore.open(tmp_path / "s", (DIM,), "float32", {})
    with pytest.raises(type(error)):
        extract_frames(clips, PREP, encode, opened, progress=watcher)
    assert watcher.ended == 1
    opened._release()  # as if the process had ended here, with nothing written later
    with FeatureStore.open(tmp_path / "s", (DIM,), "float32", {}) as again:
        assert len(again) == 3
        assert extract_frames(clips, PREP, encode, again) == {}
        assert len(again) == 5


def test_an_encoder_that_fails_ends_the_run(clips: dict[str, Path], store: FeatureStore) -> None:
    def failing(frames: np.ndarray) -> np.ndarray:
        raise EngineError("no memory")

    with pytest.raises(EngineError, match="no memory"):
        extract_frames(clips, PREP, failing, store)


def test_a_full_disk_ends_the_run(
    clips: dict[str, Path], store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OutputError, match="No space left"):
        extract_frames(clips, PREP, encode, store)
    monkeypatch.undo()
    assert len(store) == 0


def test_frames_themselves_can_be_kept(clips: dict[str, Path], tmp_path: Path) -> None:
    with FeatureStore.open(tmp_path / "f", PREP.frame_shape(), "uint8", {}) as frames:
        extract_frames(clips, PREP, lambda batch: batch, frames)
        kept = frame_features(clips, frames)["clip2"]
        np.testing.assert_array_equal(kept, read_clip(clips["clip2"], PREP).frames)


def test_keys_of_videos(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    assert video_key(path) is None
    path.write_bytes(b"1")
    key = video_key(path)
    assert key == video_key(str(tmp_path / "." / "v.mp4"))
    os.utime(path, ns=(0, 1))
    assert video_key(path) not in (None, key)


@pytest.fixture
def tokeniser(tmp_path: Path) -> Tokeniser:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[UNK]": 0, "a": 1, "dog": 2, "runs": 3}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return Tokeniser(TextPrep(max_tokens=5, pad_id=9), tmp_path / "tokenizer.json")


def encode_text(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Sum of ids that are there, and their number, over DIM places."""
    sums = (ids * mask).sum(1)[:, None] + mask.sum(1)[:, None] / 10
    return (sums + np.arange(DIM)).astype(np.float32)


def test_each_different_caption_once_in_batches_of_like_length(
    store: FeatureStore, tokeniser: Tokeniser
) -> None:
    shapes: list[tuple[int, ...]] = []

    def seen(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        shapes.append(ids.shape)
        return encode_text(ids, mask)

    captions = ["a", "dog runs", "a dog runs", "a", "dog", "dog runs a dog runs a dog", "a dog"]
    watcher = Watcher()
    extract_captions(captions, tokeniser, seen, store, batch_size=2, progress=watcher)
    assert shapes == [(2, 5), (2, 2), (2, 1)]
    found = caption_features(captions, store)
    expected = [1.1, 5.2, 6.3, 1.1, 2.1, 11.5, 3.2]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)
    assert found.shape == (7, DIM)
    assert watcher.messages == ["1 caption cut: longer than the encoder takes"]
    assert watcher.seen[-1] == (6, 0)
    extract_captions([*captions, "runs"], tokeniser, seen, store)
    assert shapes[3:] == [(1, 1)]


def test_captions_of_any_text(store: FeatureStore, tokeniser: Tokeniser) -> None:
    texts = ["", "\udc80", "\0", "dog\nruns", "é" * 1000]
    extract_captions(texts, tokeniser, encode_text, store)
    assert all(caption_key(text) in store for text in texts)


def test_captions_without_finite_features_are_an_error(
    store: FeatureStore, tokeniser: Tokeniser
) -> None:
    with pytest.raises(EngineError, match="finite"):
        extract_captions(
            ["a"], tokeniser, lambda ids, mask: np.full((1, DIM), np.inf, np.float32), store
        )


def test_torch_encoders_behind_encode() -> None:
    torch = pytest.importorskip("torch")

    class Frames(torch.nn.Module):
        def forward(self, frames: object) -> object:
            assert not self.training
            assert not torch.is_grad_enabled()
            return frames.float().mean((1, 2))  # type: ignore[attr-defined]

    class Text(torch.nn.Module):
        def forward(self, ids: object, mask: object) -> object:
            return (ids * mask).double()  # type: ignore[operator]

    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), np.uint8)
    found = torch_frames(Frames().train(), "cpu")(frames)
    np.testing.assert_allclose(found, frames.mean((2, 3)), rtol=1e-5)
    ids = np.arange(6).reshape(2, 3)
    text = torch_captions(Text(), "cpu")(ids, np.ones_like(ids))
    np.testing.assert_array_equal(text, ids)
    assert (found.dtype, text.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("rows", [1, 2, 5, 7])
def test_threads_share_a_batch_by_its_rows(rows: int) -> None:
    torch = pytest.importorskip("torch")
    seen: list[tuple[int, int]] = []

    class Text(torch.nn.Module):
        def forward(self, ids: object, mask: object) -> object:
            seen.append((len(ids), torch.get_num_threads()))  # type: ignore[arg-type]
            assert not torch.is_grad_enabled()
            return ids * mask  # type: ignore[operator]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        ids = np.arange(rows * 4).reshape(rows, 4)
        found = torch_captions(Text())(ids, np.ones_like(ids))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found, ids)
    assert sum(count for count, _ in seen) == rows
    assert len(seen) == min(rows, 3)
    if rows > 1:
        assert {threads for _, threads in seen} == {1}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("OutOfMemoryError", "CUDA out of memory"),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory"),
        ("RuntimeError", "CUDA error: out of memory"),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    ],
)
def test_too_little_memory_says_what_was_tried(kind: str, words: str) -> None:
    torch = pytest.importorskip("torch")

    class Large(torch.nn.Module):
        def forward(self, frames: object) -> object:
            raise getattr(torch, kind, RuntimeError)(words)

    class Broken(torch.nn.Module):
        def forward(self, frames: object) -> Sequence[float]:
            raise RuntimeError("a bug")

    frames = np.zeros((2, 3, 4, 5, 3), np.uint8)
    with pytest.raises(DeviceError, match="encode 6 frames at a time"):
        torch_frames(Large())(frames)
    with pytest.raises(RuntimeError, match="a bug"):
        torch_frames(Broken())(frames)
