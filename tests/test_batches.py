"""What a training sees: which units, in which order, in which batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tiny_examples import DIM, caption_examples, examples

from memcli.spec import Recipe
from memcli.train.data import Examples, HeldFrames, StoredFrames, TrainingBatches, WholeVideos

RECIPE = Recipe(batch_size=16, unit="frame")


def batches(data: Examples, recipe: Recipe, epoch: int = 0, **more: tuple[int, int]) -> list:  # type: ignore[type-arg]
    return list(TrainingBatches(data, recipe, seed=5, epoch=lambda: epoch, **more))


def test_units_are_samples_of_their_own() -> None:
    data = examples(6, 3)
    data.scores[:] = torch.arange(6)
    assert isinstance(data.frames, HeldFrames)
    found = batches(data, replace(RECIPE, batch_size=4))
    assert [len(one.scores) for one in found] == [4, 4, 4, 4, 2]
    pairs = sorted(
        (int(s), f.tolist()) for b in found for s, f in zip(b.scores, b.frames[:, 0], strict=True)
    )
    assert pairs == sorted((i, f.tolist()) for i in range(6) for f in data.frames.values[i])
    captions = caption_examples()
    units = batches(captions, replace(RECIPE, unit="caption", batch_size=100))
    assert sorted(units[0].captions[:, 0, 0].tolist()) == [0, 1, 2, 3, 6, 7, 9, 10, 11]
    assert units[0].captions.shape == (9, 1, DIM)
    assert (units[0].mask == 1).all()


def test_videos_draw_one_of_their_captions_in_each_epoch() -> None:
    recipe = replace(RECIPE, unit="video", batch_size=4)
    drawn: dict[int, set[float]] = {}
    for epoch in range(40):
        (batch,) = batches(caption_examples(), recipe, epoch)
        assert batch.captions.shape == (4, 1, DIM)
        for value in batch.captions[:, 0, 0].tolist():
            drawn.setdefault(int(value) // 3, set()).add(value)
    assert drawn == {0: {0, 1, 2}, 1: {3}, 2: {6, 7}, 3: {9, 10, 11}}


def test_epochs_differ_and_repeat_exactly() -> None:
    data = examples(30, 5)
    recipe = Recipe(batch_size=8, shuffle_frames=True)
    once, again = batches(data, recipe, 1), batches(data, recipe, 1)
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(once, again, strict=True))
    assert not torch.equal(once[0].frames, batches(data, recipe, 2)[0].frames)
    rows = {tuple(map(tuple, video.sort(0).values.tolist())) for b in once for video in b.frames}
    assert isinstance(data.frames, HeldFrames)
    assert rows == {tuple(map(tuple, v.sort(0).values.tolist())) for v in data.frames.values}
    plain = batches(data, replace(recipe, shuffle_frames=False), 1)
    assert not torch.equal(plain[0].frames, once[0].frames)
    assert torch.equal(plain[0].scores, once[0].scores)


def test_devices_share_a_batch() -> None:
    data = examples(30, 1)
    whole = batches(data, RECIPE)
    parts = [batches(data, RECIPE, share=(rank, 2)) for rank in range(2)]
    for one, left, right in zip(whole, *parts, strict=True):
        both = torch.cat([left.scores, right.scores])
        assert torch.equal(both.sort().values, one.scores.sort().values)


def test_stored_frames_are_as_held_ones(tmp_path: Path) -> None:
    data = examples(6, 3)
    assert isinstance(data.frames, HeldFrames)
    np.save(tmp_path / "frames.npy", data.frames.values.numpy())
    stored = StoredFrames(list(np.load(tmp_path / "frames.npy", mmap_mode="r")))
    videos, frame = torch.tensor([4, 0, 4]), torch.tensor([2, 1, 0])
    assert stored.count == 3
    assert torch.equal(stored.take(videos, None), data.frames.take(videos, None))
    assert torch.equal(stored.take(videos, frame), data.frames.take(videos, frame))


def test_subsets_of_subsets() -> None:
    data = examples(10, 2)
    part = data.subset([8, 3, 5]).subset([2, 0])
    assert part.ids == ("v5", "v8")
    (batch,) = WholeVideos(part, 10)
    assert isinstance(data.frames, HeldFrames)
    assert torch.equal(batch.frames, data.frames.values[[5, 8]])  # type: ignore[arg-type]
    assert torch.equal(batch.scores, data.scores[[5, 8]])


def test_padding_that_no_caption_of_a_batch_reaches_is_cut_off() -> None:
    ids = torch.arange(3 * 2 * 6).reshape(3, 2, 6)
    mask = torch.zeros(3, 2, 6, dtype=torch.int64)
    mask[0, 0, :2] = mask[1, 0, :5] = mask[2, 0, 3:] = 1  # the last one is padded on the left
    whole = Examples(("a", "b", "c"), torch.rand(3), None, ids, mask)
    trimmed = replace(whole, trim=True)
    for videos, length in (([0], 2), ([0, 1], 5), ([0, 2], 6)):
        rows = torch.tensor(videos)
        batch, full = trimmed.batch(rows), whole.batch(rows)
        for cut, uncut in ((batch.captions, full.captions), (batch.mask, full.mask)):
            assert isinstance(cut, torch.Tensor)
            assert isinstance(uncut, torch.Tensor)
            assert torch.equal(cut, uncut[..., :length])
    none = trimmed.batch(torch.tensor([1]), caption=torch.tensor([1]))
    assert isinstance(none.mask, torch.Tensor)
    assert none.mask.shape == (1, 1, 1)
