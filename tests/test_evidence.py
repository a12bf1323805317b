"""What the parity report says of each comparison."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny_bundle import make_tiny_bundle

from memcli.export.evidence import narrow_warning, spread_of, verified_on
from memcli.export.parity_table import parity_table
from memcli.home import home
from memcli.spec import Tolerance

LIMITS = Tolerance(max_abs=0.01, mean_abs=0.005)


def row(scores: list[float], **more: Any) -> dict[str, Any]:
    measured = {"role": "gate", "clips": len(scores), "max_abs": 1e-9, "mean_abs": 1e-9}
    return measured | spread_of(np.array(scores)).to_dict() | more


def test_scores_that_hardly_differ_are_warned_of() -> None:
    alike, spread = row([0.5, 0.501, 0.502]), row([0.4, 0.5, 0.6])
    assert "3 reference scores are nearly alike (0.5 to 0.502" in narrow_warning(alike, LIMITS)
    assert narrow_warning(spread, LIMITS) == ""
    assert narrow_warning(alike | {"role": "engine check"}, LIMITS) == "", "it decides nothing"
    assert narrow_warning(alike | {"reference_std": "x"}, LIMITS) == "", "an odd manifest"
    assert narrow_warning(alike, None) == ""


def test_any_graph_of_one_score_that_would_pass_is_warned_of() -> None:
    random = np.random.default_rng(0)
    for scale in np.geomspace(1e-4, 1, 40):
        scores = random.uniform(-scale, scale, 20)
        middle = (scores.max() + scores.min()) / 2
        if np.abs(scores - middle).max() <= LIMITS.max_abs:
            assert spread_of(scores).narrow(LIMITS)


def test_the_table_shows_the_range_and_warns() -> None:
    bundle = make_tiny_bundle(home())
    variant = replace(bundle.variants["fp32"], parity=[row([0.5, 0.5001], inputs="my | clips")])
    table = parity_table(replace(bundle, variants={"fp32": variant}))
    assert "| 0.5 | 0.5 | 5e-05 |" in table
    assert "Warning: fp32 on my / clips: the 2 reference scores are nearly alike" in table
    assert "| not recorded |" in table, "no cell is empty that has a name"


def test_what_a_gate_rests_on() -> None:
    rows = [row([0, 1], inputs="videos"), row([0, 1], inputs="other", role="shown only")]
    assert verified_on([*rows, rows[0]]) == "2 videos"


@pytest.mark.parametrize("report", [{"max_abs": 0.1, "mean_abs": 0.1, "clips": 3}])
def test_rows_of_older_manifests(report: dict[str, Any]) -> None:
    bundle = make_tiny_bundle(home())
    variant = replace(bundle.variants["fp32"], parity=[report])
    table = parity_table(replace(bundle, variants={"fp32": variant}))
    assert "| fp32 | not recorded | not recorded | synthetic reference clips | not rec" in table
