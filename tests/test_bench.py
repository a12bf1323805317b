"""`memcli bench`: figures that fit together, and clean ends where there is nothing to measure."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media import make_video
from tiny_bundle import TINY_PREP, make_text_bundle, make_tiny_bundle

from memcli import benchmark
from memcli.app import run
from memcli.benchmark import EngineSpeed, InstantEngine, Speed
from memcli.commands import bench
from memcli.engines.bundle import Bundle
from memcli.engines.select import open_engine
from memcli.errors import ExitCode, ModelError
from memcli.inputs import Source, collect
from memcli.scoring import Scorer, ScoreSettings

SETTINGS = ScoreSettings(model="tiny", workers=2)
TINY = ("--model", "tiny", "--engine", "onnxruntime", "--repeat", "1")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, frames in (("a.mp4", 8), ("b.mp4", 12), ("c.mp4", 5)):
        make_video(folder / name, frames=frames)
    return folder


@pytest.fixture
def tiny(memcli_home: Path) -> Bundle:
    return make_tiny_bundle(memcli_home)


def sources(folder: Path) -> list[Source]:
    return collect([folder]).items


class SlowEngine(InstantEngine):
    """Sleeps 40 ms per clip, so that it is the bottleneck by a wide margin."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.batches.append(len(feeds["frames"]))
        time.sleep(0.04 * len(feeds["frames"]))
        return super().run(feeds)


def test_speeds_are_medians_per_video() -> None:
    speed = Speed(videos=10, frames=4, seconds=(3.0, 2.0, 10.0))
    assert speed.per_video_s == pytest.approx(0.3)
    assert speed.videos_per_s == pytest.approx(10 / 3)
    assert speed.frames_per_s == pytest.approx(40 / 3)
    assert speed.spread == pytest.approx(8 / 3)


@pytest.mark.parametrize(
    ("decode_s", "engine_s", "bottleneck", "ratio"),
    [(1.0, 4.0, "engine", 1.25), (5.0, 1.0, "decode", 1.0)],
)
def test_the_ratio_is_to_the_slower_of_the_two(
    decode_s: float, engine_s: float, bottleneck: str, ratio: float
) -> None:
    speed = EngineSpeed(
        "x",
        decode=Speed(10, 4, (decode_s,)),
        # The engine alone may be measured on fewer clips: seconds per video are compared.
        engine=Speed(5, 4, (engine_s / 2,)),
        end_to_end=Speed(10, 4, (5.0,)),
    )
    assert speed.bottleneck == bottleneck
    assert speed.ratio == pytest.approx(ratio)


def test_decoding_alone_never_runs_the_graph(tiny: Bundle, clips: Path) -> None:
    (tiny.root / "fp32" / "model.onnx").unlink()
    good, scorer = benchmark.decodable(SETTINGS, tiny, sources(clips))
    speed = benchmark.measure_decode(scorer, good, repeat=2)
    assert (speed.videos, speed.frames, len(speed.seconds)) == (3, TINY_PREP.frames, 2)
    assert 0 < speed.per_video_s < 5


def test_an_instant_engine_keeps_what_it_has_room_for() -> None:
    clip = np.zeros((4, 8, 8, 3), np.uint8)
    engine = InstantEngine(room_bytes=2 * clip.nbytes)
    answer = engine.run({"frames": np.stack([clip] * 3)})
    assert len(engine.kept) == 2
    assert answer["score"].shape == (3,)
    assert answer["frame_scores"].shape == (3, 4)


def test_the_engine_alone_gets_full_batches() -> None:
    engine = SlowEngine()
    seconds = benchmark.time_engine(
        engine, [{"frames": np.zeros((1, 4, 8, 8, 3), np.uint8)}] * 5, batch_size=2
    )
    assert engine.batches == [2, 2, 1]
    assert seconds >= 0.2


def test_a_slow_engine_hides_decoding(tiny: Bundle, clips: Path) -> None:
    selection = open_engine(tiny, engine="onnxruntime")
    selection.engine.close()
    slow = SlowEngine()
    selection = type(selection)(slow, selection.variant, "slow", selection.parity)
    many = [source for source in sources(clips) for _ in range(6)]
    with Scorer(SETTINGS, tiny, selection) as scorer:
        speed = benchmark.measure_scorer(scorer, many, repeat=1, name="slow")
    assert speed.bottleneck == "engine"
    assert speed.engine is not None
    assert 0.04 <= speed.engine.per_video_s < 0.2
    # How close to 1 it comes is for tests/benchmarks/pipeline.py on a quiet machine.
    assert speed.ratio is not None
    assert 0.9 < speed.ratio < 3


@pytest.mark.usefixtures("tiny")
def test_json_has_every_stage(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(clips), *TINY, "--frames", "3", "--workers", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["model"] == "tiny"
    assert report["frames"] == 3
    assert report["workers"] == 1
    assert report["engine_problem"] is None
    (engine,) = report["engines"]
    assert engine["candidate"] == "onnxruntime at fp32"
    assert engine["bottleneck"] == "decode"
    for stage in (report["decode"], report["preprocess"], engine["engine"], engine["end_to_end"]):
        assert stage["videos"] == 3
        assert len(stage["seconds"]) == 1
        assert stage["frames_per_s"] == pytest.approx(3 * stage["videos_per_s"], rel=1e-3)
    assert engine["ratio"] == pytest.approx(
        engine["end_to_end"]["seconds"][0] / engine["decode"]["seconds"][0], rel=0.05
    )
    assert all(json.loads(line)["event"] for line in err.splitlines())


def test_made_up_captions_are_said_to_be_so(
    memcli_home: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_text_bundle(memcli_home, frames=True)
    options = ("--model", "tiny-fusion", "--engine", "onnxruntime", "--repeat", "1")
    assert run(["bench", str(clips), *options]) == 0
    assert "captions made up: a captioner's time is not in" in capsys.readouterr().out
    assert run(["bench", str(clips), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["captions"].startswith("made up")


@pytest.mark.usefixtures("tiny")
def test_every_runtime_is_measured(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(clips), "--model", "tiny", "--repeat", "1"]) == 0
    out = capsys.readouterr().out
    for runtime in ("onnxruntime", "openvino"):
        assert f"{runtime} at fp32: engine alone" in out
        assert f"{runtime} at fp32: end to end" in out
        assert f"{runtime} at fp32: the bottleneck is the decoding" in out
    assert "preprocess alone" in out


@pytest.mark.usefixtures("tiny")
def test_without_videos_some_are_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_CLIP_SIZE", (96, 64))
    monkeypatch.setattr(bench, "_CLIP_FRAMES", 24)
    assert run(["bench", *TINY]) == 0
    assert "videos   8 videos: one generated clip (96x64, 1 s, " in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_undecodable_videos_are_left_out(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert run(["bench", str(clips), str(tmp_path), *TINY, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["decode"]["videos"] == 3
    assert "not decodable and left out: 1" in report["videos"]


@pytest.mark.usefixtures("tiny")
def test_only_undecodable_videos_are_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert run(["bench", str(tmp_path), *TINY]) == ExitCode.USAGE
    assert "none of these videos can be decoded" in capsys.readouterr().err
    assert run(["bench", str(tmp_path / "nowhere"), *TINY]) == ExitCode.USAGE


@pytest.mark.usefixtures("tiny")
def test_a_large_folder_is_sampled(
    clips: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "MAX_VIDEOS", 2)
    assert run(["bench", str(clips), *TINY, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["decode"]["videos"] == 2
    assert report["videos"].startswith("2 videos of the 3 of ")


def test_a_model_that_is_not_here_leaves_decoding(
    clips: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from memcli import store

    def absent(name: str, **_: object) -> Bundle:
        raise ModelError("the weights are not here", next_step="memcli models pull resmem")

    monkeypatch.setattr(store, "pull", absent)
    code = run(["bench", str(clips), "--model", "resmem", "--offline", "--repeat", "1", "--json"])
    assert code == ExitCode.NOT_USABLE
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == 16
    assert report["decode"]["videos"] == 3
    assert report["preprocess"]["videos"] == 3
    assert report["engines"] == []
    assert "memcli models pull resmem" in report["engine_problem"]


def test_an_unknown_model_is_an_error(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(clips), "--model", "nonsense"]) == ExitCode.NOT_USABLE
    assert "nonsense" in capsys.readouterr().err


def test_an_engine_that_fails_verification_says_why(
    memcli_home: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_bundle(memcli_home, "wrong", reference_offset=0.25)
    code = run(["bench", str(clips), "--model", "wrong", "--repeat", "1", "--json"])
    assert code == ExitCode.NOT_USABLE
    engines = json.loads(capsys.readouterr().out)["engines"]
    assert len(engines) == 2
    assert all("max |difference| 0.25" in engine["problem"] for engine in engines)
    assert all(engine["end_to_end"] is None for engine in engines)
