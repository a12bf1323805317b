"""Every head against the same formulas in numpy; captions that are absent; orders; options."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy_heads
import pytest

from memcli import models
from memcli.errors import ModelError, UsageError
from memcli.spec import HeadSpec

torch = pytest.importorskip("torch")

from memcli.train.heads import (  # noqa: E402
    HEADS,
    FusionTransformer,
    LateFusion,
    RegressionHead,
    RidgeHead,
    TextPerceptron,
    fit_bayesian_ridge,
    make_head,
    option_defaults,
)

TRANSFORMER: dict[str, int | float | str] = {
    "width": 16,
    "depth": 2,
    "heads": 4,
    "feed_forward": 24,
}
GRU: dict[str, int | float | str] = {"hidden": 6, "layers": 3}
B, T, C, D = 3, 5, 4, 12


def a_head(
    kind: str,
    options: dict[str, Any],
    frame_dim: int | None,
    text_dim: int | None,
    seed: int = 7,
) -> Any:
    """A head whose every parameter, biases and norms too, is random, in evaluation mode."""
    head = make_head(HeadSpec(kind, options), frame_dim, text_dim)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return head.eval()


def weights_of(head: Any) -> dict[str, Any]:
    return {name: value.numpy().astype(np.float64) for name, value in head.state_dict().items()}


def features(*shape: int, seed: int = 1) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_mask() -> Any:
    return torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 1, 0, 1]])


def run(head: Any, *inputs: Any) -> Any:
    with torch.no_grad():
        return head(*inputs)


@pytest.mark.parametrize("text_dim", [None, D, 10])
def test_fusion_transformer_is_its_formula(text_dim: int | None) -> None:
    head = a_head("FusionTransformer", TRANSFORMER, D, text_dim)
    frames, mask = features(B, T, D), a_mask()
    captions = None if text_dim is None else features(B, C, text_dim, seed=2)
    expected = numpy_heads.fusion_transformer(
        weights_of(head),
        frames.numpy(),
        None if captions is None else captions.numpy(),
        mask.numpy(),
        heads=4,
        depth=2,
    )
    scores = run(head, frames, captions, mask)
    np.testing.assert_allclose(scores.score.numpy(), expected, atol=1e-5)
    assert scores.frame_scores is None
    assert scores.branches == (scores.score,)
    assert ("text_projection.weight" in head.state_dict()) == (text_dim == 10)


def test_text_perceptron_is_its_formula() -> None:
    head = a_head("TextPerceptron", {"text_width": 16}, None, D)
    captions, mask = features(B, C, D), a_mask()
    expected = numpy_heads.text_perceptron(weights_of(head), captions.numpy(), mask.numpy())
    scores = run(head, None, captions, mask)
    np.testing.assert_allclose(scores.score.numpy(), expected, atol=1e-5)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in head.layers) == 4


def test_late_fusion_is_the_weighted_mean_of_both() -> None:
    head = a_head("LateFusion", {**TRANSFORMER, "alpha": 0.3, "text_width": 16}, D, 10)
    frames, captions, mask = features(B, T, D), features(B, C, 10, seed=2), a_mask()
    weights = weights_of(head)
    vision = numpy_heads.fusion_transformer(
        numpy_heads.part(weights, "vision."), frames.numpy(), None, None, heads=4, depth=2
    )
    text = numpy_heads.text_perceptron(
        numpy_heads.part(weights, "text."), captions.numpy(), mask.numpy()
    )
    scores = run(head, frames, captions, mask)
    np.testing.assert_allclose(scores.score.numpy(), 0.3 * vision + 0.7 * text, atol=1e-5)
    np.testing.assert_allclose(scores.branches[0].numpy(), vision, atol=1e-5)
    np.testing.assert_allclose(scores.branches[1].numpy(), text, atol=1e-5)


def test_regression_head_is_its_formula() -> None:
    on_frames = a_head("RegressionHead", {}, D, None)
    frames = features(B, T, D)
    expected = numpy_heads.regression(weights_of(on_frames), frames.numpy())
    scores = run(on_frames, frames, None, None)
    np.testing.assert_allclose(scores.frame_scores.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(scores.score.numpy(), expected.mean(axis=1), atol=1e-5)

    on_captions = a_head("RegressionHead", {}, None, D)
    captions, mask = features(B, C, D), a_mask()
    each = numpy_heads.regression(weights_of(on_captions), captions.numpy())
    scores = run(on_captions, None, captions, mask)
    expected = (each * mask.numpy()).sum(axis=1) / mask.numpy().sum(axis=1)
    np.testing.assert_allclose(scores.score.numpy(), expected, atol=1e-5)
    assert scores.frame_scores is None


@pytest.mark.parametrize("predictor", ["linear", "mlp"])
@pytest.mark.parametrize("aggregator", ["average", "gru", "gru-attention", "transformer"])
def test_temporal_head_is_its_formula(aggregator: str, predictor: str) -> None:
    options = {**GRU, "aggregator": aggregator, "predictor": predictor}
    head = a_head("TemporalHead", options, D, None)
    with torch.no_grad():  # keep the sigmoid where it tells scores apart
        head.predictor[-2].weight.mul_(0.05)
    frames = features(B, T, D)
    expected = numpy_heads.temporal(
        weights_of(head),
        frames.numpy(),
        aggregator=aggregator,
        predictor=predictor,
        hidden=6,
        layers=3,
    )
    assert np.ptp(expected) > 1e-4
    np.testing.assert_allclose(run(head, frames, None, None).score.numpy(), expected, atol=1e-5)


def test_clip_gru_has_the_sizes_of_the_paper() -> None:
    """002, section 2: six layers of 64 in both directions with dropout after each; 512, 128, 1."""
    spec = models.get_model("clip-gru")
    assert spec.head is not None
    head: Any = make_head(spec.head, 1024, None)
    gru = head.aggregator.gru.gru
    assert (gru.num_layers, gru.hidden_size, gru.bidirectional, gru.dropout) == (6, 64, True, 0.2)
    assert head.aggregator.gru.dropout.p == 0.2
    widths = [layer.out_features for layer in head.predictor if hasattr(layer, "out_features")]
    assert widths == [512, 128, 1]


def test_early_fusion_has_the_sizes_of_the_paper() -> None:
    """000, section 2.1: 5 blocks, 8 heads of 64 dimensions, 768 projected to 512, 17 tokens."""
    spec = models.get_model("early-fusion")
    assert spec.head is not None
    head: Any = make_head(spec.head, 768, 768)
    assert len(head.transformer.blocks) == 5
    assert {block.attention.heads for block in head.transformer.blocks} == {8}
    assert head.projection.weight.shape == (512, 768)
    assert head.text_projection is None
    seen = []
    head.transformer.blocks.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].shape)
    )
    run(head, features(1, 16, 768), features(1, 1, 768), torch.ones(1, 1))
    assert seen == [(1, 17, 512)]


def test_ridge_is_scikit_learns_up_to_clipping() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(3)
    frames = random.normal(size=(60, T, D)).astype(np.float32)
    means = frames.mean(axis=1, dtype=np.float64)
    targets = 0.5 + means @ random.normal(size=D) * 0.5 + random.normal(size=60) * 0.05
    coef, intercept = fit_bayesian_ridge(frames, targets)
    expected = linear_model.BayesianRidge().fit(means, targets).predict(means)
    head = RidgeHead(D, None)
    assert run(head, torch.from_numpy(frames)).score.abs().max() == 0
    head.set_coefficients(coef, intercept)
    score = run(head, torch.from_numpy(frames)).score.numpy()
    assert (expected.min() < 0, expected.max() > 1) == (True, True), "clipping must be seen"
    np.testing.assert_allclose(score, expected.clip(0, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "targets"),
    [
        (np.zeros((3, 2)), np.zeros(3)),
        (np.zeros((3, 2, 4)), np.zeros(2)),
        (np.zeros((1, 2, 4)), np.zeros(1)),
        (np.full((3, 2, 4), np.nan), np.zeros(3)),
        (np.zeros((3, 2, 4)), np.array([0, np.inf, 1])),
    ],
)
def test_ridge_refuses_what_cannot_be_fitted(frames: Any, targets: Any) -> None:
    with pytest.raises(UsageError):
        fit_bayesian_ridge(frames, targets)


def test_ridge_refuses_coefficients_of_another_model() -> None:
    with pytest.raises(ModelError, match="takes 12 coefficients"):
        RidgeHead(D, None).set_coefficients(np.zeros(5), 0.0)


CAPTIONED = [
    ("FusionTransformer", TRANSFORMER, D, D),
    ("LateFusion", TRANSFORMER, D, D),
    ("TextPerceptron", {}, None, D),
    ("RegressionHead", {}, None, D),
]


@pytest.mark.parametrize(("kind", "options", "frame_dim", "text_dim"), CAPTIONED)
def test_absent_captions_change_nothing(
    kind: str, options: dict[str, Any], frame_dim: int | None, text_dim: int
) -> None:
    head = a_head(kind, options, frame_dim, text_dim)
    frames = None if frame_dim is None else features(B, T, frame_dim)
    captions, mask = features(B, C, text_dim, seed=2), a_mask()
    score = run(head, frames, captions, mask).score
    other = captions + 100 * (1 - mask)[..., None]
    torch.testing.assert_close(run(head, frames, other, mask).score, score)
    present = captions[1:2, :1]  # the second video has only its first caption
    alone = run(head, None if frames is None else frames[1:2], present, None).score
    torch.testing.assert_close(alone, score[1:2])
    everything = run(head, frames, captions, None).score
    torch.testing.assert_close(run(head, frames, captions, torch.ones(B, C)).score, everything)
    assert (everything[1] - score[1]).abs() > 1e-5


@pytest.mark.parametrize(("kind", "options", "frame_dim", "text_dim"), CAPTIONED)
def test_no_caption_is_no_score(
    kind: str, options: dict[str, Any], frame_dim: int | None, text_dim: int
) -> None:
    head = a_head(kind, options, frame_dim, text_dim)
    frames = None if frame_dim is None else features(B, T, frame_dim)
    mask = a_mask()
    mask[2] = 0
    scores = run(head, frames, features(B, C, text_dim), mask)
    if kind == "LateFusion":  # its frames have a score of their own
        torch.testing.assert_close(scores.score[2], scores.branches[0][2])
        assert (scores.score[:2] - scores.branches[0][:2]).abs().min() > 1e-5
    else:
        assert scores.score.isnan().tolist() == [False, False, True]


@pytest.mark.parametrize(("kind", "options", "frame_dim", "text_dim"), CAPTIONED)
def test_order_of_captions_does_not_matter(
    kind: str, options: dict[str, Any], frame_dim: int | None, text_dim: int
) -> None:
    head = a_head(kind, options, frame_dim, text_dim)
    frames = None if frame_dim is None else features(B, T, frame_dim)
    captions, mask = features(B, C, text_dim, seed=2), a_mask()
    order = [2, 0, 3, 1]
    torch.testing.assert_close(
        run(head, frames, captions[:, order], mask[:, order]).score,
        run(head, frames, captions, mask).score,
    )


@pytest.mark.parametrize(
    ("kind", "options", "matters"),
    [
        ("FusionTransformer", TRANSFORMER, True),
        ("RidgeHead", {}, False),
        ("RegressionHead", {}, False),
        ("TemporalHead", {"aggregator": "average"}, False),
        ("TemporalHead", {"aggregator": "transformer", **GRU, "hidden": 8}, False),
        ("TemporalHead", {"aggregator": "gru", "predictor": "linear", **GRU}, True),
        ("TemporalHead", {"aggregator": "gru-attention", **GRU}, True),
    ],
)
def test_order_of_frames_matters_where_the_head_has_a_notion_of_time(
    kind: str, options: dict[str, Any], matters: bool
) -> None:
    head = a_head(kind, options, D, None)
    if kind == "TemporalHead":
        with torch.no_grad():
            head.predictor[-2].weight.mul_(0.05)
    frames = features(B, T, D)
    difference = run(head, frames[:, [3, 1, 4, 0, 2]]).score - run(head, frames).score
    assert (difference.abs().max() > 1e-5) == matters


def test_temporal_head_sees_directions_only() -> None:
    head = a_head("TemporalHead", {**GRU, "aggregator": "average"}, D, None)
    frames = features(B, T, D)
    torch.testing.assert_close(run(head, 50 * frames).score, run(head, frames).score)


def test_videos_of_a_batch_do_not_touch_each_other() -> None:
    for kind, options, frame_dim, text_dim in (*CAPTIONED, ("TemporalHead", GRU, D, None)):
        head = a_head(kind, options, frame_dim, text_dim)
        frames = None if frame_dim is None else features(B, T, frame_dim)
        captions = None if text_dim is None else features(B, C, text_dim, seed=2)
        together = run(head, frames, captions, None).score
        for video in range(B):
            one = slice(video, video + 1)
            alone = run(
                head,
                None if frames is None else frames[one],
                None if captions is None else captions[one],
                None,
            ).score
            torch.testing.assert_close(alone, together[one])


def test_heads_train() -> None:
    """A step on the loss of every branch reaches every parameter (of layers with a ReLU before
    the output some units may rest, so whole tensors are looked at)."""
    for kind, options, frame_dim, text_dim in (
        *CAPTIONED,
        ("RegressionHead", {}, D, None),
        ("TemporalHead", GRU, D, None),
        ("TemporalHead", {**GRU, "aggregator": "transformer", "hidden": 8}, D, None),
        ("RidgeHead", {}, D, None),
    ):
        torch.manual_seed(0)
        head = make_head(HeadSpec(kind, options), frame_dim, text_dim)
        if isinstance(head, RidgeHead):
            head.set_coefficients(np.zeros(D), 0.5)
        frames = None if frame_dim is None else features(B, T, frame_dim)
        captions = None if text_dim is None else features(B, C, text_dim, seed=2)
        scores = head(frames, captions, None)
        assert len(scores.branches) == (2 if isinstance(head, LateFusion) else 1)
        sum(((branch - 0.9) ** 2).sum() for branch in scores.branches).backward()
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None, (kind, name)
            assert parameter.grad.isfinite().all(), (kind, name)


@pytest.mark.parametrize(
    ("kind", "options", "frame_dim", "text_dim", "message"),
    [
        ("Oracle", {}, D, None, "unknown head 'Oracle'"),
        ("__init__", {}, D, None, "unknown head"),
        ("TemporalHead", {"aggregator": "lstm"}, D, None, "knows no aggregator 'lstm'"),
        ("TemporalHead", {"predictor": "svm"}, D, None, "knows no predictor 'svm'"),
        ("TemporalHead", {"aggregator": 3}, D, None, "not of type str"),
        ("TemporalHead", {"depth": 2}, D, None, "no option 'depth'"),
        ("TemporalHead", {"dropout": 1.5}, D, None, "dropout is 1.5"),
        ("TemporalHead", {"layers": 10**9}, D, None, "layers is 1000000000"),
        ("FusionTransformer", {"frame_dim": 3}, D, None, "no option 'frame_dim'"),
        ("FusionTransformer", {"width": 10**9}, D, None, "width is 1000000000"),
        ("FusionTransformer", {"width": 20, "heads": 8}, D, None, "cannot be split into 8 heads"),
        ("FusionTransformer", {"depth": 2.5}, D, None, "not of type int"),
        ("FusionTransformer", {"depth": True}, D, None, "not of type int"),
        ("FusionTransformer", {}, None, D, "reads frames, but the model has no encoder"),
        ("TextPerceptron", {"text_width": 2}, None, D, "text_width is 2"),
        ("TextPerceptron", {}, D, None, "reads captions, but the model has no encoder"),
        ("LateFusion", {"alpha": 1.1}, D, D, "alpha is 1.1"),
        ("LateFusion", {"alpha": float("nan")}, D, D, "alpha is nan"),
        ("LateFusion", {}, D, None, "reads captions"),
        ("LateFusion", {"beta": 1}, D, D, "Options: alpha, width, depth, heads, feed_forward,"),
        ("LateFusion", {"text_width": 2.5}, D, D, "'text_width' of the head LateFusion is 2.5"),
        ("LateFusion", {"depth": 65}, D, D, "depth is 65"),
        ("RidgeHead", {"alpha": 1}, D, None, "It has none."),
        ("RegressionHead", {}, D, D, "not both"),
        ("RegressionHead", {}, None, None, "has no encoder"),
    ],
)
def test_bad_options_are_model_errors(
    kind: str, options: dict[str, Any], frame_dim: int | None, text_dim: int | None, message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        make_head(HeadSpec(kind, options), frame_dim, text_dim)
    assert message in str(caught.value)


def test_integer_for_a_float_option_is_taken() -> None:
    head: Any = make_head(HeadSpec("LateFusion", {**TRANSFORMER, "alpha": 1}), D, D)
    frames, captions = features(B, T, D), features(B, C, D)
    scores = run(head.eval(), frames, captions, None)
    torch.testing.assert_close(scores.score, scores.branches[0])


def test_late_fusion_has_the_options_of_its_parts() -> None:
    """So it is, with their defaults, the two models of their own."""
    fused = option_defaults(LateFusion)
    parts = option_defaults(FusionTransformer) | option_defaults(TextPerceptron)
    assert fused == {"alpha": 0.7} | parts
    head: Any = make_head(HeadSpec("LateFusion", {**TRANSFORMER, "text_width": 20}), D, D)
    assert head.text.layers[0].out_features == 20
    assert len(head.vision.transformer.blocks) == TRANSFORMER["depth"]
    with pytest.raises(TypeError, match="beta"):
        LateFusion(D, D, beta=1)


def test_missing_inputs_are_named() -> None:
    with pytest.raises(ModelError, match="RegressionHead was given no frames"):
        RegressionHead(D, None)(None)
    with pytest.raises(ModelError, match="TextPerceptron was given no captions"):
        make_head(HeadSpec("TextPerceptron"), None, D)(features(B, T, D))


def test_every_registered_head_can_be_made() -> None:
    made = set()
    for name in models.MODELS:
        spec = models.get_model(name)
        if spec.head is not None and spec.eeg is None:
            vision, text = spec.encoder("vision"), spec.encoder("text")
            make_head(spec.head, vision and vision.dim, text and text.dim)
            made.add(spec.head.kind)
    assert made == set(HEADS)
