"""The twelve systems of the FCLIP paper: six strategies, each on frames and on captions.

Source: 001_de183854d7703535.txt, sections 3 and 4, tables 3, 4 and 6. A strategy is an encoder
(unimodal, CLIP, or CLIP adapted by contrastive training: FCLIP), frozen or fine-tuned with the
regression head. Names say which: `clip-text` is frozen, `clip-text-tuned` is fine-tuned. Batch
sizes are those of table 6; the learning rate comes from a range test, as there. What of an encoder
is its embedding is left open there: here it is the projection to the shared space of CLIP, and the
last state of the first token of ViT and DistilBERT.

`published` are 5-fold means on Memento10k (train and validation, 8,500 videos).
"""

from __future__ import annotations

from memcli.models import encoders
from memcli.spec import EncoderSpec, HeadSpec, ModelSpec, PublishedResult, Recipe

_SECTION = "001_de183854d7703535.txt, sections 3 and 4"
_TABLE = "001_de183854d7703535.txt, table 6"
_WHAT = {"vision": "first, middle and last frame", "text": "captions"}


def _spec(
    name: str,
    strategy: int,
    encoder: EncoderSpec,
    title: str,
    *,
    batch_size: int,
    srcc: float,
) -> ModelSpec:
    tuned = strategy % 2 == 0
    vision = encoder.tower == "vision"
    text_prep = {
        encoders.DISTILBERT: encoders.DISTILBERT_PREP,
        encoders.CLIP_B32_TEXT: encoders.CLIP_TEXT_PREP,
    }
    frame_prep = encoders.VIT_PREP if encoder is encoders.VIT_B32 else encoders.CLIP_PREP
    return ModelSpec(
        name=f"{name}-tuned" if tuned else name,
        summary=f"{title} on {_WHAT[encoder.tower]}, {'fine-tuned' if tuned else 'frozen'}"
        f" (FCLIP paper, strategy {strategy})",
        predicts="short-term memorability of the video, 0 to 1, as in its training scores",
        source=_SECTION,
        prep=frame_prep if vision else None,
        text=None if vision else text_prep[encoder],
        encoders=(encoder,),
        head=HeadSpec("RegressionHead"),
        recipe=Recipe(
            loss="mse",
            unit="frame" if vision else "caption",
            epochs=200,
            batch_size=batch_size,
            learning_rate=None,
            monitor="val_srcc",
            patience_epochs=20,
            first_stop_epoch=50,
            fine_tune=tuned,
            contrastive=strategy >= 5,
            folds=5,
        ),
        trained_on="your training data (paper: Memento10k)",
        published=(PublishedResult("Memento10k, 5-fold cross-validation", "SRCC", srcc, _TABLE),),
        tolerances=encoders.TOLERANCES,
        frame_scores=vision,
    )


_VIT, _BERT = encoders.VIT_B32, encoders.DISTILBERT
_CLIP_V, _CLIP_T = encoders.CLIP_B32_VISION, encoders.CLIP_B32_TEXT

SPECS = (
    _spec("vit", 1, _VIT, "ViT-B/32", batch_size=1024, srcc=0.603),
    _spec("distilbert", 1, _BERT, "DistilBERT", batch_size=512, srcc=0.574),
    _spec("vit", 2, _VIT, "ViT-B/32", batch_size=128, srcc=0.622),
    _spec("distilbert", 2, _BERT, "DistilBERT", batch_size=256, srcc=0.629),
    _spec("clip-vision", 3, _CLIP_V, "CLIP ViT-B/32", batch_size=1024, srcc=0.664),
    _spec("clip-text", 3, _CLIP_T, "CLIP text encoder", batch_size=4096, srcc=0.609),
    _spec("clip-vision", 4, _CLIP_V, "CLIP ViT-B/32", batch_size=128, srcc=0.670),
    _spec("clip-text", 4, _CLIP_T, "CLIP text encoder", batch_size=256, srcc=0.619),
    _spec("fclip-vision", 5, _CLIP_V, "FCLIP ViT-B/32", batch_size=2048, srcc=0.672),
    _spec("fclip-text", 5, _CLIP_T, "FCLIP text encoder", batch_size=512, srcc=0.628),
    _spec("fclip-vision", 6, _CLIP_V, "FCLIP ViT-B/32", batch_size=128, srcc=0.671),
    _spec("fclip-text", 6, _CLIP_T, "FCLIP text encoder", batch_size=512, srcc=0.632),
)
