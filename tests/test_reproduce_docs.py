"""docs/models.md says what the registry says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from memcli.experiments.published import SPREADS, paper_models
from memcli.models import MODELS
from memcli.models.papers import PAPERS

HEAVY = {"torch", "transformers", "lightning", "sklearn", "scipy", "matplotlib", "av", "numpy"}
TEXT = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
ROWS: dict[str, list[str]] = {}
"""Cells of the first row of each model: the tables of the papers come before those of our runs."""
for line in TEXT.splitlines():
    for names in re.findall(r"^\|[^|/]*\| `([a-z0-9-]+)` \||^\| `([a-z0-9-]+)` \|", line):
        ROWS.setdefault("".join(names), [cell.strip() for cell in line.strip("|").split("|")])


@pytest.mark.parametrize("model", [one for paper in PAPERS for one in paper_models(paper)])
def test_each_model_has_a_row_with_its_published_figures(model: str) -> None:
    spec = MODELS[model]
    cells = " ".join(ROWS[model])
    own = [one for one in spec.published if "trained on" not in one.dataset]
    for one in own:
        assert re.search(rf"(?<!\d){one.value:.3f}0?(?!\d)|{one.value:.4f}", cells), one
    if model in SPREADS:
        assert f"± {SPREADS[model]:.2f}" in cells
    assert spec.recipe is not None
    if spec.recipe.unit != "video":
        assert f"{spec.recipe.batch_size:,}" in cells


def test_the_cross_dataset_figures_are_there() -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith(("| Memento", "| VideoMem"))]
    there = {float(value) for line in lines for value in re.findall(r"0\.\d+", line)}
    crossed = [one for one in MODELS["clip-gru"].published if "trained on" in one.dataset]
    assert there == {one.value for one in crossed}


def test_every_encoder_is_listed_with_its_licence() -> None:
    for spec in MODELS.values():
        for encoder in spec.encoders:
            (line,) = [x for x in TEXT.splitlines() if x.startswith(f"| `{encoder.repository}` |")]
            assert line.endswith(f"| {encoder.license} |")


@pytest.mark.parametrize("command", ["reproduce", "cross"])
def test_help_imports_nothing_heavy(command: str) -> None:
    script = (
        "import os, sys\nout, sys.stdout = sys.stdout, open(os.devnull, 'w')\n"
        f"from memcli.app import run\nassert run([{command!r}, '--help']) == 0\n"
        "print('\\n'.join(sys.modules), file=out)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & HEAVY
