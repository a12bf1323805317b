"""The options of heads that `memcli train --set KEY=VALUE` takes; a test compares them with the
heads themselves, which are not imported here because they need torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memcli.spec import HeadSpec


@dataclass(frozen=True)
class HeadOption:
    """One option of a head."""

    default: int | float | str
    meaning: str
    values: str
    """What is possible."""


_TRANSFORMER = {
    "width": HeadOption(512, "values of a token", "1 to 8192, a multiple of `heads`"),
    "depth": HeadOption(5, "transformer blocks", "1 to 64"),
    "heads": HeadOption(8, "attention heads of a block", "1 to `width`"),
    "feed_forward": HeadOption(2048, "units of a block's feed-forward layer", "1 to 8192"),
    "dropout": HeadOption(0.1, "dropout on tokens and sub-layers", "0 to 0.99"),
}
_PERCEPTRON = {
    "text_width": HeadOption(
        512,
        "units of the perceptron's first layer, halved in each of the next two",
        "4 to 8192",
    ),
}
HEAD_OPTIONS: Mapping[str, Mapping[str, HeadOption]] = {
    "FusionTransformer": _TRANSFORMER,
    "TextPerceptron": _PERCEPTRON,
    "LateFusion": {
        "alpha": HeadOption(0.7, "weight of the frames' score; captions have the rest", "0 to 1"),
        **_TRANSFORMER,
        **_PERCEPTRON,
    },
    "RidgeHead": {},
    "RegressionHead": {},
    "TemporalHead": {
        "aggregator": HeadOption(
            "gru-attention",
            "from frames to one vector",
            "average, gru, gru-attention, transformer",
        ),
        "predictor": HeadOption("mlp", "from that vector to the score", "linear, mlp"),
        "hidden": HeadOption(
            64, "units of the GRU each way; other aggregators have twice as many", "2 to 1024"
        ),
        "layers": HeadOption(6, "layers of the GRU", "1 to 64"),
        "dropout": HeadOption(0.2, "dropout of the GRU or transformer", "0 to 0.99"),
    },
}
"""By the head's kind, then by the option's name; in the order of the head's signature."""

EEG_HEAD_OPTIONS: Mapping[str, Mapping[str, HeadOption]] = {
    "WindowCnn": {
        "filters": HeadOption(64, "filters of the window encoder", "1 to 4096"),
        "embedding": HeadOption(32, "values of a window's embedding", "1 to 4096"),
        "dropout": HeadOption(0.5, "dropout on the embeddings", "0 to 0.99"),
        "subject_dropout": HeadOption(
            0.25, "share of epochs trained on as of an unknown subject", "0 to 0.99"
        ),
    },
}
"""The same of the EEG model, whose one kind is not in `memcli.train.heads`. `members` is not
listed: `memcli train --ensemble` sets it."""


def options_of(head: HeadSpec) -> dict[str, tuple[HeadOption, int | float | str]]:
    """The options of a model's head, each with the value that the model has for it."""
    known = (HEAD_OPTIONS if head.kind in HEAD_OPTIONS else EEG_HEAD_OPTIONS).get(head.kind, {})
    return {name: (one, head.options.get(name, one.default)) for name, one in known.items()}
