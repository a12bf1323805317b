"""The EEG model of the MediaEval 2025 paper: was a clip recognised?

Source: 000_bcb79d7cf5a52fe8.txt, sections 2.2 and 3.2. Left open there and chosen here: the layers
of the window encoder (see `memcli.train.eeg.network`), the batch size and the numbers of epochs,
and the 32 channels, which the paper counts but does not name: those of the usual 32-channel caps
after the extended 10-20 system. Training takes the channels from the data.
"""

from __future__ import annotations

from memcli.spec import (
    EegPrep,
    EegRecipe,
    HeadSpec,
    ModelSpec,
    Precision,
    PublishedResult,
    Tolerance,
)

_TABLE = "000_bcb79d7cf5a52fe8.txt, table 2"

CHANNELS_32 = (
    *("Fp1", "AF3", "F7", "F3", "FC1", "FC5", "T7", "C3", "CP1", "CP5", "P7", "P3", "Pz", "PO3"),
    *("O1", "Oz", "O2", "PO4", "P4", "P8", "CP6", "CP2", "C4", "T8", "FC6", "FC2", "F4", "F8"),
    *("AF4", "Fp2", "Fz", "Cz"),
)

TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(1e-4, 1e-4),
    "fp16": Tolerance(0.01, 0.01),
    "bf16": Tolerance(0.01, 0.01),
    "int8": Tolerance(0.03, 0.01, min_srcc=0.99),
    "fp8": Tolerance(0.03, 0.01, min_srcc=0.99),
}

EEG_CNN = ModelSpec(
    name="eeg-cnn",
    summary="One-second windows of EEG in a CNN: was the clip recognised? (MediaEval 2025)",
    predicts="probability that the viewer recognised the clip, 0 to 1",
    source="000_bcb79d7cf5a52fe8.txt, sections 2.2 and 3.2",
    prep=None,
    eeg=EegPrep(channels=CHANNELS_32),
    head=HeadSpec("WindowCnn", {"filters": 64, "embedding": 32, "dropout": 0.5, "members": 1}),
    eeg_recipe=EegRecipe(),
    trained_on="your training data (paper: the MediaEval 2025 recall recordings)",
    published=(
        PublishedResult("MediaEval 2025 recall, 5-fold cross-validation", "AUROC", 0.628, _TABLE),
        PublishedResult("MediaEval 2025 recall, test set", "AUROC", 0.635, _TABLE),
    ),
    tolerances=TOLERANCES,
)

SPECS = (EEG_CNN,)
