"""`tests/gpu/run.sh` and what it runs, as far as that goes without a GPU."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from tests.gpu import report
from tests.gpu.throughput import COMPILED, EAGER

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests/gpu/run.sh"
BASH = shutil.which("bash") or "bash"


def run(*arguments: str, **more):
    command = [BASH, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


def test_the_script_parses_and_passes_shellcheck() -> None:
    subprocess.run([BASH, "-n", str(SCRIPT)], check=True)
    assert SCRIPT.stat().st_mode & 0o111
    if shellcheck := shutil.which("shellcheck"):
        done = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_a_dry_run_names_what_is_there_and_does_nothing(tmp_path: Path) -> None:
    done = run("--dry-run", "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    lines = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    for module in re.findall(r"-m (tests[\w.]+)", done.stdout):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
    assert any("MEMCLI_REQUIRE_GPU=1" in line and "-m gpu tests/gpu" in line for line in lines)
    assert any("tests.gpu.benchmark" in line for line in lines)
    assert any("tests.gpu.report" in line for line in lines)
    extras = re.search(r"\\\[([\w\\,-]+)\\\]", done.stdout)
    assert extras is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras[1].replace("\\", "").split(",")) <= set(project["optional-dependencies"])


def test_what_it_refuses(tmp_path: Path) -> None:
    assert run("--fast").returncode == 2
    assert run("--output").returncode == 2
    assert "--dry-run" in run("--help").stdout
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "sed"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    done = run(env={"PATH": str(tools)})
    assert done.returncode == 3
    assert "no nvidia-smi" in done.stderr


def test_every_gpu_test_is_marked() -> None:
    files = sorted((ROOT / "tests/gpu").glob("test_*.py"))
    assert files
    for path in files:
        assert "pytestmark = pytest.mark.gpu" in path.read_text()


BENCHMARK = {
    "rehearsal": False,
    "throughput": [
        {"name": EAGER, "frames_per_s": 1000.0, "share_of_matrix_rate": 0.1, "problem": None},
        {"name": COMPILED, "frames_per_s": 3000.0, "share_of_matrix_rate": 0.3, "problem": None},
        {"name": "tensorrt fp16", "frames_per_s": 2700.0, "problem": None},
        {"name": "onnxruntime int8", "frames_per_s": 9000.0, "problem": None},
        {"name": "onnxruntime fp16", "frames_per_s": None, "problem": "DeviceError: no driver"},
    ],
    "end_to_end": [
        {"candidate": "t", "decoder": "cpu", "ratio": 1.25, "bottleneck": "decode"},
        {
            "candidate": "t",
            "decoder": "nvdec",
            "ratio": 1.05,
            "bottleneck": "engine",
            "gpu_idle_share": 0.04,
        },
        {"candidate": "t", "decoder": "auto", "problem": "no GPU"},
    ],
}


def test_targets_are_judged_by_what_was_measured() -> None:
    found = [(row["measured"], row["met"]) for row in report.targets(BENCHMARK)]
    assert found == [
        (0.9, False),  # fp16 against torch.compile; int8 does not count
        (2.7, True),
        (0.8, False),
        (1 / 1.05, True),
        (0.04, True),
        (None, None),
    ]
    assert report.targets(None) == []


def test_a_report_of_steps_that_failed_says_so(tmp_path: Path) -> None:
    report.main([str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "The tests did not finish." in text
    assert "The benchmark did not finish." in text
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure message="x\ny"/>'
        "</testcase></testsuite></testsuites>"
    )
    report.main([str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    assert "1 of 2 passed." in text
    assert "- b: failure: x" in text


@pytest.mark.slow
def test_the_benchmark_rehearses_on_the_cpu(tmp_path: Path) -> None:
    """Every step of it but compilation and the GPU's own, on a tiny model."""
    for package in ("torch", "transformers", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    benchmark = [sys.executable, "-m", "tests.gpu.benchmark", "--rehearse", "--rounds", "1"]
    output = tmp_path / "benchmark.json"
    done = subprocess.run(
        [*benchmark, "--videos", "2", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert [row["problem"] for row in found["throughput"]] == [None, None, None]
    assert all(row["frames_per_s"] > 0 for row in found["throughput"])
    (row,) = found["end_to_end"]
    assert row["decoder"] == "cpu"
    assert row["bottleneck"] in ("decode", "engine")
    report.main([str(tmp_path)])
    assert "A rehearsal" in (tmp_path / "report.md").read_text()


def test_the_arithmetic_of_the_published_encoder() -> None:
    """35 GFLOP a frame: twelve layers of width 768 over 196 tokens."""
    import tempfile

    from tests.gpu.siglip import flops_per_frame

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text('{"vision_config": {}}')
        assert 34e9 < flops_per_frame(Path(folder)) < 37e9
