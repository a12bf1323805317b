"""Fixtures that every test may use. Nothing here needs the network or real data."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def memcli_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for each test: no test sees or changes the user's bundles."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MEMCLI_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`tiny_exports.Exporter`: the export of a tiny model of the registry, made once."""
    from tiny_exports import exporter

    return exporter(tmp_path_factory)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, those with the most of them before all.

    Processes that share the files of a run end at about the same time only if no long file begins
    last.
    """
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With MEMCLI_REQUIRE_GPU=1 a GPU test that skips has failed."""
    report = yield
    required = os.environ.get("MEMCLI_REQUIRE_GPU") == "1"
    if required and report.skipped and item.get_closest_marker("gpu"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped although MEMCLI_REQUIRE_GPU=1"
    return report
