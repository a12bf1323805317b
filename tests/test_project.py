"""The shape of the project: packaging, import budget, dependency rule."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest
import tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE_DIRS = PROJECT["tool"]["setuptools"]["package-dir"]
FOLDERS = {"memcli.export": "export", "memcli.engines": "engines", "memcli.train": "train"}


def source_modules() -> set[str]:
    """Every module of the source tree by its installed path, through no link."""
    modules = set()
    for top in ("memcli", *FOLDERS.values()):
        prefix = "" if top == "memcli" else "memcli/"
        for folder, folders, files in os.walk(ROOT / top, followlinks=False):
            folders[:] = [name for name in folders if not (Path(folder) / name).is_symlink()]
            relative = Path(folder).relative_to(ROOT).as_posix()
            modules |= {f"{prefix}{relative}/{name}" for name in files if name.endswith(".py")}
    return modules


@pytest.mark.slow
def test_wheel_holds_every_module_once_and_the_graphs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    modules = [name for name in names if name.endswith(".py")]
    assert sorted(modules) == sorted(source_modules())
    assert len(names) == len(set(names))
    assert "memcli/py.typed" in names
    graphs = {f"memcli/export/graphs/{path.name}" for path in (ROOT / "export/graphs").iterdir()}
    assert graphs <= set(names)
    assert graphs
    assert not [name for name in names if name.startswith(("tests", "export/", "engines/"))]


def test_every_package_is_listed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {name.rsplit("/", 1)[0].replace("/", ".") for name in source_modules()}
    assert listed == found


def test_every_runtime_that_is_allowed_computes_int8_captioners() -> None:
    """ONNX Runtime before 1.23 has no MatMulNBits of 8 bits."""
    extras = PROJECT["project"]["optional-dependencies"]
    runtimes = [one for one in extras["cpu"] + extras["gpu"] if one.startswith("onnxruntime")]
    assert len(runtimes) == 2
    for one in runtimes:
        oldest = one.partition(">=")[2].partition(";")[0]
        assert tuple(map(int, oldest.split("."))) >= (1, 23)


def test_links_make_the_checkout_look_like_the_installed_package() -> None:
    for package, folder in FOLDERS.items():
        link = ROOT / package.replace(".", "/")
        assert link.is_symlink()
        assert link.readlink() == Path("..") / folder
        assert PACKAGE_DIRS[package] == folder


HEAVY = ("torch", "transformers", "mne", "av", "onnxruntime", "openvino", "numpy", "rich", "onnx")


def loaded_after(code: str) -> set[str]:
    script = (
        "import sys, os\nout, sys.stdout = sys.stdout, open(os.devnull, 'w')\n"
        f"{code}\nprint('\\n'.join(sorted(sys.modules)), file=out)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import memcli",
        "import memcli.cli",
        "from memcli.app import run\nassert run(['--help']) == 0",
        "from memcli.app import run\nassert run(['score', '--help']) == 0",
        "from memcli.app import run\nassert run(['eeg', '--help']) == 0",
        "from memcli.app import run\nassert run(['models', '--help']) == 0",
        "from memcli.app import run\nassert run(['export', '--help']) == 0",
        "from memcli.app import run\nassert run(['bench', '--help']) == 0",
        "from memcli.app import run\nassert run(['doctor', '--help']) == 0",
    ],
)
def test_help_imports_nothing_heavy(code: str) -> None:
    assert not loaded_after(code) & set(HEAVY)


LAYERS = {
    "memcli.errors": set(),
    "memcli.text": set(),
    "memcli.typed": set(),
    "memcli.walk": set(),
    "memcli.locking": {"memcli.errors"},
    "memcli.summary": {"memcli.errors", "memcli.text"},
    "memcli.spec": {"memcli.typed"},
    "memcli.home": {"memcli.errors"},
    "memcli.preprocess": {"memcli.errors", "memcli.spec"},
    "memcli.swscale": {"memcli.preprocess", "memcli.spec"},
    "memcli.tokens": {"memcli.errors", "memcli.spec"},
    "memcli.models": {"memcli.errors", "memcli.spec", "memcli.models"},
    "memcli.engines": {
        "memcli.errors",
        "memcli.spec",
        "memcli.home",
        "memcli.engines",
        "memcli.text",
        "memcli.tokens",
        "memcli.closing",
    },
    "memcli.eeg": {
        "memcli.errors",
        "memcli.text",
        "memcli.spec",
        "memcli.walk",
        "memcli.closing",
        "memcli.eeg",
    },
    "memcli.recognition": {
        "memcli.errors",
        "memcli.text",
        "memcli.spec",
        "memcli.models",
        "memcli.closing",
        "memcli.results",
        "memcli.journal",
        "memcli.summary",
        "memcli.table",
        "memcli.progress",
        "memcli.terminal",
        "memcli.pipeline",
        "memcli.store",
        "memcli.engines",
        "memcli.eeg",
        "memcli.recognition",
    },
    "memcli.video": {
        "memcli.errors",
        "memcli.text",
        "memcli.spec",
        "memcli.preprocess",
        "memcli.video",
    },
    "memcli.captioning": {
        "memcli.errors",
        "memcli.text",
        "memcli.spec",
        "memcli.home",
        "memcli.inputs",
        "memcli.captions",
        "memcli.closing",
        "memcli.tokens",
        "memcli.typed",
        "memcli.engines",
        "memcli.captioning",
    },
    "memcli.export": {
        "memcli.errors",
        "memcli.spec",
        "memcli.home",
        "memcli.text",
        "memcli.closing",
        "memcli.eeg",
        "memcli.models",
        "memcli.inputs",
        "memcli.video",
        "memcli.engines",
        "memcli.train",
        "memcli.tokens",
        "memcli.captioning",
        "memcli.export",
    },
    "memcli.train": {
        "memcli.errors",
        "memcli.spec",
        "memcli.home",
        "memcli.locking",
        "memcli.text",
        "memcli.eeg",
        "memcli.models",
        "memcli.preprocess",
        "memcli.tokens",
        "memcli.train",
    },
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module}
    return {name for name in found if name.split(".")[0] == "memcli" and name != "memcli"}


def test_dependency_rule() -> None:
    """spec, errors <- preprocess <- engines, train <- export <- commands; engines and train are
    strangers to each other."""
    for name in source_modules():
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        layer = next((key for key in LAYERS if f"{module}.".startswith(f"{key}.")), None)
        path = ROOT / name
        for package, folder in FOLDERS.items():
            path = (
                ROOT / folder / name.removeprefix(f"{package.replace('.', '/')}/")
                if (name.startswith(package.replace(".", "/") + "/"))
                else path
            )
        imported = imports_of(path)
        if module.split(".")[1:2] != ["commands"] and module not in (
            "memcli.__main__",
            "memcli.app",
        ):
            assert not {name for name in imported if name.startswith("memcli.commands")}, module
        if layer is None:
            continue
        allowed = LAYERS[layer]
        strangers = {
            name
            for name in imported
            if not any(f"{name}.".startswith(f"{key}.") for key in allowed)
        }
        assert not strangers, f"{module} imports {strangers}"


def test_no_file_is_long() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for top in ("memcli", "export", "engines", "train", "tests")
        for path in (ROOT / top).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 450
    }
    assert not long


def test_stored_help_is_what_click_says() -> None:
    import write_help

    assert write_help.PATH.read_text(encoding="utf-8") == write_help.help_text()


def test_each_command_has_the_help_that_the_group_lists() -> None:
    from memcli.cli import COMMANDS, cli

    for name, line in COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert (command.help or "").splitlines()[0] == line


def test_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make score VIDEOS=" in readme
    assert "make test" in readme
