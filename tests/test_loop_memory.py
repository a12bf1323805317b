"""Validation and prediction where memory does not suffice for a batch of videos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_loop import CPU, RECIPE, Hungry, trained
from tiny_examples import examples
from torch import Tensor

from memcli.errors import DeviceError
from memcli.train.heads import Scores
from memcli.train.loop import predict


class Little(Hungry):
    """Has no memory to score more than so many videos."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.sizes: list[int] = []

    def forward(self, *inputs: Tensor) -> Scores:
        if not self.training:
            self.sizes.append(len(inputs[0]))
            if len(inputs[0]) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.inner(*inputs)  # type: ignore[no-any-return]


def test_prediction_does_with_less_memory() -> None:
    data = examples()
    model = Little(9)
    found = predict(model, data, CPU, batch_size=40)
    assert model.sizes == [40, 20, 10, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5]
    whole = predict(Little(60), data, CPU)
    assert torch.allclose(found.score, whole.score, atol=1e-6)
    with pytest.raises(DeviceError, match="not enough memory to score one video") as error:
        predict(Little(0), data, CPU)
    assert "--batch-size" not in str(error.value)


def test_validation_does_with_less_memory(tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=2)
    _, little = trained(tmp_path / "a", recipe, head=Little(3))
    _, enough = trained(tmp_path / "b", recipe, head=Little(60))
    for one, other in zip(little.history, enough.history, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    with pytest.raises(DeviceError, match="one video"):
        trained(tmp_path / "c", recipe, head=Little(0))
