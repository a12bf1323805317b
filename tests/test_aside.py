"""An interrupt during a build ends it: it is not lost in a callback from C++."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_bundle import brightness_graph, make_tiny_bundle

from memcli.engines import plans
from memcli.engines.aside import run_aside
from memcli.errors import EngineError, ExitCode
from memcli.home import home


def test_values_and_errors_come_back() -> None:
    assert run_aside(threading.current_thread, lambda: None) is not threading.main_thread()

    def fail() -> None:
        raise EngineError("odd")

    with pytest.raises(EngineError, match="odd"):
        run_aside(fail, lambda: None)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Those of Python, whatever the shell that started pytest does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_stops_the_work_and_goes_on(interrupts: None) -> None:
    stopped = threading.Event()
    ended = []

    def work() -> None:
        interrupt()
        ended.append(stopped.wait(20))

    with pytest.raises(KeyboardInterrupt):
        run_aside(work, stopped.set, patience_s=20)
    assert ended == [True]


def test_work_that_does_not_stop_holds_nobody_up(interrupts: None) -> None:
    freed = threading.Event()

    def work() -> None:
        interrupt()
        freed.wait(20)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_aside(work, lambda: None, patience_s=0.1)
    assert time.monotonic() - started < 10
    freed.set()


CODE = """
import os, signal, sys
from memcli.engines import tensorrt_build
made = tensorrt_build._make_monitor
def interrupting(*arguments):
    class Monitor(type(made(*arguments))):
        def step_complete(self, phase, step):
            os.kill(os.getpid(), signal.SIGINT)
            go_on = super().step_complete(phase, step)
            print("step", go_on, flush=True)
            return go_on
    return Monitor()
tensorrt_build._make_monitor = interrupting
from memcli.__main__ import main
sys.argv = ["memcli", "-v", "export", "tiny", "--target", "tensorrt-rtx",
            "--target-capability", "8.9"]
main()
"""


def test_a_real_build_is_interrupted(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    graph = brightness_graph()
    for axis in graph.graph.input[0].type.tensor_type.shape.dim[2:4]:
        axis.dim_value = 48
    make_tiny_bundle(home(), graph=graph, engines=("onnxruntime", "tensorrt-rtx"))
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    assert done.returncode == ExitCode.INTERRUPTED, done.stderr
    assert done.stderr.endswith("error: interrupted\n")
    assert "Exception caught" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "step" in done.stdout
    assert plans.stored() == []
    assert list(tmp_path.iterdir()) == []
