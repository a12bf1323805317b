"""What is kept of contrastive adaptations, for the trainings after them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memcli.errors import OutputError
from memcli.training import adaptation

STATES = {tower: {"a": torch.arange(4.0)} for tower in ("vision", "text")}


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "adapted" / "key"
    assert adaptation._read(folder, "vision") is None
    adaptation._keep(folder, STATES, {"epochs": 1})
    found = adaptation._read(folder, "text")
    assert found is not None
    assert torch.equal(found[0]["a"], STATES["text"]["a"])
    assert found[1] == {"epochs": 1}
    assert [one.name for one in folder.parent.iterdir()] == ["key"]


def test_the_quicker_of_two_trainings_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one writes its result while ours is being written."""
    folder = tmp_path / "key"
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        adaptation._keep(folder, STATES, {"epochs": 1})
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    adaptation._keep(folder, STATES, {"epochs": 2})
    found = adaptation._read(folder, "vision")
    assert found is not None
    assert found[1] == {"epochs": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("name", ["summary.json", "vision.safetensors"])
def test_a_damaged_one_is_made_again(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "key"
    adaptation._keep(folder, STATES, {"epochs": 1})
    (folder / name).write_bytes(b"{")
    assert adaptation._read(folder, "vision") is None
    adaptation._keep(folder, STATES, {"epochs": 2})
    found = adaptation._read(folder, "vision")
    assert found is not None
    assert found[1] == {"epochs": 2}


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match=r"No space left(.|\n)*--resume"):
        adaptation._keep(tmp_path / "key", STATES, {})
    assert not list(tmp_path.iterdir())
