"""The EEG model: z-score, windows that share an encoder, shares of the logit, conditioning."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
stats = pytest.importorskip("scipy.stats")

from planted_eeg import eeg_spec  # noqa: E402

from memcli.errors import ModelError  # noqa: E402
from memcli.models import get_model  # noqa: E402
from memcli.spec import ModelSpec  # noqa: E402
from memcli.train.eeg.network import EegModel, z_score  # noqa: E402


def epochs(count: int = 4, channels: int = 6, samples: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 20 * torch.randn(count, channels, samples, generator=generator) + 3e4


def full(eeg: torch.Tensor) -> torch.Tensor:
    return torch.full((len(eeg),), eeg.shape[2])


def test_z_score_is_scipys_over_the_samples_that_are_there() -> None:
    eeg = epochs()
    eeg[1, 2] = 12345.678
    found = z_score(eeg, torch.tensor([300, 300, 211, 1])).numpy()
    expected = stats.zscore(eeg[0].double().numpy(), axis=1)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    assert not found[1, 2].any()
    shorter = stats.zscore(eeg[2, :, :211].double().numpy(), axis=1)
    np.testing.assert_allclose(found[2, :, :211], shorter, atol=1e-6)
    assert not found[2, :, 211:].any()
    assert np.isfinite(found).all()


def test_what_lies_in_the_padding_does_not_matter() -> None:
    model = EegModel(eeg_spec()).eval()
    eeg, samples = epochs(), torch.tensor([300, 250, 100, 30])
    other = eeg.clone()
    for i, length in enumerate(samples.tolist()):
        other[i, :, length:] = 0
    with torch.no_grad():
        assert torch.equal(model(eeg, samples).score, model(other, samples).score)


def test_contributions_are_exact_shares_of_the_logit() -> None:
    model = EegModel(eeg_spec()).eval()
    model.members[0].temperature.fill_(2.5)
    eeg = epochs()
    with torch.no_grad():
        found = model(eeg, full(eeg))
        z = model.members[0].encoder(model.windows(z_score(eeg, full(eeg))))
        direct = model.members[0].classifier(z.flatten(1)).squeeze(1)
    torch.testing.assert_close(found.logits, direct)
    torch.testing.assert_close(found.contributions.sum(1), direct / 2.5)
    torch.testing.assert_close(found.score, torch.sigmoid(direct / 2.5))
    assert found.contributions.shape == (4, 3)


def test_the_windows_share_the_encoder_and_never_see_each_other() -> None:
    model = EegModel(eeg_spec()).eval()
    encoder = model.members[0].encoder
    windows = model.windows(z_score(epochs(), full(epochs())))
    with torch.no_grad():
        together = encoder(windows)
        alone = torch.cat([encoder(windows[:, :, i : i + 1]) for i in range(3)], dim=2)
    torch.testing.assert_close(together, alone)


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    model = EegModel(eeg_spec(members=3)).eval()
    eeg = epochs()
    with torch.no_grad():
        found = model(eeg, full(eeg))
        windows = model.windows(z_score(eeg, full(eeg)))
        scores = torch.stack([member(windows, None)[0] for member in model.members])
    assert len({round(float(one), 6) for one in scores[:, 0]}) == 3
    torch.testing.assert_close(found.score, scores.mean(0))


def test_an_unknown_subject_falls_back_to_the_model_without_conditioning() -> None:
    model = EegModel(eeg_spec(subjects=("a", "b"))).eval()
    torch.nn.init.normal_(model.members[0].conditioning.affine.weight)
    with torch.no_grad():
        model.members[0].conditioning.affine.weight[0] = 0
    eeg = epochs(2)
    with torch.no_grad():
        plain = model(eeg, full(eeg), None).score
        unknown = model(eeg, full(eeg), torch.tensor([0, 0])).score
        known = model(eeg, full(eeg), torch.tensor([1, 2])).score
    torch.testing.assert_close(plain, unknown)
    assert (known - unknown).abs().min() > 1e-6


def test_conditioning_learns_nothing_for_the_unknown() -> None:
    model = EegModel(eeg_spec(subjects=("a", "b"), subject_dropout=0.0)).train()
    eeg = epochs(3)
    model(eeg, full(eeg), torch.tensor([0, 1, 1])).logits.sum().backward()
    moved = model.members[0].conditioning.affine.weight.grad.abs().sum(1)
    assert moved[1] > 0
    assert moved[0] == moved[2] == 0


@pytest.mark.parametrize(
    "options",
    [{"width": 3}, {"filters": 0}, {"filters": 2.5}, {"dropout": 1.0}, {"embedding": "8"},
     {"members": 10**9}],
)  # fmt: skip
def test_options_that_it_does_not_have_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="option"):
        EegModel(eeg_spec(**options))


@pytest.mark.parametrize("twice", ["Cz", "CZ", " cz"])
def test_a_spec_that_names_a_channel_twice_is_none(twice: str) -> None:
    written = eeg_spec().to_dict()
    assert ModelSpec.from_dict(written) == eeg_spec()
    written["eeg"]["channels"] = ["Cz", twice]
    with pytest.raises(ValueError, match="twice"):
        ModelSpec.from_dict(written)


def test_a_model_of_videos_is_refused() -> None:
    with pytest.raises(ModelError, match="no EEG model"):
        EegModel(get_model("vision"))
