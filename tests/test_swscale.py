"""The resize as data against swscale itself, byte for byte, through ONNX Runtime's CPU."""

import av
import numpy as np
import onnxruntime
import pytest
from media import real_videos

from memcli.engines.resize_graph import make_resize_graph
from memcli.preprocess import FramePreparer
from memcli.spec import FramePrep
from memcli.swscale import POSITIONS, Tables, axis_weights, colour_terms, make_tables

SIZES = [(96, 64), (640, 360), (426, 240), (64, 48), (224, 224), (66, 50), (1280, 720), (16, 1000)]
TARGETS = [(64, 64), (224, 224), (225, 97), (256, 256)]


@pytest.fixture(scope="module")
def session():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        make_resize_graph(), options, providers=["CPUExecutionProvider"]
    )


def make_prep(width, height, *, fit="stretch", kind="bilinear", crop=None):
    crop = crop or (width, height)
    return FramePrep(1, width, height, *crop, filter=kind, fit=fit)


def planes_of(frame):
    """Luma [H, W] and chroma [H / 2, W / 2, 2] of a 4:2:0 frame."""
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        planes.append(rows[: plane.height, : plane.width])
    return planes[0], np.stack(planes[1:], axis=-1)


def noise(width, height, *, space=2, color_range=0, seed=0, pix_fmt="yuv420p"):
    frame = av.VideoFrame(width, height, pix_fmt)
    frame.colorspace, frame.color_range = space, color_range
    rng = np.random.default_rng(seed)
    for plane in frame.planes:
        plane.update(rng.integers(0, 256, plane.buffer_size, np.uint8).tobytes())
    return frame


def through_graph(session, frame, tables: Tables):
    luma, chroma = planes_of(frame)
    names = ("across", "across_chroma", "down", "down_chroma")
    weights = {name: getattr(tables, name).astype(np.float32) for name in names}
    feeds = {"luma": luma, "chroma": chroma, "colour": tables.colour, **weights}
    return session.run(["frame"], feeds)[0]


def assert_same(session, frame, prep, position="centre"):
    full = frame.color_range == 2 or frame.format.name == "yuvj420p"
    colour = colour_terms(frame.colorspace, full_range=full)
    assert colour is not None
    tables = make_tables(prep, frame.width, frame.height, colour, POSITIONS[position])
    expected = FramePreparer(prep).prepare(frame)
    np.testing.assert_array_equal(through_graph(session, frame, tables), expected)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(session, size, kind):
    for target in TARGETS:
        assert_same(session, noise(*size), make_prep(*target, kind=kind))


@pytest.mark.parametrize("space", [1, 2, 4, 5, 6, 7, 9])
@pytest.mark.parametrize("color_range", [0, 1, 2])
def test_colours(session, space, color_range):
    frame = noise(96, 64, space=space, color_range=color_range)
    assert_same(session, frame, make_prep(48, 48))


def test_full_range_by_format(session):
    assert_same(session, noise(96, 64, pix_fmt="yuvj420p"), make_prep(48, 48))


@pytest.mark.parametrize("size", [(640, 360), (360, 640), (100, 100), (2000, 30)], ids=str)
@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_shortest_side_and_crop(session, size, kind):
    prep = make_prep(64, 64, fit="shortest", kind=kind, crop=(48, 40))
    assert_same(session, noise(*size), prep)


def test_extremes(session):
    """Black, white and colours that do not exist, where sums are highest and lowest."""
    rng = np.random.default_rng(1)
    for space in (1, 9):
        frame = noise(96, 64, space=space)
        for plane in frame.planes:
            plane.update(rng.choice([0, 255], plane.buffer_size).astype(np.uint8).tobytes())
        for kind in ("bilinear", "bicubic"):
            assert_same(session, frame, make_prep(128, 128, kind=kind))


def test_an_unknown_matrix_has_no_terms():
    assert colour_terms(8, full_range=False) is None


@pytest.mark.parametrize("one", [1 << 12, 1 << 14])
def test_weights_sum_to_one_and_stay_exact(one):
    """Sums of products of 8 bits must stay below 2^24 whatever their order."""
    for kind in ("bilinear", "bicubic"):
        for source, target in [(1920, 224), (224, 1920), (3840, 384), (7680, 256), (31, 64)]:
            weights = axis_weights(source, target, kind, one)
            assert (weights.sum(axis=1) == one).all()
            assert np.abs(weights).sum(axis=1).max() * 255 < 1 << 24


@pytest.mark.parametrize("path", real_videos("normal", "rotated", "vfr_or_odd_pts"))
def test_real_frames(session, path):
    """First frames of real videos, with whatever place of chroma their streams say."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    if frame.format.name not in ("yuv420p", "yuvj420p") or frame.width % 2 or frame.height % 2:
        pytest.skip(f"{frame.format.name} of {frame.width} x {frame.height} is resized on the CPU")
    for prep in (make_prep(224, 224), make_prep(336, 336, fit="shortest", kind="bicubic")):
        expected = FramePreparer(prep).prepare(frame)
        colour = colour_terms(
            frame.colorspace, full_range=frame.color_range == 2 or "j" in frame.format.name
        )
        found = [
            name
            for name, place in POSITIONS.items()
            if np.array_equal(
                through_graph(
                    session, frame, make_tables(prep, frame.width, frame.height, colour, place)
                ),
                expected,
            )
        ]
        assert found, "no place of chroma gives swscale's frame"
