"""What the user names, and what is found there."""

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcli.errors import UsageError, VideoErrorCode
from memcli.inputs import collect, parse_shard


def names(sources: object) -> list[str]:
    return [Path(source.path).name for source in sources.items]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MKV", "notes.txt", "deep/er/c.webm", "song.mp3", "pic.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def test_folder_is_searched_recursively_and_sorted(folder: Path) -> None:
    found = collect([folder])
    assert names(found) == ["a.MKV", "b.mp4", "song.mp3", "c.webm"]
    assert found.left_out == 2


def test_each_video_once_however_it_is_spelled(folder: Path) -> None:
    spelled = [folder / "b.mp4", f"{folder}/./b.mp4", f"{folder}/deep/../b.mp4"]
    assert names(collect(spelled)) == ["b.mp4"]


def test_glob_that_the_shell_left_alone(folder: Path) -> None:
    assert names(collect([f"{folder}/**/*.webm"])) == ["c.webm"]
    with pytest.raises(UsageError, match="nothing matches"):
        collect([f"{folder}/*.avi"])


def test_a_name_with_glob_characters_is_itself_first(tmp_path: Path) -> None:
    (tmp_path / "[1].mp4").write_bytes(b"x")
    assert names(collect([tmp_path / "[1].mp4"])) == ["[1].mp4"]


def test_missing_path_and_empty_folder_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file") as caught:
        collect([tmp_path / "absent.mp4"])
    assert "absent.mp4" in str(caught.value)
    with pytest.raises(UsageError, match="no video found"):
        collect([tmp_path])
    with pytest.raises(UsageError, match="no video given"):
        collect([])


def test_text_list_is_relative_to_itself_and_missing_ones_stay(folder: Path) -> None:
    listing = folder / "list.txt"
    listing.write_text("# a comment\nb.mp4\n\nabsent.mp4\ndeep\n")
    assert names(collect([listing])) == ["b.mp4", "absent.mp4", "c.webm"]


def test_csv_list(folder: Path) -> None:
    listing = folder / "list.csv"
    listing.write_bytes(b'\xef\xbb\xbfid,Path\n1,b.mp4\n2,"a,b\n.mp4"\n3,\n')
    assert names(collect([listing])) == ["b.mp4", "a,b\n.mp4"]
    listing.write_text("id,name\n1,x\n")
    with pytest.raises(UsageError, match="no column of paths"):
        collect([listing])


@pytest.mark.parametrize("separator", [b"\n", b"\0", b"\r\n"])
def test_paths_on_standard_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, separator: bytes
) -> None:
    data = separator.join([os.fsencode(folder / "b.mp4"), os.fsencode(folder / "a.MKV"), b""])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert names(collect(["-"])) == ["b.mp4", "a.MKV"]


def test_undecodable_names_are_found(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    assert [os.fsencode(source.path) for source in collect([tmp_path]).items] == [raw]


def test_link_loops_end_and_loops_of_files_get_a_row(folder: Path) -> None:
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "loop.mp4").symlink_to("loop.mp4")
    found = names(collect([folder]))
    assert found.count("b.mp4") == 1
    assert "loop.mp4" in found


def test_empty_folder_with_the_name_of_a_video_gets_a_row(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").mkdir()
    assert names(collect([tmp_path])) == ["clip.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_unreadable_folder_gets_a_row(folder: Path) -> None:
    (folder / "deep").chmod(0)
    try:
        errors = [source.error for source in collect([folder]).items if source.error]
    finally:
        (folder / "deep").chmod(0o755)
    assert [code for code, _ in errors] == [VideoErrorCode.PERMISSION]


def test_folder_that_cannot_be_listed_gets_a_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(path: str) -> object:
        if os.fspath(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    errors = [source.error for source in collect([folder]).items if source.error]
    assert errors == [
        (VideoErrorCode.PERMISSION, "this folder cannot be searched: Permission denied")
    ]


@given(st.integers(1, 7), st.lists(st.text("abc", min_size=1, max_size=4), unique=True))
def test_shards_are_disjoint_and_complete(count: int, stems: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as top:
        for stem in stems:
            (Path(top) / f"{stem}.mp4").write_bytes(b"")
        (Path(top) / "one.mp4").write_bytes(b"")
        parts = [collect([top], (i, count)).items for i in range(1, count + 1)]
        together = sorted(source.path for part in parts for source in part)
        assert together == sorted(source.path for source in collect([top]).items)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", ""])
def test_bad_shards(text: str) -> None:
    with pytest.raises(UsageError, match="not a shard"):
        parse_shard(text)


def test_an_empty_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n\n")))
    with pytest.raises(UsageError, match="standard input held no paths"):
        collect(["-"])


def test_one_file_of_another_name_is_one(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    with pytest.raises(UsageError, match=r"\(1 file has another name\)"):
        collect([tmp_path])
    (tmp_path / "more.md").touch()
    with pytest.raises(UsageError, match=r"\(2 files have other names\)"):
        collect([tmp_path])
