"""`memcli score` as a user sees it, on a tiny real bundle."""

import json
import os
from pathlib import Path

import pytest
from cli import memcli, memcli_here, table
from media import make_video
from tiny_bundle import make_tiny_bundle

from memcli.errors import ExitCode
from memcli.results import COLUMNS

TINY = ("--model", "tiny", "--engine", "onnxruntime")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, frames in (("a.mp4", 8), ("b.mp4", 12), ("sub/c.mkv", 5)):
        (folder / name).parent.mkdir(exist_ok=True)
        make_video(folder / name, frames=frames)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video at all\n" * 100)
    return folder


@pytest.fixture(autouse=True)
def bundle(memcli_home: Path) -> None:
    make_tiny_bundle(memcli_home)


def test_a_folder_gets_a_table_and_a_summary(clips: Path, tmp_path: Path) -> None:
    done = memcli_here("score", clips, *TINY, cwd=tmp_path)
    assert done.returncode == ExitCode.SOME_INPUTS_FAILED, done.stderr
    rows = table(tmp_path / "scores.csv")
    assert [Path(row["path"]).name for row in rows] == [
        "a.mp4",
        "b.mp4",
        "empty.mp4",
        "c.mkv",
        "text.mp4",
    ]
    good = [row for row in rows if row["status"] == "ok"]
    assert len(good) == 3
    assert all(0 < float(row["score"]) < 1 for row in good)
    assert {row["weights_license"] for row in rows} == {"test licence"}
    assert {row["error_code"] for row in rows if row["status"] == "failed"} == {
        "empty",
        "not-media",
    }
    assert "a.mp4" in done.stdout
    assert "3 videos scored, 2 failed" in done.stderr
    assert "bottleneck: " in done.stderr
    assert "empty.mp4: " in done.stderr
    assert "test licence" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_formats_agree(clips: Path, tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / f"t.{suffix}"
    done = memcli_here("score", clips / "a.mp4", *TINY, "--curve", "-o", output, cwd=tmp_path)
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stdout == ""
    if suffix == "csv":
        (row,) = table(output)
        points = (tmp_path / "t.curve.csv").read_text().splitlines()[1:]
        scores = [float(point.split(",")[-1]) for point in points]
    elif suffix == "jsonl":
        row = json.loads(output.read_text())
        scores = row["frame_scores"]
        assert row["frame_times_s"] == sorted(row["frame_times_s"])
    else:
        import pyarrow.parquet

        (row,) = pyarrow.parquet.read_table(output).to_pylist()
        scores = row["frame_scores"]
    assert set(COLUMNS) - set(row) <= {"decode_ms", "infer_ms"}
    assert len(scores) == 4
    assert float(row["score"]) == pytest.approx(sum(scores) / 4, abs=2e-6)


def test_scores_do_not_depend_on_workers_batches_or_threads(clips: Path, tmp_path: Path) -> None:
    tables = []
    for number, options in enumerate(
        (["--workers", "1"], ["--workers", "4", "--batch-size", "3"], ["--threads", "1"])
    ):
        output = tmp_path / f"{number}.csv"
        memcli_here("score", clips, *TINY, *options, "-o", output, cwd=tmp_path)
        tables.append(table(output))
    assert tables[0] == tables[1] == tables[2]


def test_resume_scores_nothing_twice_and_keeps_failures(clips: Path, tmp_path: Path) -> None:
    first = memcli_here("score", clips, *TINY, cwd=tmp_path)
    before = (tmp_path / "scores.csv").read_bytes()
    again = memcli_here("score", clips, *TINY, cwd=tmp_path)
    assert first.returncode == again.returncode == ExitCode.SOME_INPUTS_FAILED
    assert (tmp_path / "scores.csv").read_bytes() == before
    assert "0 videos scored" in again.stderr
    assert "5 videos already in scores.csv (2 of them failed)" in again.stderr


def test_retry_failed_takes_failures_only(clips: Path, tmp_path: Path) -> None:
    broken = tmp_path / "in" / "x.mp4"
    broken.parent.mkdir()
    broken.write_bytes(b"")
    good = make_video(tmp_path / "in" / "y.mp4", frames=4)
    memcli_here("score", "in", *TINY, cwd=tmp_path)
    status = broken.stat()
    broken.write_bytes(good.read_bytes())
    retried = memcli_here("score", "in", *TINY, "--retry-failed", "--json", cwd=tmp_path)
    assert retried.returncode == ExitCode.OK
    summary = json.loads(retried.stderr.splitlines()[-1])
    assert (summary["ok"], summary["resumed"]) == (1, 1)
    assert status.st_mtime_ns != broken.stat().st_mtime_ns


def test_a_changed_file_is_scored_again(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "x.mp4", frames=4)
    memcli_here("score", clip, *TINY, cwd=tmp_path)
    (first,) = table(tmp_path / "scores.csv")
    make_video(clip, frames=9, image=lambda *_: __import__("numpy").full((64, 96, 3), 200, "u1"))
    memcli_here("score", clip, *TINY, cwd=tmp_path)
    (second,) = table(tmp_path / "scores.csv")
    assert first["score"] != second["score"]


def test_other_settings_do_not_touch_a_table(clips: Path, tmp_path: Path) -> None:
    memcli_here("score", clips / "a.mp4", *TINY, cwd=tmp_path)
    before = (tmp_path / "scores.csv").read_bytes()
    done = memcli_here("score", clips / "a.mp4", *TINY, "--frames", "7", cwd=tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert "frames 4; this run has frames 7" in done.stderr
    assert (tmp_path / "scores.csv").read_bytes() == before
    done = memcli_here(
        "score", clips / "a.mp4", *TINY, "--frames", "7", "--no-resume", cwd=tmp_path
    )
    assert done.returncode == ExitCode.OK


def test_on_error_fail_stops_but_keeps_what_is_done(clips: Path, tmp_path: Path) -> None:
    paths = [clips / "empty.mp4", *[clips / "a.mp4"]]
    done = memcli_here("score", *paths, *TINY, "--on-error", "fail", "--workers", "1", cwd=tmp_path)
    assert done.returncode == ExitCode.SOME_INPUTS_FAILED
    assert "empty.mp4" in {Path(row["path"]).name for row in table(tmp_path / "scores.csv")}


def test_json_is_json_only(clips: Path, tmp_path: Path) -> None:
    done = memcli_here("score", clips, *TINY, "--json", cwd=tmp_path)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {"begin", "failed", "summary"} <= {event["event"] for event in events}
    assert events[-1]["event"] == "summary"
    assert events[-1]["exit_code"] == done.returncode == 1
    assert done.stdout == ""
    missing = memcli_here("score", "absent", *TINY, "--json", cwd=tmp_path)
    (error,) = [json.loads(line) for line in missing.stderr.splitlines()]
    assert (error["event"], error["exit_code"]) == ("error", 2)


def test_quiet_says_nothing(clips: Path, tmp_path: Path) -> None:
    done = memcli_here("score", clips / "a.mp4", *TINY, "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_shards_make_the_whole(clips: Path, tmp_path: Path) -> None:
    parts = []
    for number in (1, 2):
        memcli_here("score", clips, *TINY, "--shard", f"{number}/2", cwd=tmp_path)
        parts += table(tmp_path / f"scores.{number}-of-2.csv")
    memcli_here("score", clips, *TINY, cwd=tmp_path)
    assert sorted(row["path"] for row in parts) == sorted(
        row["path"] for row in table(tmp_path / "scores.csv")
    )


def test_hostile_names(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/in/"
    names = [
        b"two\nlines.mp4",
        b"\"quotes\" 'n' , commas.mp4",
        b"caf\xe9.mp4",
        b"\x1b[31mred\x1b[0m.mp4",
        b"-o.mp4",
        b"=HYPERLINK(1).mp4",
        b"%03d.mp4",
        b"http:clip.mp4",
        b"[bold]rich.mp4",
    ]
    Path(os.fsdecode(folder)).mkdir()
    source = make_video(tmp_path / "plain.mp4", frames=4).read_bytes()
    for name in names:
        Path(os.fsdecode(folder + name)).write_bytes(source)
    done = memcli("score", ".", *TINY, "-o", "../t.jsonl", cwd=Path(os.fsdecode(folder)))
    assert done.returncode == ExitCode.OK, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert {os.fsencode(row["path"]) for row in rows} == {b"./" + name for name in names}
    assert len({row["score"] for row in rows}) == 1
    shown = memcli("score", ".", *TINY, cwd=Path(os.fsdecode(folder)))
    assert "\x1b" not in shown.stdout + shown.stderr
    assert "\\x1b[31mred" in shown.stdout


def test_paths_from_standard_input(clips: Path, tmp_path: Path) -> None:
    listed = b"\0".join(os.fsencode(clips / name) for name in ("a.mp4", "absent.mp4"))
    done = memcli("score", "-", *TINY, cwd=tmp_path, stdin=listed)
    assert done.returncode == ExitCode.SOME_INPUTS_FAILED
    assert [row["error_code"] for row in table(tmp_path / "scores.csv")] == ["", "missing"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["score", "absent", "--model", "tiny"], 2, "no such file or folder"),
        (["score", ".", "--model", "tiny"], 2, "no video found"),
        (["score", "x.mp4", "--model", "tinyy"], 3, "no model called 'tinyy'"),
        (["score"], 2, "Missing argument"),
        (["scroe"], 2, "Did you mean 'score'?"),
        (["score", ".", "--model", "tiny", "--shard", "3/2"], 2, "not a shard"),
        (["score", "x.mp4", "--model", "tiny", "-o", "t.xls"], 2, "unknown table format"),
        (["score", "x.mp4", "--model", "tiny", "-o", "no/t.csv"], 2, "cannot be written"),
        (["score", "x.mp4", "--model", "tiny", "--frames", "100000"], 2, "frames per video"),
        (["score", "x.mp4", "--model", "tiny", "--device", "cuda"], 3, "CUDA"),
        (["score", "x.mp4", "--model", "tiny", "--device", "gpu"], 2, "no device 'gpu'"),
        (["score", "x.mp4", "--model", "tiny", "--engine", "tensorrt"], 3, "TensorRT"),
        (["score", "x.mp4", "--model", "tiny", "--precision", "int8"], 3, "memcli export"),
        (["score", "x.mp4", "--model", "resmem", "--offline"], 3, "pull resmem --from"),
        (["score", "x.mp4", "--model", "./nowhere"], 2, "no such bundle"),
        (["models", "rm", "absent"], 2, "no model called"),
        (["models", "show", "resnem"], 2, "did you mean 'resmem'"),
    ],
)
def test_bad_requests_are_one_clear_line(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    if "x.mp4" in arguments:
        make_video(tmp_path / "x.mp4", frames=2)
    done = memcli(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr.lower()
    assert not list(tmp_path.glob("*.csv"))


def test_special_files_get_rows(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "folder.mp4").mkdir(parents=True)
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    done = memcli("score", folder, *TINY, "--file-timeout", "20", cwd=tmp_path)
    assert done.returncode == ExitCode.SOME_INPUTS_FAILED
    codes = {Path(row["path"]).name: row["error_code"] for row in table(tmp_path / "scores.csv")}
    assert codes["folder.mp4"] == codes["pipe.mp4"] == "not-a-file"
    assert codes["dangling.mp4"] == "missing"
    assert set(codes) == {"folder.mp4", "pipe.mp4", "loop.mp4", "dangling.mp4"}


def test_a_damaged_bundle_is_refused(memcli_home: Path, clips: Path, tmp_path: Path) -> None:
    graph = memcli_home / "bundles" / "tiny" / "fp32" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    done = memcli_here("score", clips, *TINY, cwd=tmp_path)
    assert done.returncode == ExitCode.NOT_USABLE
    assert "SHA-256" in done.stderr


def test_python_api(clips: Path) -> None:
    from memcli import score

    rows = {Path(row.path).name: row for row in score([clips], model="tiny", curve=True)}
    assert len(rows) == 5
    assert rows["a.mp4"].status == "ok"
    assert rows["a.mp4"].frame_scores is not None
    assert rows["empty.mp4"].error_code == "empty"
