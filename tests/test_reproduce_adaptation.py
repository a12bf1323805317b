"""Epoch 0 of the adaptation's table: the loss of the encoders as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lightning")

from tests.test_contrastive import adapted


def test_loss_before_is_that_of_the_unchanged_encoders(tmp_path: Path) -> None:
    """With a learning rate of nearly nothing, Lightning's validation after an epoch says it too."""
    still = adapted(tmp_path / "still", learning_rate=1e-12, max_epochs=1).summary
    assert still["loss_before"] == pytest.approx(still["history"][0]["val_loss"], rel=1e-5)
    moved = adapted(tmp_path / "moved", max_epochs=2).summary
    assert moved["loss_before"] == pytest.approx(still["loss_before"], rel=1e-6)
    assert moved["history"][1]["val_loss"] < 0.9 * moved["loss_before"]


def test_an_adaptation_that_was_interrupted_still_knows_it(tmp_path: Path) -> None:
    first = adapted(tmp_path, max_epochs=1).summary
    resumed = adapted(tmp_path, max_epochs=2).summary
    assert len(resumed["history"]) == 2
    assert resumed["loss_before"] == pytest.approx(first["loss_before"], rel=1e-6)
