"""When memory runs out: how that is recognised, and predictions that do with less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memcli.errors import DeviceError

if TYPE_CHECKING:
    from torch import Tensor, nn

_TEXTS = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or the system had no memory left."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


class InParts:
    """Scores by a model, for as many videos at a time as there is memory for.

    Videos are scored one by one, so their number at a time changes no result.
    """

    def __init__(self, model: nn.Module, device: str):
        self._model = model
        self._device = device
        self._most: int | None = None

    def __call__(self, inputs: Sequence[Tensor | None]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Score [B] and branches [B] of B videos, float32, on the device.

        `inputs` are the model's, of which one is not None. Where memory does not suffice, the
        videos are halved, now and for later calls. Raises DeviceError if one alone is too much.
        """
        import torch

        count = next(len(one) for one in inputs if one is not None)
        while True:
            size = min(count, self._most or count)
            try:
                return self._scored(inputs, range(0, count, size), size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise _too_little(self._device) from error
            self._most = size // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _scored(
        self, inputs: Sequence[Tensor | None], starts: Sequence[int], size: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        import torch

        parts = []
        for start in starts:
            rows = (None if one is None else one[start : start + size] for one in inputs)
            found = self._model(*(None if one is None else one.to(self._device) for one in rows))
            parts.append((found.score.float(), *(one.float() for one in found.branches)))
        score, *branches = (torch.cat(one) for one in zip(*parts, strict=True))
        return score, tuple(branches)


def _too_little(device: str) -> DeviceError:
    return DeviceError(
        "there is not enough memory to score one video",
        where=device,
        next_step="Use a machine with more memory."
        if device == "cpu"
        else "Use another device:  --device cpu",
    )
