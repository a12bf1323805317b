"""`memcli doctor`: says what is there, survives what is broken, ends with the right code."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import make_tiny_bundle

from memcli import machine
from memcli.app import run
from memcli.engines import loading
from memcli.engines.select import open_engine
from memcli.errors import ExitCode
from memcli.machine import Package

SOUND = {
    "onnxruntime": Package("1.31.1", None, ("CPUExecutionProvider",)),
    "openvino": Package("2026.4.1-1-abc", None, ("CPU: Some CPU",)),
    "tensorrt": Package(),
    "tensorrt-rtx": Package(),
    "av": Package("18.1.0", None, ("libavcodec 62.28.102",)),
    "numpy": Package("2.4.6"),
}
DEFAULT = "resmem"
REAL_INSPECTION = machine.inspect_packages


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Package]:
    """Packages as a test wants them; to import the real ones takes seconds."""
    found = dict(SOUND)
    monkeypatch.setattr(machine, "inspect_packages", lambda: found)
    return found


@pytest.fixture
def real_versions(packages: dict[str, Package]) -> None:
    """Records of verification carry the versions of the real runtimes."""
    import onnxruntime
    import openvino

    packages["onnxruntime"] = Package(onnxruntime.__version__)
    packages["openvino"] = Package(openvino.__version__)


def doctor(capsys: pytest.CaptureFixture[str], code: int = ExitCode.OK) -> dict[str, Any]:
    assert run(["doctor", "--json"]) == code
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def text(capsys: pytest.CaptureFixture[str], code: int = ExitCode.OK) -> str:
    assert run(["doctor"]) == code
    return capsys.readouterr().out


def test_the_report_has_a_stable_shape(capsys: pytest.CaptureFixture[str]) -> None:
    report = doctor(capsys)
    assert report["schema"] == 1
    assert set(report) == {
        "schema",
        "memcli",
        "usable",
        "problem",
        "next_step",
        "machine",
        "packages",
        "notes",
        "extras",
        "storage",
        "models",
        "captioners",
        "score",
    }
    assert report["usable"] is True
    assert report["packages"]["openvino"]["facts"] == ["CPU: Some CPU"]
    assert report["machine"]["cpu"]["cores_usable"] >= 1
    assert all("problem" not in report[part] for part in ("machine", "storage", "models", "score"))


def test_people_get_plain_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    out = text(capsys)
    assert "videos can be scored here" in out
    assert "\x1b" not in out, "colour is for terminals"
    assert "  onnxruntime    1.31.1: CPUExecutionProvider\n" in out
    assert "  openvino       2026.4.1: CPU: Some CPU\n" in out
    assert "  tensorrt       not installed\n" in out


def test_a_model_that_would_be_fetched_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    score = doctor(capsys)["score"]
    assert score["installed"] is False
    assert score["fetch"]["size_bytes"] == 489_123_294
    assert "Non-commercial" in score["fetch"]["license"]
    assert "489.1 MB" in text(capsys)


def test_without_a_runtime_nothing_can_be_scored(
    capsys: pytest.CaptureFixture[str],
    packages: dict[str, Package],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packages["onnxruntime"] = packages["openvino"] = Package()
    monkeypatch.setattr(loading, "installed_runtimes", lambda: ())
    report = doctor(capsys, ExitCode.NOT_USABLE)
    assert report["usable"] is False
    assert "memcli[cpu]" in report["next_step"]
    assert "memcli[gpu]" in report["next_step"]
    out = text(capsys, ExitCode.NOT_USABLE)
    assert "videos cannot be scored here: no runtime is installed" in out
    assert "pip install 'memcli[cpu]'" in out


def test_one_broken_runtime_is_a_line(
    capsys: pytest.CaptureFixture[str], packages: dict[str, Package]
) -> None:
    packages["openvino"] = Package(problem="ImportError: libtbb.so.12: no such file")
    out = text(capsys)
    assert "does not load: ImportError: libtbb.so.12: no such file" in out
    assert "videos can be scored here" in out


def test_only_broken_runtimes_are_no_runtime(
    capsys: pytest.CaptureFixture[str], packages: dict[str, Package]
) -> None:
    packages["openvino"] = packages["onnxruntime"] = Package(problem="importing it ends (SIGILL)")
    report = doctor(capsys, ExitCode.NOT_USABLE)
    assert "SIGILL" in report["problem"]
    assert "pip install --force-reinstall onnxruntime openvino" in report["next_step"]


@pytest.mark.parametrize("name", ["av", "numpy"])
def test_nothing_is_scored_without_the_base(
    capsys: pytest.CaptureFixture[str], packages: dict[str, Package], name: str
) -> None:
    packages[name] = Package(problem="ImportError: bad build")
    assert name in doctor(capsys, ExitCode.NOT_USABLE)["problem"]


def test_really_broken_packages_are_survived(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing faked between: packages that fail, or take Python with them, found on the path."""
    monkeypatch.setattr(machine, "inspect_packages", REAL_INSPECTION)
    for name, code in (("onnxruntime", "import os; os.abort()"), ("openvino", "1 / 0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    report = doctor(capsys, ExitCode.NOT_USABLE)
    assert "SIGABRT" in report["packages"]["onnxruntime"]["problem"]
    assert "ZeroDivisionError" in report["packages"]["openvino"]["problem"]
    assert report["packages"]["av"]["version"]


def test_a_probe_that_fails_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("no such machine")

    monkeypatch.setattr(machine, "inspect", broken)
    assert "no such machine" in text(capsys)


def test_a_gpu_that_is_left_idle_is_noted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia = machine.Nvidia((machine.Gpu("NVIDIA H200", 143771 << 20, "9.0"),), "570.86", "12.8")
    monkeypatch.setattr(machine, "_nvidia", lambda root: nvidia)
    out = text(capsys)
    assert "NVIDIA H200, 150.8 GB, compute capability 9.0" in out
    assert "570.86, CUDA 12.8" in out
    assert "this onnxruntime is the CPU build" in out


@pytest.mark.usefixtures("real_versions")
def test_it_foretells_what_scoring_takes(
    memcli_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_tiny_bundle(memcli_home, DEFAULT)
    score = doctor(capsys)["score"]
    assert score["engine"] is None
    assert "onnxruntime on cpu at fp32" in score["reason"]
    assert "first use" in score["reason"]

    chosen = open_engine(bundle)
    description = chosen.engine.describe()
    chosen.engine.close()

    score = doctor(capsys)["score"]
    assert score["engine"] == f"{description.engine} on cpu at fp32"
    assert score["reason"].startswith("fastest of 2 verified")
    assert "verified" in text(capsys)


@pytest.mark.usefixtures("real_versions")
def test_forgotten_engines_are_verified_again(
    memcli_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_tiny_bundle(memcli_home, DEFAULT)
    said: list[str] = []
    open_engine(bundle, report=said.append).engine.close()
    assert run(["doctor", "--forget", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["score"]["engine"] is None
    count = len(said)
    open_engine(bundle, report=said.append).engine.close()
    assert len(said) == 2 * count > 0
    assert run(["doctor", "--forget"]) == run(["doctor", "--forget"]) == ExitCode.OK


def test_what_cannot_be_forgotten_is_said(
    memcli_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (memcli_home / "verified.json").mkdir()
    assert run(["doctor", "--forget"]) == ExitCode.NOT_USABLE
    assert "verified.json: cannot be deleted: " in capsys.readouterr().err


@pytest.mark.usefixtures("real_versions")
def test_a_refused_engine_is_not_foretold(
    memcli_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_tiny_bundle(memcli_home, DEFAULT, reference_offset=0.5)
    with pytest.raises(Exception, match="difference"):
        open_engine(bundle)
    report = doctor(capsys)
    assert report["score"]["engine"] is None
    assert report["score"]["reason"] == "no engine passed verification"
    states = [entry["state"] for entry in report["models"]["installed"][0]["engines"]]
    assert states == ["refused", "refused"]


def test_a_damaged_model_is_a_line(memcli_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_bundle(memcli_home, "sound")
    for name in ("broken", "evil\x1b[31m\nname"):
        folder = memcli_home / "bundles" / name
        folder.mkdir()
        (folder / "manifest.json").write_text("{")
    report = doctor(capsys)
    problems = {entry["model"]: entry["problem"] for entry in report["models"]["installed"]}
    assert set(problems) == {"sound", "broken"}, "what is no model's name is none of ours"
    assert problems["sound"] is None
    assert "manifest" in problems["broken"]
    assert "\x1b" not in text(capsys)


def test_a_home_that_is_a_file_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("in the way")
    monkeypatch.setenv("MEMCLI_HOME", str(tmp_path / "home"))
    storage = doctor(capsys)["storage"]
    assert storage["writable"] is False
    assert storage["chosen_by"] == "MEMCLI_HOME"


def test_sizes_are_those_of_the_files(
    memcli_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_tiny_bundle(memcli_home)
    (memcli_home / "cache" / "engines").mkdir(parents=True)
    (memcli_home / "cache" / "engines" / "plan").write_bytes(bytes(12_345))
    (memcli_home / "cache" / "loop").symlink_to(memcli_home)
    (memcli_home / "cache" / "again").symlink_to(memcli_home / "cache" / "engines" / "plan")
    storage = doctor(capsys)["storage"]
    assert storage["bundles_bytes"] == bundle.size_bytes()
    assert storage["cache_bytes"] == 12_345
