"""Frames to model input: agreement with PIL, colour, crop, rotation."""

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from memcli.models.encoders import CLIP_PREP, SIGLIP_PREP, VIT_PREP
from memcli.preprocess import FramePreparer, prepare_image, resized_size
from memcli.spec import FramePrep
from memcli.video.source import frame_rotation
from tests.media import picture, real_videos

PREP = FramePrep(16, 256, 256, 227, 227)
FULL = FramePrep(16, 256, 256, 256, 256)
Pixels = npt.NDArray[np.uint8]


def by_pil(rgb: Pixels, prep: FramePrep) -> npt.NDArray[np.int64]:
    kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    width, height = prep.resize_width, prep.resize_height
    if prep.fit == "shortest":  # transformers' get_resize_output_image_size
        short, long = sorted(rgb.shape[:2])
        longer = int(width * long / short)
        width, height = (width, longer) if rgb.shape[1] <= rgb.shape[0] else (longer, width)
    image = np.asarray(Image.fromarray(rgb).resize((width, height), kind[prep.filter]))
    top = (height - prep.crop_height) // 2
    left = (width - prep.crop_width) // 2
    return image[top : top + prep.crop_height, left : left + prep.crop_width].astype(int)


def yuv_frame(y: int, u: int, v: int, fmt: str = "yuv420p") -> av.VideoFrame:
    frame = av.VideoFrame(64, 64, fmt)
    for plane, value in zip(frame.planes, (y, u, v), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    return frame


@pytest.mark.parametrize("size", [(480, 640), (720, 1280), (100, 80), (17, 33), (1, 1), (256, 256)])
@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_pictures_agree_with_pil(size: tuple[int, int], kind: str) -> None:
    """Same triangle and cubic, rounded at other places: noise, the worst case, is off by 1 or 2.

    Nearest-neighbour, a missing anti-alias or shifted pixel centres are off by 20 and more.
    """
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    prep = FramePrep(16, 256, 256, 227, 227, filter=kind)  # type: ignore[arg-type]
    difference = np.abs(prepare_image(rgb, prep) - by_pil(rgb, prep))
    # PIL's cubic has a = -0.5, swscale's -0.6: on noise the two differ more than by rounding.
    limit = (0.3, 2) if kind == "bilinear" else (8.0, 64)
    assert difference.mean() <= limit[0]
    assert difference.max() <= limit[1]


@pytest.mark.parametrize("path", real_videos("normal", "portrait_square", "vfr_or_odd_pts"))
def test_video_frames_agree_with_pil(path: Path) -> None:
    """One pass from 4:2:0 against full-size RGB and PIL: chroma is interpolated once, not twice.

    Measured 0.05 to 0.5 of 255 on average on filmed video and 0.8 on test patterns, whose saturated
    edges are clipped to RGB before PIL's averaging and after ours. The darkening by 1 to 2.5
    without full chroma (see memcli.preprocess) would fail, and would move scores.
    """
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    rgb = frame.reformat(format="rgb24", interpolation=0x2 | 0x2000 | 0x4000 | 0x40000).to_ndarray()
    difference = FramePreparer(FULL).prepare(frame) - by_pil(rgb, FULL)
    assert np.abs(difference).mean() < 0.9
    assert abs(difference.mean()) < 0.2


@pytest.mark.parametrize(
    ("matrix", "limited", "yuv", "rgb"),
    [
        # By hand from the definitions: R = Y' + 2(1-Kr)Cr and so on, Kr and Kb of each matrix.
        ("601", True, (81, 90, 240), (255, 0, 0)),
        ("709", True, (63, 102, 240), (255, 0, 0)),
        ("601", False, (76, 85, 255), (255, 0, 0)),
        ("709", False, (54, 99, 255), (255, 0, 0)),
        ("601", True, (235, 128, 128), (255, 255, 255)),
        ("601", False, (235, 128, 128), (235, 235, 235)),
        ("709", True, (16, 128, 128), (0, 0, 0)),
        ("709", False, (16, 128, 128), (16, 16, 16)),
    ],
)
def test_colour_matrix_and_range_of_the_stream(
    matrix: str, limited: bool, yuv: tuple[int, int, int], rgb: tuple[int, int, int]
) -> None:
    frame = yuv_frame(*yuv)
    frame.colorspace = {"601": 6, "709": 1}[matrix]
    frame.color_range = 1 if limited else 2
    pixel = FramePreparer(PREP).prepare(frame)[100, 100]
    # Each of Y, Cb, Cr above is rounded to a whole number: worth up to 2 in R, G, B.
    np.testing.assert_allclose(pixel.astype(int), rgb, atol=2)


def test_unspecified_colour_is_limited_bt601() -> None:
    pixel = FramePreparer(PREP).prepare(yuv_frame(81, 90, 240))[0, 0]
    np.testing.assert_allclose(pixel.astype(int), (255, 0, 0), atol=2)


def test_one_preparer_takes_changing_frames() -> None:
    """Size, pixel format and range may change within a stream; no state may stay behind."""
    shared = FramePreparer(PREP)
    frames = [
        av.VideoFrame.from_ndarray(picture(n, w, h), "rgb24").reformat(format=fmt)
        for n, (w, h, fmt) in enumerate(
            [(96, 64, "yuv420p"), (64, 96, "yuv420p10le"), (33, 17, "rgba"), (96, 64, "yuvj420p")]
        )
    ]
    for frame in [*frames, *reversed(frames)]:
        np.testing.assert_array_equal(shared.prepare(frame), FramePreparer(PREP).prepare(frame))


@pytest.mark.parametrize("fmt", ["rgba", "bgra", "gbrp", "yuva444p", "pal8", "gray", "rgb48le"])
def test_other_pixel_formats(fmt: str) -> None:
    """Alpha is dropped, not blended; grey becomes grey."""
    rgb = picture(3, 64, 64)
    if fmt == "gray":
        rgb = np.repeat(rgb[..., :1], 3, axis=2)
    if fmt != "pal8":
        frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=fmt)
    else:
        palette = np.zeros((256, 4), dtype=np.uint8)
        palette[:, 0] = 255
        palette[:, 2] = np.arange(256)
        frame = av.VideoFrame.from_ndarray((rgb[..., 0], palette), "pal8")
        rgb = np.stack(
            [np.zeros_like(rgb[..., 0]), rgb[..., 0], np.zeros_like(rgb[..., 0])], axis=2
        )
    got = FramePreparer(FULL).prepare(frame).astype(int)
    # YUV 4:4:4 in 8 bit cannot hold every RGB: up to 3.
    assert np.abs(got - by_pil(rgb, FULL)).max() <= 3


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_turns_counter_clockwise_and_keeps_the_aspect_rule(rotation: int) -> None:
    prep = FramePrep(16, 64, 32, 60, 20)
    rgb = picture(5, 128, 128)
    frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
    got = FramePreparer(prep).prepare(frame, rotation).astype(int)
    expected = by_pil(np.ascontiguousarray(np.rot90(rgb, rotation // 90)), prep)
    assert got.shape == (20, 60, 3)
    assert np.abs(got - expected).max() <= 2


def test_the_result_is_the_callers_own() -> None:
    """Contiguous, and not overwritten by the next frame."""
    preparer = FramePreparer(PREP)
    first = preparer.prepare(av.VideoFrame.from_ndarray(picture(1), "rgb24"))
    kept = first.copy()
    preparer.prepare(av.VideoFrame.from_ndarray(picture(2), "rgb24"))
    np.testing.assert_array_equal(first, kept)
    assert first.flags.c_contiguous
    assert first.flags.owndata
    assert first.dtype == np.uint8


SHORTEST = FramePrep(3, 64, 64, 64, 64, fit="shortest")
sides = st.integers(1, 8192)


@pytest.mark.parametrize(
    "size", [(120, 160), (160, 120), (100, 100), (64, 64), (33, 57), (200, 90)]
)
@pytest.mark.parametrize("crop", [64, 63, 48])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_shortest_side_and_centre_crop_as_by_pil(
    size: tuple[int, int], crop: int, rotation: int
) -> None:
    prep = FramePrep(3, 64, 64, crop, crop, fit="shortest")
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
    got = FramePreparer(prep).prepare(frame, rotation).astype(int)
    expected = by_pil(np.ascontiguousarray(np.rot90(rgb, rotation // 90)), prep)
    assert got.shape == (crop, crop, 3)
    # The two treat a picture's edges a little differently: up to 9 there. On noise a shift by a
    # single pixel is 40 and more on average.
    assert np.abs(got - expected).mean() <= 1
    assert np.abs(got - expected).max() <= 16


@given(sides, sides)
def test_the_longer_side_is_rounded_down_and_bounded(width: int, height: int) -> None:
    got = resized_size(CLIP_PREP, width, height)
    assert min(got) == 224
    if max(width, height) <= 32 * min(width, height):
        longer = int(224 * max(width, height) / min(width, height))
        assert got == ((224, longer) if width <= height else (longer, 224))
    else:
        assert got == ((224, 7168) if width < height else (7168, 224))
    assert resized_size(SIGLIP_PREP, width, height) == (224, 224)


def test_large_sides_are_bounded_and_never_below_the_crop() -> None:
    huge = FramePrep(1, 4096, 4096, 4096, 4096, fit="shortest")
    assert resized_size(huge, 8192, 1) == (16384, 4096)
    assert resized_size(huge, 1, 1) == (4096, 4096)


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (2, 3000)])
def test_extreme_shapes_are_squeezed_not_refused(size: tuple[int, int]) -> None:
    rgb = np.full((*size, 3), 77, dtype=np.uint8)
    got = prepare_image(rgb, SHORTEST)
    assert got.shape == (64, 64, 3)
    assert (got == 77).all()


def test_shortest_follows_frames_that_change_their_shape() -> None:
    shared = FramePreparer(SHORTEST)
    for width, height in [(96, 64), (64, 96), (200, 50), (96, 64)]:
        frame = av.VideoFrame.from_ndarray(picture(1, width, height), "rgb24")
        np.testing.assert_array_equal(shared.prepare(frame), FramePreparer(SHORTEST).prepare(frame))


@pytest.mark.parametrize("prep", [SIGLIP_PREP, CLIP_PREP, VIT_PREP], ids=["siglip", "clip", "vit"])
@pytest.mark.parametrize("path", real_videos("normal", "rotated", "portrait_square", "tenbit"))
def test_encoder_inputs_of_real_frames_agree_with_pil(path: Path, prep: FramePrep) -> None:
    """Normalised, as an encoder sees them, bicubic of another a included: measured >= 0.9995."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    turn = frame_rotation(frame)
    full = frame.reformat(format="rgb24", interpolation=0x2 | 0x2000 | 0x4000 | 0x40000)
    rgb = np.ascontiguousarray(np.rot90(full.to_ndarray(), turn // 90))
    got, expected = (
        ((pixels * prep.scale - prep.mean) / prep.std).ravel()
        for pixels in (FramePreparer(prep).prepare(frame, turn), by_pil(rgb, prep))
    )
    cosine = got @ expected / (np.linalg.norm(got) * np.linalg.norm(expected))
    assert cosine >= 0.999
    assert np.abs(got - expected).mean() * np.mean(prep.std) * 255 <= 1.2
