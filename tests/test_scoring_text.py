"""Models that read captions, through the command line and the API, without torch."""

import json
from pathlib import Path

import numpy as np
import pytest
from cli import memcli, memcli_here, table, without_torch
from media import make_video
from tiny_bundle import (
    TEXT_PREP,
    make_text_bundle,
    make_tiny_bundle,
    text_score,
)

from memcli import score, store
from memcli.captions import Captions, captions_from
from memcli.engines.select import open_engine
from memcli.errors import (
    ExitCode,
    ModelError,
    VideoErrorCode,
)
from memcli.reading import Prepared, Reader, padded
from memcli.results import Row
from memcli.scoring import ScoreSettings
from memcli.spec import TextPrep
from memcli.tokens import Tokeniser

CAPTIONS = {
    "a.mp4": ["a dog"],
    "b.mp4": ["one two three four five", "a dog runs"],
    "c.mkv": [" ".join(["word"] * 40)],
}
LONG = CAPTIONS["c.mkv"][0]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name in CAPTIONS:
        make_video(folder / name, frames=6)
    make_video(folder / "silent.mp4", frames=4)
    (folder / "empty.mp4").write_bytes(b"")
    return folder


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.jsonl"
    lines = [json.dumps({"path": name, "caption": texts}) for name, texts in CAPTIONS.items()]
    lines.append(json.dumps({"path": "elsewhere.mp4", "caption": "a dog"}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("frames", [False, True])
def test_a_folder_is_scored_where_torch_cannot_be_imported(
    memcli_home: Path, clips: Path, captions: Path, tmp_path: Path, frames: bool
) -> None:
    bundle = make_text_bundle(memcli_home, frames=frames)
    options = ["--model", bundle.model, "--captions", captions, "--batch-size", "3"]
    done = memcli("score", clips, *options, cwd=tmp_path, **without_torch(tmp_path / "blocked"))
    assert done.returncode == ExitCode.SOME_INPUTS_FAILED, done.stderr
    rows = {Path(row["path"]).name: row for row in table(tmp_path / "scores.csv")}
    brightness = {Path(row.path).name: row.score for row in _brightness(memcli_home, clips)}
    for name, texts in CAPTIONS.items():
        expected = text_score([texts])[0]
        if frames:
            expected = (expected + (brightness[name] or 0)) / 2
        assert float(rows[name]["score"]) == pytest.approx(expected, abs=2e-6)
        assert rows[name]["caption"] == " | ".join(texts)
        assert bool(rows[name]["duration_s"]) == bool(rows[name]["frames_used"]) == frames
        assert rows[name]["sampling"] == ("exact" if frames else "none")
    assert rows["a.mp4"]["weights_license"] == bundle.license
    assert rows["silent.mp4"]["error_code"] == "no-caption"
    assert "captions.jsonl" in rows["silent.mp4"]["error"]
    assert rows["empty.mp4"]["error_code"] == "empty"
    assert "cut: 1 caption, longer" in done.stderr
    assert "1 name in" in done.stderr
    assert "elsewhere.mp4" in done.stderr
    assert ("frames/s" in done.stderr) == frames


def _brightness(home: Path, clips: Path) -> list[Row]:
    make_tiny_bundle(home)
    return list(score(clips, model="tiny"))


def test_the_block_works(tmp_path: Path) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", "import torch"],
        env=without_torch(tmp_path / "blocked"),
        capture_output=True,
        text=True,
    )
    assert "not for scoring" in done.stderr


def test_scores_do_not_depend_on_the_batch(memcli_home: Path, clips: Path) -> None:
    make_text_bundle(memcli_home)
    found = []
    for batch_size in (1, 4):
        rows = score(clips, model="tiny-text", captions=CAPTIONS, batch_size=batch_size)
        found.append({row.path: row.score for row in rows})
    assert found[0] == found[1]


def test_a_table_never_mixes_captions(
    memcli_home: Path, clips: Path, captions: Path, tmp_path: Path
) -> None:
    make_text_bundle(memcli_home)
    options = ("--model", "tiny-text", "--captions", captions)
    memcli_here("score", clips / "a.mp4", *options, cwd=tmp_path)
    before = (tmp_path / "scores.csv").read_bytes()
    again = memcli_here("score", clips / "a.mp4", *options, cwd=tmp_path)
    assert again.returncode == ExitCode.OK
    assert "0 videos scored" in again.stderr
    captions.write_text(captions.read_text().replace("a dog", "a cat"))
    other = memcli_here("score", clips / "a.mp4", *options, cwd=tmp_path)
    assert other.returncode == ExitCode.USAGE
    assert "captions" in other.stderr
    assert (tmp_path / "scores.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("tiny-text", [], "--captions FILE"),
        ("tiny-fusion", [], "--captions FILE"),
        ("tiny-text", ["--captions", "c.csv", "--frames", "4"], "looks at no frames"),
        ("tiny-text", ["--captions", "c.csv", "--curve"], "gives one score per video, none per"),
        ("tiny-fusion", ["--captions", "c.csv", "--curve"], "gives one score per video, none per"),
        ("tiny", ["--captions", "c.csv"], "tiny reads no captions"),
        ("tiny-text", ["--captions", "absent.csv"], "no such file of captions"),
    ],
)
def test_bad_requests_end_before_anything_is_opened(
    memcli_home: Path, clips: Path, tmp_path: Path, model: str, options: list[str], message: str
) -> None:
    make_tiny_bundle(memcli_home)
    make_text_bundle(memcli_home, frames=model == "tiny-fusion")
    (tmp_path / "c.csv").write_text("path,caption\na.mp4,a dog\n")
    done = memcli_here("score", clips / "a.mp4", "--model", model, *options, cwd=tmp_path)
    # Without captions it is a captioner that is missing: the model is not usable.
    assert done.returncode == (ExitCode.USAGE if options else ExitCode.NOT_USABLE), done.stderr
    assert message in done.stderr
    assert "verifying" not in done.stderr
    assert not list(tmp_path.glob("scores*"))


def test_other_numbers_of_frames(memcli_home: Path, clips: Path) -> None:
    make_text_bundle(memcli_home, frames=True)
    (row,) = score(clips / "a.mp4", model="tiny-fusion", captions=CAPTIONS, frames=2)
    assert (row.status, row.frames_used) == ("ok", 2)


def test_captions_are_stored_as_they_are(memcli_home: Path, clips: Path, tmp_path: Path) -> None:
    """Joined emoji and Persian are text; what steers a terminal is disarmed where it is shown."""
    make_text_bundle(memcli_home)
    said = "\u0645\u06cc\u200c\u0631\u0648\u062f \U0001f469\u200d\U0001f680 \x1b[31m"
    write = (tmp_path / "c.jsonl").write_text
    write(json.dumps({"path": "a.mp4", "caption": said}))
    for name in ("t.jsonl", "t.csv"):
        words = (clips / "a.mp4", "--model", "tiny-text", "--captions", tmp_path / "c.jsonl")
        done = memcli_here("score", *words, "--output", tmp_path / name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "\x1b[31m" not in done.stdout + done.stderr
    (line,) = (tmp_path / "t.jsonl").read_text().splitlines()
    assert json.loads(line)["caption"] == said
    assert "\x1b" not in (tmp_path / "t.csv").read_text()
    (row,) = table(tmp_path / "t.csv")
    assert row["caption"] == said.replace("\x1b", "\\x1b")


def test_captions_of_the_api_are_as_they_are(memcli_home: Path, clips: Path) -> None:
    make_text_bundle(memcli_home)
    captions = {"a.mp4": "=evil \x1b[31m\nred"}
    (row,) = score(clips / "a.mp4", model="tiny-text", captions=captions)
    assert row.caption == "=evil \x1b[31m\nred"


def test_a_missing_file_is_no_score(memcli_home: Path, tmp_path: Path) -> None:
    make_text_bundle(memcli_home)
    listed = tmp_path / "list.csv"
    listed.write_text("path\nabsent.mp4\n")
    (row,) = score(listed, model="tiny-text", captions={"absent": "a dog"})
    assert (row.error_code, row.score, row.caption) == ("missing", None, None)
    assert VideoErrorCode.NO_CAPTION.value == "no-caption"


def test_padding_is_to_the_longest() -> None:
    short, long = np.ones((1, 1, 2), np.int64), np.full((1, 3, 4), 2, np.int64)
    whole = padded([short, long], 7)
    assert whole.shape == (2, 3, 4)
    assert whole[0].tolist() == [[1, 1, 7, 7], [7] * 4, [7] * 4]
    assert (whole[1] == 2).all()


def test_bench_measures_models_with_captions(
    memcli_home: Path, clips: Path, tmp_path: Path
) -> None:
    for frames in (False, True):
        bundle = make_text_bundle(memcli_home, frames=frames)
        options = ("--model", bundle.model, "--engine", "onnxruntime", "--repeat", "1", "--json")
        done = memcli_here("bench", clips / "a.mp4", clips / "b.mp4", *options, cwd=tmp_path)
        assert done.returncode == ExitCode.OK, done.stderr
        report = json.loads(done.stdout)
        (engine,) = report["engines"]
        assert engine["problem"] is None
        assert engine["engine"]["videos"] == 2
        assert engine["end_to_end"]["videos_per_s"] > 0
        assert (report["frames"] > 0) == (report["preprocess"] is not None) == frames
    shown = memcli_here(
        "bench", clips / "a.mp4", "--model", "tiny-text", "--repeat", "1", cwd=tmp_path
    )
    assert "read captions" in shown.stdout


def test_doctor_shows_their_speed(memcli_home: Path, tmp_path: Path) -> None:
    open_engine(make_text_bundle(memcli_home), engine="onnxruntime").engine.close()
    done = memcli_here("doctor", cwd=tmp_path)
    assert " clips/s" in done.stdout
    done = memcli_here("doctor", "--json", cwd=tmp_path)
    (model,) = json.loads(done.stdout)["models"]["installed"]
    assert {entry["frames_per_s"] for entry in model["engines"]} == {None}


def test_bench_of_a_model_that_is_not_trained(tmp_path: Path) -> None:
    done = memcli_here("bench", "--model", "early-fusion", cwd=tmp_path)
    assert done.returncode == ExitCode.NOT_USABLE
    assert "has no trained head" in done.stderr


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.usefixtures("memcli_home")
def test_a_model_without_a_trained_head_says_how_to_get_one(offline: bool) -> None:
    for call in (
        lambda: store.ensure("early-fusion", offline=offline, report=print),
        lambda: store.find("early-fusion"),
        lambda: store.pull("early-fusion", wheel=None, offline=offline, report=print),
    ):
        with pytest.raises(ModelError) as caught:
            call()
        assert str(caught.value).splitlines() == [
            "early-fusion has no trained head on this machine.",
            "  Train one:    memcli train early-fusion --dataset memento10k --data DIR",
            "  Or install:   memcli models add FILE.memcli",
            "  Or use the offline default:  memcli score VIDEOS --model resmem",
        ]


def test_the_api_takes_captions_in_every_form(
    memcli_home: Path, clips: Path, captions: Path
) -> None:
    make_text_bundle(memcli_home)
    forms = (captions, str(captions), captions_from(CAPTIONS), CAPTIONS, {"a": "a dog"})
    scores = [
        next(score(clips / "a.mp4", model="tiny-text", captions=form)).score for form in forms
    ]
    assert len(set(scores)) == 1
    assert scores[0] == pytest.approx(text_score([["a dog"]])[0], abs=1e-6)
    with pytest.raises(ModelError, match="reads captions"):
        next(score(clips / "a.mp4", model="tiny-text"))
    assert ScoreSettings(model="x", captions=Captions("y", {"a": ("b",)})).captions is not None
    assert TEXT_PREP.max_tokens < len(LONG.split())


def test_a_batch_is_padded_with_the_models_own_id(memcli_home: Path) -> None:
    bundle = make_text_bundle(memcli_home)
    path = bundle.tokenizer_path(bundle.variants["fp32"])
    tokeniser = Tokeniser(TextPrep(max_tokens=8, pad_id=3), path)
    reader = Reader(None, 0, "exact", tokeniser, None)
    videos = [Prepared(None, (), tokeniser.encode([[text]])) for text in ("a", "a a a")]
    feeds = reader.feeds(videos)
    assert (feeds["input_ids"][feeds["attention_mask"] == 0] == 3).all()
    assert feeds["attention_mask"].sum() < feeds["attention_mask"].size
