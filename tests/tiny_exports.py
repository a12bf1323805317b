"""Tiny models as `memcli export` makes them, each exported once in a test run.

Tracing a model with torch and passing the gate takes seconds, and most tests of bundles need one
that passed, not one of their own. They get it by the fixture `tiny_export` of conftest.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_hub
from made_once import made_once
from tiny_models import CHECKPOINT_KINDS, TinyModel, make_tiny_model

from memcli.engines.bundle import Bundle, read_bundle


@dataclass(frozen=True)
class TinyExport:
    """A tiny model and the bundle that was made of it, which no test changes."""

    tiny: TinyModel
    bundle: Bundle

    def copied(self, root: Path) -> Bundle:
        """The bundle as the new folder `root`, for a test that changes it."""
        shutil.copytree(self.bundle.root, root)
        return read_bundle(root)

    def copy_graph(self, folder: Path) -> Path:
        """The fp32 graph and its weights in `folder`; gives the graph."""
        graph = self.bundle.graph_path(self.bundle.variants["fp32"])
        for path in (graph, graph.with_name("model.bin")):
            shutil.copy(path, folder)
        return folder / graph.name


Exporter = Callable[[str], TinyExport]


def tiny_checkpoints(factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint of each kind that the registry's models use."""

    def make(folder: Path) -> None:
        for kind in sorted(set(CHECKPOINT_KINDS.values())):
            tiny_hub.MAKERS[kind](folder / kind)

    return made_once(factory, "checkpoints", make)


def export_tiny(tiny: TinyModel, **more: Any) -> Bundle:
    """`export_model` of a tiny model; `more` are its arguments, instead of plain ones."""
    from memcli.export.trained import export_model

    text = tiny.checkpoints.get("text")
    given: dict[str, Any] = {
        "tokenizer": tiny.tokenizer,
        "checkpoint": text.folder if text is not None else None,
        "training": {},
        "made_by": {},
        "license_text": "test",
    }
    return export_model(tiny.model, tiny.spec, **(given | more))


def exporter(factory: pytest.TempPathFactory) -> Exporter:
    """Gives the export of the registry's model of a name; to be called in a test."""

    def get(name: str) -> TinyExport:
        checkpoints = tiny_checkpoints(factory)
        tiny = make_tiny_model(name, checkpoints)
        # With a place on this machine, which is not to be found in the bundle.
        training = {"dataset": {"name": "toy", "split": f"{checkpoints}/split.csv"}}
        place = made_once(
            factory,
            f"export-{name}",
            lambda folder: export_tiny(tiny, training=training, target=folder / name),
        )
        return TinyExport(tiny, read_bundle(place / name))

    return get
