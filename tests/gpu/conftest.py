"""Tests that need an NVIDIA GPU. `tests/gpu/run.sh` runs them where a skip is a failure."""

import ctypes

import pytest


def gpus() -> int:
    """NVIDIA GPUs that the driver gives to this process."""
    count = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


@pytest.fixture(scope="session", autouse=True)
def _needs_a_gpu() -> None:
    """Of the session: before the fixtures of modules, one of which exports a model of 400 MB."""
    if not gpus():
        pytest.skip("no NVIDIA GPU")
