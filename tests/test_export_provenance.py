"""What a bundle tells of its making, and what it keeps to itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memcli.export.provenance import license_text_of, training_report, without_paths
from memcli.models import get_model
from memcli.train.run import EncoderUse, Run


def make_run(model: str, repository: str) -> Run:
    spec = get_model(model)
    return Run(
        Path("/home/ada/runs/one"),
        spec,
        dataset={
            "name": "memento10k",
            "root": "/home/ada/videos",
            "target": "short-term",
            "videos": 12,
            "split": "official",
            "left_out": {"holiday-with-eve": "/home/ada/videos/x.mp4: damaged"},
        },
        seed=3,
        encoders=(EncoderUse("text", repository, "abc123", "d" * 64, "/home/ada/hub"),),
        dims={"text": 8},
        status="complete",
        metrics={"mean_srcc": 0.5, "interval": [0.4, 0.6]},
        folds=({"fold": 1, "metrics": {"srcc": 0.5}, "checkpoint": "/home/ada/x.ckpt"},),
        settings={"data": "/home/ada/videos"},
        versions={"torch": "2"},
    )


@pytest.mark.parametrize("repository", ["openai/clip", "/home/ada/models/my-clip"])
def test_report_and_terms_name_no_place(repository: str) -> None:
    run = make_run("clip-text-tuned", repository)
    told, terms = training_report(run), license_text_of(run)
    for text in (json.dumps(told), terms):
        assert "ada" not in text
        assert "holiday" not in text
        assert "clip" in text
    assert told["dataset"] == {
        "name": "memento10k",
        "target": "short-term",
        "videos": 12,
        "split": "official",
    }
    assert told["seed"] == 3
    assert told["metrics"] == run.metrics
    assert told["folds"] == [{"fold": 1, "metrics": {"srcc": 0.5}}]
    assert told["encoders"][0]["digest"] == "d" * 64
    assert "trained by the user of memcli on memento10k" in terms
    assert "revision abc123" in terms
    assert "Licence: MIT" in terms
    assert "weights were changed" in terms
    assert "weights were changed" not in license_text_of(make_run("clip-text", repository))


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("/home/ada/clip/", "local folder clip"),
        ("~/clip", "local folder clip"),
        ("./clip", "local folder clip"),
        ("../up/clip", "local folder clip"),
        ("C:\\Users\\ada\\clip", "local folder clip"),
        ("\\\\server\\ada\\clip", "local folder clip"),
        ("file:///home/ada/clip", "local folder clip"),
        ("/", "local folder"),
        ("google/siglip-base-patch16-224", "google/siglip-base-patch16-224"),
        ("000_bcb79d7cf5a52fe8.txt, section 2.1", "000_bcb79d7cf5a52fe8.txt, section 2.1"),
        (0.5, 0.5),
        (None, None),
        (("/a/b", {"k": ["~x/y"]}), ["local folder b", {"k": ["local folder y"]}]),
    ],
)
def test_without_paths(value: object, kept: object) -> None:
    assert without_paths(value) == kept
