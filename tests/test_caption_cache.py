"""Kept captions: found again, whole or not at all, by several processes at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.captioning.cache import CaptionCache, MadeCaption, VideoKey, captions_dir

KEY = VideoKey("/videos/a.mp4", 100, 5)
CAPTION = MadeCaption("a dog \u00e9", 3, False, False, 1.5, 320, 240, 2, None, "cpu")


def test_a_caption_is_found_again(memcli_home: Path) -> None:
    with CaptionCache("0123456789ab", "exact") as cache:
        assert cache.get(KEY) is None
        assert not captions_dir().exists()
        cache.add(KEY, CAPTION)
        assert cache.get(KEY) == CAPTION
    with CaptionCache("0123456789ab", "exact") as cache:
        assert cache.get(KEY) == CAPTION
        for other in (replace(KEY, size=101), replace(KEY, mtime_ns=6), replace(KEY, path="/b")):
            assert cache.get(other) is None
    for captioner, sampling in (("0123456789ac", "exact"), ("0123456789ab", "keyframe")):
        with CaptionCache(captioner, sampling) as cache:
            assert cache.get(KEY) is None
    assert cache.path.parent == memcli_home / "captions"


def test_one_process_sees_what_another_adds() -> None:
    with CaptionCache("a", "exact") as ours, CaptionCache("a", "exact") as theirs:
        assert ours.get(KEY) is None
        theirs.add(KEY, CAPTION)
        assert ours.get(KEY) == CAPTION
        theirs.add(KEY, replace(CAPTION, text="another"))  # the first that was read stays
        assert ours.get(KEY) == CAPTION


def test_names_that_are_not_utf8() -> None:
    key = replace(KEY, path=os.fsdecode(b"/\xff\n.mp4"))
    with CaptionCache("a", "exact") as cache:
        cache.add(key, CAPTION)
    with CaptionCache("a", "exact") as cache:
        assert cache.get(key) == CAPTION


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(1, 400), rubbish=st.binary(max_size=40))
def test_torn_and_damaged_lines_are_dropped(
    tmp_path_factory: pytest.TempPathFactory, cut: int, rubbish: bytes
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    second, third = replace(KEY, path="/b"), replace(KEY, path="/c")
    with CaptionCache("a", "exact", folder) as cache:
        cache.add(KEY, CAPTION)
        whole = cache.path.read_bytes()
        cache.add(second, CAPTION)
        data = cache.path.read_bytes()
    kept = data[: len(whole) + cut % (len(data) - len(whole) - 1)]  # more than its end is torn off
    cache.path.write_bytes(kept + rubbish.replace(b"\n", b" "))
    with CaptionCache("a", "exact", folder) as cache:
        cache.add(third, CAPTION)
    with CaptionCache("a", "exact", folder) as cache:
        assert cache.get(KEY) == CAPTION
        assert cache.get(second) is None
        assert cache.get(third) == CAPTION


@pytest.mark.parametrize(
    ("name", "value"),
    [("text", 5), ("tokens", "3"), ("looping", 1), ("path", 4), ("size", None), ("damage", 3)],
)
def test_lines_of_another_make_are_not_read(name: str, value: object) -> None:
    with CaptionCache("a", "exact") as cache:
        cache.add(KEY, CAPTION)
        line = json.loads(cache.path.read_text())
        cache.path.write_text(json.dumps({**line, name: value}) + "\n")
    with CaptionCache("a", "exact") as cache:
        assert cache.get(KEY) is None
        assert cache.get(replace(KEY, size=0)) is None


_ADD = """
import sys
from memcli.captioning.cache import CaptionCache, MadeCaption, VideoKey
with CaptionCache("many", "exact") as cache:
    for number in range(60):
        text = sys.argv[1] * (1 + number * 7 % 900)
        key = VideoKey(f"/{sys.argv[1]}/{number}", number, 1)
        cache.add(key, MadeCaption(text, 1, False, False, None, 1, 1, 1, None, "cpu"))
    assert cache.problem is None
"""


def test_processes_do_not_tear_each_others_lines() -> None:
    names = ("x", "y", "z")
    running = [subprocess.Popen([sys.executable, "-c", _ADD, name]) for name in names]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    with CaptionCache("many", "exact") as cache:
        for name in names:
            for number in range(60):
                found = cache.get(VideoKey(f"/{name}/{number}", number, 1))
                assert found is not None
                assert found.text == name * (1 + number * 7 % 900)


def test_a_place_that_cannot_be_written_is_no_end(memcli_home: Path) -> None:
    (memcli_home / "captions").write_text("a file where the folder should be")
    with CaptionCache("a", "exact") as cache:
        cache.add(KEY, CAPTION)
        assert cache.problem is not None
        cache.add(KEY, CAPTION)
        assert cache.get(KEY) is None


def test_what_is_not_to_be_used() -> None:
    assert CAPTION.problem is None
    assert replace(CAPTION, text="").problem == "the captioner gave no caption"
    looping = replace(CAPTION, text="\x1b" + "ab " * 60, looping=True)
    assert looping.problem is not None
    assert looping.problem.startswith("the captioner repeated itself: \\x1bab ab")
    assert len(looping.problem) < 130


OTHER = replace(KEY, path="/videos/b.mp4")


def test_a_folder_deleted_meanwhile_gives_nobodys_caption() -> None:
    """Another line at the same place is of another video."""
    with CaptionCache("a", "exact") as ours, CaptionCache("a", "exact") as theirs:
        ours.add(KEY, CAPTION)
        assert ours.get(KEY) == CAPTION
        shutil.rmtree(captions_dir())
        theirs.add(OTHER, replace(CAPTION, text="a cat"))
        assert ours.get(KEY) is None
        assert ours.get(OTHER) == replace(CAPTION, text="a cat")
        ours.add(KEY, CAPTION)  # to the file that is there now
        assert theirs.get(KEY) == CAPTION
        assert ours.problem is None
    with CaptionCache("a", "exact") as later:
        assert later.get(KEY) == CAPTION
        assert later.get(OTHER) is not None


@pytest.mark.parametrize("longer", [False, True])
def test_a_file_written_over_gives_nobodys_caption(longer: bool) -> None:
    """The same file, with other lines: shorter, or so long that it does not show by its size."""
    with CaptionCache("a", "exact") as ours, CaptionCache("b", "exact") as source:
        ours.add(KEY, CAPTION)
        ours.add(OTHER, CAPTION)
        assert ours.get(KEY) == ours.get(OTHER) == CAPTION
        source.add(OTHER, replace(CAPTION, text="a cat"))
        for number in range(3 if longer else 0):
            source.add(replace(KEY, path=f"/{number}"), CAPTION)
        ours.path.write_bytes(source.path.read_bytes())
        assert ours.get(KEY) is None
        assert ours.get(OTHER) == replace(CAPTION, text="a cat")


def test_captions_go_on_in_a_new_folder() -> None:
    with CaptionCache("a", "exact") as cache:
        cache.add(KEY, CAPTION)
        shutil.rmtree(captions_dir())
        assert cache.get(KEY) is None
        cache.add(KEY, CAPTION)
        assert cache.get(KEY) == CAPTION
