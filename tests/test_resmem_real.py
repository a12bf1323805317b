"""The published ResMem weights, from nothing to scores, against an independent slow reference.

The wheel of the weights is taken from $MEMCLI_TEST_RESMEM_WHEEL, else fetched by the package
itself. The reference (full decode, PIL, PyTorch fp32) and its videos are in the real data.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import memcli_command
from media import data_folder

pytestmark = [pytest.mark.slow, pytest.mark.network]

BLOCKED = "raise ImportError('blocked: scoring must not need this')\n"
COMPARED = ("normal", "portrait_square", "tenbit", "vfr_or_odd_pts", "interlaced", "gif")
REASONS = {  # status and error_code of what cannot be scored, or not whole
    "single_frame/libwebm__blockgroup_block_ends_beyond_blockgroup.mkv": ("partial", "damaged"),
    "broken/decord__corrupted.mp4": ("partial", "damaged"),
    "broken/libwebm__chapters_truncated_chapter_string.mkv": ("failed", "damaged"),
    "broken/libwebm__fixed_lacing_bad_lace_size.mkv": ("failed", "damaged"),
    "broken/libwebm__invalid_vp9_bitstream-bug_1416.webm": ("failed", "too-large"),
    "broken/libwebm__primarychromaticity_fieldtoolarge.webm": ("failed", "damaged"),
    "broken/mp4parse__bipbop_480wp_1001kbps-cenc-video-key1-init.mp4": ("failed", "damaged"),
    "broken/mp4parse__bipbop_nonfragment_header.mp4": ("failed", "damaged"),
    "broken/mp4parse__chunk_out_of_range.mp4": ("failed", "damaged"),
    "broken/mp4parse__short-cenc.mp4": ("failed", "unsupported"),
    "broken/mp4parse__test_case_1185230.mp4": ("failed", "damaged"),
    "audio_only/mp4parse__afconvert-aac-0.5s.mp4": ("failed", "no-video"),
    "audio_only/mp4parse__bipbop_cbcs_audio_init.mp4": ("failed", "no-video"),
    "audio_only/mp4parse__opus_audioinit.mp4": ("failed", "no-video"),
    "audio_only/mp4parse__sine-3s-xhe-aac-44khz-mono.mp4": ("failed", "no-video"),
    "audio_only/torchcodec__nasa_13013.mp4.audio.mp3": ("failed", "no-video"),
    "audio_only/torchcodec__nasa_13013.mp4.audio_44100.mp3": ("failed", "no-video"),
}
PICTURES = {  # PIL and PyTorch fp32, from the same weights
    "astronaut.png": 0.774,
    "coffee.png": 0.882,
    "chelsea.png": 0.837,
    "rocket.jpg": 0.640,
    "page.png": 0.955,
}


@pytest.fixture(scope="module")
def resmem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine without torch on which resmem has just been installed."""
    top = tmp_path_factory.mktemp("resmem")
    for name in ("torch", "transformers"):
        (top / f"{name}.py").write_text(BLOCKED)
    old_path = os.environ.get("PYTHONPATH", "")
    env = {
        **os.environ,
        "MEMCLI_HOME": str(top / "home"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(top), old_path])),
    }
    wheel = os.environ.get("MEMCLI_TEST_RESMEM_WHEEL")
    source = ["--from", wheel] if wheel else []
    done = subprocess.run(
        memcli_command("models", "pull", "resmem", *source), capture_output=True, text=True, env=env
    )
    if done.returncode and "could not be downloaded" in done.stderr:
        pytest.skip(f"the weights cannot be fetched here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert "non-commercial" in (done.stdout + done.stderr).lower()
    return env


@pytest.fixture(scope="module")
def videos() -> Path:
    folder = data_folder()
    if folder is None:
        pytest.skip("no real videos: set MEMCLI_TEST_DATA or provide ../shared/data")
    return folder


@pytest.fixture(scope="module")
def scored(
    resmem: dict[str, str], videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Rows by "folder/name" of all real videos, at fp32."""
    folder = tmp_path_factory.mktemp("scores")
    done = subprocess.run(
        memcli_command("score", videos, "--precision", "fp32", "--quiet"),
        cwd=folder,
        env=resmem,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    with (folder / "scores.csv").open(newline="") as stream:
        return {
            Path(row["path"]).relative_to(videos).as_posix(): row for row in csv.DictReader(stream)
        }


def test_scores_agree_with_the_reference(scored: dict[str, dict[str, Any]], videos: Path) -> None:
    """0.01: the reference resizes with PIL after a conversion to RGB at full size, the decoder
    scales and converts in one pass; nothing else differs."""
    reference = json.loads((videos / "resmem_reference.json").read_text())
    wanted = {
        name: entry["score"]
        for name, entry in reference.items()
        if name.split("/")[0] in COMPARED and "score" in entry
    }
    assert len(wanted) >= 25
    differences = {name: abs(float(scored[name]["score"]) - wanted[name]) for name in wanted}
    assert max(differences.values()) <= 0.01, max(differences.items(), key=lambda item: item[1])
    assert np.mean(list(differences.values())) <= 0.003


def test_every_unusable_file_has_a_row_with_a_true_reason(
    scored: dict[str, dict[str, Any]], videos: Path
) -> None:
    found = {
        path.relative_to(videos).as_posix()
        for folder in ("broken", "audio_only")
        for path in (videos / folder).iterdir()
    }
    assert found <= set(REASONS)
    for name, (status, code) in REASONS.items():
        row = scored[name]
        assert (row["status"], row["error_code"]) == (status, code), name
        assert row["error"], name
        assert "Errno" not in row["error"], name
        assert bool(row["score"]) is (status == "partial"), name


def test_no_sound_file_fails(scored: dict[str, dict[str, Any]]) -> None:
    failed = {name for name, row in scored.items() if row["status"] != "ok"}
    assert failed == set(REASONS)


def test_every_row_names_the_licence(scored: dict[str, dict[str, Any]]) -> None:
    assert all("non-commercial" in row["weights_license"].lower() for row in scored.values())


def test_pictures_through_the_same_preprocessing(resmem: dict[str, str]) -> None:
    """0.005: PIL resizes with 8-bit intermediate rounding, swscale with more bits."""
    data = pytest.importorskip("skimage.data", reason="scikit-image has the pictures")
    from PIL import Image

    from memcli.engines.bundle import read_bundle
    from memcli.engines.select import open_engine
    from memcli.preprocess import prepare_image

    bundle = read_bundle(Path(resmem["MEMCLI_HOME"]) / "bundles" / "resmem")
    folder = Path(data.__file__).parent
    pictures = [np.asarray(Image.open(folder / name).convert("RGB")) for name in PICTURES]
    frames = np.stack([prepare_image(picture, bundle.prep) for picture in pictures])[None]
    with open_engine(bundle, precision="fp32").engine as engine:
        scores = engine.run({"frames": frames})["frame_scores"][0]
    for name, score in zip(PICTURES, scores, strict=True):
        assert float(score) == pytest.approx(PICTURES[name], abs=0.005), name
