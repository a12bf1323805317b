"""The systems of the MediaEval 2025 paper on early fusion: vision, text, fusions and ridge.

Source: 000_bcb79d7cf5a52fe8.txt, sections 2.1 and 3.1. Left open there and chosen here: the batch
size (32), the width of the transformer's feed-forward layer and of the perceptron (see
`memcli.train.heads`), what the ridge sees of 16 frame embeddings (their mean), and what happens
with several captions per video (each epoch of training draws one; a score is the mean over all).
"""

from __future__ import annotations

from memcli.models import encoders
from memcli.spec import HeadSpec, ModelSpec, PublishedResult, Recipe

_SECTION = "000_bcb79d7cf5a52fe8.txt, sections 2.1 and 3.1"
_TABLE = "000_bcb79d7cf5a52fe8.txt, table 1"
_RECIPE = Recipe(
    loss="mse", epochs=25, batch_size=32, learning_rate=5e-4, schedule="cosine", folds=5
)
_PREDICTS = "memorability of the video, 0 to 1, as in the scores it was trained on"
_TRAINED_ON = "your training data (paper: MovieMem)"
_TRANSFORMER: dict[str, int | float | str] = {
    "width": 512,
    "depth": 5,
    "heads": 8,
    "feed_forward": 2048,
    "dropout": 0.1,
}


def _published(cross_validation: float, test: float) -> tuple[PublishedResult, ...]:
    return (
        PublishedResult("MovieMem, 5-fold cross-validation", "SRCC", cross_validation, _TABLE),
        PublishedResult("MovieMem, test set", "SRCC", test, _TABLE),
    )


VISION = ModelSpec(
    name="vision",
    summary="SigLIP frames in a transformer (MediaEval 2025, uni-modal vision)",
    predicts=_PREDICTS,
    source=_SECTION,
    prep=encoders.SIGLIP_PREP,
    encoders=(encoders.SIGLIP_VISION,),
    head=HeadSpec("FusionTransformer", _TRANSFORMER),
    recipe=_RECIPE,
    trained_on=_TRAINED_ON,
    published=_published(0.362, 0.224),
    tolerances=encoders.TOLERANCES,
)

TEXT = ModelSpec(
    name="text",
    summary="Sentence embedding of a caption in a perceptron (MediaEval 2025, uni-modal text)",
    predicts=_PREDICTS,
    source=_SECTION,
    prep=None,
    text=encoders.DISTILROBERTA_PREP,
    encoders=(encoders.DISTILROBERTA,),
    head=HeadSpec("TextPerceptron"),
    recipe=_RECIPE,
    trained_on=_TRAINED_ON,
    published=_published(0.301, 0.160),
    tolerances=encoders.TOLERANCES,
)

EARLY_FUSION = ModelSpec(
    name="early-fusion",
    summary="SigLIP frames and caption as one sequence in a transformer (MediaEval 2025)",
    predicts=_PREDICTS,
    source=_SECTION,
    prep=encoders.SIGLIP_PREP,
    text=encoders.SIGLIP_TEXT_PREP,
    encoders=(encoders.SIGLIP_VISION, encoders.SIGLIP_TEXT),
    head=HeadSpec("FusionTransformer", _TRANSFORMER),
    recipe=_RECIPE,
    trained_on=_TRAINED_ON,
    published=_published(0.368, 0.259),
    tolerances=encoders.TOLERANCES,
)

LATE_FUSION = ModelSpec(
    name="late-fusion",
    summary="Weighted mean of the vision and the text model (MediaEval 2025)",
    predicts=_PREDICTS,
    source=_SECTION,
    prep=encoders.SIGLIP_PREP,
    text=encoders.DISTILROBERTA_PREP,
    encoders=(encoders.SIGLIP_VISION, encoders.DISTILROBERTA),
    head=HeadSpec("LateFusion", {**_TRANSFORMER, "alpha": 0.7}),
    recipe=_RECIPE,
    trained_on=_TRAINED_ON,
    published=_published(0.378, 0.246),
    tolerances=encoders.TOLERANCES,
)

BRR = ModelSpec(
    name="brr",
    summary="Bayesian ridge regression on SigLIP frames (MediaEval 2025)",
    predicts=_PREDICTS,
    source=_SECTION,
    prep=encoders.SIGLIP_PREP,
    encoders=(encoders.SIGLIP_VISION,),
    head=HeadSpec("RidgeHead"),
    recipe=Recipe(loss="bayesian-ridge", folds=5),
    trained_on=_TRAINED_ON,
    published=_published(0.243, 0.246),
    tolerances=encoders.TOLERANCES,
)

SPECS = (VISION, TEXT, EARLY_FUSION, LATE_FUSION, BRR)
