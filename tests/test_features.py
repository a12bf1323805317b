"""The cache of features: what is indexed reads back right, whatever happened before."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.errors import ModelError, OutputError, UsageError
from memcli.models.encoders import CLIP_B32_VISION, CLIP_PREP, DISTILBERT, DISTILBERT_PREP
from memcli.train import features
from memcli.train.features import (
    FeatureStore,
    open_features,
    open_prepared_frames,
)

OF = {"encoder": "none"}
ROOT = Path(__file__).parent.parent


def opened(folder: Path, tail: tuple[int, ...] = (3,), dtype: str = "float32") -> FeatureStore:
    return FeatureStore.open(folder, tail, dtype, OF)


def value(number: int) -> np.ndarray:
    """An array of 1 to 4 rows that only this number has."""
    return np.random.default_rng(number).random((1 + number % 4, 3), dtype=np.float32)


def test_arrays_come_back_at_once_and_after_reopening(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        for number in range(20):
            store.add(f"k{number}", value(number))
            np.testing.assert_array_equal(store.get(f"k{number}"), value(number))
        kept = store.get("k7")
    np.testing.assert_array_equal(kept, value(7))  # also after close
    with opened(tmp_path / "s") as store:
        assert len(store) == 20
        assert "k3" in store
        assert "k20" not in store
        for number in range(20):
            np.testing.assert_array_equal(store.get(f"k{number}"), value(number))
        assert not store.get("k1").flags.writeable
        with pytest.raises(KeyError):
            store.get("k20")


@settings(max_examples=25, deadline=None)
@given(
    entries=st.lists(
        st.tuples(st.text(st.characters(), max_size=6), st.integers(0, 99), st.booleans())
    )
)
def test_any_keys_added_again_over_sessions(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, int, bool]]
) -> None:
    """The newest array of a key counts; keys may hold anything, surrogates too."""
    folder = tmp_path_factory.mktemp("store")
    expected: dict[str, int] = {}
    store = opened(folder)
    for key, number, reopen in entries:
        store.add(key, value(number))
        expected[key] = number
        if reopen:
            store.close()
            store = opened(folder)
    store.close()
    with opened(folder) as store:
        assert len(store) == len(expected)
        for key, number in expected.items():
            np.testing.assert_array_equal(store.get(key), value(number))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 4), np.float32),
        np.zeros(3, np.float32),
        np.zeros((0, 3), np.float32),
        np.zeros((2, 3), np.complex64),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    with opened(tmp_path / "s") as store:
        with pytest.raises(ValueError, match="features are"):
            store.add("k", array)
        assert "k" not in store


def test_frames_are_kept_as_bytes() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    with open_prepared_frames(CLIP_PREP) as store:
        store.add("v", frames)
    with open_prepared_frames(CLIP_PREP) as store:
        np.testing.assert_array_equal(store.get("v"), frames)


def test_each_encoder_and_preparation_has_its_folder(memcli_home: Path) -> None:
    with (
        open_features("a" * 64, CLIP_B32_VISION, CLIP_PREP) as store,
        open_features("b" * 64, CLIP_B32_VISION, CLIP_PREP) as changed,
        open_features("a" * 64, CLIP_B32_VISION, replace(CLIP_PREP, mean=(0.5, 0.5, 0.5))) as other,
        open_features("a" * 64, DISTILBERT, DISTILBERT_PREP) as text,
    ):
        first = store.folder
        assert len({first, changed.folder, other.folder, text.folder}) == 4
        assert first.parent == memcli_home / "features"
        assert store.tail == (512,)
    with open_features("a" * 64, CLIP_B32_VISION, CLIP_PREP) as store:
        assert store.folder == first
    told = json.loads((first / "description.json").read_text())
    assert told["of"]["encoder"]["repository"] == "openai/clip-vit-base-patch32"
    assert told["of"]["digest"] == "a" * 64


@pytest.mark.parametrize(
    ("tail", "dtype", "of"),
    [
        ((4,), "float32", OF),
        ((3,), "float16", OF),
        ((3,), "float32", {"encoder": "other"}),
    ],
)
def test_a_folder_of_something_else_is_not_used(
    tmp_path: Path, tail: tuple[int, ...], dtype: str, of: dict[str, Any]
) -> None:
    with opened(tmp_path / "s") as store:
        store.add("k", value(1))
    with pytest.raises(ModelError, match="another encoder"):
        FeatureStore.open(tmp_path / "s", tail, dtype, of)
    with opened(tmp_path / "s") as store:
        assert "k" in store


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b"null"])
def test_a_damaged_description_is_an_error(tmp_path: Path, content: bytes) -> None:
    with opened(tmp_path / "s") as store:
        store.add("k", value(1))
    (tmp_path / "s" / "description.json").write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        opened(tmp_path / "s")


@settings(max_examples=60, deadline=None)
@given(
    junk=st.one_of(
        st.binary(max_size=60),
        st.tuples(
            st.one_of(st.none(), st.text(max_size=3)),
            st.integers() | st.floats() | st.none() | st.booleans(),
            st.integers() | st.text(max_size=2),
        ).map(lambda row: json.dumps(row).encode()),
    ),
    newline=st.booleans(),
)
def test_damaged_lines_are_passed_over(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, newline: bool
) -> None:
    folder = tmp_path_factory.mktemp("store")
    with opened(folder) as store:
        store.add("first", value(1))
    with (folder / "index.jsonl").open("ab") as stream:
        stream.write(junk + b"\n" * newline)
    with opened(folder) as store:
        for key in {"first", *store._places}:
            assert store.get(key).shape[1:] == (3,)  # whatever is listed can be read
        store.add("second", value(2))
    with opened(folder) as store:
        np.testing.assert_array_equal(store.get("second"), value(2))


def test_arrays_of_a_shortened_file_are_gone_and_the_others_stay(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        store.add("a", value(4))
        store.add("b", value(5))
    data = tmp_path / "s" / "data.bin"
    os.truncate(data, data.stat().st_size - 1)
    with opened(tmp_path / "s") as store:
        assert "b" not in store
        np.testing.assert_array_equal(store.get("a"), value(4))
        store.add("b", value(6))
        np.testing.assert_array_equal(store.get("b"), value(6))


WRITER = """
import sys
from pathlib import Path
import numpy as np
from memcli.train import features
features._FLUSH_S = 0.003  # many flushes, so that the end falls into one now and then
store = features.FeatureStore.open(Path(sys.argv[1]), (1000,), "float32", {"encoder": "none"})
number = len(store)
print("ready", flush=True)
while True:
    store.add(str(number), np.full((1 + number % 4, 1000), number, np.float32))
    number += 1
"""


def test_every_indexed_array_is_whole_after_kills(tmp_path: Path) -> None:
    chance = random.Random(1)
    before = 0
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "s")], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0.02, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with FeatureStore.open(tmp_path / "s", (1000,), "float32", OF) as store:
            assert len(store) > before  # it goes on where it stopped
            before = len(store)
            for number in range(before):
                expected = np.full((1 + number % 4, 1000), number, np.float32)
                np.testing.assert_array_equal(store.get(str(number)), expected)


def test_a_full_disk_leaves_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 150
    real = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(descriptor, data[:room], offset)
        room -= written
        return written

    def fill() -> None:
        with opened(tmp_path / "s") as store:
            monkeypatch.setattr(os, "pwrite", pwrite)
            for number in range(100):
                store.add(str(number), value(number))
                if number == 1:
                    store.flush()

    monkeypatch.setattr(features, "_FLUSH_S", 60.0)
    with pytest.raises(OutputError, match="No space left") as caught:
        fill()
    assert "data.bin" in str(caught.value)
    monkeypatch.undo()
    with opened(tmp_path / "s") as store:
        assert 2 <= len(store) < 100
        for key in store._places:
            np.testing.assert_array_equal(store.get(key), value(int(key)))
        store.add("later", value(8))
        np.testing.assert_array_equal(store.get("later"), value(8))


def test_a_line_is_written_after_the_disk_has_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    pwrite, fsync = os.pwrite, os.fsync

    def write(descriptor: int, data: bytes, offset: int) -> int:
        calls.append(("write", descriptor))
        return pwrite(descriptor, data, offset)

    def confirm(descriptor: int) -> None:
        calls.append(("confirm", descriptor))
        fsync(descriptor)

    with opened(tmp_path / "s") as store:
        monkeypatch.setattr(os, "pwrite", write)
        monkeypatch.setattr(os, "fsync", confirm)
        store.add("k", value(1))
        store.flush()
        data, index = store._data, store._index
    assert calls == [("write", data), ("confirm", data), ("write", index), ("confirm", index)]


def test_a_flush_that_failed_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    store = opened(tmp_path / "s")
    store.add("k", value(3))
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="Input/output"):
        store.flush()
    monkeypatch.undo()
    store.close()
    with opened(tmp_path / "s") as again:
        np.testing.assert_array_equal(again.get("k"), value(3))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot create"):
        opened(tmp_path / "file" / "s")
    (tmp_path / "s" / "index.jsonl").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"index\.jsonl"):
        opened(tmp_path / "s")


def test_a_second_run_is_refused_or_waits(tmp_path: Path) -> None:
    first = opened(tmp_path / "s")
    with pytest.raises(UsageError, match="another memcli run"):
        opened(tmp_path / "s")
    waiting = threading.Event()
    found: list[bool] = []

    def second() -> None:
        with FeatureStore.open(tmp_path / "s", (3,), "float32", OF, on_wait=waiting.set) as store:
            found.append("k" in store)

    thread = threading.Thread(target=second)
    thread.start()
    assert waiting.wait(10)
    first.add("k", value(1))
    first.close()
    thread.join(10)
    assert found == [True]


def test_ten_thousand_keys_open_in_well_under_a_second(tmp_path: Path) -> None:
    with opened(tmp_path / "s") as store:
        for number in range(10_000):
            store.add(f"/videos/some/folder/of/clips/{number:05}.mp4", value(0))
    started = time.process_time()
    with opened(tmp_path / "s") as store:
        assert len(store) == 10_000
        assert time.process_time() - started < 0.5


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    store = opened(tmp_path / "s")
    store.add("k", value(1))
    store.close()
    store.close()
