"""`memcli eeg` as a user sees it, on a tiny real bundle and recordings with known voltages."""

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import memcli, without, without_torch
from tiny_bundle import make_tiny_bundle
from tiny_eeg import (
    RATE_HZ,
    SPACING_S,
    TINY_EEG,
    make_eeg_bundle,
    make_recording,
    tiny_scores,
)

from memcli import app
from memcli.errors import ExitCode
from memcli.recognition.rows import DEMONSTRATION, EPOCHS, MEASURED_COLUMNS

pytest.importorskip("mne")
Eeg = Callable[..., "Done"]
TINY = ("--model", "tiny-eeg", "--engine", "onnxruntime")
LEVELS = (-40.0, 0.0, 60.0)


@dataclass
class Done:
    """What became of a command."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def eeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Eeg:
    """Runs `memcli eeg` in this process, which is much quicker than in one of its own."""

    def run(*arguments: str | os.PathLike[str], cwd: Path = tmp_path) -> Done:
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        code = app.run(["eeg", *map(os.fspath, arguments)])
        return Done(code, *capfd.readouterr())

    return run


def rows_of(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if k not in MEASURED_COLUMNS} for row in rows]


def expected(data: np.ndarray, epochs: int) -> np.ndarray:
    """Probabilities of the epochs of a recording of `make_recording`."""
    step, samples = round(SPACING_S * RATE_HZ), TINY_EEG.samples
    eeg = np.stack([data[:, n * step : n * step + samples] for n in range(1, epochs + 1)])
    return tiny_scores(eeg, np.full(epochs, samples))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings, three broken ones and a text."""
    top = tmp_path_factory.mktemp("recordings")
    (top / "sub").mkdir()
    make_recording(top / "a_raw.fif", LEVELS)
    make_recording(top / "sub/b_raw.fif", (5.0, 10.0), seed=1)
    whole = (top / "a_raw.fif").read_bytes()
    (top / "cut_raw.fif").write_bytes(whole[: len(whole) // 3])
    (top / "empty.edf").write_bytes(b"")
    (top / "text_raw.fif").write_text("no recording at all\n" * 50)
    (top / "readme.txt").write_text("not meant")
    return top


@pytest.fixture(scope="module")
def recording(folder: Path) -> Path:
    return folder / "a_raw.fif"


@pytest.fixture(autouse=True)
def bundle(memcli_home: Path) -> None:
    make_eeg_bundle(memcli_home)


def test_a_folder_gets_a_table_and_a_summary_without_torch(folder: Path, tmp_path: Path) -> None:
    """The whole road, in a process that can import neither torch nor transformers."""
    out = tmp_path / "out"
    out.mkdir()
    done = memcli("eeg", folder, *TINY, cwd=out, **without_torch(tmp_path / "site"))
    assert done.returncode == ExitCode.SOME_INPUTS_FAILED, done.stderr
    rows = rows_of(out / "recognition.csv")
    scored = [row for row in rows if row["status"] == "ok"]
    assert [(Path(r["path"]).name, r["epoch"]) for r in scored] == [
        ("a_raw.fif", "0"),
        ("a_raw.fif", "1"),
        ("a_raw.fif", "2"),
        ("b_raw.fif", "0"),
        ("b_raw.fif", "1"),
    ]
    assert [float(r["onset_s"]) for r in scored] == pytest.approx([3, 6, 9, 3, 6])
    assert {r["event"] for r in scored} == {"clip"}
    failed = {Path(r["path"]).name: r["error_code"] for r in rows if r["status"] == "failed"}
    assert set(failed) == {"cut_raw.fif", "empty.edf", "text_raw.fif"}
    assert all(failed.values())
    assert "5 epochs of 2 recordings scored, 3 recordings failed" in done.stderr
    assert "empty.edf: " in done.stderr
    assert "bottleneck: " in done.stderr
    assert "a_raw.fif" in done.stdout
    assert "Traceback" not in done.stderr
    assert DEMONSTRATION not in done.stdout + done.stderr


def test_probabilities_are_those_of_the_voltages(tmp_path: Path, eeg: Eeg) -> None:
    data = make_recording(tmp_path / "x_raw.fif", LEVELS)
    done = eeg("x_raw.fif", *TINY, "-o", "t.jsonl")
    assert done.returncode == ExitCode.OK, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    wanted = expected(data, 3)
    assert [row["probability"] for row in rows] == pytest.approx(wanted, abs=2e-6)
    assert [row["recognised"] for row in rows] == [False, wanted[1] >= 0.5, True]
    for row in rows:
        assert len(row["contributions"]) == TINY_EEG.windows
        logit = sum(row["contributions"])
        assert 1 / (1 + np.exp(-logit)) == pytest.approx(row["probability"], abs=1e-5)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_formats_agree(recording: Path, tmp_path: Path, suffix: str, eeg: Eeg) -> None:
    output = tmp_path / f"t.{suffix}"
    done = eeg(recording, *TINY, "--threshold", "0.6", "-o", output)
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stdout == ""
    if suffix == "csv":
        rows = rows_of(output)
        assert set(rows[0]) == set(EPOCHS.columns) - set(MEASURED_COLUMNS)
    elif suffix == "jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert list(rows[0]) == [*EPOCHS.columns, "contributions"]
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        read = parquet.read_table(output)
        assert read.column_names == [*EPOCHS.columns, "contributions"]
        kinds = {name: str(read.schema.field(name).type) for name in read.column_names}
        assert kinds["recognised"] == "bool"
        assert kinds["epoch"] == kinds["label"] == "int64"
        assert kinds["onset_s"] == kinds["probability"] == "double"
        rows = read.to_pylist()
    assert [float(r["probability"]) > 0.6 for r in rows] == [False, False, True]
    assert [str(r["recognised"]) for r in rows] == ["False", "False", "True"]


def test_bad_epochs_are_flagged_or_left_out(tmp_path: Path, eeg: Eeg) -> None:
    import mne

    make_recording(tmp_path / "x_raw.fif", LEVELS)
    raw = mne.io.read_raw_fif(tmp_path / "x_raw.fif", preload=True, verbose="error")
    raw.annotations.append(6.5, 0.5, "BAD_blink")
    raw.save(tmp_path / "x_raw.fif", overwrite=True, fmt="double", verbose="error")
    assert eeg("x_raw.fif", *TINY).returncode == ExitCode.OK
    rows = rows_of(tmp_path / "recognition.csv")
    assert [row["flags"] for row in rows] == ["", "bad-annotation", ""]
    done = eeg("x_raw.fif", *TINY, "--on-bad", "skip", "-o", "t.csv")
    assert [row["epoch"] for row in rows_of(tmp_path / "t.csv")] == ["0", "2"]
    assert "left out: 1 epoch," in done.stderr


def test_results_do_not_depend_on_readers_or_batches(
    folder: Path, tmp_path: Path, eeg: Eeg
) -> None:
    tables = []
    for number, options in enumerate((["--readers", "1"], ["--readers", "3", "--batch-size", "2"])):
        output = tmp_path / f"{number}.csv"
        eeg(folder, *TINY, *options, "-o", output)
        tables.append(rows_of(output))
    assert tables[0] == tables[1]


def test_resume_scores_nothing_twice(folder: Path, tmp_path: Path, eeg: Eeg) -> None:
    first = eeg(folder, *TINY)
    before = (tmp_path / "recognition.csv").read_bytes()
    again = eeg(folder, *TINY)
    assert first.returncode == again.returncode == ExitCode.SOME_INPUTS_FAILED
    assert (tmp_path / "recognition.csv").read_bytes() == before
    assert "nothing left to score: the table has all" in again.stderr
    assert "5 recordings already in recognition.csv (3 of them failed)" in again.stderr


def test_a_changed_recording_is_scored_again_and_others_settings_refused(
    tmp_path: Path, eeg: Eeg
) -> None:
    make_recording(tmp_path / "x_raw.fif", (0.0, 0.0, 0.0))
    assert eeg("x_raw.fif", *TINY).returncode == 0
    data = make_recording(tmp_path / "x_raw.fif", (90.0, 30.0), seed=3)
    assert eeg("x_raw.fif", *TINY).returncode == 0
    rows = rows_of(tmp_path / "recognition.csv")
    assert [float(r["probability"]) for r in rows] == pytest.approx(expected(data, 2), abs=2e-6)
    other = eeg("x_raw.fif", *TINY, "--threshold", "0.7")
    assert other.returncode == ExitCode.USAGE
    assert "threshold 0.5; this run has threshold 0.7" in other.stderr


def test_retry_failed_and_on_error(tmp_path: Path, eeg: Eeg) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "a_raw.fif").write_bytes(b"")
    make_recording(inputs / "b_raw.fif")
    stopped = eeg("in", *TINY, "--on-error", "fail", "--readers", "1")
    assert stopped.returncode == ExitCode.SOME_INPUTS_FAILED
    table = rows_of(tmp_path / "recognition.csv")
    assert Path(table[0]["path"]).name == "a_raw.fif"
    make_recording(inputs / "a_raw.fif", seed=2)
    os.utime(inputs / "a_raw.fif", ns=(1, 1))
    done = eeg("in", *TINY, "--retry-failed", "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    assert len(rows_of(tmp_path / "recognition.csv")) == 6


def test_demonstrations_say_so_everywhere(
    memcli_home: Path, recording: Path, tmp_path: Path, eeg: Eeg
) -> None:
    make_eeg_bundle(memcli_home, demonstration=True, name="demo")
    demo = ("--model", "demo", "--engine", "onnxruntime")
    done = eeg(recording, *demo, "--report", "r.html")
    assert done.returncode == ExitCode.OK, done.stderr
    assert done.stderr.count(DEMONSTRATION) == 2  # before and after
    assert {row["note"] for row in rows_of(tmp_path / "recognition.csv")} == {DEMONSTRATION}
    assert DEMONSTRATION in (tmp_path / "r.html").read_text(encoding="utf-8")
    told = eeg(recording, *demo, "--json", "-o", "t.csv")
    events = [json.loads(line) for line in told.stderr.splitlines()]
    assert events[-1]["note"] == DEMONSTRATION
    info = eeg("--info", recording, *demo)
    assert DEMONSTRATION in info.stdout


def test_labels_make_rates_in_the_report(recording: Path, tmp_path: Path, eeg: Eeg) -> None:
    onsets = "onset_s,label\n3.0,0\n6.0,1\n9.0,1\n"
    (tmp_path / "onsets.csv").write_text(onsets)
    options = ("--onsets", "onsets.csv", "--report", "r.html")
    done = eeg(recording, *TINY, *options)
    assert done.returncode == ExitCode.OK, done.stderr
    assert [row["label"] for row in rows_of(tmp_path / "recognition.csv")] == ["0", "1", "1"]
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "AUROC" in page
    assert "balanced accuracy" in page
    assert f"report: {Path('r.html')}" in done.stderr


def save_epochs(path: Path, **told: Any) -> None:
    data = np.random.default_rng(0).normal(0, 10, (2, len(TINY_EEG.channels), TINY_EEG.samples))
    np.savez(path, data=data, sfreq=RATE_HZ, ch_names=list(TINY_EEG.channels), **told)


def test_long_names_are_cut_and_end_no_run(tmp_path: Path, eeg: Eeg) -> None:
    """Readers of CSV take no cell of more than 131,072 characters."""
    long = "x" * 200_000
    save_epochs(tmp_path / "a.npz", event=np.array([long, "b"]), subject=np.array(["s", long]))
    done = eeg("a.npz", *TINY, "--event", ".")
    assert done.returncode == ExitCode.OK, done.stderr
    first, second = rows_of(tmp_path / "recognition.csv")
    cut = "x" * 199 + "…"
    assert [first["event"], second["subject"]] == [cut, cut]
    assert first["onset_s"] == second["onset_s"] == ""  # the file does not say
    failed = eeg("a.npz", *TINY, "--event", "none", "-o", "t.csv")
    assert failed.returncode == ExitCode.SOME_INPUTS_FAILED
    assert len(rows_of(tmp_path / "t.csv")[0]["error"]) < 1000


def test_existing_epochs_do_not_end_a_run_with_onsets(tmp_path: Path, eeg: Eeg) -> None:
    (tmp_path / "in").mkdir()
    make_recording(tmp_path / "in/b_raw.fif")
    save_epochs(tmp_path / "in/a.npz")
    (tmp_path / "onsets.csv").write_text("onset_s\n3.0\n6.0\n")
    done = eeg("in", *TINY, "--onsets", "onsets.csv", "--readers", "1")
    assert done.returncode == ExitCode.SOME_INPUTS_FAILED, done.stderr
    rows = rows_of(tmp_path / "recognition.csv")
    assert [row["error_code"] for row in rows] == ["onsets", "", ""]
    assert "no place for other onsets" in rows[0]["error"]


def test_events_that_are_not_taken_by_default_are_listed(tmp_path: Path, eeg: Eeg) -> None:
    make_recording(tmp_path / "x_raw.fif", event="Comment/clip")
    done = eeg("--info", "x_raw.fif", *TINY)
    assert "not taken by default (name them with --event)\n         3  Comment/clip" in done.stdout


def test_rows_of_onsets_for_nobody_are_told(tmp_path: Path, eeg: Eeg) -> None:
    make_recording(tmp_path / "x_raw.fif")
    (tmp_path / "onsets.csv").write_text("onset_s,file\n3.0,x_raw.fif\n6.0,y_raw.fif\n")
    done = eeg("x_raw.fif", *TINY, "--onsets", "onsets.csv")
    assert done.returncode == ExitCode.OK, done.stderr
    assert "onsets.csv: 1 row of no recording that was named, the first in line 3" in done.stderr


def test_a_table_beside_its_recording_is_resumed(tmp_path: Path, eeg: Eeg) -> None:
    make_recording(tmp_path / "x_raw.fif")
    for _ in range(2):
        done = eeg("x_raw.fif", *TINY, "-o", "x_raw.csv")
        assert done.returncode == ExitCode.OK, done.stderr
    assert "1 recording already in x_raw.csv" in done.stderr


def test_recognised_is_what_the_table_shows(tmp_path: Path, eeg: Eeg) -> None:
    """A score just below a threshold of six digits is rounded up to it."""
    make_recording(tmp_path / "x_raw.fif", (20.0,))
    assert eeg("x_raw.fif", *TINY, "-o", "t.csv").returncode == ExitCode.OK
    shown = rows_of(tmp_path / "t.csv")[0]["probability"]
    for threshold in (shown, f"{float(shown) - 1e-7:.7f}", f"{float(shown) + 1e-7:.7f}"):
        done = eeg("x_raw.fif", *TINY, "--threshold", threshold, "--no-resume", "-o", "u.csv")
        assert done.returncode == ExitCode.OK, done.stderr
        (row,) = rows_of(tmp_path / "u.csv")
        assert row["probability"] == shown
        assert (row["recognised"] == "True") is (float(shown) >= float(threshold))


def test_json_is_json_only_and_quiet_is_quiet(folder: Path, tmp_path: Path, eeg: Eeg) -> None:
    done = memcli("eeg", folder, *TINY, "--json", cwd=tmp_path)  # pytest makes MNE log
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {"begin", "failed", "summary"} <= {event["event"] for event in events}
    summary = events[-1]
    assert (summary["epochs"], summary["ok"], summary["failed"]) == (5, 2, 3)
    assert summary["exit_code"] == done.returncode == 1
    assert done.stdout == ""
    quiet = eeg(folder / "a_raw.fif", *TINY, "-q", "-o", "q.csv")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_hostile_names(tmp_path: Path, eeg: Eeg) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    event = "=cmd|' /C calc'!A0 <script>alert(1)</script>"
    names = [b"two\nlines_raw.fif", b"\x1b[31mred_raw.fif", b"=SUM(1)_raw.fif", b"caf\xe9_raw.fif"]
    names += [b"<img src=x onerror=alert(1)>_raw.fif", b"[bold]rich_raw.fif"]
    make_recording(tmp_path / "plain_raw.fif", event=event)
    content = (tmp_path / "plain_raw.fif").read_bytes()
    for name in names:
        Path(os.fsdecode(os.fsencode(inputs) + b"/" + name)).write_bytes(content)
    done = eeg(".", *TINY, "-o", "../t.csv", "--report", "../r.html", cwd=inputs)
    assert done.returncode == ExitCode.OK, done.stderr
    rows = rows_of(tmp_path / "t.csv")
    assert len(rows) == 3 * len(names)
    assert {row["event"] for row in rows} == {f"'{event}"}
    text = (tmp_path / "t.csv").read_text(encoding="utf-8")
    assert "\x1b" not in text
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    shown = eeg(".", *TINY, "-o", "../u.csv", cwd=inputs)
    again = eeg(".", *TINY, cwd=inputs)
    assert "\x1b" not in shown.stderr + again.stdout + again.stderr
    assert "\\x1b[31mred" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["absent"], 2, "absent"),
        (["x_raw.fif", "--model", "resmem"], 2, "resmem is a model for videos"),
        (["x_raw.fif", "--model", "tiny"], 2, "tiny is a model for videos"),
        (["x_raw.fif"], 3, "eeg-cnn"),
        (["x_raw.fif", "--model", "eeg-cnm"], 3, "eeg-cnm"),
        (["x_raw.fif", "--model", "./nowhere"], 2, "no such bundle"),
        (["x_raw.fif", *TINY, "-o", "t.xls"], 2, "unknown table format"),
        (["x_raw.fif", *TINY, "-o", "no/t.csv"], 2, "cannot be written"),
        (["x_raw.fif", *TINY, "--report", "r.pdf"], 2, "a report is an .html file"),
        (["x_raw.fif", *TINY, "--report", "no/r.html"], 2, "no report can be written"),
        (["x_raw.fif", *TINY, "--threshold", "1.5"], 2, "1.5"),
        (["x_raw.fif", *TINY, "--onsets", "absent.csv"], 2, "absent.csv"),
        (["x_raw.fif", *TINY, "--onsets", "broken.tab"], 2, "line 2: 'soon' is no onset"),
        (["x_raw.fif", *TINY, "--onsets", "broken.tab", "--info"], 2, "'soon' is no onset"),
        (["x_raw.fif", *TINY, "--montage", "bald"], 2, "unknown montage 'bald'"),
        (["x_raw.fif", *TINY, "--event", ""], 2, "would match all"),
        (["x_raw.fif", *TINY, "--channel-names", "A,,B"], 2, "not the names of channels"),
        (["x_raw.fif", *TINY, "--no-resume", "--retry-failed"], 2, "--no-resume discards"),
        (["x_raw.fif", *TINY, "--info", "--report", "r.html"], 2, "--info writes no table"),
        (["x_raw.fif", "--model", "tiny-eeg", "--precision", "int8"], 3, "memcli export"),
        (["x_raw.fif", "--model", "tiny-eeg", "--device", "cuda"], 3, "CUDA"),
        (["x_raw.fif", *TINY, "--event", "no such event"], 1, "clip"),
        (["x_raw.fif", *TINY, "--event", "("], 2, "("),
    ],
)
def test_bad_requests_are_one_clear_line(
    memcli_home: Path,
    recording: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    message: str,
    eeg: Eeg,
) -> None:
    make_tiny_bundle(memcli_home)
    (tmp_path / "x_raw.fif").write_bytes(recording.read_bytes())
    (tmp_path / "broken.tab").write_text("onset_s\nsoon\n")
    done = eeg(*arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if code != 1:
        assert "error: " in done.stderr.lower()
        assert not list(tmp_path.glob("*.csv"))


def test_without_mne_the_extra_is_named(recording: Path, tmp_path: Path) -> None:
    done = memcli("eeg", recording, *TINY, cwd=tmp_path, **without(tmp_path / "site", "mne"))
    assert done.returncode == ExitCode.NOT_USABLE
    assert "reading EEG needs mne" in done.stderr
    assert "pip install 'memcli[eeg]'" in done.stderr


def test_info(folder: Path, tmp_path: Path, eeg: Eeg) -> None:
    done = eeg("--info", folder, "--model", "tiny-eeg")
    assert done.returncode == ExitCode.SOME_INPUTS_FAILED
    assert "channels   4 eeg" in done.stdout
    assert "     3  clip" in done.stdout
    assert "tiny-eeg fits: 3 epochs" in done.stdout
    assert "empty.edf: " in done.stdout
    assert list(tmp_path.iterdir()) == []
    words = ("eeg", "--info", folder, "--model", "tiny-eeg", "--json")
    as_json = memcli(*words, cwd=tmp_path)  # pytest makes MNE log
    entries = [json.loads(line) for line in as_json.stdout.splitlines()]
    good = next(one for one in entries if one["path"].endswith("a_raw.fif"))
    assert good["events"] == [["clip", 3]]
    assert good["model"]["epochs"] == 3
    assert sum("error" in one for one in entries) == 3


def test_info_without_a_model_and_with_one_that_does_not_fit(
    memcli_home: Path, recording: Path, tmp_path: Path, eeg: Eeg
) -> None:
    done = eeg("--info", recording)
    assert done.returncode == ExitCode.OK, done.stderr
    assert "eeg-cnn not checked" in done.stdout
    other = type(TINY_EEG)(channels=("Fz", "T7"), duration_s=2.0)
    make_eeg_bundle(memcli_home, prep=other, name="other")
    done = eeg("--info", recording, "--model", "other")
    assert done.returncode == ExitCode.OK
    assert "other does not fit: " in done.stdout
    assert "T7" in done.stdout
