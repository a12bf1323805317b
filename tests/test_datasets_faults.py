"""Every fault a dataset may have: what it is called, on which line, and what is left."""

import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from memcli.errors import ExitCode
from memcli.spec import MAX_CAPTION_LENGTH, MAX_CAPTIONS
from memcli.train.datasets import KINDS, Dataset, DatasetError, load_dataset, raise_on_errors
from memcli.train.datasets.videm import open_feature

SCORES = (
    "video_id,video_url,annotations_short_term,scores_raw_short_term,"
    "scores_normalized_short_term,decay_alpha\n"
)
WIDE = "video_id,description_0,description_1\n"


def generic(tmp_path: Path, rows: str, *videos: str, columns: str = "path,score") -> Dataset:
    table = tmp_path / "list.csv"
    table.write_text(f"{columns}\n{rows}", encoding="utf-8")
    for name in videos:
        (tmp_path / name).write_bytes(b"x")
    return load_dataset("csv", table)


def memento(tmp_path: Path, scores: str, captions: str | None = None, split="train") -> Dataset:
    (tmp_path / "train_scores.csv").write_text(SCORES + scores)
    if captions is not None:
        (tmp_path / f"{split}_text_descriptions.csv").write_text(WIDE + captions)
    return load_dataset("memento10k", tmp_path)


def found(dataset: Dataset, *without: str) -> list[tuple[str, int | None, str]]:
    for problem in dataset.problems:
        assert problem.kind in KINDS
        assert problem.what.isprintable()
    return [
        (problem.kind, problem.line, problem.severity)
        for problem in dataset.problems
        if problem.kind not in without
    ]


@pytest.mark.parametrize(
    ("score", "kind"),
    [
        ("1.01", "score-range"),
        ("-0.5", "score-range"),
        ("1e9", "score-range"),
        ("95", "score-range"),
        ("nan", "score-range"),
        ("-inf", "score-range"),
        ("1e999", "score-range"),
        ("high", "score-number"),
        ("0_1", "score-number"),
        ("٠", "score-number"),
        ("0x1", "score-number"),
        ('"0,5"', "score-number"),
        ("", "score-missing"),
    ],
)
def test_a_faulty_score_is_named_and_left_out(tmp_path: Path, score: str, kind: str) -> None:
    dataset = generic(tmp_path, f"a.mp4,0.5\nb.mp4,{score}\nc.mp4,1\n", "a.mp4", "b.mp4", "c.mp4")
    assert found(dataset) == [(kind, 3, "error")]
    assert [item.scores for item in dataset.items] == [{"raw": 0.5}, {}, {"raw": 1.0}]
    assert [item.id for item in dataset.labelled("raw")] == ["a.mp4", "c.mp4"]


@pytest.mark.parametrize("score", ["0", "1", "1.", ".5", "5e-1", "+0.25", " 0.5 "])
def test_numbers_of_every_spelling_are_scores(tmp_path: Path, score: str) -> None:
    dataset = generic(tmp_path, f"a.mp4,{score}\n", "a.mp4")
    assert dataset.problems == ()
    assert dataset.items[0].scores == {"raw": float(score)}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1.5", "score-range"),
        ("NaN", "score-range"),
        ("1" + "0" * 400, "score-range"),
        ('"0.5x"', "score-number"),
        ("true", "score-number"),
        ("[0.5]", "score-number"),
        ("null", "score-missing"),
    ],
)
def test_a_faulty_score_in_json_is_named(tmp_path: Path, value: str, kind: str) -> None:
    first = '{"filename": "a.mp4", "mem_score": 0.5}'
    second = f'{{"filename": "b.mp4", "mem_score": {value}}}'
    text = f"[{first},\n{second}]"
    (tmp_path / "memento_train_data.json").write_text(text)
    dataset = load_dataset("memento10k", tmp_path)
    assert found(dataset, "missing-video") == [(kind, 2, "error")]
    assert [item.scores for item in dataset.items] == [{"normalized": 0.5}, {}]


def test_an_object_without_a_file_name_and_captions_that_are_none(tmp_path: Path) -> None:
    text = (
        '[{"mem_score": 0.5},\n{"filename": 7},\n'
        '{"filename": "../../a.mp4", "mem_score": 1, "captions": ["x", 5, " "]},\n'
        '{"filename": "b.mp4", "mem_score": 1, "captions": "x"}]'
    )
    (tmp_path / "memento_train_data.json").write_text(text)
    dataset = load_dataset("memento10k", tmp_path)
    assert [item.id for item in dataset.items] == ["a.mp4", "b.mp4"]
    assert [item.captions for item in dataset.items] == [("x",), ()]
    assert found(dataset, "missing-video") == [
        ("value", 1, "error"),
        ("value", 2, "error"),
        ("value", 3, "error"),
        ("no-caption", 4, "error"),
    ]


def test_a_video_listed_twice_keeps_its_first_row(tmp_path: Path) -> None:
    dataset = memento(tmp_path, "1,u/a.mp4,9,0.5,0.5,0\n1,u/a.mp4,9,0.6,0.6,0\n,u/b.mp4,9,1,1,0\n")
    assert [item.scores["raw"] for item in dataset.items] == [0.5]
    assert found(dataset, "missing-video") == [("duplicate", 3, "error"), ("value", 4, "error")]
    assert "line 2" in dataset.problems[0].what


def test_a_video_in_two_splits_is_a_duplicate(tmp_path: Path) -> None:
    (tmp_path / "dev_scores.csv").write_text(f"{SCORES}7,u/x.mp4,9,1,1,0\n1,u/a.mp4,9,1,1,0\n")
    dataset = memento(tmp_path, "1,u/a.mp4,9,0.5,0.5,0\n")
    assert [(item.id, item.split) for item in dataset.items] == [("1", "train"), ("7", "dev")]
    (problem,) = [one for one in dataset.problems if one.kind == "duplicate"]
    assert problem.where == f"{tmp_path / 'dev_scores.csv'}:3"
    assert "train_scores.csv, line 2" in problem.what


def test_rows_of_another_width_and_lists_of_other_columns(tmp_path: Path) -> None:
    dataset = memento(tmp_path, "1,u/a.mp4,9,0.5,0.5,0\n2,u/b.mp4,9,0.5\n3,u/c.mp4,9,1,1,0,x\n")
    assert [item.id for item in dataset.items] == ["1"]
    assert found(dataset, "missing-video") == [("columns", 3, "error"), ("columns", 4, "error")]
    (tmp_path / "train_scores.csv").write_text("video_id,video_url,mem\n1,u/a.mp4,0.5\n")
    with pytest.raises(DatasetError, match="no column scores_raw_short_term"):
        load_dataset("memento10k", tmp_path)


def test_missing_captions_and_captions_of_unknown_videos(tmp_path: Path) -> None:
    scores = "".join(f"{number},u/{number}.mp4,9,0.5,0.5,0\n" for number in (1, 2, 3))
    captions = '1,a,"b\nb"\n9,a,b\n1,c,d\n3, ,\n'
    dataset = memento(tmp_path, scores, captions)
    assert [item.captions for item in dataset.items] == [("a", "b\nb"), (), ()]
    assert found(dataset, "missing-video") == [
        ("unknown-video", 4, "error"),
        ("duplicate", 5, "error"),
        ("no-caption", 3, "error"),
        ("no-caption", 4, "error"),
    ]


def test_captions_of_another_split_are_those_of_unknown_videos(tmp_path: Path) -> None:
    (tmp_path / "dev_scores.csv").write_text(f"{SCORES}7,u/x.mp4,9,1,1,0\n")
    dataset = memento(tmp_path, "1,u/a.mp4,9,0.5,0.5,0\n", "1,a,b\n", split="dev")
    assert found(dataset, "missing-video") == [("unknown-video", 2, "error")]


def test_videos_without_any_captions_file_are_no_problem(tmp_path: Path) -> None:
    assert found(memento(tmp_path, "1,u/a.mp4,9,0.5,0.5,0\n"), "missing-video") == []


def test_videomem_captions(tmp_path: Path) -> None:
    columns = "video,short-term_memorability,nb,long-term_memorability\r\n"
    (tmp_path / "ground-truth_dev-set.csv").write_text(
        f"{columns}v1.webm,1,9,0\r\nv2.webm,1,9,0\r\n"
    )
    captions = tmp_path / "dev-set_video-captions.txt"
    captions.write_bytes(b"v1.webm\ta-b\r\nv2.webm c\r\nv9.webm\td\r\nv1.webm\te\r\n\xff\r\n")
    dataset = load_dataset("videomem", tmp_path)
    assert found(dataset, "missing-video") == [
        ("encoding", 5, "error"),
        ("columns", 2, "error"),
        ("unknown-video", 3, "error"),
        ("duplicate", 4, "error"),
        ("columns", 5, "error"),
        ("no-caption", 3, "error"),
    ]


def test_missing_and_empty_videos(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    dataset = generic(tmp_path, "a.mp4,1\nempty.mp4,1\nfolder.mp4,1\nb.mp4,1\n", "a.mp4")
    assert found(dataset) == [
        ("empty-video", 3, "error"),
        ("missing-video", 4, "error"),
        ("missing-video", 5, "error"),
    ]
    assert [item.path and item.path.name for item in dataset.items] == ["a.mp4", None, None, None]


def test_missing_videos_are_counted_per_split(tmp_path: Path) -> None:
    rows = "a.mp4,1,train\nb.mp4,1,train\nc.mp4,,test\n"
    dataset = generic(tmp_path, rows, "a.mp4", columns="path,score,split")
    assert found(dataset) == [("missing-video", 3, "error"), ("missing-video", 4, "warning")]


def test_values_of_the_generic_form(tmp_path: Path) -> None:
    rows = "a.mp4,1,training,0\nb.mp4,1,late,1\nc.mp4,1,val,-1\nd.mp4,1,test,1.5\n,1,dev,0\n"
    videos = ("a.mp4", "b.mp4", "c.mp4", "d.mp4")
    dataset = generic(tmp_path, rows, *videos, columns="path,score,split,fold")
    assert [(item.id, item.split) for item in dataset.items] == [
        ("a.mp4", "train"),
        ("c.mp4", "dev"),
        ("d.mp4", "test"),
        ("b.mp4", None),
    ]
    assert found(dataset) == [("value", line, "error") for line in (3, 4, 5, 6)]


def test_rows_of_one_video_that_contradict_each_other(tmp_path: Path) -> None:
    rows = (
        "a.mp4,1,x,train,0,G\na.mp4,1,x,train,0,G\na.mp4,0.5,y,train,0,G\n"
        "a.mp4,1,z,dev,1,H\na.mp4,1,,,,\na.mp4,1,w,,,\n"
    )
    columns = "path,score,caption,split,fold,group"
    dataset = generic(tmp_path, rows, "a.mp4", columns=columns)
    (item,) = dataset.items
    assert item.captions == ("x", "y", "z", "w")
    assert (item.scores, item.split, item.fold, item.group) == ({"raw": 1.0}, "train", 0, "G")
    assert found(dataset) == [
        ("duplicate", 3, "error"),
        ("conflict", 4, "error"),
        ("conflict", 5, "error"),
        ("conflict", 5, "error"),
        ("conflict", 5, "error"),
        ("duplicate", 6, "error"),
    ]


def test_a_group_on_both_sides_of_a_split(tmp_path: Path) -> None:
    rows = "a.mp4,1,train,G\nb.mp4,1,dev,G\nc.mp4,1,train,H\nd.mp4,1,train,H\n"
    videos = ("a.mp4", "b.mp4", "c.mp4", "d.mp4")
    dataset = generic(tmp_path, rows, *videos, columns="path,score,split,group")
    assert found(dataset) == [("split", 3, "error")]
    assert "line 2" in dataset.problems[0].what


def test_features_that_are_missing_strange_or_hostile(tmp_path: Path) -> None:
    ids = ("good", "other", "short", "cut", "pickle", "empty", "none", "archive")
    rows = "".join(f"{name},0.5\n" for name in ids)
    (tmp_path / "devset_videolist_GT.csv").write_text(f"id,memorability_score\n{rows}")
    folder = tmp_path / "features" / "HOG"
    folder.mkdir(parents=True)
    np.save(folder / "good.npy", np.ones(8))
    np.save(folder / "other.npy", np.ones((2, 8)))
    np.save(folder / "short.npy", np.ones(7))
    np.save(folder / "cut.npy", np.ones(8))
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:-9])
    np.save(folder / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (folder / "empty.npy").touch()
    with (folder / "archive.npy").open("wb") as stream:
        np.savez(stream, a=np.ones(8))
    np.save(folder / "stranger.npy", np.ones(8))
    dataset = load_dataset("videm", tmp_path)
    problems = [one for one in dataset.problems if one.kind != "missing-video"]
    assert dataset.features == {"HOG": folder}
    assert [(one.kind, Path(one.file).name, one.line) for one in problems] == [
        ("feature", "short.npy", None),
        ("feature", "cut.npy", None),
        ("feature", "pickle.npy", None),
        ("feature", "empty.npy", None),
        ("missing-feature", "devset_videolist_GT.csv", 8),
        ("feature", "archive.npy", None),
        ("unknown-video", "stranger.npy", None),
    ]


def npy(header: str) -> bytes:
    """A .npy file of version 1 with this header, and no values."""
    line = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 no archive",
        npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**40}, {2**40})}}"),
        npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**26},)}}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}"),
        npy("{'descr': ['<f4', ("),
        npy("{'descr': '''<f4"),
        npy("-" * 5000 + "1"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_feature_with_a_hostile_header_is_a_problem(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "devset_videolist_GT.csv").write_text("id,memorability_score\na,0.5\n")
    folder = tmp_path / "features" / "HOG"
    folder.mkdir(parents=True)
    (folder / "a.npy").write_bytes(content)
    dataset = load_dataset("videm", tmp_path)
    problems = [one for one in dataset.problems if one.kind != "missing-video"]
    assert [(one.kind, Path(one.file).name) for one in problems] == [("feature", "a.npy")]


def test_a_feature_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(ValueError, match="plain file"):
        open_feature(tmp_path / "a.npy")


def test_nothing_usable_names_the_first_problems(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        generic(tmp_path, "a.mp4\n")
    assert str(caught.value).startswith(f"{tmp_path / 'list.csv'}: no video is listed here")
    assert f"{tmp_path / 'list.csv'}:2: 1 columns instead of 2" in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE


def test_raise_on_errors_names_three_and_the_count(tmp_path: Path) -> None:
    dataset = generic(tmp_path, "a.mp4,1\n" + "".join(f"{n}.mp4,2\n" for n in range(4)), "a.mp4")
    with pytest.raises(DatasetError) as caught:
        raise_on_errors(dataset)
    table = tmp_path / "list.csv"
    assert str(caught.value).split("\n") == [
        f"{table}: 8 problems in this dataset",
        *(f"  {table}:{n + 3}: raw score of '{n}.mp4' is 2, not in [0, 1]" for n in range(3)),
        "  and 5 more",
        f"  See them all:  memcli dataset check {table} --dataset csv",
    ]


def test_the_next_command_is_quoted_for_the_shell(tmp_path: Path) -> None:
    folder = tmp_path / "it's; mine"
    folder.mkdir()
    with pytest.raises(DatasetError) as caught:
        raise_on_errors(generic(folder, "a.mp4,2\n", "a.mp4"))
    command = str(caught.value).partition("See them all:")[2]
    table = str(folder / "list.csv")
    assert shlex.split(command) == ["memcli", "dataset", "check", table, "--dataset", "csv"]


def test_warnings_stop_only_the_strict(tmp_path: Path) -> None:
    dataset = generic(tmp_path, "a.mp4,1\n")
    assert found(dataset) == [("missing-video", 2, "warning")]
    raise_on_errors(dataset)
    raise_on_errors(dataset, needs=())
    with pytest.raises(DatasetError, match=r"1 problem in this dataset\n.*'a.mp4' has no video"):
        raise_on_errors(dataset, strict=True)


def test_what_the_model_does_not_look_at_may_be_missing(tmp_path: Path) -> None:
    rows = "a.mp4,1,x\nb.mp4,1,\nc.mp4,1,z\n"
    dataset = generic(tmp_path, rows, "a.mp4", "b.mp4", columns="path,score,caption")
    assert {kind for kind, _, _ in found(dataset)} == {"no-caption", "missing-video"}
    raise_on_errors(dataset, needs=())
    with pytest.raises(DatasetError, match=r"list\.csv:4: 'c\.mp4' has no video file"):
        raise_on_errors(dataset, needs=("videos",))
    with pytest.raises(DatasetError, match=r"list\.csv:3: 'b\.mp4' has no caption"):
        raise_on_errors(dataset, needs=("captions",))
    with pytest.raises(DatasetError, match="2 problems"):
        raise_on_errors(dataset)


def test_captions_beyond_what_scoring_takes_are_problems(tmp_path: Path) -> None:
    rows = ["path,score,caption", f"a.mp4,0.5,{'x' * (MAX_CAPTION_LENGTH + 1)}"]
    rows += [f"b.mp4,0.5,caption {n}" for n in range(MAX_CAPTIONS + 1)]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    dataset = load_dataset("csv", tmp_path)
    said = [(problem.line, problem.what) for problem in dataset.problems if problem.kind == "value"]
    assert said == [
        (2, f"a caption of 'a.mp4' is longer than {MAX_CAPTION_LENGTH:,} characters"),
        (MAX_CAPTIONS + 3, f"'b.mp4' has more than {MAX_CAPTIONS} captions"),
    ]
