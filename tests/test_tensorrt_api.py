"""Every name of TensorRT that our code uses exists in TensorRT 10.3, 10.16 and 11.4, and in
TensorRT-RTX.

The names are read out of our source, so that this test cannot lag behind it. The bindings are the
real ones: their wheels are small, and import over a library that only defines what they link to.
`MEMCLI_TENSORRT_WHEELS` names a folder that keeps the wheels; those not there are downloaded.
"""

import ast
import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ENGINES = Path(__file__).parent.parent / "engines"
FILES = ("tensorrt.py", "tensorrt_build.py", "tensorrt_run.py", "tensorrt_flavour.py")
WHEELS = {
    "10.3": "tensorrt-cu12-bindings==10.3.*",
    "10.16": "tensorrt-cu13-bindings==10.16.*",
    "11.4": "tensorrt-cu13-bindings==11.4.*",
}
CLASSES = {
    "verbosity": "ProfilingVerbosity",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "problem": "ParserError",
    "config": "IBuilderConfig",
    "shapes": "IOptimizationProfile",
    "tensor": "ITensor",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
}
"""What our variables hold: a variable, with or without a leading underscore -> its class."""
PLAIN = {"memory", "shape", "size", "name", "kind"}
"""Variables that results without names of TensorRT are kept in."""
RTX_ONLY = {
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "ICudaEngine.create_runtime_config",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache",
    "IRuntimeConfig.set_execution_context_allocation_strategy",
    "IRuntimeCache.serialize",
    "IRuntimeCache.deserialize",
}
"""Behind `builds_for_capability` and `has_runtime_cache` of the flavour."""
STUB = """
#define STUB(name) void *name(void) { return 0; }
STUB(createInferBuilder_INTERNAL) STUB(createInferRefitter_INTERNAL)
STUB(createInferRuntime_INTERNAL) STUB(createNvOnnxParserRefitter_INTERNAL)
STUB(createNvOnnxParser_INTERNAL) STUB(getBuilderPluginRegistry) STUB(getNvOnnxParserVersion)
STUB(getPluginRegistry) STUB(initLibNvInferPlugins)
"""
LIST = """
import inspect, json
import tensorrt_bindings as trt
names = [name for name in dir(trt) if not name.startswith("_")]
classes = [name for name in names if inspect.isclass(getattr(trt, name))]
names += [f"{name}.{part}" for name in classes for part in dir(getattr(trt, name))]
print(json.dumps([trt.__version__, names]))
"""


def last_name(node: ast.expr) -> str:
    """`context` of `context` and of `slot.context` and `self._context`."""
    if isinstance(node, ast.Name):
        return node.id.lstrip("_")
    return node.attr.lstrip("_") if isinstance(node, ast.Attribute) else ""


def is_trt(node: ast.expr) -> bool:
    return last_name(node) == "trt"


def names_used() -> set[str]:
    """`Class.attribute` and `name` of all that our source asks of TensorRT."""
    found = set()
    for file in FILES:
        for node in ast.walk(ast.parse((ENGINES / file).read_text())):
            if not isinstance(node, ast.Attribute) or node.attr == "__version__":
                continue
            base = node.value
            if is_trt(base):
                found.add(node.attr)
            elif isinstance(base, ast.Attribute) and is_trt(base.value):
                found.add(f"{base.attr}.{node.attr}")
            elif last_name(base) in CLASSES:
                found.add(f"{CLASSES[last_name(base)]}.{node.attr}")
    return found


def results_kept() -> set[str]:
    """Variables that the results of TensorRT's methods are assigned to."""
    found = set()
    for file in FILES:
        for node in ast.walk(ast.parse((ENGINES / file).read_text())):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                function = node.value.func
                if isinstance(function, ast.Attribute) and (
                    is_trt(function.value) or last_name(function.value) in CLASSES
                ):
                    found |= {last_name(target) for target in node.targets}
    return found


def test_the_names_are_found_in_the_source():
    used = names_used()
    assert {"Builder", "ICudaEngine.get_tensor_name", "IBuilderConfig.progress_monitor"} <= used
    assert {"BuilderFlag.TF32", "IExecutionContext.execute_async_v3"} <= used
    assert "NetworkDefinitionCreationFlag.STRONGLY_TYPED" in used
    assert used >= RTX_ONLY
    assert {name.partition(".")[0] for name in used} >= set(CLASSES.values())


def test_no_result_is_kept_in_a_variable_that_is_not_looked_at():
    assert results_kept() <= set(CLASSES) | PLAIN


def test_tensorrt_rtx_has_them_all():
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    missing = set()
    for name in names_used():
        owner, _, attribute = name.rpartition(".")
        if not hasattr(getattr(trt, owner, None) if owner else trt, attribute):
            missing.add(name)
    assert not missing


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    """A folder with the libraries that the bindings link to, all of them empty."""
    folder = tmp_path_factory.mktemp("stub")
    (folder / "stub.c").write_text(STUB)
    for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        for version in (10, 11):
            name = f"lib{library}.so.{version}"
            command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", name, "stub.c"]
            try:
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                pytest.skip("no C compiler")
    return folder


def wheel_of(requirement: str, folder: Path) -> Path:
    """The wheel, out of the folder or downloaded into it; skips where it cannot be had."""
    name = requirement.partition("==")[0].replace("-", "_")
    version = requirement.partition("==")[2].removesuffix("*")
    tag = f"cp3{sys.version_info.minor}"
    pattern = f"{name}-{version}*-{tag}-*.whl"
    if not list(folder.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary"]
        done = subprocess.run([*pip, ":all:", "-d", str(folder), requirement], capture_output=True)
        if done.returncode != 0:
            pytest.skip(f"{requirement} cannot be downloaded for this Python")
    return next(folder.glob(pattern))


@pytest.mark.network
@pytest.mark.parametrize("version", WHEELS)
def test_tensorrt_has_them_all(version, stub, tmp_path):
    kept = os.environ.get("MEMCLI_TENSORRT_WHEELS")
    wheel = wheel_of(WHEELS[version], Path(kept) if kept else tmp_path)
    zipfile.ZipFile(wheel).extractall(tmp_path)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(stub),
        "PYTHONPATH": str(tmp_path),
    }
    command = [sys.executable, "-c", LIST]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found, names = json.loads(done.stdout)
    assert found.startswith(f"{version}.")
    wanted = {
        name
        for name in names_used()
        if name not in RTX_ONLY and not name.startswith("ComputeCapability")
    }
    assert wanted <= set(names), wanted - set(names)
    assert not set(names) >= RTX_ONLY  # or the difference of the flavours would be none


def test_cuda_python_has_every_name():
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    used = {
        node.attr
        for node in ast.walk(ast.parse((ENGINES / "cuda.py").read_text()))
        if isinstance(node, ast.Attribute) and last_name(node.value) == "runtime"
    }
    assert "cudaMemcpyAsync" in used
    assert not {name for name in used if not hasattr(runtime, name)}
    assert hasattr(runtime.cudaMemcpyKind, "cudaMemcpyHostToDevice")
    assert importlib.import_module("cuda.bindings").__version__
