"""The tensors of an encoder's checkpoint by name, read without torch.

safetensors in one file or in shards; failing that, what `torch.save` wrote, which some older
repositories of the hub have instead, through the reader that executes nothing
(`memcli.export.checkpoint`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memcli.closing import Closeable
from memcli.errors import ModelError
from memcli.export.checkpoint import StateDict, read_state_dict
from memcli.train.checkpoints import first_line, weight_files

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Stored:
    """What a checkpoint says of a tensor before it is read."""

    file: int
    """Which of the files holds it."""
    shape: tuple[int, ...]
    is_float32: bool


class EncoderWeights(Closeable):
    """An open checkpoint folder; a context manager, since safetensors keeps its files open."""

    def __init__(self, folder: Path):
        """Open the weights in `folder` and read what they hold, not the tensors themselves.

        Raises ModelError, naming the file, if there are none or they cannot be read.
        """
        self.folder = folder
        self.tensors: dict[str, Stored] = {}
        self._open: list[Any] = []
        files = weight_files(folder)
        if not files:
            raise ModelError(
                "this folder has no weights (model.safetensors or pytorch_model.bin)",
                where=str(folder),
            )
        try:
            for number, path in enumerate(files):
                self._add(number, path)
        except BaseException:
            self.close()
            raise

    def _add(self, number: int, path: Path) -> None:
        if path.suffix != _SUFFIX:
            state = read_state_dict(path)
            self._open.append(state)
            for name in state:
                tensor = state[name]
                self.tensors[name] = Stored(number, tensor.shape, tensor.dtype == np.float32)
            return
        from safetensors import SafetensorError, safe_open

        try:
            file: Any = safe_open(path, framework="numpy")
            self._open.append(file)
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                tensor = file.get_slice(name)
                shape = tuple(tensor.get_shape())
                self.tensors[name] = Stored(number, shape, tensor.get_dtype() == "F32")
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise ModelError(f"cannot be read: {first_line(error)}", where=str(path)) from error

    def close(self) -> None:
        """Close the files."""
        for file in self._open:
            if not isinstance(file, StateDict):
                file.__exit__(None, None, None)
        self._open.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def read(self, name: str, *, transposed: bool = False) -> NDArray[np.float32]:
        """The float32 tensor `name`, contiguous; transposed if asked, which needs two axes.

        Raises ModelError, naming the folder, if it cannot be read; KeyError if there is none.
        """
        from safetensors import SafetensorError

        file = self._open[self.tensors[name].file]
        try:
            array = file[name] if isinstance(file, StateDict) else file.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(
                f"{name!r} cannot be read: {first_line(error)}", where=str(self.folder)
            ) from error
        return np.ascontiguousarray(array.T if transposed else array, dtype="<f4")
