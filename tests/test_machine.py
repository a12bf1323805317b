"""Facts about the machine, from files and tools made for the test; packages that break in every
way a package can."""

import json
from pathlib import Path

import pytest
import tomllib

from memcli import machine

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def fake_tool(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An nvidia-smi that runs `script`."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def fake_package(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> None:
    write(folder, f"{name}/__init__.py", code)
    monkeypatch.syspath_prepend(str(folder))


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    found = machine.inspect(tmp_path)
    assert found.memory == machine.Memory(None, None, None)
    assert found.cpu.quota is None
    assert found.cpu.cores_usable >= 1
    json.dumps(found.to_dict())


def test_the_limits_of_a_container_are_found(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal:  16000000 kB\nMemAvailable:   9000000 kB\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", "4294967296\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000\n")
    found = machine.inspect(tmp_path)
    assert found.memory == machine.Memory(16_000_000 << 10, 9_000_000 << 10, 4 << 30)
    assert found.cpu.quota == 1.5


@pytest.mark.parametrize("text", ["max", str(1 << 62)])
def test_no_limit_of_memory_is_none(tmp_path: Path, text: str) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal: 1000 kB\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", text)
    write(tmp_path, "sys/fs/cgroup/cpu.max", "max 100000")
    found = machine.inspect(tmp_path)
    assert found.memory.limit is None
    assert found.cpu.quota is None


def test_gpus_come_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "echo 'NVIDIA H200, 570.86.15, 143771, 9.0'; echo 'NVIDIA GB10, 570.86.15, [N/A], 12.1'"
    fake_tool(tmp_path, monkeypatch, lines)
    nvidia = machine.inspect(tmp_path).nvidia
    assert nvidia.gpus == (
        machine.Gpu("NVIDIA H200", 143771 << 20, "9.0"),
        machine.Gpu("NVIDIA GB10", None, "12.1"),
    )
    assert nvidia.driver == "570.86.15"
    assert nvidia.note is None


@pytest.mark.parametrize(
    ("script", "note"),
    [
        ("echo 'Driver/library version mismatch'; exit 18", "Driver/library version mismatch"),
        ("exit 9", "failed with code 9"),
        ("echo nonsense", None),
        ("while :; do :; done", "did not answer"),
    ],
)
def test_a_broken_nvidia_smi_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, note: str | None
) -> None:
    fake_tool(tmp_path, monkeypatch, script)
    monkeypatch.setattr(machine, "_TOOL_TIMEOUT_S", 0.3)
    nvidia = machine.inspect(tmp_path).nvidia
    assert nvidia.gpus == ()
    assert (note or "") in (nvidia.note or "")
    assert bool(note) == bool(nvidia.note)


def test_without_nvidia_smi_the_driver_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    write(
        tmp_path,
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n"
        "GCC version:  gcc version 12.2.0\n",
    )
    write(
        tmp_path,
        "proc/driver/nvidia/gpus/0000:01:00.0/information",
        "Model: \t\t NVIDIA GeForce RTX 3060\nIRQ:   \t\t 120\n",
    )
    nvidia = machine.inspect(tmp_path).nvidia
    assert nvidia.driver == "535.129.03"
    assert nvidia.gpus == (machine.Gpu("NVIDIA GeForce RTX 3060"),)


def test_a_jetson_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    write(
        tmp_path,
        "etc/nv_tegra_release",
        "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64, DATE: ...",
    )
    write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    nvidia = machine.inspect(tmp_path).nvidia
    assert nvidia.jetson == "NVIDIA Jetson Orin Nano Developer Kit, L4T R36.4.0"
    assert "Orin Nano" in nvidia.gpus[0].name


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("raise ImportError('libfoo.so.1: cannot open shared object file')", "libfoo.so.1"),
        ("import no_such_module_anywhere", "no_such_module_anywhere"),
        ("raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
        ("import os; os.abort()", "SIGABRT"),
        ("import os; os._exit(7)", "exit code 7"),
        ("import sys; sys.exit(5)", "exit code 5"),
        ("import time; time.sleep(60)", "does not load within"),
        ("", "__version__"),
    ],
)
def test_a_broken_package_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, problem: str
) -> None:
    fake_package(tmp_path, monkeypatch, "tensorrt", code)
    limit = 1.0 if "sleep" in code else 60.0
    monkeypatch.setattr(machine, "_IMPORT_TIMEOUT_S", limit)
    found = machine._package("tensorrt")
    assert not found.usable
    assert problem in (found.problem or "")


def test_a_package_that_talks_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "print('[WARN] hello', end='')\n__version__ = '9.9'\n"
    code += "def get_available_providers(): return ['OneExecutionProvider']"
    fake_package(tmp_path, monkeypatch, "onnxruntime", code)
    found = machine._package("onnxruntime")
    assert found == machine.Package("9.9", None, ("OneExecutionProvider",))


def test_an_absent_package_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PROBES", {"absent": (("no_such_module_anywhere",), "[]")})
    assert machine.inspect_packages() == {"absent": machine.Package()}


def test_the_extras_are_those_of_the_package() -> None:
    """Their distributions too, `memcli[...]` followed; `dev` is of no use to a user."""
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]

    def distributions(extra: str) -> set[str]:
        names: set[str] = set()
        for entry in declared[extra]:
            name = entry.split(";")[0].split(">")[0].split("=")[0].strip()
            inner = name.removeprefix("memcli[").rstrip("]")
            own = {name} if inner == name else set()
            names |= own.union(*map(distributions, () if own else inner.split(",")))
        return names

    assert set(machine.EXTRAS) == set(declared) - {"dev"}
    for extra, (_, listed) in machine.EXTRAS.items():
        assert set(listed) == distributions(extra), extra
