"""Each dataset in its official format, written small: what is read, and where videos are found."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.train.datasets import DATASETS, Dataset, DatasetError, detect, load_dataset
from memcli.train.datasets.videm import open_feature

MEMENTO = (
    "video_id,video_url,annotations_short_term,scores_raw_short_term,"
    "scores_normalized_short_term,decay_alpha"
)
TRECVID = (
    "video_id,video_url,annotations_short_term,annotations_long_term,scores_raw_short_term,"
    "scores_raw_long_term,scores_normalized_short_term,decay_alpha"
)
WIDE = "video_id,description_0,description_1,description_2,description_3,description_4"
URL = "https://example.org/sounds/adult+male/"


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def by_id(dataset: Dataset):
    return {item.id: item for item in dataset.items}


def errors(dataset: Dataset) -> list[str]:
    return [problem.what for problem in dataset.problems if problem.severity == "error"]


MEMENTO_CSV = {
    "training_set/train_scores.csv": f"{MEMENTO}\n17,{URL}a_25.mp4,92,0.98,0.99,-0.0003\n"
    f"8,{URL}b%20c.mp4,91,0.5,0.6,0.1\n",
    "training_set/train_text_descriptions.csv": f'{WIDE}\n8,"b, 0",b1,b2,b3,b4\n'
    '17,"a\ntwo lines",a1,"a ""2""",a3,ä4\n',
    "dev_set/dev_scores.csv": f"{MEMENTO}\n3434,{URL}c.mp4,91,0.7,0.8,0\n",
    "dev_set/dev_text_descriptions.csv": f"{WIDE}\n3434,c0,c1,c2,c3,c4\n",
    "test_set/test_text_descriptions.csv": f"{WIDE}\n5,d0,d1,d2,d3,d4\n",
}


def test_memento10k_csv_release(tmp_path: Path) -> None:
    root = write(tmp_path, MEMENTO_CSV)
    assert detect(root) == "memento10k"
    dataset = load_dataset("memento10k", root)
    assert [item.id for item in dataset.items] == ["17", "8", "3434", "5"]
    assert [item.split for item in dataset.items] == ["train", "train", "dev", "test"]
    assert dataset.targets == ("raw", "normalized")
    assert dataset.default_target == "normalized"
    first, test = dataset.items[0], dataset.items[-1]
    assert first.scores == {"raw": 0.98, "normalized": 0.99}
    assert first.captions == ("a\ntwo lines", "a1", 'a "2"', "a3", "ä4")
    assert (first.file, first.line) == (str(root / "training_set/train_scores.csv"), 2)
    assert test.scores == {}
    assert test.captions == ("d0", "d1", "d2", "d3", "d4")
    assert [item.id for item in dataset.labelled("raw")] == ["17", "8", "3434"]
    assert [item.id for item in dataset.labelled("raw", "dev")] == ["3434"]
    with pytest.raises(DatasetError, match="no long-term scores"):
        dataset.labelled("long-term")


def test_lists_alone_load_with_a_warning_for_each_video(tmp_path: Path) -> None:
    dataset = load_dataset("memento10k", write(tmp_path, MEMENTO_CSV))
    assert {problem.kind for problem in dataset.problems} == {"missing-video"}
    assert {problem.severity for problem in dataset.problems} == {"warning"}
    assert [problem.line for problem in dataset.problems] == [2, 3, 2, 2]
    assert all(item.path is None for item in dataset.items)


@pytest.mark.parametrize(
    "place",
    [
        "training_set/Videos/a_25.mp4",
        "training_set/a_25.mp4",
        "videos/a_25.mp4",
        "Videos/17.mp4",
        "training_set/videos/00017.webm",
    ],
)
def test_videos_are_found_by_url_or_id_in_the_usual_places(tmp_path: Path, place: str) -> None:
    dataset = load_dataset("memento10k", write(tmp_path, {**MEMENTO_CSV, place: b"x"}))
    assert by_id(dataset)["17"].path == tmp_path / place
    assert errors(dataset) == ["'8' has no video file: looked for 'b%20c.mp4'"]


def test_a_url_may_be_quoted(tmp_path: Path) -> None:
    files = {**MEMENTO_CSV, "videos/b c.mp4": b"x", "videos/a_25.mp4": b"x"}
    dataset = load_dataset("memento10k", write(tmp_path, files))
    assert by_id(dataset)["8"].path == tmp_path / "videos/b c.mp4"
    assert errors(dataset) == []


def test_the_video_near_the_list_is_taken(tmp_path: Path) -> None:
    places = ("training_set/frames", "training_set/Videos", "dev_set/Videos")
    copies = [f"{place}/a_25.mp4" for place in places]
    files = {**MEMENTO_CSV, "videos/8.mp4": b"x", **dict.fromkeys(copies, b"x")}
    dataset = load_dataset("memento10k", write(tmp_path, files))
    assert by_id(dataset)["17"].path == tmp_path / "training_set/Videos/a_25.mp4"
    assert not [one for one in dataset.problems if one.kind == "ambiguous-video"]
    write(tmp_path, {"training_set/sources/a_25.mp4": b"x"})
    dataset = load_dataset("memento10k", tmp_path)
    assert next(one.kind for one in dataset.problems if one.line == 2) == "ambiguous-video"


def test_memento10k_json_release(tmp_path: Path) -> None:
    def entry(number: int, **more: object) -> dict[str, object]:
        captions = [f"{number} is {word}" for word in ("a", "b", "c", "d", "e, \n é")]
        return {"filename": f"vid_{number}.mp4", "url": URL, "captions": captions, **more}

    train = [entry(1, mem_score=0.8, action_labels=["running"]), entry(2, mem_score=1)]
    root = write(
        tmp_path,
        {
            "memento_train_data.json": json.dumps(train, indent=2),
            "memento_val_data.json": json.dumps([entry(3, mem_score=0.25)]),
            "memento_test_data.json": json.dumps([entry(4)]),
            **{f"videos_final/vid_{number}.mp4": b"x" for number in (1, 2, 3, 4)},
        },
    )
    assert detect(root) == "memento10k"
    dataset = load_dataset("memento10k", root)
    assert dataset.problems == ()
    assert dataset.targets == ("normalized",)
    items = by_id(dataset)
    assert [item.split for item in dataset.items] == ["train", "train", "dev", "test"]
    assert items["vid_2.mp4"].scores == {"normalized": 1.0}
    assert items["vid_4.mp4"].scores == {}
    assert items["vid_1.mp4"].captions[4] == "1 is e, \n é"
    assert items["vid_3.mp4"].path == root / "videos_final/vid_3.mp4"
    assert [items[f"vid_{number}.mp4"].line for number in (1, 2)] == [2, 17]


VIDEOMEM = (
    "\ufeffvideo,short-term_memorability,nb_short-term_annotations,"
    "long-term_memorability,nb_long-term_annotations\r\n"
    "video10.webm,0.950,34,0.900,10\r\nvideo100.webm,0.951,33,1,9"
)


@pytest.mark.parametrize(
    "place",
    [
        "ground-truth_dev-set.csv",
        "dev-set_ground-truth.csv",
        "dev-set/ground-truth/ground-truth_dev-set.csv",
    ],
)
def test_videomem(tmp_path: Path, place: str) -> None:
    root = write(
        tmp_path,
        {
            place: VIDEOMEM,
            "dev-set/dev-set_video-captions.txt": "video10.webm\tcouple-on-picnic-é\r\n"
            "video100.webm\tcats\r\n",
            "test-set_videos-captions.txt": "video1.webm\tsnow-and-lights\r\n",
            "dev-set/sources/video10.webm": b"x",
            "dev-set/sources/video100.mp4": b"x",
        },
    )
    assert detect(root) == "videomem"
    dataset = load_dataset("videomem", root)
    items = by_id(dataset)
    assert dataset.targets == ("short-term", "long-term")
    assert items["video10.webm"].scores == {"short-term": 0.95, "long-term": 0.9}
    assert items["video10.webm"].captions == ("couple on picnic é",)
    assert items["video100.webm"].path == root / "dev-set/sources/video100.mp4"
    assert (items["video1.webm"].split, items["video1.webm"].scores) == ("test", {})
    assert items["video1.webm"].captions == ("snow and lights",)
    assert [(one.kind, one.severity) for one in dataset.problems] == [("missing-video", "warning")]


def test_trecvid_2021(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "train_scores.csv": f"{TRECVID}\n11, {URL}e.mp4,16,7,0.69,0.57,0.6874,0.0\n",
            "train_text_descriptions.csv": "\ufeffvideo_id,video_url,description\r\n"
            f'11,{URL}e.mp4,"in the daytime, a cat"\r\n11,{URL}e.mp4,a little cat\r\n',
            "test_text_descriptions.csv": "video_id,video_url,description\r\n"
            f"4,{URL}f.mp4,people\r\n4,{URL}f.mp4,stairs\r\n",
            "videos/e.mp4": b"x",
            "videos/f.mp4": b"x",
        },
    )
    assert detect(root) == "trecvid"
    dataset = load_dataset("trecvid", root)
    assert dataset.problems == ()
    assert dataset.targets == ("short-term", "long-term", "normalized")
    first, test = dataset.items
    assert first.scores == {"short-term": 0.69, "long-term": 0.57, "normalized": 0.6874}
    assert first.captions == ("in the daytime, a cat", "a little cat")
    assert first.path == root / "videos/e.mp4"
    assert (test.split, test.captions, test.path) == (
        "test",
        ("people", "stairs"),
        root / "videos/f.mp4",
    )
    with pytest.raises(DatasetError, match="TRECVid"):
        load_dataset("memento10k", root)


def test_trecvid_2020(tmp_path: Path) -> None:
    columns = "video_id,video_url,ann_1,ann_2,part_1_scores,part_2_scores"
    root = write(
        tmp_path,
        {
            "training_set/scores_v2.csv": f"\ufeff{columns}\r\n8,{URL}g.mp4,20,7,0.75,0.57",
            "training_set/text_descriptions.csv": f"video_id,video_url,description\r\n8,{URL},hug",
            "development_set/dev_scores.csv": f"{columns}\r\n34,{URL}h.mp4,13,7,0.92,0.86\r\n",
            "testing_set/test_urls.csv": f"\ufeffvideo_id,video_url\r\n4,{URL}i.mp4\r\n",
            "training_set/Videos/00008.mp4": b"x",
        },
    )
    assert detect(root) == "trecvid"
    dataset = load_dataset("trecvid", root)
    assert dataset.targets == ("short-term", "long-term")
    assert [(item.id, item.split) for item in dataset.items] == [
        ("8", "train"),
        ("34", "dev"),
        ("4", "test"),
    ]
    assert dataset.items[0].scores == {"short-term": 0.75, "long-term": 0.57}
    assert dataset.items[0].captions == ("hug",)
    assert dataset.items[0].path == root / "training_set/Videos/00008.mp4"
    assert errors(dataset) == []


def test_videm(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "devset/devset_videolist_GT.csv": "id,video_id,title,memorability_score\n"
            '-abc,1,"A title, long",0.5\nDEF_1,2,B,0.25\n',
            "testset/testset_videolist.csv": "id,video_id,title\nghi,3,C\n",
            "video-devset/-abc.mp4": b"x",
            "video-devset/DEF_1.mp4": b"x",
        },
    )
    folder = root / "devset/features/I3D"
    folder.mkdir(parents=True)
    np.save(folder / "-abc.npy", np.ones((3, 8), np.float32))
    np.save(folder / "DEF_1.npy", np.ones((5, 8), np.float32))
    assert detect(root) == "videm"
    dataset = load_dataset("videm", root)
    assert dataset.targets == ("long-term",)
    assert dataset.features == {"I3D": folder}
    assert [(item.id, item.split) for item in dataset.items] == [
        ("-abc", "train"),
        ("DEF_1", "train"),
        ("ghi", "test"),
    ]
    assert dataset.items[0].path == root / "video-devset/-abc.mp4"
    assert errors(dataset) == []
    array = open_feature(folder / "-abc.npy")
    assert array.shape == (3, 8)
    assert isinstance(array, np.memmap)


@pytest.mark.parametrize("name", ["csv", "moviemem"])
def test_the_generic_form(tmp_path: Path, name: str) -> None:
    root = write(
        tmp_path,
        {
            "films.csv": "path,score,caption,split,fold,group\n"
            'a.mp4,0.5,"a man, running",train,0,Alien\n'
            "./a.mp4,,he falls,,,\n"
            "b.mp4,0.75,a dog,train,1,Brazil\n"
            "sub/c.mp4,,a cat,test,,Casablanca\n",
            "a.mp4": b"x",
            "videos/b.mp4": b"x",
            "sub/c.mp4": b"x",
        },
    )
    assert detect(root) == detect(root / "films.csv") == "csv"
    target = "long-term" if name == "moviemem" else "raw"
    for place in (root, root / "films.csv"):
        dataset = load_dataset(name, place)
        assert dataset.problems == ()
        assert dataset.targets == (target,)
        a, b, c = dataset.items
        assert a.captions == ("a man, running", "he falls")
        assert (a.scores, a.split, a.fold, a.group) == ({target: 0.5}, "train", 0, "Alien")
        assert (a.path, b.path, c.path) == (
            root / "a.mp4",
            root / "videos/b.mp4",
            root / "sub/c.mp4",
        )
        assert (c.scores, c.split) == ({}, "test")


def test_an_absolute_path_is_taken_as_it_is(tmp_path: Path) -> None:
    video = write(tmp_path, {"elsewhere/a.mp4": b"x"}) / "elsewhere/a.mp4"
    table = write(tmp_path, {"t/list.csv": f"path,score\n{video},0.5\n"}) / "t/list.csv"
    assert load_dataset("csv", table).items[0].path == video


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
CAPTIONS = TEXTS.map(str.strip).filter(bool)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9]{1,8}\.mp4", fullmatch=True),
        st.tuples(st.floats(0, 1), st.lists(CAPTIONS, min_size=1, max_size=3, unique=True)),
        min_size=1,
        max_size=5,
    )
)
def test_the_generic_form_is_read_back(tmp_path_factory, videos) -> None:
    root = tmp_path_factory.mktemp("generic")
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(("path", "score", "caption"))
    for name, (score, captions) in videos.items():
        writer.writerows((name, repr(score), caption) for caption in captions)
    (root / "list.csv").write_bytes(stream.getvalue().encode())
    dataset = load_dataset("csv", root)
    assert errors(dataset) == []
    found = {item.id: (item.scores["raw"], list(item.captions)) for item in dataset.items}
    assert found == videos


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(CAPTIONS, min_size=5, max_size=5), min_size=1, max_size=4))
def test_wide_captions_are_read_back(tmp_path_factory, captions: list[list[str]]) -> None:
    root = tmp_path_factory.mktemp("memento")
    scores = [f"{number},{URL}{number}.mp4,9,0.5,0.5,0" for number in range(len(captions))]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(WIDE.split(","))
    writer.writerows([number, *texts] for number, texts in enumerate(captions))
    write(
        root,
        {
            "train_scores.csv": "\n".join([MEMENTO, *scores]),
            "train_text_descriptions.csv": stream.getvalue(),
        },
    )
    dataset = load_dataset("memento10k", root)
    assert errors(dataset) == []
    assert [list(item.captions) for item in dataset.items] == captions


def test_folders_may_be_links_even_in_circles(tmp_path: Path) -> None:
    store = write(tmp_path / "store", {"a_25.mp4": b"x", "b%20c.mp4": b"x"})
    root = write(tmp_path / "data", MEMENTO_CSV)
    (root / "videos").symlink_to(store)
    (store / "back").symlink_to(root)
    (root / "fifo.mp4").unlink(missing_ok=True)
    os.mkfifo(root / "c.mp4")
    dataset = load_dataset("memento10k", root)
    assert by_id(dataset)["17"].path == root / "videos/a_25.mp4"
    assert by_id(dataset)["3434"].path is None  # a pipe is no video, and is not waited for


@pytest.mark.parametrize("name", DATASETS)
def test_nothing_there_says_what_was_looked_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"looked for|path and score"):
        load_dataset(name, tmp_path)
    with pytest.raises(DatasetError, match="no such"):
        load_dataset(name, tmp_path / "absent")


def test_detect_refuses_what_it_cannot_tell(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"looked for memento_train_data\.json"):
        detect(tmp_path)
    with pytest.raises(DatasetError, match="no such"):
        detect(tmp_path / "absent")
    write(tmp_path, MEMENTO_CSV | {"other/ground-truth_dev-set.csv": VIDEOMEM})
    with pytest.raises(DatasetError, match="several datasets here: memento10k, videomem"):
        detect(tmp_path)
    write(tmp_path, {"copy/train_scores.csv": MEMENTO})
    with pytest.raises(DatasetError, match="several lists"):
        load_dataset("memento10k", tmp_path)
    both = write(tmp_path / "both", MEMENTO_CSV | {"memento_val_data.json": "[]"})
    assert detect(both) == "memento10k"
    with pytest.raises(DatasetError, match="two releases"):
        load_dataset("memento10k", both)
    scores = {"a/memento_val_data.json": "[]", "b/dev_scores.csv": f"{TRECVID}\n"}
    with pytest.raises(DatasetError, match="several datasets here: memento10k, trecvid"):
        detect(write(tmp_path / "mixed", scores))
    two = write(tmp_path / "two", dict.fromkeys(("a.csv", "b.csv"), "path,score\na.mp4,1\n"))
    with pytest.raises(DatasetError, match="2 tables"):
        detect(two)
    plain = write(tmp_path, {"plain.csv": "a,b\n1,2\n"}) / "plain.csv"
    with pytest.raises(DatasetError, match="no table of videos and scores"):
        detect(plain)
    with pytest.raises(DatasetError, match="unknown dataset"):
        load_dataset("lamem", tmp_path)
