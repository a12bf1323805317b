"""What the papers' tables hold beyond `ModelSpec.published`: spreads, rows that are not here.

Each constant names the table it is from. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from memcli.experiments.tables import Figure
from memcli.models import get_model
from memcli.models.papers import PAPERS


@dataclass(frozen=True)
class OwnData:
    """The data that a paper's figures are of."""

    format: str
    """Name in `memcli.train.datasets.DATASETS`."""
    name: str


OWN_DATA = {
    "early-fusion": OwnData("moviemem", "MovieMem"),
    "fclip": OwnData("memento10k", "Memento10k"),
    "clip-gru": OwnData("memento10k", "Memento10k"),
}

CROSS_VALIDATION = "SRCC, cross-validation"
TEST = "SRCC, test"
LEARNING_RATE = "Learning rate"
BATCH_SIZE = "Batch size"
"""Columns of the tables, beside SRCC and PLCC."""
CROSS_MODEL = "clip-gru"
"""The model of 002_1ca569390f82ecec.txt, table 2."""

SECOND_DATA = OwnData("videomem", "VideoMem")
"""The other dataset of 002_1ca569390f82ecec.txt, table 2."""

SPREADS = {"vision": 0.10, "text": 0.03, "early-fusion": 0.09, "late-fusion": 0.06, "brr": 0.07}
"""What stands behind ± in 000_bcb79d7cf5a52fe8.txt, table 1. It does not say what it is; here it is
read as the standard deviation over the folds."""

FCLIP_VIDEOS = 8500


@dataclass(frozen=True)
class FclipRow:
    """What a row of 001_de183854d7703535.txt, table 6, holds beside its SRCC and batch size."""

    strategy: str
    learning_rate: float
    """As the paper's range test found it."""
    interval: tuple[float, float]
    """95 % interval of the SRCC."""


_STRATEGIES = (
    "1 - Unimodal",
    "2 - Adapted Unimodal",
    "3 - CLIP-Based",
    "4 - Adapted CLIP-Based",
    "5 - FCLIP-Based",
    "6 - Adapted FCLIP-Based",
)
FCLIP_ROWS = {
    "vit": FclipRow(_STRATEGIES[0], 2e-3, (0.589, 0.616)),
    "distilbert": FclipRow(_STRATEGIES[0], 1e-3, (0.559, 0.588)),
    "vit-tuned": FclipRow(_STRATEGIES[1], 3e-5, (0.609, 0.635)),
    "distilbert-tuned": FclipRow(_STRATEGIES[1], 1e-5, (0.616, 0.641)),
    "clip-vision": FclipRow(_STRATEGIES[2], 1e-3, (0.651, 0.675)),
    "clip-text": FclipRow(_STRATEGIES[2], 1e-3, (0.595, 0.622)),
    "clip-vision-tuned": FclipRow(_STRATEGIES[3], 2e-6, (0.658, 0.681)),
    "clip-text-tuned": FclipRow(_STRATEGIES[3], 2e-6, (0.606, 0.632)),
    "fclip-vision": FclipRow(_STRATEGIES[4], 1e-3, (0.660, 0.683)),
    "fclip-text": FclipRow(_STRATEGIES[4], 2e-3, (0.615, 0.640)),
    "fclip-vision-tuned": FclipRow(_STRATEGIES[5], 2e-6, (0.659, 0.682)),
    "fclip-text-tuned": FclipRow(_STRATEGIES[5], 3e-6, (0.619, 0.644)),
}

ADAPTATION_LOSSES: tuple[tuple[float | None, float], ...] = (
    (None, 1.93658),
    (0.2187, 0.4209),
    (0.0912, 0.4538),
    (0.0610, 0.4814),
    (0.0458, 0.4858),
    (0.0374, 0.5736),
    (0.0316, 0.5710),
)
"""Training and test loss of the contrastive adaptation after 0, 1, ... epochs,
001_de183854d7703535.txt, table 5."""


@dataclass(frozen=True)
class OtherRow:
    """A row of 002_1ca569390f82ecec.txt, table 1, whose model is not in the registry."""

    encoder: str
    aggregator: str
    predictor: str
    plcc: float | None
    """None: not legible in the text of the paper that we have."""
    srcc: float


I3D_ROWS = (
    OtherRow("I3D (fine-tuned for memorability)", "-", "linear", 0.5065, 0.5142),
    OtherRow("I3D (pretrained on Kinetics)", "-", "linear", 0.5915, 0.5882),
    OtherRow("I3D (pretrained on Charades)", "-", "linear", None, 0.5647),
    OtherRow("CLIP-ViT-B/32 + I3D (fine-tuned)", "linear, average, concatenation", "MLP",
             0.7059, 0.7061),
    OtherRow("CLIP-ViT-B/32 + I3D (Kinetics)", "linear, average, concatenation", "MLP",
             0.7040, 0.6987),
    OtherRow("CLIP-ViT-B/32 + I3D (Charades)", "linear, average, concatenation", "MLP",
             0.7104, 0.6972),
)  # fmt: skip


def paper_models(paper: str) -> tuple[str, ...]:
    """The registry's models of videos of a paper, in the order of its table."""
    from memcli.models import MODELS

    file = PAPERS[paper].file
    return tuple(
        name
        for name, spec in MODELS.items()
        if spec.head is not None and spec.eeg is None and spec.source.startswith(file)
    )


def published(model: str, dataset: str, metric: str) -> Figure | None:
    """A figure of the registry by the data it is of and its metric."""
    found = (
        one.value
        for one in get_model(model).published
        if (one.dataset, one.metric) == (dataset, metric)
    )
    value = next(found, None)
    return Figure(value) if value is not None else None


def row_labels(paper: str, model: str) -> tuple[str, ...]:
    """What a row of the paper's table is called: a cell for each column before the figures."""
    if paper == "fclip":
        row = FCLIP_ROWS.get(model)
        return row.strategy if row is not None else "–", model
    spec = get_model(model)
    if paper == "clip-gru" and spec.head is not None:
        size = "B/32" if "base-patch32" in spec.encoders[0].repository else "L/14"
        aggregator, predictor = (spec.head.options[key] for key in ("aggregator", "predictor"))
        return f"CLIP-ViT-{size}", str(aggregator), str(predictor)
    return (model,)


def row_figures(paper: str, model: str) -> dict[str, Figure]:
    """The published figures of a row, by the names of their columns."""
    found: dict[str, Figure | None] = {}
    if paper == "early-fusion":
        mean = published(model, "MovieMem, 5-fold cross-validation", "SRCC")
        if mean is not None:
            found[CROSS_VALIDATION] = replace(mean, std=SPREADS.get(model))
        found[TEST] = published(model, "MovieMem, test set", "SRCC")
    elif paper == "fclip":
        row, recipe = FCLIP_ROWS.get(model), get_model(model).recipe
        mean = published(model, "Memento10k, 5-fold cross-validation", "SRCC")
        if mean is not None and row is not None:
            found["SRCC"] = replace(mean, interval=row.interval, videos=FCLIP_VIDEOS)
        found[LEARNING_RATE] = Figure(row.learning_rate) if row is not None else None
        found[BATCH_SIZE] = Figure(recipe.batch_size) if recipe is not None else None
    else:
        for metric in ("PLCC", "SRCC"):
            found[metric] = published(model, "Memento10k, development set", metric)
    return {name: figure for name, figure in found.items() if figure is not None}


def cross_figures(dataset: str) -> dict[str, Figure]:
    """PLCC and SRCC of table 2, by its data as the registry names them."""
    found = {metric: published(CROSS_MODEL, dataset, metric) for metric in ("PLCC", "SRCC")}
    return {metric: figure for metric, figure in found.items() if figure is not None}
