"""ResMem, an image memorability network, applied to the frames of a video and averaged.

Method: 003_0369d3040d9b9e4f.txt, section 2: a published image memorability model, as is, on
frames of the video; the video's score is the mean over its frames. That paper's Run 1 used MemNet.
Its published successor is used here: Needell and Bainbridge, "Embracing New Techniques in Deep
Learning for Predicting Image Memorability" (2021), weights in the `resmem` package.

Preprocessing is that of the package's `transformer`: 256 x 256 bilinear, centre crop 227, values
in [0, 1], no mean and standard deviation. Sixteen frames instead of the paper's seven are ours.
"""

from __future__ import annotations

from memcli.spec import FramePrep, ModelSpec, PublishedResult, Tolerance, WeightSource

_MEDIAEVAL_SOURCE = "003_0369d3040d9b9e4f.txt, table 2, Run 1"

RESMEM = ModelSpec(
    name="resmem",
    summary="Image memorability (ResMem) averaged over frames",
    predicts="short-term memorability of the video, 0 to 1",
    source="003_0369d3040d9b9e4f.txt, section 2 (Run 1), with ResMem in place of MemNet",
    prep=FramePrep(
        frames=16,
        resize_width=256,
        resize_height=256,
        crop_width=227,
        crop_height=227,
        filter="bilinear",
        scale=1 / 255,
    ),
    frame_scores=True,
    graph="resmem.onnx",
    weights=WeightSource(
        package="resmem",
        version="1.1.6",
        filename="resmem/model.pt",
        license_filename="resmem-1.1.6.dist-info/LICENSE",
        sha256="2ed9d656280761215cde8f94a58197cdca523ccacb36fbd949edbea7a62c5572",
        size_bytes=489_123_294,
        license="ResMem Non-commercial License",
        license_note=(
            "Non-commercial use only, © 2021 The University of Chicago. "
            "Commercial rights: Brain Bridge Lab, wilma@uchicago.edu."
        ),
        homepage="https://github.com/Brain-Bridge-Lab/resmem",
    ),
    trained_on="images of MemCat and LaMem",
    published=(
        PublishedResult(
            dataset="MemCat and LaMem images, validation",
            metric="unnamed measure, highest of the authors' sweep,",
            value=0.67,
            source="README of the resmem package, 1.1.6",
        ),
        PublishedResult(
            dataset="MediaEval 2018, short-term, test (MemNet's result, not ResMem's)",
            metric="SRCC",
            value=0.385,
            source=_MEDIAEVAL_SOURCE,
        ),
        PublishedResult(
            dataset="MediaEval 2018, long-term, test (MemNet's result, not ResMem's)",
            metric="SRCC",
            value=0.168,
            source=_MEDIAEVAL_SOURCE,
        ),
    ),
    tolerances={
        "fp32": Tolerance(max_abs=1e-4, mean_abs=5e-5),
        "fp16": Tolerance(max_abs=0.01, mean_abs=0.005),
        "bf16": Tolerance(max_abs=0.01, mean_abs=0.005),
        "int8": Tolerance(max_abs=0.02, mean_abs=0.01, min_srcc=0.99),
        "fp8": Tolerance(max_abs=0.03, mean_abs=0.01, min_srcc=0.99),
    },
)
