"""The stand-in of PyNvVideoCodec against the signatures of the real package."""

import inspect
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import fake_nvdec
import pytest

STORED = json.loads((Path(__file__).parent / "pynvvideocodec_2_2_4.json").read_text())
VERSION = "2.2.4"
FUNCTIONS = ("PyNvDecoder.Decode", "DecodedFrame.getPTS", "DecodedFrame.framesize")
FUNCTIONS += ("DecodedFrame.GetPtrToPlane", "DecodedFrame.cuda", "PyNvDecoder.SyncOnCUStream")


def parameters(signature: str) -> list[str]:
    return re.findall(r"[(,] ?(\w+)(?=[:,)=])", signature.partition("->")[0])


def test_the_stand_in_takes_what_the_package_takes() -> None:
    real = parameters(STORED["CreateDecoder"])
    fake = list(inspect.signature(fake_nvdec.make_api().CreateDecoder).parameters)
    assert fake
    assert fake == real[: len(fake)]
    for name in FUNCTIONS:
        owner, method = name.split(".")
        function = getattr(getattr(fake_nvdec, owner), method)
        assert list(inspect.signature(function).parameters) == parameters(STORED[name])


def test_the_stand_in_has_the_packages_fields_and_numbers() -> None:
    assert set(vars(fake_nvdec.PacketData())) <= set(STORED["PacketData"])
    assert "__cuda_array_interface__" in STORED["CAIMemoryView"]
    for name in ("cudaVideoCodec", "VideoPacketFlag"):
        fake = {member.name: int(member) for member in getattr(fake_nvdec, name)}
        assert fake.items() <= STORED[name].items()


DUMP = """
import ctypes, importlib.util, json, sys
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
spec = importlib.util.spec_from_file_location("_PyNvVideoCodec", sys.argv[2])
api = importlib.util.module_from_spec(spec)
spec.loader.exec_module(api)
first = lambda text: next(line for line in text.splitlines() if "->" in line).removeprefix("1. ")
found = {"CreateDecoder": first(api.CreateDecoder.__doc__)}
for name in sys.argv[3].split():
    owner, method = name.split(".")
    found[name] = first(getattr(getattr(api, owner), method).__doc__)
names = (n for n in dir(api.CAIMemoryView) if n == "__cuda_array_interface__" or n[0] != "_")
found["CAIMemoryView"] = list(names)
found["PacketData"] = [name for name in dir(api.PacketData) if not name.startswith("_")]
for kind in ("cudaVideoCodec", "VideoPacketFlag"):
    members = getattr(api, kind).__members__
    found[kind] = {name: int(member) for name, member in members.items()}
print(json.dumps(found))
"""


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler for a stand-in of libcuda")
def test_the_stored_signatures_are_the_packages(tmp_path: Path) -> None:
    """Its extension module loads without a driver over a library that only has the names."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path)]
    done = subprocess.run([*pip, f"PyNvVideoCodec=={VERSION}"], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"not to be had: {done.stderr.strip().splitlines()[-1:]}")
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    (module,) = (tmp_path / "PyNvVideoCodec").glob("PyNvVideoCodec_130.*.so")
    names = set(re.findall(rb"\0(cu[A-Z]\w+)(?=\0)", module.read_bytes()))
    source = tmp_path / "cuda.c"
    source.write_text("".join(f"int {name.decode()}(void) {{ return 100; }}\n" for name in names))
    library = tmp_path / "libcuda.so.1"
    build = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library)]
    subprocess.run([*build, str(source)], check=True)
    script = [sys.executable, "-c", DUMP, str(library), str(module), " ".join(FUNCTIONS)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found) == set(STORED) - {"package"}
    for name in ("CreateDecoder", "PacketData", "CAIMemoryView", *FUNCTIONS):
        assert found[name] == STORED[name]
    for name in ("cudaVideoCodec", "VideoPacketFlag"):
        assert STORED[name].items() <= found[name].items()
