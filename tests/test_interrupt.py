"""Signals: each wish to stop is taken once, none is lost, and the way out is not held up."""

import signal
import subprocess
import sys
import time

import pytest

from memcli.errors import ExitCode, ModelError, is_interrupt

INSTALL = """
import os, signal, sys, time
from memcli.interrupt import Interrupts
Interrupts().install()
"""


def python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        # A job in the background ignores SIGINT and hands that on; a user's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        **options,
    )


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_that_comes_again_at_once_is_the_same_wish(number: str) -> None:
    code = f"""{INSTALL}
taken = 0
for _ in range(3):
    try:
        signal.raise_signal(signal.{number})
    except KeyboardInterrupt:
        taken += 1
time.sleep(1.1)
try:
    signal.raise_signal(signal.{number})
except KeyboardInterrupt:
    taken += 1
print(taken)
"""
    assert python(code).stdout == "2\n"


def test_an_interrupt_that_python_drops_comes_again() -> None:
    code = f"""{INSTALL}
class Dropping:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
try:
    Dropping()
    time.sleep(30)
except KeyboardInterrupt:
    print("taken")
"""
    started = time.monotonic()
    done = python(code)
    assert (done.stdout, done.stderr) == ("taken\n", "")
    assert time.monotonic() - started < 20


def test_other_errors_that_python_drops_are_still_told() -> None:
    code = f"""{INSTALL}
class Dropping:
    def __del__(self):
        raise ValueError("odd")
Dropping()
"""
    assert "ValueError: odd" in python(code).stderr


def test_a_job_in_the_background_goes_on() -> None:
    code = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN){INSTALL}"
    done = python(f"{code}\nsignal.raise_signal(signal.SIGINT)\nprint('on')")
    assert (done.stdout, done.stderr) == ("on\n", "")


def test_the_exit_code_stays_where_the_interrupt_fell_into_exec() -> None:
    """Python then ends with SIGINT instead of the code it is given."""
    code = """
import sys
from memcli import __main__, app
app._invoke = lambda *_: print("before") or exec("raise KeyboardInterrupt")
sys.argv = ["memcli", "models"]
__main__.main()
"""
    done = python(code)
    assert done.returncode == ExitCode.INTERRUPTED
    assert (done.stdout, done.stderr) == ("before\n", "error: interrupted\n")


def test_a_thread_inside_a_runtime_does_not_hold_up_the_way_out() -> None:
    code = """
import sys, threading, time
from memcli import __main__, app
def interrupted(*_):
    threading.Thread(target=time.sleep, args=[30]).start()
    raise KeyboardInterrupt
app._invoke = interrupted
sys.argv = ["memcli", "models"]
__main__.main()
"""
    started = time.monotonic()
    assert python(code).returncode == ExitCode.INTERRUPTED
    assert time.monotonic() - started < 20


def test_an_interrupt_before_the_command_is_there() -> None:
    code = """
import sys
from memcli import __main__
class Interrupting:
    def find_spec(self, name, *_):
        if name == "memcli.app":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
sys.argv = ["memcli", "models"]
__main__.main()
"""
    done = python(code)
    assert (done.returncode, done.stderr) == (ExitCode.INTERRUPTED, "error: interrupted\n")


def caused_by(cause: BaseException | None) -> ModelError:
    error = ModelError("x")
    error.__cause__ = cause
    return error


def test_errors_that_were_made_of_an_interrupt() -> None:
    assert is_interrupt(KeyboardInterrupt())
    assert is_interrupt(caused_by(caused_by(KeyboardInterrupt())))
    assert not is_interrupt(caused_by(caused_by(None)))
    circle = ModelError("x")
    circle.__cause__ = circle
    assert not is_interrupt(circle)


@pytest.mark.parametrize(("word", "code"), [("--version", 0), ("--nonsense", 2)])
def test_torch_is_not_taken_down(word: str, code: int) -> None:
    done = python(f"""
import atexit, sys, types
from memcli import __main__
sys.modules["torch"] = types.ModuleType("torch")
atexit.register(print, "taken down")
sys.argv = ["memcli", "{word}"]
__main__.main()
""")
    assert done.returncode == code
    assert "taken down" not in done.stdout
    assert (done.stdout if code == 0 else done.stderr) != ""
