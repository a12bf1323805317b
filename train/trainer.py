"""Lightning's Trainer as we use it: quiet, on the asked device, with failures in plain words."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning as L  # noqa: N812 (its usual name)
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO

from memcli.errors import DeviceError, ModelError, OutputError, is_disk_error
from memcli.train.memory import is_out_of_memory

T = TypeVar("T")
LAST_FILE = "last.ckpt"
BEST_FILES = "best-*.ckpt"
CLOSING_S = 3.0
"""How long the logs of a training that failed may take to be closed."""

_PRECISIONS: dict[str, Any] = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_NEVER = 1 << 30
_BEST_FILE = re.compile(r"best-\d+\.ckpt")
_LOGS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


@dataclass(frozen=True)
class Machine:
    """Where and how to compute."""

    device: str = "auto"
    """auto (CUDA where there is one), cpu or cuda."""
    precision: Literal["32", "16", "bf16"] = "32"
    """16 and bf16: mixed, weights stay in 32 bits. 16 on CUDA only."""
    devices: int = 1
    save_every_s: float = 60.0
    """Seconds between checkpoints to resume from; they are made at the end of an epoch."""

    def torch_device(self) -> str:
        """The first device, in torch's words.

        Raises DeviceError for a device that is not there or cannot compute in `precision`.
        """
        available = torch.cuda.is_available()
        if self.device not in ("auto", "cpu", "cuda"):
            raise DeviceError(f"no device {self.device!r}", next_step="One of: auto, cpu, cuda")
        if self.device == "cuda" and not available:
            raise DeviceError(
                "no CUDA device that this PyTorch can use", next_step="Use --device cpu"
            )
        name = "cuda" if available and self.device != "cpu" else "cpu"
        if name == "cpu" and self.precision == "16":
            # Lightning would take bf16 instead.
            raise DeviceError(
                "mixed precision of 16 bits needs a CUDA device",
                where=name,
                next_step="Train anew with --mixed-precision bf16, or without it in 32 bits.",
            )
        if name == "cuda" and self.devices > torch.cuda.device_count():
            raise DeviceError(
                f"{self.devices} devices were asked for; there are {torch.cuda.device_count()}"
            )
        return name


def make_trainer(machine: Machine, **options: Any) -> L.Trainer:
    """A Trainer without messages, on the machine's device. `options` are Lightning's own."""
    chosen: dict[str, Any] = {
        "accelerator": "gpu" if machine.torch_device() == "cuda" else "cpu",
        "devices": machine.devices,
        # Spawned: the processes of other strategies would run the whole command again.
        "strategy": "ddp_spawn" if machine.devices > 1 else "auto",
        "precision": _PRECISIONS[machine.precision],
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,  # the batches know their share
        "plugins": [WholeFiles()],
    }
    return L.Trainer(**(chosen | options))


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all.

    Lightning writes them to the system's temporary folder first; from there to another file system
    they are copied, and an interrupt then leaves half of one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        buffer = io.BytesIO()  # torch does not say why it could not write to a file
        torch.save(checkpoint, buffer)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        try:
            beside.write_bytes(buffer.getbuffer())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


class Logs(TensorBoardLogger):
    """TensorBoard's files of one training below `folder`/`name`.

    An interrupt can fall where TensorBoard's queue has taken its lock and not yet given it back;
    then nobody can close the queue any more. So after a failure closing it may take so long and no
    longer. What was logged is on the disk by then: Lightning flushes after each epoch.
    """

    def __init__(self, folder: Path, name: str):
        super().__init__(save_dir=folder, name="", version=name)

    def finalize(self, status: str) -> None:
        if status == "success":
            super().finalize(status)
            return
        closing = threading.Thread(target=self._close, args=(status,), daemon=True)
        closing.start()
        closing.join(CLOSING_S)

    def _close(self, status: str) -> None:
        with contextlib.suppress(OSError):  # the disk that made the training fail
            super().finalize(status)


class LateEarlyStopping(EarlyStopping):
    """Early stopping whose patience begins with an epoch; what came before is still the best.

    Source: 001_de183854d7703535.txt, section 4.3.1: "If the validation metric does not improve for
    20 consecutive epochs after the 50th epoch, training is halted".
    """

    def __init__(self, monitor: str, *, mode: str, patience: int, first_epoch: int):
        super().__init__(monitor, mode=mode, patience=patience, check_finite=False)
        self._first_epoch = first_epoch
        self.patience: int = patience

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Resumed from the checkpoint of the epoch that ended it: Lightning would train another.
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch + 1 > self._first_epoch:
            super().on_train_epoch_end(trainer, pl_module)
            return
        patience, self.patience = self.patience, _NEVER
        super().on_train_epoch_end(trainer, pl_module)
        self.patience, self.wait_count = patience, 0


class BestCheckpoint(ModelCheckpoint):
    """The weights of the best epoch, in `folder`, found again where an interrupted run was moved.

    Each best epoch has a file of its own, and the one that `last.ckpt` names stays until the next
    `last.ckpt` is there. So a training that goes on from it has the best weights of its own course,
    not those of later epochs that it has forgotten. At most two files are kept.

    Lightning forgets which epoch was the best one when the folder has another name.
    """

    def __init__(self, folder: Path, *, monitor: str | None, mode: str):
        self._folder = folder
        self._named = ""
        """The best weights by the newest `last.ckpt`."""
        super().__init__(
            dirpath=folder,
            filename="best-{epoch}",
            auto_insert_metric_name=False,
            monitor=monitor,
            mode=mode,
            save_weights_only=True,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ModelError if the best weights that it names are not in the folder."""
        here: dict[str, Any] = {"dirpath": self.dirpath}
        if name := Path(state_dict.get("best_model_path") or "").name:
            path = self._folder / name
            if not _BEST_FILE.fullmatch(name) or not path.is_file():
                raise ModelError(
                    "the best weights that this checkpoint names are not beside it",
                    where=str(self._folder / LAST_FILE),
                    next_step="Delete it: the training of this part then begins again.",
                )
            self._named = str(path)
            here |= dict.fromkeys(("best_model_path", "kth_best_model_path"), self._named)
            here["best_k_models"] = {self._named: state_dict["best_model_score"]}
        super().load_state_dict(state_dict | here)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._tidy(trainer)

    def last_written(self, trainer: L.Trainer) -> None:
        """A new `last.ckpt` names the best epoch so far: others are no longer needed."""
        self._named = self.best_model_path
        self._tidy(trainer)

    def _tidy(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            for path in self._folder.glob(BEST_FILES):
                if str(path) not in (self._named, self.best_model_path):
                    path.unlink(missing_ok=True)

    def _remove_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        if filepath != self._named:
            super()._remove_checkpoint(trainer, filepath)


class LastCheckpoint(Checkpoint):
    """Everything that is needed to resume, now and then at the end of an epoch."""

    def __init__(self, folder: Path, every_s: float, best: BestCheckpoint):
        self._path = folder / LAST_FILE
        self._best = best
        self._every_s = every_s
        self._next = time.monotonic() + every_s

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        due = trainer.strategy.broadcast(time.monotonic() >= self._next)  # all devices or none
        if due:
            self._save(trainer)
            self._next = time.monotonic() + self._every_s

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Where other processes trained, what they know comes back in this file only.
        if trainer.world_size > 1:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self._path)
        self._best.last_written(trainer)


def quieten() -> None:
    """No tips and warnings of Lightning from here on; in a process of its own, for good."""
    for name in _LOGS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch)\.")


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Lightning without tips and warnings, and an interrupt as what it is.

    Lightning turns KeyboardInterrupt into SystemExit and leaves SIGINT ignored.
    """
    levels = {name: logging.getLogger(name).level for name in _LOGS}
    handler = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            quieten()
            yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A disk that takes no more of the checkpoints in `folder` or of the logs is an OutputError."""
    outside = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        # TensorBoard's thread raises it, too; here it comes with the next value that is logged.
        if not isinstance(failure.exc_value, OSError) or not is_disk_error(failure.exc_value):
            outside(failure)

    threading.excepthook = hook
    try:
        yield
    except OSError as error:
        if not is_disk_error(error):
            raise
        raise OutputError(
            f"the training cannot write its checkpoints and logs: {error.strerror}",
            where=str(folder),
            next_step="What was written before is kept: make room, then go on with --resume"
            " (an experiment with the same command).",
        ) from error
    finally:
        threading.excepthook = outside


def halving(
    attempt: Callable[[int], T],
    batch_size: int,
    device: str,
    *,
    allowed: bool,
    reset: Callable[[], None],
    least: int = 1,
) -> T:
    """`attempt(batch_size)`, again with half of it while memory does not suffice, if `allowed`.

    `reset` is called before each new attempt. Raises DeviceError, saying the size tried.
    """
    while True:
        try:
            return attempt(batch_size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not allowed or batch_size // 2 < least:
                raise _out_of_memory(batch_size, device, halved=allowed) from error
        reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        batch_size //= 2


def _out_of_memory(batch_size: int, device: str, *, halved: bool) -> DeviceError:
    """The error that says which batch size was tried."""
    if not halved:
        advice = "Have the batch halved until it fits, also on --resume:  --auto-batch"
    elif device == "cpu":
        advice = "Use a machine with more memory."
    else:
        advice = "Use another device:  --device cpu"
    return DeviceError(
        f"out of memory with a batch of {batch_size}", where=device, next_step=advice
    )
