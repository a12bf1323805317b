"""The Dockerfiles, read as far as that goes without building them."""

import re
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
INSTRUCTIONS = {"FROM", "ENV", "RUN", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
TAG = re.compile(r"[a-z0-9./-]+:[\w.-]*\d[\w.-]*")


def instructions(path: Path) -> list[tuple[str, str]]:
    """Instruction and argument, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (line.partition(" ")[0], line.partition(" ")[2]) for line in joined.splitlines() if line
    ]


def test_there_is_one_for_each_kind_of_machine() -> None:
    assert [path.name for path in FILES] == [
        "cuda.Dockerfile",
        "jetpack6.Dockerfile",
        "jetpack7.Dockerfile",
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dockerfile(path: Path) -> None:
    steps = instructions(path)
    assert {name for name, _ in steps} <= INSTRUCTIONS  # no ADD: it fetches addresses
    assert steps[0][0] == "FROM"
    base = steps[0][1]
    assert TAG.fullmatch(base), f"{base} has no pinned tag"
    assert "latest" not in base
    assert [name for name, _ in steps].count("FROM") == 1
    runs = [argument for name, argument in steps if name == "RUN"]
    for argument in runs:
        assert not re.search(r"https?:|curl|wget|\bsudo\b", argument)
        if "apt-get install" in argument:
            assert argument.startswith("apt-get update")
            assert "--no-install-recommends" in argument
            assert "rm -rf /var/lib/apt/lists/*" in argument
        if "pip install" in argument:
            assert "--no-cache-dir" in argument
    for name, argument in steps:
        if name == "COPY":
            source, target = argument.split()
            assert (ROOT / source).exists()
            assert target.startswith("/")
    assert [argument for name, argument in steps if name == "USER"] == ["memcli"]
    order = [name for name, _ in steps]
    assert order.index("USER") > max(i for i, name in enumerate(order) if name == "RUN")
    assert ("ENTRYPOINT", '["memcli"]') in steps


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_extras_exist(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = re.findall(r'"/usr/src/memcli\[([\w,-]+)\]', path.read_text())
    assert len(found) == 1
    extras = found[0].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    assert not {"cpu", "gpu"} <= set(extras)  # two builds of one import package


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_docs_name_it_and_that_it_was_not_run(path: Path) -> None:
    docs = (ROOT / "docs/deploy.md").read_text()
    assert f"docker/{path.name}" in docs
    assert instructions(path)[0][1] in docs
    assert "Never built or run" in path.read_text()


def test_what_is_installed_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for needed in ("memcli", "engines", "export", "train", "pyproject.toml", "README.md"):
        assert needed not in ignored
    assert ".git" in ignored
