"""The training loop on embeddings: learns, is deterministic, resumes, stops, survives."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_examples import DIM, examples
from torch import Tensor, nn

from memcli.errors import DeviceError, ModelError
from memcli.spec import HeadSpec, Recipe
from memcli.train.data import Batch, Examples, HeldFrames
from memcli.train.heads import Scores, make_head
from memcli.train.learner import Learner
from memcli.train.loop import FitSettings, Fitted, fit, predict
from memcli.train.metrics import srcc
from memcli.train.range_test import find_learning_rate, suggestion
from memcli.train.trainer import Logs, Machine, make_trainer, plainly

CPU = Machine(device="cpu", save_every_s=0)
RECIPE = Recipe(epochs=12, batch_size=16, learning_rate=0.05, unit="frame")


def linear_head(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make_head(HeadSpec("RegressionHead"), DIM, None)


def trained(
    folder: Path,
    recipe: Recipe = RECIPE,
    data: Examples | None = None,
    head: nn.Module | None = None,
    machine: Machine = CPU,
    **more: object,
) -> tuple[nn.Module, Fitted]:
    data = data or examples()
    head = head or linear_head()
    sides = data.subset(range(40)), data.subset(range(40, len(data)))
    return head, fit(head, *sides, recipe, FitSettings(3, machine), folder, **more)  # type: ignore[arg-type]


def held_out_srcc(head: nn.Module, data: Examples) -> float:
    rest = data.subset(range(40, len(data)))
    found = srcc(rest.scores.numpy(), predict(head, rest, CPU).score.numpy())
    assert found is not None
    return found


def test_learns_a_signal_and_nothing_where_there_is_none(tmp_path: Path) -> None:
    head, _ = trained(tmp_path / "a")
    assert held_out_srcc(head, examples()) >= 0.8
    shuffled = examples(340, shuffled=True)
    head, _ = trained(tmp_path / "b", data=shuffled)
    assert abs(held_out_srcc(head, shuffled)) <= 0.3


def test_same_seed_same_weights_other_seed_others(tmp_path: Path) -> None:
    one = trained(tmp_path / "1")[1].state
    two = trained(tmp_path / "2")[1].state
    assert all(torch.equal(one[key], two[key]) for key in one)
    data = examples()
    other = fit(
        linear_head(), data.subset(range(40)), None, RECIPE, FitSettings(4, CPU), tmp_path / "3"
    )
    assert not torch.equal(one["score.weight"], other.state["score.weight"])


@pytest.mark.parametrize(
    ("head", "recipe"),
    [
        (HeadSpec("RegressionHead"), replace(RECIPE, schedule="cosine", epochs=6)),
        (
            HeadSpec("TemporalHead", {"aggregator": "gru-attention", "hidden": 8, "layers": 2}),
            Recipe(
                loss="l1", epochs=6, batch_size=8, learning_rate=1e-2, schedule="step",
                step_epochs=2, step_factor=0.5, monitor="val_loss", shuffle_frames=True,
            ),
        ),
    ],
)  # fmt: skip
def test_resumed_is_as_uninterrupted(tmp_path: Path, head: HeadSpec, recipe: Recipe) -> None:
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return make_head(head, DIM, None)

    def interrupt(epoch: int, _: dict[str, float]) -> None:
        if epoch == 4:
            raise KeyboardInterrupt

    whole = trained(tmp_path / "whole", recipe, head=fresh())[1]
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", recipe, head=fresh(), tell=interrupt)
    told: list[int] = []
    resumed = trained(
        tmp_path / "parts", recipe, head=fresh(), tell=lambda epoch, _: told.append(epoch)
    )[1]
    assert told == [4, 5, 6]
    assert resumed.history == whole.history
    assert resumed.best_epoch == whole.best_epoch
    assert all(torch.equal(whole.state[key], resumed.state[key]) for key in whole.state)


def test_interrupt_is_one_and_leaves_the_signal_as_it_was(tmp_path: Path) -> None:
    # Where the tests run in the background, SIGINT is ignored.
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(epoch: int, _: dict[str, float]) -> None:
        signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, tell=interrupt)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, outside)


def test_an_exit_that_is_no_interrupt_stays_one() -> None:
    with pytest.raises(SystemExit), plainly():
        raise SystemExit(3)


@pytest.mark.parametrize("status", ["failed", "success"])
def test_logs_that_an_interrupt_left_locked_hold_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setattr("memcli.train.trainer.CLOSING_S", 0.2)
    logs = Logs(tmp_path, "fold-1")
    logs.log_metrics({"val_loss": 0.5})
    writer = logs.experiment._get_file_writer().event_writer._async_writer
    if status == "failed":
        writer._byte_queue.mutex.acquire()  # as an interrupt within `put` can leave it
    closing = threading.Thread(target=logs.finalize, args=(status,), daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
    if status == "success":
        assert writer._closed


class Scripted(nn.Module):
    """Predicts well or badly in validation, as a script by epochs says."""

    def __init__(self, good: Callable[[int], float]):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("calls", torch.zeros(()))
        self.good = good

    def forward(self, frames: Tensor, captions: None, mask: None) -> Scores:
        if self.training:
            self.calls += 1
        truth = frames[..., 0].mean(1)
        noise = torch.linspace(1, -1, len(frames)) if not self.training else torch.zeros(1)
        share = self.good(int(self.calls))
        score = share * truth + (1 - share) * noise + 0 * self.weight
        return Scores(score, None, (score,))


def scripted_examples() -> Examples:
    values = torch.linspace(0.1, 0.9, 60).reshape(60, 1, 1).repeat(1, 2, 4)
    return Examples(tuple(map(str, range(60))), values[:, 0, 0], HeldFrames(values))


@pytest.mark.parametrize(
    ("first", "best_at", "ends_at"),
    [(0, 3, 8), (10, 3, 15), (10, 12, 17)],
    ids=["from the start", "patience begins later", "best after it began"],
)
def test_early_stopping_counts_from_its_epoch(
    tmp_path: Path, first: int, best_at: int, ends_at: int
) -> None:
    recipe = replace(
        RECIPE, unit="video", batch_size=64, epochs=40,
        monitor="val_srcc", patience_epochs=5, first_stop_epoch=first,
    )  # fmt: skip
    model = Scripted(lambda epoch: 1.0 if epoch == best_at else 0.4)
    _, fitted = trained(tmp_path, recipe, scripted_examples(), model)
    assert (fitted.best_epoch, fitted.epochs) == (best_at, ends_at)
    assert fitted.state["calls"] == best_at


def test_best_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    recipe = replace(RECIPE, learning_rate=0.5, monitor="val_loss", epochs=10)
    data = examples()
    head, fitted = trained(tmp_path, recipe, data)
    losses = [entry["val_loss"] for entry in fitted.history]
    assert fitted.best_epoch == int(np.argmin(losses)) + 1
    rest = data.subset(range(40, 60))
    loss = nn.functional.mse_loss(predict(head, rest, CPU).score, rest.scores)
    assert float(loss) == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_schedules(schedule: str) -> None:
    recipe = replace(RECIPE, schedule=schedule, epochs=4, step_epochs=2, step_factor=0.5)
    learner = Learner(linear_head(), examples(), None, recipe, seed=0, eval_batch=8)
    learner.learning_rate = 0.1
    made = learner.configure_optimizers()
    if schedule == "constant":
        assert made.param_groups[0]["lr"] == 0.1
        return
    rates = []
    for _ in range(4):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    cosine = [0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert rates == pytest.approx(cosine if schedule == "cosine" else [0.1, 0.1, 0.05, 0.05])


class Hungry(nn.Module):
    """Has no memory for more samples at a time."""

    def __init__(self, most: int = 8) -> None:
        super().__init__()
        self.inner = linear_head()
        self.most = most

    def forward(self, *inputs: Tensor) -> Scores:
        if self.training and len(inputs[0]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.inner(*inputs)  # type: ignore[no-any-return]


def test_out_of_memory_says_the_size_or_halves_it(tmp_path: Path) -> None:
    recipe = replace(RECIPE, batch_size=32, epochs=2)
    with pytest.raises(DeviceError, match="batch of 32") as error:
        trained(tmp_path / "a", recipe, head=Hungry())
    assert "--auto-batch" in str(error.value)
    assert "--batch-size" not in str(error.value), "refused on --resume and by an experiment"
    data = examples()
    with pytest.raises(DeviceError, match="batch of 1\n") as error:
        fit(Hungry(0), data, None, recipe, FitSettings(3, CPU, auto_batch=True), tmp_path / "0")
    assert "--auto-batch" not in str(error.value)
    halved = fit(Hungry(), data, None, recipe, FitSettings(3, CPU, auto_batch=True), tmp_path / "b")
    direct = fit(
        Hungry(), data, None, replace(recipe, batch_size=8), FitSettings(3, CPU), tmp_path / "c"
    )
    assert halved.batch_size == 8
    assert torch.equal(halved.state["inner.score.weight"], direct.state["inner.score.weight"])


def test_the_training_loss_is_the_mean_over_samples(tmp_path: Path) -> None:
    """The last of the batches of 30, 30 and 4 has a large loss that counts as 4 samples only."""
    steps: list[tuple[int, float]] = []

    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, frames: Tensor, *_: object) -> Scores:
            steps.append((len(frames), 1.0 if len(frames) == 30 else 3.0))
            score = torch.full((len(frames),), steps[-1][1]) + self.bias
            return Scores(score, None, (score,))

    data = replace(examples(64), scores=torch.zeros(64))
    recipe = replace(RECIPE, epochs=1, batch_size=30, unit="video", learning_rate=1e-12)
    fitted = fit(Noting(), data, None, recipe, FitSettings(3, CPU), tmp_path)
    assert [size for size, _ in steps] == [30, 30, 4]
    expected = sum(size * value**2 for size, value in steps) / 64
    assert fitted.history[0]["train_loss"] == pytest.approx(expected, rel=1e-6)


def test_halving_goes_on_from_the_batch_of_the_checkpoint(tmp_path: Path) -> None:
    recipe = replace(RECIPE, batch_size=32, epochs=3)

    def interrupt(epoch: int, _: dict[str, float]) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    data, settings = examples(), FitSettings(3, CPU, auto_batch=True)
    with pytest.raises(KeyboardInterrupt):
        fit(Hungry(most=16), data, None, recipe, settings, tmp_path, tell=interrupt)
    with pytest.raises(DeviceError, match="batch of 16\n"):
        fit(Hungry(most=8), data, None, recipe, FitSettings(3, CPU), tmp_path)
    halved = fit(Hungry(most=8), data, None, recipe, settings, tmp_path)
    assert (halved.batch_size, halved.epochs) == (8, 3)


def test_divergence_is_said(tmp_path: Path) -> None:
    data = examples()
    data.scores[3] = math.nan
    with pytest.raises(ModelError, match="diverged in epoch 1") as error:
        trained(tmp_path, data=data)
    assert "without --resume" in str(error.value)
    assert "--learning-rate 0.005" in str(error.value)


def test_an_epoch_is_told_with_its_own_metrics(tmp_path: Path) -> None:
    told: list[dict[str, float]] = []
    recipe = replace(RECIPE, epochs=3, monitor="val_loss")
    _, fitted = trained(
        tmp_path, recipe, tell=lambda epoch, metrics: told.append({"epoch": epoch} | metrics)
    )
    assert told == fitted.history
    assert set(told[0]) == {"epoch", "train_loss", "val_loss", "val_srcc"}


def test_range_test_finds_a_rate_that_learns_and_changes_nothing_else(tmp_path: Path) -> None:
    recipe = replace(RECIPE, learning_rate=None, batch_size=240)
    _, fitted = trained(tmp_path / "a", recipe, examples())
    assert fitted.learning_rate_from == "range test"
    assert 1e-4 < fitted.learning_rate < 1
    direct = replace(recipe, learning_rate=fitted.learning_rate)
    again = trained(tmp_path / "b", direct, examples())[1]
    assert all(torch.equal(fitted.state[key], again.state[key]) for key in again.state)
    flat = examples()
    flat.scores[:] = 0.5
    recipe = replace(recipe, epochs=1, fine_tune=True)

    class Constant(Hungry):
        def forward(self, *inputs: Tensor) -> Scores:
            score = self.inner.score.bias.expand(len(inputs[0])) * 0 + 0.5
            return Scores(score, None, (score,))

    fallen = trained(tmp_path / "c", recipe, flat, Constant())[1]
    assert (fallen.learning_rate, fallen.learning_rate_from) == (1e-5, "fall-back")


def test_range_suggestion_is_half_way_down() -> None:
    rates = [10 ** (-8 + 8 * i / 99) for i in range(100)]
    drop = [1 / (1 + (rate / 1e-3) ** 1.5) for rate in rates]
    found = suggestion(rates, drop)
    assert found is not None
    assert 5e-4 < found < 3e-3
    noise = np.random.default_rng(0).normal(0, 0.01, 100)
    noisy = suggestion(rates, [one + n for one, n in zip(drop, noise, strict=True)])
    assert noisy is not None
    assert 3e-4 < noisy < 5e-3
    assert suggestion(rates, list(1 + noise)) is None
    assert suggestion(rates, [1.0 + i for i in range(100)]) is None
    assert suggestion(rates[:10], drop[:10]) is None
    assert suggestion(rates, [math.nan] * 100) is None


def test_losses_of_steps_are_computed_back(tmp_path: Path) -> None:
    """From what Lightning itself makes of the losses of its sweep."""
    noted: list[float] = []

    class Noting(Learner):
        def training_step(self, batch: Batch, index: int) -> Tensor:
            loss = super().training_step(batch, index)
            noted.append(float(loss.detach()))
            return loss

    recipe = replace(RECIPE, batch_size=5)
    learner = Noting(linear_head(), examples(), None, recipe, seed=0, eval_batch=8)
    learner.probing = True
    with plainly():
        _, curve = find_learning_rate(
            learner, lambda **more: make_trainer(CPU, limit_val_batches=0, **more), tmp_path
        )
    assert len(noted) >= 50
    assert max(noted) > 1.1 * min(noted)
    assert curve["loss"] == pytest.approx(noted[: len(curve["loss"])], rel=1e-3)
    assert len(curve["loss"]) >= len(noted) - 1


def test_ridge_is_fitted_as_scikit_learn_does(tmp_path: Path) -> None:
    from sklearn.linear_model import BayesianRidge

    data = examples()
    head = make_head(HeadSpec("RidgeHead"), DIM, None)
    trained(tmp_path, Recipe(loss="bayesian-ridge"), data, head)
    assert isinstance(data.frames, HeldFrames)
    means = data.frames.values.mean(1).double().numpy()
    reference = BayesianRidge().fit(means[:40], data.scores[:40].double().numpy())
    expected = reference.predict(means[40:]).clip(0, 1)
    found = predict(head, data.subset(range(40, 60)), CPU).score.numpy()
    assert np.abs(found - expected).max() < 1e-5  # float32 coefficients


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_16_bits_on_a_cpu_are_refused_before_anything_is_written(
    tmp_path: Path, device: str
) -> None:
    if device == "auto" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(DeviceError, match="needs a CUDA device") as error:
        trained(tmp_path / "run", machine=Machine(device=device, precision="16"))
    assert "--mixed-precision bf16" in str(error.value)
    assert not (tmp_path / "run").exists()
    _, fitted = trained(tmp_path / "b", replace(RECIPE, epochs=1), machine=Machine("cpu", "bf16"))
    assert fitted.epochs == 1


@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_a_device_that_is_not_there(tmp_path: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(DeviceError):
        trained(tmp_path, machine=Machine(device=device))


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(tmp_path: Path) -> None:
    """Without dropout, the mean of the gradients of two halves is the gradient of the batch."""
    recipe = replace(RECIPE, epochs=3, monitor="val_srcc", patience_epochs=2)
    one = trained(tmp_path / "1", recipe)[1]
    two = trained(tmp_path / "2", recipe, machine=replace(CPU, devices=2))[1]
    assert two.best_epoch == one.best_epoch
    assert [entry["val_srcc"] for entry in two.history] == pytest.approx(
        [entry["val_srcc"] for entry in one.history], abs=1e-3
    )
    for key, value in one.state.items():
        assert torch.allclose(two.state[key], value, atol=1e-5), key  # sums in another order
