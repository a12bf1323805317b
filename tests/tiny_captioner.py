"""A tiny captioner, exported once per process, and copies of it that say other things."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from memcli.captioning.bundle import CaptionerBundle, read_captioner, write_manifest

NAME = "smolvlm2-500m"


@cache
def exported() -> CaptionerBundle:
    """A captioner of two frames and random weights, in a folder of its own."""
    from memcli.export.captioner import export_captioner
    from memcli.export.captioner_checkpoint import locate_captioner
    from tests.tiny_smolvlm import make_smolvlm

    root = Path(tempfile.mkdtemp(prefix="memcli-tiny-captioner-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    checkpoint = make_smolvlm(root / "checkpoint")
    found = locate_captioner(str(checkpoint))
    return export_captioner(
        found, frames=2, max_new_tokens=16, name=NAME, target=root / "captioner"
    )


def install_captioner(home: Path, name: str = NAME, **changes: Any) -> CaptionerBundle:
    """Put a copy into `home`; `changes` are fields of its manifest."""
    made = exported()
    folder = home / "captioners" / name
    shutil.copytree(made.folder, folder)
    write_manifest(replace(made, name=name, folder=folder, **changes))
    return read_captioner(folder)


def silent_captioner(home: Path, name: str = NAME) -> CaptionerBundle:
    """One that has nothing to say: every token ends its text."""
    made = exported()
    vocabulary = json.loads((made.folder / "tokenizer.json").read_text())["model"]["vocab"]
    stop = tuple(range(len(vocabulary) + 64))
    return install_captioner(home, name, generation=replace(made.generation, stop=stop))


def break_captioner(bundle: CaptionerBundle) -> None:
    """From now on it cannot make a caption; its manifest stays."""
    (bundle.folder / "decoder.onnx").unlink()
