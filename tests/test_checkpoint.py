"""The restricted reader against torch.load(weights_only=True), bit for bit."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memcli.errors import ModelError
from memcli.export.checkpoint import read_state_dict
from memcli.models import get_model

torch = pytest.importorskip("torch", reason="the reference reader")


def assert_same(path: Path) -> None:
    """Names, order, shapes, dtypes and bits agree with torch's own reader."""
    assert_equal(path, torch.load(path, map_location="cpu", weights_only=True))


def assert_equal(path: Path, expected: dict[str, torch.Tensor]) -> None:
    """What the reader finds at `path` is `expected`, bit for bit."""
    found = read_state_dict(path)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        array = found[name]
        assert array.shape == tuple(tensor.shape), name
        assert not array.flags.writeable
        bits = tensor.detach().contiguous().view(-1)
        if tensor.dtype == torch.bfloat16:
            assert array.dtype.name == "bfloat16"
            assert np.array_equal(array.reshape(-1).view(np.int16), bits.view(torch.int16).numpy())
        else:
            assert array.dtype == bits.numpy().dtype
            assert array.tobytes() == bits.numpy().tobytes()


def views() -> dict[str, torch.Tensor]:
    base = torch.arange(240, dtype=torch.float32)
    grid = base.reshape(4, 5, 12)
    return {
        "whole": grid,
        "transposed": grid.permute(2, 0, 1),
        "sliced": grid[1:3, ::2, 3:9:3],
        "row": grid[2],
        "same storage": base,
        "scalar": torch.tensor(3.5),
        "scalar view": base[7],
        "empty": torch.empty(0, 3),
        "empty view": base[240:],
        "one": torch.ones(1, 1, 1),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_views_of_shared_storages(tmp_path: Path, protocol: int) -> None:
    """Compared with what was saved: torch's own restricted reader stops at protocol 3."""
    expected = views()
    torch.save(expected, tmp_path / "x.pt", pickle_protocol=protocol)
    assert_equal(tmp_path / "x.pt", expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({"x": (torch.randn(3, 7) * 50).to(dtype)}, tmp_path / "x.pt")
    assert_same(tmp_path / "x.pt")


def test_module_with_metadata_and_parameters(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(module.state_dict(), tmp_path / "x.pt")
    assert_same(tmp_path / "x.pt")
    torch.save(OrderedDict(module.named_parameters()), tmp_path / "p.pt")
    assert_same(tmp_path / "p.pt")


def test_deflated_archive(tmp_path: Path) -> None:
    """torch never deflates, but tools that repack archives do."""
    torch.save(views(), tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as source,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    assert_same(tmp_path / "y.pt")


def test_arrays_outlive_the_reader_and_the_file(tmp_path: Path) -> None:
    torch.save({"x": torch.arange(1000)}, tmp_path / "x.pt")
    array = read_state_dict(tmp_path / "x.pt")["x"]
    (tmp_path / "x.pt").unlink()
    assert array.sum() == 499_500


def test_expanded_tensors_are_refused(tmp_path: Path) -> None:
    """A stride of zero lets a few bytes claim terabytes; no published state dict has one."""
    torch.save({"x": torch.zeros(1).expand(1000)}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="does not fit its storage"):
        read_state_dict(tmp_path / "x.pt")


def test_legacy_format_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match="not a PyTorch checkpoint"):
        read_state_dict(tmp_path / "x.pt")


def test_whole_modules_are_refused_by_name(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    with pytest.raises(ModelError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_state_dict(tmp_path / "x.pt")


shapes = st.lists(st.integers(0, 5), max_size=4)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=12),
        st.tuples(shapes, st.sampled_from(DTYPES), st.booleans()),
        max_size=5,
    )
)
def test_round_trip(
    tmp_path: Path, entries: dict[str, tuple[list[int], torch.dtype, bool]]
) -> None:
    state = {}
    for name, (shape, dtype, transposed) in entries.items():
        tensor = torch.randint(0, 100, shape).to(dtype)
        state[name] = tensor.permute(list(reversed(range(len(shape))))) if transposed else tensor
    torch.save(state, tmp_path / "x.pt")
    assert_same(tmp_path / "x.pt")


@pytest.mark.slow
@pytest.mark.network
def test_published_weights(tmp_path: Path) -> None:
    """The real thing, if the wheel is at hand ($MEMCLI_TEST_RESMEM_WHEEL)."""
    from memcli.export.pull import check_wheel, extract_member

    wheel = os.environ.get("MEMCLI_TEST_RESMEM_WHEEL")
    if not wheel:
        pytest.skip("MEMCLI_TEST_RESMEM_WHEEL does not name the resmem wheel")
    spec = get_model("resmem")
    with check_wheel(spec, Path(wheel)) as archive:
        extract_member(archive, spec.weights.filename, tmp_path / "model.pt")
    assert len(read_state_dict(tmp_path / "model.pt")) == 956
    assert_same(tmp_path / "model.pt")
