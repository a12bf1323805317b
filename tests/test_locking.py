"""Locks: held, waited for, and where there are none."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from memcli.errors import OutputError, UsageError
from memcli.locking import lock

TEXTS: dict[str, Any] = {"busy": "somebody is at it", "wait": "Wait.", "elsewhere": "Go away."}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "lock").touch()
    return tmp_path / "lock"


def test_only_one_has_it_until_it_is_closed(path: Path) -> None:
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    lock(first, path, **TEXTS)
    with pytest.raises(UsageError, match="somebody is at it") as error:
        lock(second, path, **TEXTS)
    assert (error.value.where, error.value.next_step) == (str(path), "Wait.")
    os.close(first)
    lock(second, path, **TEXTS)
    os.close(second)


def test_one_that_may_wait_says_so_once_and_gets_it(path: Path) -> None:
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    lock(first, path, **TEXTS)
    said = []

    def told() -> None:
        said.append("waiting")
        os.close(first)

    lock(second, path, on_wait=told, **TEXTS)
    assert said == ["waiting"]
    third = os.open(path, os.O_RDWR)
    with pytest.raises(UsageError):
        lock(third, path, **TEXTS)
    os.close(second)
    os.close(third)


def test_a_file_system_without_locks_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    descriptor = os.open(path, os.O_RDWR)
    with pytest.raises(OutputError, match="Function not implemented") as error:
        lock(descriptor, path, **TEXTS)
    assert error.value.next_step == "Go away."
    os.close(descriptor)


def test_an_error_of_the_message_is_not_taken_for_one_of_the_lock(path: Path) -> None:
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    lock(first, path, **TEXTS)

    def broken() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        lock(second, path, on_wait=broken, **TEXTS)
    os.close(first)
    os.close(second)
