"""The published figures are those of the papers, and each is there once."""

from __future__ import annotations

import math

import pytest

from memcli.experiments.published import (
    ADAPTATION_LOSSES,
    FCLIP_ROWS,
    FCLIP_VIDEOS,
    I3D_ROWS,
    OWN_DATA,
    SPREADS,
    paper_models,
    published,
    row_figures,
    row_labels,
)
from memcli.models.papers import PAPERS

# Copied from the papers' texts.
EARLY_FUSION = """
Uni-modal Vision	0.362 ± 0.10	0.224
Uni-modal Text	0.301 ± 0.03	0.160
Early Fusion	0.368 ± 0.09	0.259
Late Fusion	0.378 ± 0.06	0.246
BRR	0.243 ± 0.07	0.246
"""
FCLIP = """
1 - Unimodal	ViT	2e-03	1,024	0.603 (0.589, 0.616)
	DistilBERT	1e-03	512	0.574 (0.559, 0.588)
2 - Adapted Unimodal	ViT	3e-05	128	0.622 (0.609, 0.635)
	DistilBERT	1e-05	256	0.629 (0.616, 0.641)
3 - CLIP-Based	CLIP - Vision	1e-03	1,024	0.664 (0.651, 0.675)
	CLIP - Text	1e-03	4,096	0.609 (0.595, 0.622)
4 - Adapted CLIP-Based	CLIP - Vision	2e-06	128	0.670 (0.658, 0.681)
	CLIP - Text	2e-06	256	0.619 (0.606, 0.632)
5 - FCLIP-Based	FCLIP - Vision	1e-03	2,048	0.672 (0.660, 0.683)
	FCLIP - Text	2e-03	512	0.628 (0.615, 0.640)
6 - Adapted FCLIP-Based	FCLIP - Vision	2e-06	128	0.671 (0.659, 0.682)
	FCLIP - Text	3e-06	512	0.632 (0.619, 0.644)
"""
CLIP_GRU = """
B/32	Linear+Avg.	Linear	0.7009	0.7000
B/32	Bi-GRU	Linear	0.7052	0.7063
L/14	Bi-GRU	Linear	0.7075	0.7079
L/14	Bi-GRU attention	MLP	0.7132	0.7100
L/14	Transformer	Linear	0.7033	0.7038
"""
AGGREGATORS = {
    "Linear+Avg.": "average",
    "Bi-GRU": "gru",
    "Bi-GRU attention": "gru-attention",
    "Transformer": "transformer",
}


def lines(table: str) -> list[list[str]]:
    return [line.split("\t") for line in table.strip("\n").splitlines()]


def test_every_paper_has_its_data_and_rows() -> None:
    assert set(OWN_DATA) == set(PAPERS)
    assert [len(paper_models(paper)) for paper in PAPERS] == [5, 12, 5]


def test_early_fusion() -> None:
    assert set(SPREADS) == set(paper_models("early-fusion"))
    for model, (_, mean, test) in zip(
        paper_models("early-fusion"), lines(EARLY_FUSION), strict=True
    ):
        found = row_figures("early-fusion", model)
        value, _, spread = mean.partition(" ± ")
        assert found["SRCC, cross-validation"].value == float(value)
        assert found["SRCC, cross-validation"].std == float(spread)
        assert found["SRCC, test"].value == float(test)


def test_fclip() -> None:
    assert set(FCLIP_ROWS) == set(paper_models("fclip"))
    strategy = ""
    for model, row in zip(paper_models("fclip"), lines(FCLIP), strict=True):
        strategy = row[0] or strategy
        assert row_labels("fclip", model) == (strategy, model)
        assert model.removesuffix("-tuned") == row[1].lower().replace(" - ", "-")
        found = row_figures("fclip", model)
        assert found["Learning rate"].value == float(row[2])
        assert found["Batch size"].value == int(row[3].replace(",", ""))
        value, _, interval = row[4].partition(" ")
        assert found["SRCC"].value == float(value)
        assert found["SRCC"].interval == tuple(map(float, interval.strip("()").split(", ")))


def test_fclip_intervals_are_those_of_its_equation() -> None:
    """Equation 13 on the rounded means: up to one unit of the last digit and a half."""
    for model, row in FCLIP_ROWS.items():
        mean = published(model, "Memento10k, 5-fold cross-validation", "SRCC")
        assert mean is not None
        assert mean.value is not None
        half = 1.96 / math.sqrt(FCLIP_VIDEOS - 3)
        expected = [math.tanh(math.atanh(mean.value) + sign * half) for sign in (-1, 1)]
        assert row.interval == pytest.approx(expected, abs=1.5e-3)


def test_clip_gru() -> None:
    for model, row in zip(paper_models("clip-gru"), lines(CLIP_GRU), strict=True):
        size, aggregator, predictor = row_labels("clip-gru", model)
        assert size == f"CLIP-ViT-{row[0]}"
        assert aggregator == AGGREGATORS[row[1]]
        assert predictor == row[2].lower()
        found = row_figures("clip-gru", model)
        assert found["PLCC"].value == float(row[3])
        assert found["SRCC"].value == float(row[4])


def test_other_rows() -> None:
    assert [row.srcc for row in I3D_ROWS] == [0.5142, 0.5882, 0.5647, 0.7061, 0.6987, 0.6972]
    assert [row.plcc for row in I3D_ROWS] == [0.5065, 0.5915, None, 0.7059, 0.7040, 0.7104]
    assert [test for _, test in ADAPTATION_LOSSES][:3] == [1.93658, 0.4209, 0.4538]
    assert [train for train, _ in ADAPTATION_LOSSES][-1] == 0.0316
    assert published("vision", "MovieMem, test set", "PLCC") is None


def test_a_new_model_of_a_paper_needs_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FCLIP_ROWS, "vit")
    monkeypatch.delitem(SPREADS, "vision")
    assert row_labels("fclip", "vit") == ("–", "vit")
    assert set(row_figures("fclip", "vit")) == {"Batch size"}
    assert row_figures("early-fusion", "vision")["SRCC, cross-validation"].std is None
