"""An encoder's preparation of frames, read from its own files and held against its processor."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from memcli.errors import ModelError
from memcli.models.encoders import CLIP_PREP, SIGLIP_PREP, VIT_PREP
from memcli.preprocess import FramePreparer, prepare_image
from memcli.spec import EncoderSpec, FramePrep
from memcli.train.encoders import Checkpoint, frame_prep, load_encoder, resolve
from tests.media import picture, real_videos
from tests.tiny_hub import IMAGE, MAKERS

HALF = [0.5, 0.5, 0.5]
SIGLIP = {
    "image_processor_type": "SiglipImageProcessor",
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": HALF,
    "image_std": HALF,
}
# As published: openai/clip-vit-base-patch32, without sizes in mappings and without do_rescale.
CLIP_OLD: dict[str, Any] = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": list(CLIP_PREP.mean),
    "image_std": list(CLIP_PREP.std),
    "resample": 3,
    "size": 224,
}
CLIP_NEW = {
    **{key: value for key, value in CLIP_OLD.items() if key != "feature_extractor_type"},
    "image_processor_type": "CLIPImageProcessorFast",
    "size": {"shortest_edge": 224, "height": None},
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "do_pad": None,
    "rescale_factor": 1 / 255,
}
# google/vit-base-patch32-224-in21k: next to nothing is stated.
VIT_OLD = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": HALF,
    "image_std": HALF,
    "size": 224,
}


def write(folder: Path, config: Any, name: str = "preprocessor_config.json") -> Checkpoint:
    (folder / name).write_text(json.dumps(config))
    return Checkpoint(folder, str(folder), None, "0" * 64)


@pytest.mark.parametrize(
    ("config", "expected"),
    [(SIGLIP, SIGLIP_PREP), (CLIP_OLD, CLIP_PREP), (CLIP_NEW, CLIP_PREP), (VIT_OLD, VIT_PREP)],
    ids=["siglip", "clip-old", "clip-new", "vit-old"],
)
def test_published_files_give_the_preparations_of_the_registry(
    tmp_path: Path, config: dict[str, Any], expected: FramePrep
) -> None:
    got = frame_prep(write(tmp_path, config), expected)
    assert got.scale == pytest.approx(expected.scale, abs=1e-12)
    assert got == FramePrep(**{**vars(expected), "scale": got.scale})


def test_frames_and_sampling_are_the_models_own(tmp_path: Path) -> None:
    like = FramePrep(7, 1, 1, 1, 1, fit="shortest", sampling="endpoints")
    got = frame_prep(write(tmp_path, SIGLIP), like)
    assert (got.frames, got.sampling, got.fit) == (7, "endpoints", "stretch")


def test_a_model_may_stretch_where_the_checkpoint_crops(tmp_path: Path) -> None:
    """MediaEval 2022: each frame is resized to 336 x 336, whatever its shape."""
    got = frame_prep(write(tmp_path, CLIP_OLD), FramePrep(8, 9, 9, 9, 9, fit="stretch"))
    assert got.fit == "stretch"
    assert (got.resize_width, got.resize_height) == (got.crop_width, got.crop_height) == (224, 224)


def test_transformers_5_has_all_processors_in_one_file(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, {"image_processor": SIGLIP}, "processor_config.json")
    assert frame_prep(checkpoint, SIGLIP_PREP).crop_width == 224
    with pytest.raises(ModelError, match="image_processor is missing"):
        frame_prep(write(tmp_path, {"x": 1}, "processor_config.json"), SIGLIP_PREP)


def test_what_a_class_takes_by_default(tmp_path: Path) -> None:
    got = frame_prep(write(tmp_path, {"image_processor_type": "CLIPImageProcessor"}), CLIP_PREP)
    assert got == CLIP_PREP


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"do_resize": False}, "do_resize is false"),
        ({"do_rescale": False}, "do_rescale is false"),
        ({"do_normalize": False}, "do_normalize is false"),
        ({"do_pad": True}, "do_pad is true"),
        ({"do_resize": "yes"}, "do_resize is 'yes'"),
        ({"resample": 1}, "resample is 1 (lanczos)"),
        ({"resample": 0}, "resample is 0 (nearest)"),
        ({"resample": 99}, "resample is 99 (unknown)"),
        ({"resample": "bicubic"}, "resample is bicubic"),
        ({"resample": [3]}, "resample is [3]"),
        ({"size": {"longest_edge": 224}}, "size has longest_edge"),
        ({"size": {"shortest_edge": 224, "longest_edge": 500}}, "size has longest_edge, shortest"),
        ({"size": {}}, "size has nothing"),
        ({"size": 0}, "size is '0'"),
        ({"size": 1_000_000}, "size is '1000000'"),
        ({"size": True}, "size is 'True'"),
        ({"size": [224, 224]}, "size is '[224, 224]'"),
        ({"size": {"height": 224.5, "width": 224}}, "size is '224.5'"),
        ({"crop_size": 256}, "crop_size is larger than size"),
        ({"do_center_crop": False}, "size keeps the shape"),
        ({"image_mean": [0.5]}, "image_mean is [0.5], not three numbers"),
        ({"image_mean": "x"}, "image_mean is x"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std is [0.5, 0, 0.5], not three positive numbers"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean is [0.5, nan, 0.5]"),
        ({"rescale_factor": 0}, "rescale_factor is '0'"),
        ({"rescale_factor": float("inf")}, "rescale_factor is 'inf'"),
    ],
)
def test_settings_that_memcli_does_not_have_are_refused_by_name(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError) as caught:
        frame_prep(write(tmp_path, {**CLIP_NEW, **change}), CLIP_PREP)
    assert words in str(caught.value)
    assert str(tmp_path / "preprocessor_config.json") in str(caught.value)


def test_any_json_gives_a_preparation_or_a_clear_error(tmp_path: Path) -> None:
    """Every value replaced by every kind of value."""
    values = [None, True, 0, -1, 1e9, 3, "x", [], [1, 2, 3], {}, {"height": 8, "width": 8}]
    rng = random.Random(0)
    for _ in range(300):
        config = {
            **CLIP_NEW,
            **{key: rng.choice(values) for key in rng.sample(sorted(CLIP_NEW), 2)},
        }
        try:
            prep = frame_prep(write(tmp_path, config), CLIP_PREP)
        except ModelError as error:
            assert "preprocessor_config.json" in str(error)  # noqa: PT017 - either is right
        else:
            assert 1 <= prep.crop_width <= prep.resize_width <= 4096


KINDS = ("siglip", "clip", "vit", "dinov2", "dinov3")


def own_pixels(folder: Path, rgb: Any) -> Any:
    """The checkpoint's own processor, on PIL where there is no torchvision: float [1, 3, H, W]."""
    from PIL import Image
    from transformers import AutoImageProcessor

    config = json.loads((folder / "preprocessor_config.json").read_text())
    if config["image_processor_type"].startswith("DINOv3"):
        # Only for torchvision, and the same steps as ViT's, but that it rescales first.
        write(folder, {**config, "image_processor_type": "ViTImageProcessor"})
    processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)
    return processor(images=Image.fromarray(rgb), return_tensors="pt")["pixel_values"]


def check_against_processor(kind: str, folder: Path, rgb: Any, frame: Any, turn: int) -> None:
    MAKERS[kind](folder)
    spec = EncoderSpec("vision", str(folder), None, 1, "none", "cls")
    spec, checkpoint = resolve(spec, override=str(folder))
    prep = frame_prep(checkpoint, CLIP_PREP)
    encoder = load_encoder(spec, checkpoint, prep)
    ours = prepare_image(rgb, prep) if frame is None else FramePreparer(prep).prepare(frame, turn)
    pixels = torch.from_numpy(ours).permute(2, 0, 1)[None].float()
    pixels = (pixels * prep.scale - encoder.mean) / encoder.std
    theirs = own_pixels(folder, rgb)
    assert pixels.shape == theirs.shape
    assert torch.cosine_similarity(pixels.flatten(), theirs.flatten(), dim=0) >= 0.999
    with torch.no_grad():
        got = encoder(torch.from_numpy(ours)[None])
        out = encoder.model(pixel_values=theirs)
        name = "image_embeds" if kind == "clip" else "pooler_output"
        expected = getattr(out, name, None)
        expected = out.last_hidden_state[:, 0] if expected is None else expected
    assert torch.cosine_similarity(got, expected).item() >= 0.999


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (50, 50), (33, 171)])
def test_pictures_as_by_the_own_processor(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    height, width = size
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 255 // width, y * 255 // height, (x + y) % 64 * 4], axis=2)
    rgb = ((smooth + picture(3, width, height)) // 2).astype(np.uint8)
    check_against_processor(kind, tmp_path, rgb, None, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", real_videos("rotated", "vfr_or_odd_pts"))
def test_frames_of_real_videos_as_by_the_own_processor(
    tmp_path: Path, kind: str, path: Path
) -> None:
    import av

    from memcli.video.source import frame_rotation

    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    turn = frame_rotation(frame)
    full = frame.reformat(format="rgb24", interpolation=0x2 | 0x2000 | 0x4000 | 0x40000)
    rgb = np.ascontiguousarray(np.rot90(full.to_ndarray(), turn // 90))
    check_against_processor(kind, tmp_path, rgb, frame, turn)


@pytest.mark.parametrize("kind", ["siglip", "clip", "vit", "dinov2", "dinov3"])
def test_images_are_of_the_size_that_the_encoder_takes(kind: str, tmp_path: Path) -> None:
    folder = MAKERS[kind](tmp_path / kind)
    spec = EncoderSpec("vision", str(folder), None, 1, "MIT", "pooled")
    assert frame_prep(resolve(spec)[1], CLIP_PREP).frame_shape() == (IMAGE, IMAGE, 3)
