"""Checkpoints made to harm: refused with a ModelError, in bounded time and memory, nothing run."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcli.errors import ModelError
from memcli.export import checkpoint, unpickle
from memcli.export.checkpoint import read_state_dict

TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def tensor(
    shape: tuple[int, ...] = (2, 3),
    stride: tuple[int, ...] = (3, 1),
    offset: int = 0,
    numel: int = 6,
) -> bytes:
    """Opcodes of one tensor, as torch.save writes them."""
    sizes = b"".join(b"(" + b"".join(map(number, values)) + b"t" for values in (shape, stride))
    storage = b"(" + STORAGE + number(numel) + b"tQ"
    return TENSOR + b"(" + storage + number(offset) + sizes + b"\x89}tR"


def state(value: bytes, key: bytes = b"X\x01\x00\x00\x00w") -> bytes:
    """A pickle of {key: value}."""
    return b"\x80\x02}" + key + value + b"s."


def archive(
    path: Path, pickled: bytes, extra: dict[str, bytes] | None = None, **kwargs: Any
) -> Path:
    entries = {"a/data.pkl": pickled, "a/data/0": np.arange(6, dtype="<f4").tobytes()}
    with zipfile.ZipFile(path, "w", **kwargs) as file:
        for name, content in {**entries, **(extra or {})}.items():
            file.writestr(name, content)
    return path


class Evil:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_the_helper_makes_a_good_checkpoint(tmp_path: Path) -> None:
    found = read_state_dict(archive(tmp_path / "x.pt", state(tensor())))
    assert found["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch HACKED",), "system"),
        (eval, ("open('HACKED', 'w')",), "eval"),
        (getattr, (os, "system"), "getattr"),
        (__import__, ("os",), "__import__"),
    ],
)
def test_calls_are_refused_by_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    protocol: int,
    function: Any,
    arguments: tuple[Any, ...],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = tuple(a for a in arguments if isinstance(a, str))
    pickled = pickle.dumps({"w": Evil(function, *arguments)}, protocol)
    with pytest.raises(ModelError, match=f"(?s){name}.*refused"):
        read_state_dict(archive(tmp_path / "x.pt", pickled))
    assert not (tmp_path / "HACKED").exists()


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"(Vls\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nVls\no.", "os.system"),
        (b"S'ls'\n.", "STRING"),
        (b"cos\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x04K\x01\x8c\x06system\x93.", "damaged"),
        (b"ctorch._utils\n_rebuild_tensor\n.", "_rebuild_tensor"),
        (b"ctorch\nFloatStorage.__reduce__\n.", "FloatStorage"),
        (b"ctorch\nfloat32\n.", "torch.float32"),
        (b"ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        (b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.", "REDUCE"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "REDUCE"),
        (b"\x80\x02K\x01K\x01R.", "REDUCE"),
        (b"\x80\x02K\x01}b.", "dict is expected"),
        (b"\x82\x01.", "EXT1"),
        (b"\x80\x02Pstorage\n.", "PERSID"),
        (b"\x80\x02K\x01Q.", "id of a storage"),
        (b"\x80\x04\x8f.", "EMPTY_SET"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b".", "damaged"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".", "damaged"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x80\x02\x8b\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x80\x02\x8b\xff\xff\xff\xffabc.", "damaged"),
        (b"\x80\x02I" + b"9" * 100_000 + b"\n.", "damaged|not a state dict"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "NoneType"),  # the memo index that costs pickle 64 GB
        (b"\x80\x02j\xff\xff\xff\xff.", "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02", "damaged"),
        (b"", "damaged|no end"),
        (b"\xff", "damaged"),
        (b"\x80\x02t.", "no MARK"),
        (b"\x80\x02(\x85.", "MARK used"),
        (b"\x80\x02].", "list, not a state dict"),
        (b"\x80\x02}K\x01K\x02s.", "not a named tensor"),
        (state(b"K\x01"), "not a named tensor"),
        (state(tensor(), key=b")"), "as key"),
        (b"\x80\x02}(K\x01u.", "without value"),
        # A tuple nested so deeply that hashing it overflows the C stack.
        (state(b"N", key=b")" + b"\x85" * 200_000), "as key"),
        (b"\x80\x02" + b"]" + b"2]a" * 10 + b".", "DUP"),
    ],
)
def test_hostile_pickles(tmp_path: Path, pickled: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_state_dict(archive(tmp_path / "x.pt", pickled))


DEEP = b")" + b"\x85" * 200_000
"""A tuple in a tuple, 200,000 times: printing, hashing or comparing it overflows the stack."""

LAUGHS = b")" + b"".join(b"q\x01h\x01\x86" for _ in range(64))
"""A tuple of two references to a tuple of two references...: 2**64 elements when printed."""

HUGE = b"\x8b" + struct.pack("<l", 1 << 20) + b"\x7f" * (1 << 20)
"""An integer of 2.5 million digits."""


@pytest.mark.parametrize("value", [DEEP, LAUGHS, HUGE], ids=["deep", "laughs", "huge"])
@pytest.mark.parametrize(
    "template",
    [
        "%",  # the whole state dict
        "}X\x01\x00\x00\x00w%s",  # a value
        "}%X\x01\x00\x00\x00ws",  # a key
        "%Q",
        "(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x00\x00\x00\x00%tQ",
        "%)R",
        "ccollections\nOrderedDict\n%R",
        "ccollections\nOrderedDict\n(%tR",
        "ctorch._utils\n_rebuild_tensor_v2\n(%NNNNNtR",
        "ctorch._utils\n_rebuild_parameter\n(%NNtR",
        "%X\x01\x00\x00\x00x\x93",
        "X\x01\x00\x00\x00x%\x93",
        "]%b",
        "]%a(%%e",
    ],
)
def test_nested_and_shared_values(template: str, value: bytes) -> None:
    """Wherever such a value goes, it is refused at once."""
    pickled = b"\x80\x02" + template.encode("latin-1").replace(b"%", value) + b"."
    with pytest.raises(ModelError):
        unpickle.read_tensors(pickled)


@pytest.mark.parametrize("value", [DEEP, LAUGHS, HUGE], ids=["deep", "laughs", "huge"])
@pytest.mark.parametrize("place", ["offset", "shape", "sizes", "hooks"])
def test_nested_and_shared_values_in_a_tensor(value: bytes, place: str) -> None:
    storage = b"(" + STORAGE + number(6) + b"tQ"
    parts = {"offset": b"K\x00", "shape": b"K\x06\x85", "sizes": b"K\x01\x85", "hooks": b"}"}
    parts[place] = value if place == "offset" else b"(" + value + b"t"
    body = TENSOR + b"(" + storage + parts["offset"] + parts["shape"] + parts["sizes"]
    pickled = state(body + b"\x89" + parts["hooks"] + b"tR")
    if place == "hooks":  # never looked at
        assert unpickle.read_tensors(pickled)["w"].shape == (6,)
    else:
        with pytest.raises(ModelError):
            unpickle.read_tensors(pickled)


@pytest.mark.parametrize(
    "arguments",
    [
        {"shape": (2, 4)},
        {"offset": 1},
        {"offset": -1},
        {"offset": 1 << 70},
        {"stride": (3, -1)},
        {"stride": (3, 1 << 62)},
        {"stride": (1 << 70, 1)},
        {"stride": (3,)},
        {"shape": (-2, -3)},
        {"shape": (1 << 40, 1 << 40), "stride": (0, 0)},
        {"shape": (7,), "stride": (0,)},
        {"shape": (1 << 32, 1 << 32, 0), "stride": (0, 0, 0), "offset": 7},
        {"shape": (1 << 62, 0), "stride": (1, 1)},
        {"shape": (1,) * 33, "stride": (1,) * 33},
        {"numel": 7},
        {"numel": -1},
        {"numel": 1 << 62},
        {"numel": 1 << 70},
        {"numel": 7, "shape": (7,), "stride": (1,)},
    ],
    ids=str,
)
def test_views_outside_their_storage(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        read_state_dict(archive(tmp_path / "x.pt", state(tensor(**arguments))))


@pytest.mark.parametrize("key", [b"../0", b"/etc/passwd", b"0\x00", b"1", b""])
def test_storage_keys_cannot_leave_the_archive(tmp_path: Path, key: bytes) -> None:
    length = struct.pack("<L", len(key))
    pickled = state(tensor()).replace(b"X\x01\x00\x00\x000", b"X" + length + key)
    with pytest.raises(ModelError, match="is missing"):
        read_state_dict(archive(tmp_path / "x.pt", pickled))


def test_quantised_and_unknown_storages(tmp_path: Path) -> None:
    pickled = state(tensor()).replace(b"FloatStorage", b"QInt8Storage")
    with pytest.raises(ModelError, match="QInt8Storage is not supported"):
        read_state_dict(archive(tmp_path / "x.pt", pickled))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"a/byteorder": b"big"}, "big-endian"),
        ({"a/byteorder": b"l" * 100}, "larger than"),
        ({"b/data.pkl": b"N."}, "no single data.pkl"),
        ({"a/constants.pkl": b"N."}, "TorchScript"),
        ({"../evil": b""}, "outside"),
        ({"a/../../evil": b""}, "outside"),
        ({"/evil": b""}, "outside"),
        ({"a\\..\\evil": b""}, "outside"),
    ],
)
def test_hostile_archives(tmp_path: Path, extra: dict[str, bytes], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_state_dict(archive(tmp_path / "x.pt", state(tensor()), extra))


def test_duplicate_entries(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", state(tensor()))
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("a/data/0", b"")
    with pytest.raises(ModelError, match="two entries"):
        read_state_dict(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression(tmp_path: Path, method: int) -> None:
    with pytest.raises(ModelError, match="unsupported"):
        read_state_dict(archive(tmp_path / "x.pt", state(tensor()), compression=method))


def test_deflate_bomb(tmp_path: Path) -> None:
    zeros = bytes(64 << 20)
    path = archive(
        tmp_path / "x.pt", state(tensor()), {"a/data/1": zeros}, compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ModelError, match="would expand"):
        read_state_dict(path)


def test_huge_pickle_and_endless_opcodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "x.pt", b"\x80\x02" + b"N" * 5000 + b".")
    monkeypatch.setattr(unpickle, "MAX_OPCODES", 1000)
    with pytest.raises(ModelError, match="opcodes"):
        read_state_dict(path)
    monkeypatch.setattr(checkpoint, "MAX_PICKLE_BYTES", 1000)
    with pytest.raises(ModelError, match="larger than"):
        read_state_dict(path)


def test_absurd_directory_size(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", state(tensor()))
    content = bytearray(path.read_bytes())
    struct.pack_into("<L", content, content.rfind(b"PK\x05\x06") + 12, 1 << 30)
    path.write_bytes(content)
    with pytest.raises(ModelError, match="zip directory"):
        read_state_dict(path)


def test_nested_archive_is_no_checkpoint(tmp_path: Path) -> None:
    inner = archive(tmp_path / "inner.pt", state(tensor())).read_bytes()
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("deep/a/inner.pt", inner)
    with pytest.raises(ModelError, match=r"data\.pkl"):
        read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02}.", bytes(100_000)])
def test_no_archive_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"not a PyTorch checkpoint|empty"):
        read_state_dict(tmp_path / "x.pt")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            read_state_dict(path)


def load_all(path: Path) -> None:
    """Read and touch every tensor; only ModelError may come out."""
    with contextlib.suppress(ModelError):
        for array in read_state_dict(path).values():
            np.asarray(array).tobytes()


def test_every_truncation(tmp_path: Path) -> None:
    content = archive(tmp_path / "x.pt", state(tensor())).read_bytes()
    for length in range(len(content)):
        (tmp_path / "y.pt").write_bytes(content[:length])
        with pytest.raises(ModelError):
            read_state_dict(tmp_path / "y.pt")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("seed", range(4))
def test_mutated_archives(tmp_path: Path, seed: int, method: int) -> None:
    """Fixed seeds, 400 files each: bytes flipped, set, cut out and doubled."""
    rng = random.Random(seed)
    original = archive(tmp_path / "x.pt", state(tensor()), compression=method).read_bytes()
    for _ in range(400):
        content = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            position = rng.randrange(len(content))
            match rng.randrange(4):
                case 0:
                    content[position] ^= 1 << rng.randrange(8)
                case 1:
                    content[position] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
                case 2:
                    del content[position : position + rng.randint(1, 8)]
                case _:
                    content[position:position] = content[position : position + rng.randint(1, 8)]
        (tmp_path / "y.pt").write_bytes(content)
        load_all(tmp_path / "y.pt")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools, decoding STRING
@pytest.mark.parametrize("seed", range(4))
def test_mutated_pickles(seed: int) -> None:
    """The pickle machine alone, where a zip checksum cannot hide it."""
    rng = random.Random(seed)
    original = b"\x80\x02}(" + b"".join(
        b"X\x01\x00\x00\x00" + bytes([97 + i]) + tensor() + b"q\x01" for i in range(3)
    )
    original += b"u."
    assert len(unpickle.read_tensors(original)) == 3
    for _ in range(3000):
        content = bytearray(original)
        for _ in range(rng.randint(1, 5)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        with contextlib.suppress(ModelError):
            unpickle.read_tensors(bytes(content))
