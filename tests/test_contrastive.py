"""Contrastive adaptation: the batches, the loss, and that it aligns two towers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from memcli.errors import DeviceError
from memcli.train.contrastive import (
    Adapted,
    PairBatches,
    adapt,
    contrastive_loss,
    joined,
    pair_rounds,
)
from memcli.train.data import Examples, StoredFrames
from memcli.train.driver import read_checkpoint
from memcli.train.loop import FitSettings
from memcli.train.trainer import LAST_FILE, Machine

CPU = Machine(device="cpu", save_every_s=0)
TWO = replace(CPU, devices=2)
KINDS = 8


@given(
    st.integers(1, 4),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.integers(2, 5),
    st.integers(0, 5),
)
@settings(deadline=None, max_examples=60)
def test_no_batch_has_a_video_twice_and_no_pair_is_forgotten(
    frames: int, captions: list[int], batch_size: int, seed: int
) -> None:
    present = torch.zeros(len(captions), 3, dtype=torch.bool)
    for video, count in enumerate(captions):
        present[video, :count] = True
    generator = torch.Generator().manual_seed(seed)
    batches = list(pair_rounds(frames, present, batch_size, generator))
    pairs: Counter[tuple[int, ...]] = Counter()
    for batch in batches:
        assert 2 <= len(batch) <= batch_size
        assert len(set(batch[:, 0].tolist())) == len(batch)
        pairs.update(map(tuple, batch.tolist()))
    every = {(v, f, c) for v, n in enumerate(captions) for f in range(frames) for c in range(n)}
    assert set(pairs) <= every
    assert not [pair for pair, times in pairs.items() if times > 1]
    # A pair is left out only as the last of its round: at most one a round.
    assert len(every) - len(pairs) <= frames * max(captions)


def test_loss_is_the_cross_entropy_in_both_directions() -> None:
    random = np.random.default_rng(0)
    frames, captions = random.normal(size=(2, 5, 7))
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (frames, captions)]
    logits = 100 * unit[0] @ unit[1].T
    by_frame = -np.diag(logits) + np.log(np.exp(logits).sum(1))
    by_caption = -np.diag(logits) + np.log(np.exp(logits).sum(0))
    expected = (by_frame.mean() + by_caption.mean()) / 2
    found = contrastive_loss(torch.from_numpy(frames), torch.from_numpy(captions))
    assert float(found) == pytest.approx(expected, rel=1e-9)


class Picture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, KINDS)

    def forward(self, frames: Tensor) -> Tensor:
        return self.linear(frames.flatten(1).float() / 255)  # type: ignore[no-any-return]


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(KINDS + 1, KINDS)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        weights = mask.unsqueeze(-1).float()
        return (self.embedding(input_ids) * weights).sum(1) / weights.sum(1)  # type: ignore[no-any-return]


def pairs_of(count: int, seed: int) -> Examples:
    """A picture of each kind has its pattern; the caption names the kind."""
    random = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).integers(0, 256, (KINDS, 2, 2, 3))
    kinds = np.arange(count) % KINDS
    arrays = [
        np.clip(patterns[kind] + random.normal(0, 8, (2, 2, 2, 3)), 0, 255).astype(np.uint8)
        for kind in kinds
    ]
    ids = torch.from_numpy(kinds)[:, None, None].repeat(1, 2, 3) + 1
    mask = torch.ones(count, 2, 3, dtype=torch.int64)
    mask[:, 1, 1:] = 0
    names = tuple(map(str, range(count)))
    return Examples(names, torch.zeros(count), StoredFrames(arrays), ids, mask)


def adapted(folder: Path, *, machine: Machine = CPU, **more: object) -> Adapted:
    torch.manual_seed(0)
    options: dict[str, object] = {"batch_size": 8, "max_epochs": 8, "learning_rate": 0.02}
    sides = pairs_of(8, 1), pairs_of(8, 2)
    settings = FitSettings(1, machine)
    return adapt(Picture(), Words(), *sides, settings, folder, **(options | more))  # type: ignore[arg-type]


def test_adaptation_aligns_the_towers_and_keeps_the_best(tmp_path: Path) -> None:
    found = adapted(tmp_path)
    losses = [entry["val_loss"] for entry in found.summary["history"]]
    assert min(losses) < 0.5 * losses[0]
    assert found.summary["best_epoch"] == int(np.argmin(losses)) + 1
    vision, text = Picture(), Words()
    vision.load_state_dict(found.vision)
    text.load_state_dict(found.text)
    test = pairs_of(8, 3)
    batch = test.batch(test.positions(), frame=torch.zeros(8, dtype=torch.int64))
    assert batch.frames is not None
    assert batch.captions is not None
    assert batch.mask is not None
    images = nn.functional.normalize(vision(batch.frames[:, 0]), dim=-1)
    words = nn.functional.normalize(text(batch.captions[:, 0], batch.mask[:, 0]), dim=-1)
    assert (images @ words.T).argmax(1).tolist() == list(range(8))


def test_resumed_is_as_uninterrupted(tmp_path: Path) -> None:
    def interrupt(epoch: int, _: dict[str, float]) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    whole = adapted(tmp_path / "whole", max_epochs=5)
    with pytest.raises(KeyboardInterrupt):
        adapted(tmp_path / "parts", max_epochs=5, tell=interrupt)
    parts = adapted(tmp_path / "parts", max_epochs=5)
    assert parts.summary == whole.summary
    assert all(torch.equal(whole.vision[key], parts.vision[key]) for key in whole.vision)
    assert all(torch.equal(whole.text[key], parts.text[key]) for key in whole.text)


def test_it_ends_after_six_epochs_without_improvement(tmp_path: Path) -> None:
    found = adapted(tmp_path, learning_rate=1e-12, max_epochs=30)
    losses = [entry["val_loss"] for entry in found.summary["history"]]
    assert found.summary["epochs"] == int(np.argmin(losses)) + 1 + 6


def test_range_test_gives_a_rate(tmp_path: Path) -> None:
    found = adapted(tmp_path, learning_rate=None, max_epochs=1)
    assert found.summary["learning_rate_from"] == "range test"
    assert 1e-5 < found.summary["learning_rate"] < 1


@pytest.mark.parametrize("batch_size", [2, 3, 5, 8])
@pytest.mark.parametrize("ranks", [1, 2, 3, 9])
def test_devices_share_each_batch(batch_size: int, ranks: int) -> None:
    """Also where there are fewer pairs than devices: each has something to do in each step."""
    data = pairs_of(10, 0)
    assert data.mask is not None
    data.mask[3, 1] = 0
    data.mask[7] = 0

    def batches(rank: int, ranks: int) -> PairBatches:
        return PairBatches(data, batch_size, seed=0, epoch=lambda: 2, share=(rank, ranks))

    whole = list(batches(0, 1))
    shares = [batches(rank, ranks) for rank in range(ranks)]
    assert {len(one) for one in shares} == {len(whole)}
    steps = list(zip(*shares, strict=True))
    assert len(steps) == len(whole)
    for batch, parts in zip(whole, steps, strict=True):
        assert {one.pairs for one in parts} == {batch.pairs} == {len(batch.frames)}
        assert {len(one.frames) for one in parts} == {-(-batch.pairs // ranks)}
        for name in ("frames", "input_ids", "mask"):
            share = torch.stack([getattr(one, name) for one in parts])
            assert torch.equal(joined(share, batch.pairs), getattr(batch, name))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [8, 5], ids=["even shares", "shares of 5 and of 3 pairs"])
def test_two_processes_adapt_as_one_does(tmp_path: Path, batch_size: int) -> None:
    one = adapted(tmp_path / "1", max_epochs=3, batch_size=batch_size)
    two = adapted(tmp_path / "2", max_epochs=3, batch_size=batch_size, machine=TWO)
    for mine, other in zip(one.summary["history"], two.summary["history"], strict=True):
        assert other == pytest.approx(mine, abs=1e-4)
    for state, expected in ((two.vision, one.vision), (two.text, one.text)):
        for key, value in expected.items():
            assert torch.allclose(state[key], value, atol=1e-4), key  # sums in another order


@pytest.mark.slow
def test_a_batch_of_fewer_pairs_than_devices(tmp_path: Path) -> None:
    found = adapted(tmp_path, max_epochs=1, machine=replace(TWO, devices=3), batch_size=2)
    assert found.summary["epochs"] == 1


def test_out_of_memory_says_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Words, "forward", full)
    with pytest.raises(DeviceError, match="batch of 8"):
        adapted(tmp_path)


def schedule_of(folder: Path) -> tuple[dict[str, object], float]:
    """State of the plateau schedule in a training's last checkpoint, and the rate."""
    content = read_checkpoint(folder / LAST_FILE)
    return content["lr_schedulers"][0], content["optimizer_states"][0]["param_groups"][0]["lr"]


@pytest.mark.parametrize(("epochs", "divisions"), [(3, 0), (4, 1), (6, 1), (7, 2)])
def test_the_rate_falls_in_the_third_epoch_without_improvement(
    tmp_path: Path, epochs: int, divisions: int
) -> None:
    adapted(tmp_path, learning_rate=1e-15, max_epochs=epochs)  # nothing moves: epoch 1 is the best
    assert schedule_of(tmp_path)[1] == pytest.approx(1e-15 / 10**divisions)


@pytest.mark.parametrize("at", [2, 4, 5])
def test_a_resumed_schedule_is_as_uninterrupted(tmp_path: Path, at: int) -> None:
    def interrupt(epoch: int, _: dict[str, float]) -> None:
        if epoch == at:
            raise KeyboardInterrupt

    options = {"learning_rate": 1e-15, "max_epochs": 6}
    adapted(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        adapted(tmp_path / "parts", tell=interrupt, **options)
    adapted(tmp_path / "parts", **options)
    assert schedule_of(tmp_path / "parts") == schedule_of(tmp_path / "whole")


def test_what_stopped_early_stays_stopped(tmp_path: Path) -> None:
    """An interrupt between the last epoch and the writing of the weights."""
    first = adapted(tmp_path, learning_rate=1e-15, max_epochs=30)
    assert adapted(tmp_path, learning_rate=1e-15, max_epochs=30).summary == first.summary


def test_a_run_that_was_moved_knows_its_best_epoch(tmp_path: Path) -> None:
    def interrupt(epoch: int, _: dict[str, float]) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    options = {"learning_rate": 1e-15, "max_epochs": 4}  # nothing moves: epoch 1 is the best
    with pytest.raises(KeyboardInterrupt):
        adapted(tmp_path / "here", tell=interrupt, **options)
    (tmp_path / "here").rename(tmp_path / "there")
    assert adapted(tmp_path / "there", **options).summary["best_epoch"] == 1
