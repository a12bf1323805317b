"""Files of captions: their forms, how videos find theirs, and what is refused."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.captions import (
    Captions,
    captions_from,
    read_captions,
)
from memcli.errors import UsageError, VideoError, VideoErrorCode
from memcli.spec import MAX_CAPTION_LENGTH, MAX_CAPTIONS


def read(tmp_path: Path, content: str | bytes, name: str = "captions.csv") -> Captions:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_captions(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", "path,caption\na.mp4,a dog\nb.mp4,x\na.mp4,a cat\n"),
        ("c.csv", "\ufeffpath,caption\na.mp4,a dog\nb.mp4,x\na.mp4,a cat\n"),
        ("c.csv", '\n"Video_ID", Captions\r\na.mp4,"[""a dog"", ""a cat""]"\r\n\r\nb.mp4,x\r\n'),
        ("c.csv", "id,split,description_0,description_1\na.mp4,dev,a dog,a cat\nb.mp4,dev,x,\n"),
        ("c.tsv", "filename\tcaption\na.mp4\ta dog\na.mp4\ta cat\nb.mp4\tx\n"),
        ("c.txt", "video\tcaption1\tcaption2\na.mp4\ta dog\ta cat\nb.mp4\tx\n"),
        ("c.txt", "a.mp4\ta-dog\na.mp4\ta-cat\r\n\nb.mp4\tx\n"),
        (
            "c.jsonl",
            '{"path": "a.mp4", "caption": ["a dog", "a cat"]}\n\n{"path": "b.mp4", "caption": "x"}',
        ),
        (
            "c.jsonl",
            '{"id": "a.mp4", "description_0": "a dog", "description_1": "a cat"}\n'
            '{"id": "b.mp4", "description_0": "x", "description_1": null}\n',
        ),
        (
            "c.json",
            '\ufeff [ {"filename": "a.mp4", "mem_score": 0.5, "captions": ["a dog", "a cat"]},\n'
            ' {"filename": "b.mp4", "captions": ["x"], "action_labels": ["y"]}]\n',
        ),
        (
            "c.json",
            '[\n  {\n    "path": "a.mp4",\n    "caption": ["a dog", "a cat"]\n  },\n'
            '  {"path": "b.mp4", "caption": "x"}\n]\n',
        ),
    ],
)
def test_every_form_says_the_same(tmp_path: Path, name: str, content: str) -> None:
    captions = read(tmp_path, content, name)
    assert captions.entries == {"a.mp4": ("a dog", "a cat"), "b.mp4": ("x",)}
    assert captions.name == str(tmp_path / name)


def test_captions_are_kept_as_they_are(tmp_path: Path) -> None:
    content = 'path,caption\na,"one, ""two""\nthree"\nb,[a man] walks\nc,  spaced  \nd,well-known\n'
    assert read(tmp_path, content).entries == {
        "a": ('one, "two"\nthree',),
        "b": ("[a man] walks",),
        "c": ("spaced",),
        "d": ("well-known",),
    }


def test_hyphens_stay_in_sentences(tmp_path: Path) -> None:
    captions = read(
        tmp_path, "a.webm\tblonde-woman-is-massaged\nb.webm\ta well-known man\n", "v.txt"
    )
    assert captions.of("/x/a.webm") == ("blonde woman is massaged",)
    assert captions.of("/x/b.webm") == ("a well-known man",)


def test_empty_captions_are_left_out(tmp_path: Path) -> None:
    captions = read(tmp_path, "path,caption\na,x\na, x\na,\nb,\nc\nd,y\n")
    assert captions.entries == {"a": ("x", "x"), "d": ("y",)}
    assert captions.empty == 3
    with pytest.raises(VideoError, match="no caption of it in"):
        captions.of("b")


@pytest.mark.parametrize(
    ("key", "video", "fits"),
    [
        ("/data/a/x.mp4", "/data/a/x.mp4", True),
        ("a/x.mp4", "/data/a/x.mp4", True),
        ("./a//x.mp4", "/data/a/x.mp4", True),
        ("x.mp4", "/data/a/x.mp4", True),
        ("/home/other/x.mp4", "/data/a/x.mp4", True),
        ("x", "/data/a/x.mp4", True),
        ("x.webm", "/data/a/x.mp4", True),
        ("x.1", "/data/a/x.1.mp4", True),
        ("x.1", "/data/a/x.2.mp4", False),
        ("y.mp4", "/data/a/x.mp4", False),
        ("a", "/data/a/x.mp4", False),
        ("X.mp4", "/data/a/x.mp4", False),
        ("1", "/data/a/00001.mp4", True),
        ("0010", "/data/a/10.webm", True),
        ("0", "/data/a/000.mp4", True),
        ("1.mp4", "/data/a/01.mp4", False),
        ("1", "/data/a/x1.mp4", False),
    ],
)
def test_a_video_finds_its_captions(key: str, video: str, fits: bool) -> None:
    captions = captions_from({key: "found"})
    if fits:
        assert captions.of(video) == ("found",)
        assert captions.unused([video]) == []
        return
    with pytest.raises(VideoError, match="no caption of it in the given captions") as caught:
        captions.of(video)
    assert caught.value.code is VideoErrorCode.NO_CAPTION
    assert captions.unused([video]) == [key]


def test_the_longest_path_wins_and_relative_ones_count_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = captions_from({"x.mp4": "name", "a/x.mp4": "folder", "x": "stem"})
    assert captions.of("/data/a/x.mp4") == ("folder",)
    assert captions.of("/data/b/x.mp4") == ("name",)
    assert captions.of("/data/b/x.webm") == ("stem",)
    assert captions.unused(["/data/a/x.mp4"]) == ["x.mp4", "x"]
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    assert captions.of("x.mp4") == ("folder",)
    assert captions.of("./../a/x.mp4") == ("folder",)


@pytest.mark.parametrize("keys", [("x.webm", "x.avi"), ("a/x.mp4", "b/x.mp4"), ("c/x", "d/x")])
def test_two_that_fit_are_an_error_that_names_both(keys: tuple[str, str]) -> None:
    captions = captions_from(dict.fromkeys(keys, "a dog"))
    with pytest.raises(VideoError) as caught:
        captions.of("/data/x.mp4")
    assert caught.value.code is VideoErrorCode.NO_CAPTION
    assert all(key in caught.value.what for key in keys)


def test_the_digest_is_of_the_captions(tmp_path: Path) -> None:
    one = read(tmp_path, "path,caption\na,x\nb,y\n")
    same = read(tmp_path, "b\ty\na\tx\n", "other.txt")
    other = read(tmp_path, "path,caption\na,x\nb,z\n")
    assert one.digest == same.digest != other.digest


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"path,caption\na,x\nb,caf\xe9\n", "line 3", "not UTF-8"),
        ("path,caption\na,x\n".encode("utf-16"), "line 1", "UTF-16"),
        ("path,caption\na,x\nb,\0\n", "line 3", "zero byte"),
        ("path,caption\na,one, two\n", "line 2", "3 cells, where the header has 2"),
        ('path,caption\na,"one\nb,two\n', "line 3", "no CSV"),
        ("path,caption\na,x\n,y\n", "line 3", "names no video"),
        ("path,caption\na," + "x" * (MAX_CAPTION_LENGTH + 1), "line 2", "longer than"),
        ("path,caption\na," + "x" * 200_000, "line 2", "field larger"),
        (
            "path,caption\n" + "".join(f"a,{n}\n" for n in range(MAX_CAPTIONS + 1)),
            f"line {MAX_CAPTIONS + 2}",
            "more than 64 captions",
        ),
        ('{"path": "a", "caption": "x"}\n{"path": "a"', "line 2", "no JSON"),
        ('{"path": "a", "caption": "x"}\n["a"]', "line 2", "does not name a video"),
        ('{"path": "a", "caption": {"x": 1}}', "line 1", "a caption is dict"),
        ('{"path": ["a"], "caption": "x"}', "line 1", "names no video"),
        ('{"path": true, "caption": "x"}', "line 1", "names no video"),
        ('{"caption": "x", "path": "a", "b": ' + "[" * 100_000 + "}", "line 1", "no JSON"),
        ("a.mp4\tx\nb.mp4\tx\ty\n", "line 2", "a tab and a caption"),
        ('[{"path": "a", "caption": "x"}, {"path": "b"}]', "entry 2 of", "not name a video"),
        ('[\n{"path": "a", "caption": "x"},\n{"path": "b",}]', "line 3", "no JSON"),
        ('[{"path": "a", "caption": ' + "9" * 5000 + "}]", "", "no JSON"),
        ("[" * 100_000, "", "does not name a column"),
        ("[\n" * 100_000, "", "damaged"),
        ("[]", "", "no captions in it"),
        ("path;caption\na;x\n", "", "commas, not semicolons"),
        ("a,b\n1,2\n", "", "does not name a column"),
        ("path,score\na,1\n", "", "does not name a column"),
        ("", "", "does not name a column"),
        ("path,caption\n", "", "no captions in it"),
        ("path,caption\na,\n", "", "no captions in it"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    tmp_path: Path, content: str | bytes, line: str, message: str
) -> None:
    name = "c.txt" if isinstance(content, str) and "\t" in content else "c.csv"
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, content, name)
    assert caught.value.where is not None
    assert caught.value.where.startswith(str(tmp_path / name))
    assert line in caught.value.where


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_captions(tmp_path / "absent.csv")
    with pytest.raises(UsageError, match="this is a folder, no file of captions"):
        read_captions(tmp_path)


def test_a_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memcli.captions.MAX_FILE_BYTES", 20)
    with pytest.raises(UsageError, match="larger than"):
        read(tmp_path, "path,caption\na,one two\n")


def test_surrogates_of_json_become_text(tmp_path: Path) -> None:
    captions = read(tmp_path, r'{"path": "a", "caption": "x\ud800y"}', "c.jsonl")
    assert captions.of("a") == ("x\\ud800y",)
    assert captions.of("a")[0].encode()


def test_numbers_may_be_ids(tmp_path: Path) -> None:
    captions = read(tmp_path, '{"id": 7494, "caption": "x"}', "c.jsonl")
    assert captions.of("/data/7494.mp4") == ("x",)


NAMES = st.from_regex(r"[a-z0-9_]{1,8}(/[a-z0-9_]{1,8})?\.(mp4|webm)", fullmatch=True)
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=30
).filter(lambda text: text.strip() and not text.lstrip().startswith(("[", "'")))
TABLES = st.dictionaries(NAMES, st.lists(TEXTS, min_size=1, max_size=3), min_size=1, max_size=6)


def expected(table: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(t.strip() for t in texts) for name, texts in table.items()}


@given(table=TABLES, delimiter=st.sampled_from(",\t"))
@settings(deadline=None, max_examples=60)
def test_csv_and_json_come_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, list[str]], delimiter: str
) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter)
    writer.writerow(("path", "caption"))
    writer.writerows((name, text) for name, texts in table.items() for text in texts)
    lines = [json.dumps({"path": name, "caption": texts}) for name, texts in table.items()]
    folder = tmp_path_factory.mktemp("captions")
    whole = f"[{', '.join(lines)}]"
    for name, content in (
        ("c.csv", stream.getvalue()),
        ("c.jsonl", "\n".join(lines)),
        ("c.json", whole),
    ):
        captions = read(folder, content, name)
        assert captions.entries == expected(table)
        for video, texts in expected(table).items():
            assert captions.of(f"/videos/{video}") == texts


@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("captions")
    starts = (
        ("c.csv", b"path,caption\n"),
        ("c.txt", b"a\tb\n"),
        ("c.jsonl", b'{"id":'),
        ("c.json", b'[{"id":"a","caption":"b"}'),
    )
    for name, before in starts:
        captions = readable(folder, before + content, name)
        if captions is None:
            continue
        for key, texts in captions.entries.items():
            assert texts
            assert all(texts)
            found = found_for(captions, f"/videos/{key}")
            assert found is None or found in captions.entries.values()


def readable(folder: Path, content: bytes, name: str) -> Captions | None:
    try:
        return read(folder, content, name)
    except UsageError:
        return None


def found_for(captions: Captions, video: str) -> tuple[str, ...] | None:
    """Nothing else than VideoError may happen."""
    try:
        return captions.of(video)
    except VideoError:
        return None


def test_captions_given_twice_count_twice_as_in_training(tmp_path: Path) -> None:
    from memcli.train.datasets import load_dataset

    told = ["a dog", "a dog", "a cat"]
    listed = [{"filename": "a.mp4", "mem_score": 0.5, "captions": told}]
    (tmp_path / "memento_train_data.json").write_text(json.dumps(listed))
    (tmp_path / "captions.jsonl").write_text(json.dumps({"path": "a.mp4", "captions": told}))
    trained = load_dataset("memento10k", tmp_path).items[0].captions
    assert read_captions(tmp_path / "captions.jsonl").of("a.mp4") == trained == tuple(told)


def test_the_official_files_are_read_as_in_training(tmp_path: Path) -> None:
    from memcli.train.datasets import load_dataset

    memento, videomem = tmp_path / "memento", tmp_path / "videomem"
    (videomem / "dev-set").mkdir(parents=True)
    memento.mkdir()
    listed = [
        {
            "filename": f"{name}.mp4",
            "mem_score": 0.5,
            "alpha": -0.1,
            "captions": ["a dog", f"the {name}"],
            "action_labels": ["running"],
            "safe": True,
        }
        for name in "ab"
    ]
    official = memento / "memento_train_data.json"
    official.write_text(json.dumps(listed))
    scores = "video,short-term_memorability,nb_short-term_annotations,long-term_memorability\n"
    (videomem / "dev-set/dev-set_ground-truth.csv").write_text(
        scores + "video10.webm,0.9,30,0.8\n[3] b.webm,0.7,31,0.6\n"
    )
    text = videomem / "dev-set/dev-set_video-captions.txt"
    text.write_text("[3] b.webm\ta-well-lit-room\r\nvideo10.webm\ta-dog-runs\t\r\n")
    for dataset, path in (("memento10k", official), ("videomem", text)):
        captions = read_captions(path)
        items = load_dataset(dataset, path.parent.parent if path is text else path.parent).items
        assert len(items) == 2
        for item in items:
            assert captions.entries[item.id] == item.captions
            assert len(item.captions) == (2 if dataset == "memento10k" else 1)
    assert read_captions(text).of("/data/video10.mp4") == ("a dog runs",)


def test_captions_of_a_video_are_not_its_neighbours(tmp_path: Path) -> None:
    """A table in which one of two videos of one name failed says nothing of that one."""
    for name in ("b.mkv", "b.mp4", "c.mkv"):
        (tmp_path / name).write_bytes(b"")
    captions = captions_from({f"{tmp_path}/b.mp4": "a dog", f"{tmp_path}/c.mp4": "a cat"})
    assert captions.of(str(tmp_path / "b.mp4")) == ("a dog",)
    assert captions.of(str(tmp_path / "c.mkv")) == ("a cat",)  # the same in another container
    with pytest.raises(VideoError, match="no caption of it"):
        captions.of(str(tmp_path / "b.mkv"))
    assert captions.unused([str(tmp_path / "b.mkv")]) == list(captions.entries)


@pytest.mark.parametrize("value", [5, None, {"a": 1}, b"a dog"])
def test_captions_of_a_program_are_text(value: Any) -> None:
    with pytest.raises(UsageError, match=r"the captions of car are .*, not text|a caption is int"):
        captions_from({"car": value})


def test_ids_of_tables_have_no_leading_zeros(tmp_path: Path) -> None:
    captions = read(
        tmp_path, "video_id,description_0,description_1\n1,a dog,a cat\n10,x,y\n", "t.csv"
    )
    assert captions.of("/data/00001.mp4") == ("a dog", "a cat")
    assert captions.of("/data/00010.mp4") == ("x", "y")
    assert captions.unused(["/data/00001.mp4"]) == ["10"]
