"""What training finds in planted data, and what it must not find."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("sklearn")

from planted_eeg import eeg_spec, of_subjects, planted, planted_examples  # noqa: E402

from memcli.spec import EegRecipe  # noqa: E402
from memcli.train.eeg import baselines  # noqa: E402
from memcli.train.eeg.data import EegExamples  # noqa: E402
from memcli.train.eeg.loop import Schedule, cross_entropy, evaluate, fit, predict  # noqa: E402
from memcli.train.eeg.metrics import auroc  # noqa: E402
from memcli.train.eeg.network import EegModel  # noqa: E402
from memcli.train.eeg.planted import Planted  # noqa: E402
from memcli.train.eeg.pretext import Pretext, pretrain  # noqa: E402
from memcli.train.provenance import seeded  # noqa: E402

FAST = Schedule(epochs=12, batch_size=16, learning_rate=1e-3)


def trained(examples: EegExamples, schedule: Schedule = FAST) -> EegModel:
    with seeded(0):
        model = EegModel(eeg_spec())
    fit(model, cross_entropy(model), examples, None, schedule, seed=0, device="cpu")
    return model


def on_strangers(what: Planted) -> float:
    examples = planted_examples(what)
    model = trained(of_subjects(examples, 1, what.subjects // 2))
    others = of_subjects(examples, what.subjects // 2 + 1, what.subjects)
    found = auroc(others.labels.numpy(), predict(model, others, "cpu").numpy())
    assert found is not None
    return found


def test_a_planted_signal_is_found_in_unseen_subjects() -> None:
    """A quick check that the parts work together: a stronger signal than the default one, and a
    narrow model of three seconds. Of the registry's model, and of the default effect,
    tests/benchmarks/eeg_training.py asks 0.85, too.
    """
    assert on_strangers(planted(subjects=10, epochs=40, effect=10.0)) >= 0.85


def test_shuffled_labels_are_not() -> None:
    what = planted(subjects=16, epochs=40, effect=10.0, shuffled=True)
    assert on_strangers(what) == pytest.approx(0.5, abs=0.07)


def test_the_same_seed_gives_the_same_weights_and_the_best_epoch_is_kept() -> None:
    examples = planted_examples(planted(subjects=2, epochs=16))
    sides = of_subjects(examples, 1, 1), of_subjects(examples, 2, 2)
    states = []
    for _ in range(2):
        with seeded(3):
            model = EegModel(eeg_spec())
        schedule = replace(FAST, epochs=5, learning_rate=1e-2)
        fitted = fit(model, cross_entropy(model), *sides, schedule, seed=3, device="cpu")
        losses = [one["val_loss"] for one in fitted.history]
        assert fitted.best_epoch == losses.index(min(losses)) + 1
        loss = evaluate(model, cross_entropy(model), sides[1], "cpu")
        assert loss == pytest.approx(min(losses), rel=1e-5)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_rate_falls_after_epochs_without_a_better_loss_and_then_it_ends() -> None:
    examples = planted_examples(planted(subjects=1, epochs=4))
    model = EegModel(eeg_spec(filters=1, embedding=1))
    steering = iter([3.0, 2.0] + [2.0] * 40)

    def objective(batch: object) -> torch.Tensor:
        zero = sum(one.sum() for one in model.parameters()) * 0
        return zero + next(steering)

    schedule = Schedule(40, 16, 1e-4, patience_epochs=4)
    fitted = fit(model, objective, examples, None, schedule, seed=0, device="cpu")
    # Better in epochs 1 and 2; the rate falls after 6 and 10, and would fall again after 14.
    assert fitted.epochs == 14


def pretext_score(drift: float, task: str) -> dict[str, float]:
    what = planted(subjects=4, epochs=60, effect=0.0, evoked=0.0, drift=drift)
    examples = planted_examples(what)
    spec = eeg_spec(what)
    assert spec.eeg is not None
    recipe = EegRecipe(pretext=task, pretext_epochs=10, pretext_learning_rate=1e-3)  # type: ignore[arg-type]
    with seeded(0):
        model = EegModel(spec)
    _, found = pretrain(
        model,
        spec.eeg,
        recipe,
        of_subjects(examples, 1, 3),
        of_subjects(examples, 4, 4),
        seed=0,
        device="cpu",
        tell=lambda _number, _metrics: None,
    )
    return found


def test_tcl_tells_windows_apart_where_a_component_drifts_and_only_there() -> None:
    found = pretext_score(4.0, "tcl")
    assert found["chance"] == pytest.approx(1 / 3)
    assert found["accuracy"] > 0.55
    assert pretext_score(0.0, "tcl")["accuracy"] == pytest.approx(1 / 3, abs=0.09)


def test_tcl_regress_finds_the_position_where_a_component_drifts_and_only_there() -> None:
    assert pretext_score(4.0, "tcl-regress")["r2"] > 0.3
    assert pretext_score(0.0, "tcl-regress")["r2"] < 0.1


@pytest.mark.parametrize("task", ["tcl-regress", "tcl-regress-exp"])
def test_windows_are_drawn_as_the_task_says(task: str) -> None:
    stats = pytest.importorskip("scipy.stats")
    spec = eeg_spec(planted(duration_s=11.0))
    assert spec.eeg is not None
    recipe = EegRecipe(pretext=task)  # type: ignore[arg-type]
    drawn = Pretext(EegModel(spec).members[0], spec.eeg, recipe)
    with seeded(1):
        starts = drawn._starts(torch.full((2000,), 1100)).flatten().numpy()
    assert 0 <= starts.min() <= 5
    assert 995 <= starts.max() <= 1000
    distribution = stats.uniform(0, 1001)
    if task == "tcl-regress-exp":
        distribution = stats.truncexpon(1001 / 500, scale=500)
    assert stats.kstest(starts + 0.5, distribution.cdf).statistic < 0.015
    short = drawn._starts(torch.tensor([100, 130]))
    assert not short[0].any()
    assert short[1].max() <= 30


def test_windows_in_the_padding_are_no_example_of_a_task() -> None:
    spec = eeg_spec()
    assert spec.eeg is not None
    examples = planted_examples(planted(subjects=1, epochs=3))
    task = Pretext(EegModel(spec).members[0], spec.eeg, EegRecipe(pretext="tcl")).eval()
    found, truth = task(examples.eeg, torch.tensor([300, 250, 99]))
    assert truth.tolist() == [0, 1, 2, 0, 1]
    assert found.shape == (5, 3)


def test_pre_training_moves_the_encoder_of_the_model() -> None:
    examples = planted_examples(planted(subjects=1, epochs=8))
    spec = eeg_spec()
    assert spec.eeg is not None
    model = EegModel(spec)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recipe = EegRecipe(pretext="tcl-regress-exp", pretext_epochs=1)
    pretrain(model, spec.eeg, recipe, examples, None, seed=0, device="cpu", tell=lambda *_: None)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(name.startswith("members.0.encoder.") for name in changed)


def peer(name: str, examples: EegExamples, passes: int = 6) -> float:
    """AUROC on subjects 4 to 6 after training on the others."""
    spec = eeg_spec()
    assert spec.eeg is not None
    held_out = of_subjects(examples, 4, 6)
    scores = baselines.held_out_scores(
        name,
        of_subjects(examples, 1, 2),
        of_subjects(examples, 3, 3),
        held_out,
        spec.eeg,
        EegRecipe(epochs=passes),
        seed=0,
        device="cpu",
        tell=lambda *_: None,
    )
    found = auroc(held_out.labels.numpy(), scores)
    assert found is not None
    return found


def test_the_tangent_space_finds_the_planted_signal() -> None:
    pytest.importorskip("pyriemann")
    assert peer("riemann", planted_examples(planted(subjects=6, epochs=30))) > 0.7


def need_braindecode(name: str) -> None:
    try:
        baselines.require((name,))
    except ImportError as error:
        pytest.skip(f"braindecode cannot be imported here: {error}")


def test_eegnet_finds_a_strong_planted_signal() -> None:
    need_braindecode("eegnet")
    examples = planted_examples(planted(subjects=6, epochs=40, effect=12.0))
    assert peer("eegnet", examples, passes=10) > 0.7


@pytest.mark.parametrize("name", ["shallow", "deep4"])
def test_braindecodes_networks_find_an_oscillation(name: str) -> None:
    """12 Hz over Pz in epochs of label 1: ShallowFBCSPNet looks for power, not for potentials."""
    need_braindecode(name)
    examples = planted_examples(planted(subjects=6, epochs=30, effect=0.0))
    wave = 30 * torch.sin(2 * torch.pi * 12 * torch.arange(300) / 100)
    examples.eeg[:, planted().channels.index("Pz")] += examples.labels[:, None] * wave
    assert peer(name, examples) > 0.8
