"""Lightning's Trainer as we use it: quiet, on the asked device, with failures in plain words."""

from __future__ import annotations

import contextlib
import logging
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

from memcli.errors import DeviceError
from memcli.train.memory import is_out_of_memory

T = TypeVar("T")
LAST_FILE = "last.ckpt"
BEST_FILE = "best.ckpt"
CLOSING_S = 3.0
"""How long the logs of a training that failed may take to be closed."""

_PRECISIONS: dict[str, Any] = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_NEVER = 1 << 30
_LOGS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


@dataclass(frozen=True)
class Machine:
    """Where and how to compute."""

    device: str = "auto"
    """auto (CUDA where there is one), cpu or cuda."""
    precision: Literal["32", "16", "bf16"] = "32"
    """16 and bf16: mixed, weights stay in 32 bits."""
    devices: int = 1
    progress_bar: bool = False
    save_every_s: float = 60.0
    """Seconds between checkpoints to resume from; they are made at the end of an epoch."""

    def torch_device(self) -> str:
        """The first device, in torch's words. Raises DeviceError."""
        available = torch.cuda.is_available()
        if self.device not in ("auto", "cpu", "cuda"):
            raise DeviceError(f"no device {self.device!r}", next_step="One of: auto, cpu, cuda")
        if self.device == "cuda" and not available:
            raise DeviceError(
                "no CUDA device that this PyTorch can use", next_step="Use --device cpu"
            )
        name = "cuda" if available and self.device != "cpu" else "cpu"
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
        "enable_progress_bar": machine.progress_bar,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,  # the batches know their share
    }
    return L.Trainer(**(chosen | options))


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
        closing = threading.Thread(target=super().finalize, args=(status,), daemon=True)
        closing.start()
        closing.join(CLOSING_S)


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

    Lightning forgets which epoch was the best one when the folder has another name.
    """

    def __init__(self, folder: Path, *, monitor: str | None, mode: str):
        self._file = str(folder / BEST_FILE)
        super().__init__(
            dirpath=folder,
            filename=Path(BEST_FILE).stem,
            monitor=monitor,
            mode=mode,
            save_weights_only=True,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        here: dict[str, Any] = {"dirpath": self.dirpath}
        if state_dict.get("best_model_path"):
            best = {self._file: state_dict["best_model_score"]}
            here |= dict.fromkeys(("best_model_path", "kth_best_model_path"), self._file)
            here["best_k_models"] = best
        super().load_state_dict(state_dict | here)


class LastCheckpoint(Checkpoint):
    """Everything that is needed to resume, now and then at the end of an epoch."""

    def __init__(self, folder: Path, every_s: float):
        self._path = folder / LAST_FILE
        self._every_s = every_s
        self._next = time.monotonic() + every_s

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        due = trainer.strategy.broadcast(time.monotonic() >= self._next)  # all devices or none
        if due:
            trainer.save_checkpoint(self._path)
            self._next = time.monotonic() + self._every_s

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Where other processes trained, what they know comes back in this file only.
        if trainer.world_size > 1:
            trainer.save_checkpoint(self._path)


class EpochReport(L.Callback):
    """Tells after each epoch how far it is."""

    def __init__(self, tell: Callable[[int, dict[str, float]], None]):
        self._tell = tell

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            metrics = {name: float(one) for name, one in trainer.callback_metrics.items()}
            self._tell(trainer.current_epoch + 1, metrics)


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
                raise _out_of_memory(batch_size, device) from error
        reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        batch_size //= 2


def _out_of_memory(batch_size: int, device: str) -> DeviceError:
    """The error that says which batch size was tried."""
    half = max(1, batch_size // 2)
    return DeviceError(
        f"out of memory with a batch of {batch_size}",
        where=device,
        next_step=f"Use a smaller one:  --batch-size {half}\n"
        "Or have it halved until it fits:  --auto-batch",
    )
