"""The pretrained encoders that the papers' models use, and how their inputs are prepared.

Revisions are commits on the hub. The preparations here are those of the published checkpoints; a
training run reads them again from the checkpoint it uses (`memcli.train.encoders`), so that any
encoder of the same kind can be named instead.
"""

from __future__ import annotations

from memcli.spec import EncoderSpec, FramePrep, Precision, TextPrep, Tolerance

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_SIGLIP = "google/siglip-base-patch16-224"
_SIGLIP_REVISION = "7fd15f0689c79d79e38b1c2e2e2370a7bf2761ed"
SIGLIP_VISION = EncoderSpec("vision", _SIGLIP, _SIGLIP_REVISION, dim=768, license="Apache-2.0")
SIGLIP_TEXT = EncoderSpec("text", _SIGLIP, _SIGLIP_REVISION, dim=768, license="Apache-2.0")

DISTILROBERTA = EncoderSpec(
    "text",
    "sentence-transformers/all-distilroberta-v1",
    "842eaed40bee4d61673a81c92d5689a8fed7a09f",
    dim=768,
    license="Apache-2.0",
    pooling="mean",
)

_CLIP_B32 = "openai/clip-vit-base-patch32"
_CLIP_B32_REVISION = "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
CLIP_B32_VISION = EncoderSpec("vision", _CLIP_B32, _CLIP_B32_REVISION, dim=512, license="MIT")
CLIP_B32_TEXT = EncoderSpec("text", _CLIP_B32, _CLIP_B32_REVISION, dim=512, license="MIT")

# The MediaEval 2022 paper takes the state before projection: 1024 values for L/14.
CLIP_B32_POOLED = EncoderSpec(
    "vision", _CLIP_B32, _CLIP_B32_REVISION, dim=768, license="MIT", pooling="pooled"
)
CLIP_L14_336_POOLED = EncoderSpec(
    "vision",
    "openai/clip-vit-large-patch14-336",
    "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
    dim=1024,
    license="MIT",
    pooling="pooled",
)

VIT_B32 = EncoderSpec(
    "vision",
    "google/vit-base-patch32-224-in21k",
    None,
    dim=768,
    license="Apache-2.0",
    pooling="cls",
)
DISTILBERT = EncoderSpec(
    "text",
    "distilbert/distilbert-base-uncased",
    "12040accade4e8a0f71eabdb258fecc2e7e948be",
    dim=768,
    license="Apache-2.0",
    pooling="cls",
)

SIGLIP_PREP = FramePrep(
    frames=16,
    resize_width=224,
    resize_height=224,
    crop_width=224,
    crop_height=224,
    filter="bicubic",
    mean=_HALF,
    std=_HALF,
)
CLIP_PREP = FramePrep(
    frames=3,
    resize_width=224,
    resize_height=224,
    crop_width=224,
    crop_height=224,
    filter="bicubic",
    fit="shortest",
    sampling="endpoints",
    mean=_CLIP_MEAN,
    std=_CLIP_STD,
)
VIT_PREP = FramePrep(
    frames=3,
    resize_width=224,
    resize_height=224,
    crop_width=224,
    crop_height=224,
    filter="bilinear",
    sampling="endpoints",
    mean=_HALF,
    std=_HALF,
)

SIGLIP_TEXT_PREP = TextPrep(max_tokens=64, pad_id=1, fixed_length=True)
CLIP_TEXT_PREP = TextPrep(max_tokens=77, pad_id=49407)
DISTILROBERTA_PREP = TextPrep(max_tokens=512, pad_id=1)
DISTILBERT_PREP = TextPrep(max_tokens=512, pad_id=0)

TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(max_abs=1e-4, mean_abs=5e-5, min_cosine=0.9999),
    "fp16": Tolerance(max_abs=0.01, mean_abs=0.005, min_cosine=0.999),
    "bf16": Tolerance(max_abs=0.01, mean_abs=0.005, min_cosine=0.999),
    "int8": Tolerance(max_abs=0.03, mean_abs=0.01, min_srcc=0.99),
    "fp8": Tolerance(max_abs=0.03, mean_abs=0.01, min_srcc=0.99),
}
