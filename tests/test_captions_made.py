"""Videos without captions: a captioner makes them, for every model that reads some."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the tiny captioner is exported")
pytest.importorskip("transformers", reason="as above")
pytest.importorskip("onnxruntime")

from captioned import CLIPS, FAST, make_videos, run
from cli import memcli, table, without_torch
from media import make_video
from tiny_bundle import make_text_bundle, make_tiny_bundle, text_score
from tiny_captioner import (
    break_captioner,
    exported,
    install_captioner,
    silent_captioner,
)

from memcli import score
from memcli.captioning.cache import captions_dir
from memcli.errors import ExitCode, ModelError, UsageError

MODELS = ("text", "late-fusion", "early-fusion")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos that no test changes."""
    return make_videos(tmp_path_factory.mktemp("originals") / "videos")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return make_videos(tmp_path / "videos")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the three models of the paper that read captions, trained at a tiny size."""
    from tiny_models import make_tiny_model

    from memcli.export.trained import export_model

    root = tmp_path_factory.mktemp("trained")
    for name in MODELS:
        tiny = make_tiny_model(name, root / "checkpoints")
        export_model(
            tiny.model,
            tiny.spec,
            tokenizer=tiny.tokenizer,
            checkpoint=tiny.checkpoints["text"].folder,
            training={},
            made_by={},
            license_text="test",
            target=root / "bundles" / name,
        )
    install_captioner(root)
    return root


def test_three_models_score_a_folder_of_videos_where_torch_cannot_be_imported(
    trained: Path, videos: Path, tmp_path: Path
) -> None:
    (videos / "empty.mp4").write_bytes(b"")
    found = {}
    blocked = without_torch(tmp_path / "blocked")
    for model in MODELS:
        options = ("--model", model, *FAST, "-o", f"{model}.csv")
        home = {"MEMCLI_HOME": str(trained)}
        done = memcli("score", videos, *options, cwd=tmp_path, **blocked, **home)
        assert done.returncode == ExitCode.SOME_INPUTS_FAILED, done.stderr
        found[model] = {Path(row["path"]).name: row for row in table(tmp_path / f"{model}.csv")}
        assert "captioner: smolvlm2-500m " in done.stderr
        assert "captions: 3 generated" in done.stderr
        if model == MODELS[0]:  # what it said is kept: the others need it no more
            break_captioner(exported_in(trained))
    for model, rows in found.items():
        assert rows["empty.mp4"]["error_code"] == "empty"
        for name in CLIPS:
            row = rows[name]
            assert (row["status"], row["caption_source"]) == ("ok", "generated")
            assert row["caption"] == found["text"][name]["caption"] != ""
            assert 0 < float(row["score"]) < 1
            assert (row["width"], row["height"]) == ("96", "64")
            assert int(row["frames_used"]) == (2 if model == "text" else 5 + CLIPS.index(name))
    assert len({found[model]["a.mp4"]["score"] for model in MODELS}) == 3


def exported_in(home: Path) -> Any:
    from memcli.captioning.bundle import read_captioner

    return read_captioner(home / "captioners" / exported().name)


def test_resuming_captions_nothing_twice(memcli_home: Path, videos: Path) -> None:
    make_text_bundle(memcli_home)
    captioner = install_captioner(memcli_home)
    (videos / "c.mkv").rename(videos.parent / "later.mkv")
    code, first = run(videos, "tiny-text")
    assert code == ExitCode.OK
    (kept,) = captions_dir().iterdir()
    assert kept.name.startswith(captioner.hash)
    assert len(kept.read_text().splitlines()) == 2
    (videos.parent / "later.mkv").rename(videos / "c.mkv")
    code, whole = run(videos, "tiny-text")
    assert code == ExitCode.OK
    assert {name: whole[name] for name in first} == first
    assert whole["c.mkv"]["caption_source"] == "generated"
    assert len(kept.read_text().splitlines()) == 3
    expected = text_score([[whole["c.mkv"]["caption"]]])[0]
    assert float(whole["c.mkv"]["score"]) == pytest.approx(expected, abs=2e-6)
    break_captioner(captioner)
    assert run(videos, "tiny-text", "--no-resume")[1] == whole
    os.utime(videos / "a.mp4", ns=(1, 1))  # another file, as far as one can tell
    assert run(videos, "tiny-text")[0] == ExitCode.NOT_USABLE


def test_captions_do_not_depend_on_the_batch(memcli_home: Path, videos: Path) -> None:
    from memcli.caption_maker import CaptionMaker

    make_text_bundle(memcli_home)
    bundle = install_captioner(memcli_home)
    together = run(videos, "tiny-text")[1]
    for name in CLIPS:
        with CaptionMaker(bundle, device="cpu", threads=1) as maker:
            frames = maker.read(str(videos / name), None, None, lambda: False)
            (made,) = maker.make([frames], lambda: False)  # type: ignore[list-item]
        assert " ".join(made.text.split()) == made.text
        assert made.tokens > 0
        assert text_score([[made.text]])[0] == pytest.approx(
            float(together[name]["score"]), abs=2e-6
        )


def test_a_table_is_of_one_captioner(
    memcli_home: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_text_bundle(memcli_home)
    install_captioner(memcli_home)
    install_captioner(memcli_home, "other", question="What is this?")
    assert run(videos, "tiny-text")[0] == ExitCode.OK
    assert run(videos, "tiny-text", "--captioner", "500m")[0] == ExitCode.OK
    capsys.readouterr()
    assert run(videos, "tiny-text", "--captioner", "other")[0] == ExitCode.USAGE
    error = capsys.readouterr().err
    assert "captioner smolvlm2-500m" in error
    assert "this run's is other" in error
    assert "--captioner smolvlm2-500m" in error


def test_given_then_beside_then_generated(memcli_home: Path, videos: Path) -> None:
    make_text_bundle(memcli_home)
    install_captioner(memcli_home)
    (videos / "a.txt").write_text("beside a")
    (videos / "b.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nbeside b\n")
    (videos.parent / "c.csv").write_text("path,caption\na.mp4,given a\na.mp4,and again\n")
    code, rows = run(videos, "tiny-text", "--captions", videos.parent / "c.csv")
    assert code == ExitCode.OK
    assert {name: row["caption_source"] for name, row in rows.items()} == {
        "a.mp4": "given",
        "b.mp4": "sidecar",
        "c.mkv": "generated",
    }
    assert rows["a.mp4"]["caption"] == "given a | and again"
    assert rows["b.mp4"]["caption"] == "beside b"
    assert rows["b.mp4"]["duration_s"] == ""
    generated = run(videos, "tiny-text", "--captions", "generate", "--no-resume")[1]
    assert {row["caption_source"] for row in generated.values()} == {"generated"}
    assert generated["c.mkv"] == rows["c.mkv"]


def test_required_captions_are_asked_for_before_anything_is_opened(
    memcli_home: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_text_bundle(memcli_home)
    file = videos.parent / "c.csv"
    file.write_text("path,caption\na.mp4,given a\nz.mp4,nobody's\n")
    options = ("--captions", "require", "--captions", file)
    assert run(videos, "tiny-text", *options) == (ExitCode.USAGE, {})
    error = capsys.readouterr().err
    assert f"{file}: 2 videos have no caption: {videos}/b.mp4, {videos}/c.mkv; 1 name" in error
    assert "verifying" not in error
    file.write_text("path,caption\na.mp4,given a\n")
    (videos / "b.txt").write_text("beside b")
    (videos / "c.txt").write_text("beside c")
    code, rows = run(videos, "tiny-text", *options)
    assert code == ExitCode.OK
    assert [rows[name]["caption_source"] for name in CLIPS] == ["given", "sidecar", "sidecar"]


def test_a_captioner_that_does_not_compute_here_is_said_at_once(
    memcli_home: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_text_bundle(memcli_home)
    install_captioner(memcli_home, precision="fp16")
    for options in ([], ["--captioner", "500m"], ["--captioner", "smolvlm2-500m"]):
        assert run(videos, "tiny-text", "--device", "cpu", *options)[0] == ExitCode.NOT_USABLE
        error = capsys.readouterr().err
        assert "cpu does not compute what is installed: smolvlm2-500m (fp16)" in error
        assert "verifying" not in error


def test_a_file_beside_a_video_that_cannot_be_read_fails_that_video(
    memcli_home: Path, videos: Path
) -> None:
    make_text_bundle(memcli_home)
    install_captioner(memcli_home)
    (videos / "a.txt").write_bytes("a dog".encode("utf-16"))
    code, rows = run(videos, "tiny-text")
    assert code == ExitCode.SOME_INPUTS_FAILED
    assert (rows["a.mp4"]["error_code"], rows["b.mp4"]["status"]) == ("no-caption", "ok")
    assert "a.txt, is UTF-16, not UTF-8" in rows["a.mp4"]["error"]


def test_a_captioner_that_says_nothing(trained: Path, memcli_home: Path, videos: Path) -> None:
    """Scores rest on the frames alone where the model has such a score; else the row fails."""
    silent_captioner(memcli_home)
    (memcli_home / "bundles").mkdir()
    for model in MODELS:
        (memcli_home / "bundles" / model).symlink_to(trained / "bundles" / model)
    code, rows = run(videos, "late-fusion")
    assert code == ExitCode.OK
    for row in rows.values():
        assert (row["status"], row["caption"], row["caption_source"]) == ("partial", "", "none")
        assert (row["error_code"], row["error"]) == ("no-caption", "the captioner gave no caption")
        assert 0 < float(row["score"]) < 1
    without = run(videos, "late-fusion", "--captions", "none", "--no-resume")[1]
    for name, row in without.items():
        assert (row["status"], row["caption_source"]) == ("ok", "none")
        assert row["score"] == rows[name]["score"]
    code, rows = run(videos, "early-fusion")
    assert code == ExitCode.SOME_INPUTS_FAILED
    assert rows["a.mp4"]["error"] == (
        "the captioner gave no caption, and early-fusion gives no score from frames alone"
    )
    code, rows = run(videos, "text")
    assert {row["error"] for row in rows.values()} == {"the captioner gave no caption"}
    assert {row["error_code"] for row in rows.values()} == {"no-caption"}


def test_a_captioner_that_repeats_itself(memcli_home: Path, videos: Path) -> None:
    make_text_bundle(memcli_home)
    install_captioner(memcli_home)
    assert run(videos, "tiny-text")[0] == ExitCode.OK
    (kept,) = captions_dir().iterdir()
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    changed = [{**line, "text": "so so so", "looping": True} for line in lines]
    kept.write_text("".join(json.dumps(line) + "\n" for line in changed))
    code, rows = run(videos, "tiny-text", "--no-resume")
    assert code == ExitCode.SOME_INPUTS_FAILED
    assert {row["error"] for row in rows.values()} == {"the captioner repeated itself: so so so"}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], ExitCode.NOT_USABLE, "memcli export captioner"),
        ([], ExitCode.NOT_USABLE, "--captions FILE, or clip.txt beside clip.mp4"),
        (["--captions", "generate"], ExitCode.NOT_USABLE, "no captioner is installed"),
        (["--captioner", "256m"], ExitCode.NOT_USABLE, "there is no captioner '256m' here"),
        (["--captions", "Generate"], ExitCode.USAGE, "Modes: prefer, require, generate, none"),
        (["--captions", "."], ExitCode.USAGE, "this is a folder, no file of captions"),
        (["--captions", "o.csv"], ExitCode.USAGE, "none of its 2 names fits a video of this run"),
        (["--captions", "none"], ExitCode.USAGE, "tiny-text sees captions only"),
        (["--captions", "none", "--captions", "require"], ExitCode.USAGE, "is both none and req"),
        (["--captions", "a.csv", "--captions", "b.csv"], ExitCode.USAGE, "names two files"),
        (["--captions", "a.csv", "--captions", "generate"], ExitCode.USAGE, "reads no file"),
        (["--captions", "require", "--captioner", "x"], ExitCode.USAGE, "uses no captioner"),
    ],
)
def test_bad_requests(
    memcli_home: Path,
    originals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: ExitCode,
    message: str,
) -> None:
    make_text_bundle(memcli_home)
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("path,caption\na.mp4,a dog\n")
    Path("o.csv").write_text("path,caption\nx.mp4,a dog\ny.mp4,a cat\n")
    found = run(originals, "tiny-text", *options, output=tmp_path / "t.csv")
    assert found == (code, {})
    assert message in capsys.readouterr().err


def test_no_captions_for_a_model_that_needs_them(
    memcli_home: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_text_bundle(memcli_home, frames=True)
    assert run(videos, "tiny-fusion", "--captions", "none")[0] == ExitCode.USAGE
    assert "tiny-fusion gives no score from frames alone" in capsys.readouterr().err
    make_tiny_bundle(memcli_home)
    assert run(videos, "tiny", "--captions", "none")[0] == ExitCode.OK
    for options in (["--captions", "generate"], ["--captioner", "500m"]):
        assert run(videos, "tiny", *options)[0] == ExitCode.USAGE
        assert "tiny reads no captions" in capsys.readouterr().err


def test_some_captions_beside_videos_and_no_captioner(memcli_home: Path, videos: Path) -> None:
    make_text_bundle(memcli_home)
    (videos / "b.txt").write_text("beside b")
    code, rows = run(videos, "tiny-text")
    assert code == ExitCode.SOME_INPUTS_FAILED
    assert rows["b.mp4"]["status"] == "ok"
    assert rows["a.mp4"]["error"] == "no caption beside it, and no captioner to make one"


def test_the_api_makes_captions_too(memcli_home: Path, videos: Path) -> None:
    make_text_bundle(memcli_home, frames=True)
    with pytest.raises(ModelError, match="no captioner is installed"):
        next(score(videos, model="tiny-fusion", engine="onnxruntime"))
    with pytest.raises(ModelError, match="no captioner"):
        next(score(videos, model="tiny-fusion", captioner="absent"))
    install_captioner(memcli_home)
    rows = list(score(videos, model="tiny-fusion", engine="onnxruntime", threads=1))
    assert {row.caption_source for row in rows} == {"generated"}
    with pytest.raises(UsageError, match="no way to get captions"):
        next(score(videos, model="tiny-fusion", caption_mode="some"))  # type: ignore[arg-type]


def test_damaged_videos_are_marked(memcli_home: Path, videos: Path) -> None:
    make_text_bundle(memcli_home)
    install_captioner(memcli_home)
    whole = make_video(videos / "d.mkv", frames=40).read_bytes()
    (videos / "d.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    for _ in range(2):  # made, then kept
        code, rows = run(videos, "tiny-text", "--no-resume")
        assert code == ExitCode.OK
        assert (rows["d.mkv"]["status"], rows["d.mkv"]["error_code"]) == ("partial", "damaged")
        assert rows["d.mkv"]["decoder"] == "cpu"
