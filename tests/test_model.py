"""The whole model: encoders per frame and per caption, and what it does with absent ones."""

from __future__ import annotations

from typing import Any

import pytest

from memcli.errors import ModelError
from memcli.spec import HeadSpec

torch = pytest.importorskip("torch")

from memcli.train.heads import make_head  # noqa: E402
from memcli.train.model import MemorabilityModel  # noqa: E402


class Brightness(torch.nn.Module):
    """[N, H, W, 3] -> the mean of each channel, [N, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1 / 255))

    def forward(self, frames: Any) -> Any:
        assert frames.dtype == torch.uint8
        assert frames.dim() == 4
        return frames.float().mean(dim=(1, 2)) * self.scale


class Words(torch.nn.Module):
    """[N, L] -> mean of the embeddings of the attended tokens, [N, 3]: NaN if there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 3)

    def forward(self, input_ids: Any, mask: Any) -> Any:
        assert mask.dtype == torch.int64
        weights = mask[..., None].float()
        return (self.table(input_ids) * weights).sum(1) / weights.sum(1)


def a_model(kind: str, *, frames: bool, captions: bool) -> Any:
    torch.manual_seed(1)
    head = make_head(HeadSpec(kind), 3 if frames else None, 3 if captions else None)
    encoders = Brightness() if frames else None, Words() if captions else None
    return MemorabilityModel(head, *encoders).eval()


def clips() -> Any:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (2, 4, 5, 6, 3), generator=generator).to(torch.uint8)


def tokens() -> tuple[Any, Any]:
    ids = torch.tensor([[[1, 2, 3], [4, 5, 0]], [[6, 0, 0], [0, 0, 0]]])
    mask = torch.tensor([[[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 0, 0]]])
    return ids, mask


@torch.no_grad()
def test_frames_are_embedded_one_by_one() -> None:
    model = a_model("RegressionHead", frames=True, captions=False)
    frames = clips()
    embedded = model.embed_frames(frames)
    expected = frames.float().mean(dim=(2, 3)) / 255
    torch.testing.assert_close(embedded, expected)
    torch.testing.assert_close(model(frames).frame_scores, model.head(expected).frame_scores)


@torch.no_grad()
def test_captions_are_embedded_one_by_one_and_absent_ones_are_no_nan() -> None:
    model = a_model("TextPerceptron", frames=False, captions=True)
    ids, mask = tokens()
    embedded, present = model.embed_captions(ids, mask)
    assert present.tolist() == [[1, 1], [1, 0]]
    assert embedded.isfinite().all()
    table = model.text_encoder.table
    torch.testing.assert_close(embedded[0, 1], table(torch.tensor([4, 5])).mean(0))
    torch.testing.assert_close(embedded[1, 0], table(torch.tensor(6)))
    alone = model(None, ids[1:, :1], mask[1:, :1]).score
    torch.testing.assert_close(model(None, ids, mask).score[1:], alone)


@torch.no_grad()
def test_both_inputs_reach_the_head() -> None:
    model = a_model("FusionTransformer", frames=True, captions=True)
    ids, mask = tokens()
    score = model(clips(), ids, mask).score
    embedded = model.embed_frames(clips())
    torch.testing.assert_close(score, model.head(embedded, *model.embed_captions(ids, mask)).score)
    assert (score - model(clips()).score).abs().min() > 1e-6
    assert (score - model(255 - clips(), ids, mask).score).abs().min() > 1e-6


def test_the_gradient_reaches_the_encoders_past_absent_captions() -> None:
    model = a_model("FusionTransformer", frames=True, captions=True)
    model(clips(), *tokens()).score.sum().backward()
    for parameter in (model.frame_encoder.scale, model.text_encoder.table.weight):
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


def test_keys_of_the_state_dict_say_what_they_are_of() -> None:
    model = a_model("FusionTransformer", frames=True, captions=True)
    parts = {name.split(".")[0] for name in model.state_dict()}
    assert parts == {"head", "frame_encoder", "text_encoder"}
    assert not [name for name in model.state_dict() if "positions" in name]


@pytest.mark.parametrize(
    ("kind", "has_frames", "inputs", "message"),
    [
        ("TextPerceptron", False, (clips(),), "given frames"),
        ("RegressionHead", True, (None, *tokens()), "given captions"),
        ("TextPerceptron", False, (None, tokens()[0]), "attention mask"),
        ("TextPerceptron", False, (), "no captions"),
    ],
)
def test_inputs_without_an_encoder_are_refused(
    kind: str, has_frames: bool, inputs: Any, message: str
) -> None:
    model = a_model(kind, frames=has_frames, captions=not has_frames)
    with pytest.raises(ModelError, match=message):
        model(*inputs)
