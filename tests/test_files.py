"""Folders that appear complete or not at all, whatever happens to the process that makes them."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memcli.engines import files
from memcli.engines.files import KINDS, clear_leftovers, discard, install, locked, staging

DEAD = 999_999_999


def folder(path: Path, content: str = "x") -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


def names(path: Path) -> list[str]:
    return sorted(one.name for one in path.iterdir())


def test_staging_is_beside_its_place_and_goes_away(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "tiny"
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012, SIM117 - the block is what is tested
        with staging(target, "pull") as made:
            assert made == target.with_name(f".tiny.pull.{os.getpid()}")
            (made / "half").write_text("x")
            raise KeyboardInterrupt
    assert names(target.parent) == []


def test_what_dead_processes_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    dead = [folder(tmp_path / f".tiny.{kind}.{DEAD}") for kind in KINDS]
    kept = [folder(tmp_path / f".tiny.{kind}.{os.getppid()}") for kind in KINDS]
    kept += [folder(tmp_path / name) for name in (".tiny.mine", ".tiny.make.d", f".b.make.{DEAD}")]
    kept.append(folder(tmp_path / "tiny"))
    with staging(tmp_path / "tiny", "add"):
        assert not any(path.exists() for path in dead)
    assert all((path / "file").is_file() for path in kept)


@pytest.mark.parametrize("locks", [True, False])
def test_what_this_process_is_making_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    if not locks:
        monkeypatch.setattr(files, "_flock", lambda handle, wait: None)
    target = tmp_path / "tiny"
    with staging(target, "make") as export, staging(target, "pull") as pull:
        clear_leftovers(target)
        install(folder(pull / "new"), target)
        assert export.is_dir()
    assert names(tmp_path) == ["tiny"]


def test_what_a_process_of_another_container_is_making_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number means nothing here, but its lock is seen."""
    code = (
        "import sys, pathlib; from memcli.engines.files import staging\n"
        "with staging(pathlib.Path(sys.argv[1]), 'make') as f: print(f, flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "tiny")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        made = Path(other.stdout.readline().strip())
        monkeypatch.setattr(files, "_is_running", lambda pid: False)
        clear_leftovers(tmp_path / "tiny")
        assert made.is_dir()
        other.kill()
    clear_leftovers(tmp_path / "tiny")
    assert not made.exists()


def test_a_leftover_with_our_own_number_is_cleared(tmp_path: Path) -> None:
    """Containers number from 1: the next one has the numbers of the killed one."""
    left = folder(tmp_path / f".tiny.pull.{os.getpid()}")
    with staging(tmp_path / "tiny", "pull") as made:
        assert made == left
        assert names(made) == []


def test_install_replaces_at_once(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    install(folder(tmp_path / "a", "first"), target)
    install(folder(tmp_path / "b", "second"), target)
    assert (target / "file").read_text() == "second"
    assert names(target.parent) == ["model"]


def test_a_failing_install_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, new = folder(tmp_path / "model", "old"), folder(tmp_path / "new")
    real = Path.replace

    def fail(path: Path, to: Path) -> Path:
        if path == new:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, to)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        install(new, target)
    assert (target / "file").read_text() == "old"
    assert names(tmp_path) == ["model", "new"]


def test_after_a_kill_between_the_renames_the_old_one_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "model"
    folder(tmp_path / f".model.old.{DEAD}", "old")
    folder(tmp_path / f".model.pull.{DEAD}", "new")
    with staging(target, "pull"):
        assert (target / "file").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_an_old_one_that_was_replaced_is_cleared(tmp_path: Path) -> None:
    target = folder(tmp_path / "model", "new")
    folder(tmp_path / f".model.old.{DEAD}", "old")
    clear_leftovers(target)
    assert names(tmp_path) == ["model"]
    assert (target / "file").read_text() == "new"


def test_names_are_not_patterns(tmp_path: Path) -> None:
    other = folder(tmp_path / f".a.pull.{DEAD}")
    clear_leftovers(tmp_path / "[ab]")
    clear_leftovers(tmp_path / "*")
    assert other.is_dir()


def test_discard(tmp_path: Path) -> None:
    discard(folder(tmp_path / "model"))
    assert names(tmp_path) == []


def test_locks_are_waited_for_and_leave_nothing(tmp_path: Path) -> None:
    target = tmp_path / "model"
    code = (
        "import sys, pathlib; from memcli.engines.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(target)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with locked(target, lambda: other.stdin.write("go\n") and other.stdin.flush()) as waited:
            assert waited
    with locked(target, pytest.fail) as waited:
        assert not waited
    assert names(tmp_path) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    (tmp_path / ".model.lock").touch()
    with locked(tmp_path / "model", pytest.fail) as waited:
        assert not waited


@pytest.mark.parametrize("reason", ["no folder", "no locks"])
def test_without_locks_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    target = tmp_path / "absent" / "model"
    if reason == "no locks":
        monkeypatch.setattr(fcntl, "flock", refuse)
        target = tmp_path / "model"
    with locked(target, pytest.fail) as waited:
        assert not waited
