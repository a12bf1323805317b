"""Light files: packed, filled in and refused. Nothing here needs torch."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import memcli, without_torch
from light_bundle import (
    REPOSITORY,
    cached,
    encoder_tensors,
    halved,
    make_encoder_bundle,
    nothing_installed,
    pack,
    write_encoder,
)

from memcli import store
from memcli.engines.bundle import Bundle
from memcli.errors import ModelError, UsageError
from memcli.export.light_encoders import checkpoints_of
from memcli.exporting import ExportRequest, check_request
from memcli.packing import pack_light
from memcli.spec import EncoderSpec

REST = "fp32/model.bin.rest"
FILES = ("fp32/model.onnx", "fp32/model.bin", "LICENSE.weights.txt")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return write_encoder(tmp_path / "encoder", encoder_tensors())


@pytest.fixture
def whole(tmp_path: Path) -> Bundle:
    return make_encoder_bundle(tmp_path / "workstation", encoder_tensors())


@pytest.fixture
def packed(whole: Bundle, encoder: Path, tmp_path: Path) -> Path:
    return pack(whole, tmp_path / "tiny.memcli", encoder)


def content(bundle: Bundle) -> list[bytes]:
    return [(bundle.root / name).read_bytes() for name in FILES]


def test_what_the_encoder_has_is_left_out_and_comes_back(
    whole: Bundle, packed: Path, encoder: Path
) -> None:
    tensors = encoder_tensors()
    left_out = sum(array.nbytes for name, array in tensors.items() if name != "unused.weight")
    with zipfile.ZipFile(packed) as archive:
        assert "fp32/model.bin" not in archive.namelist()
        rest = archive.read(REST)
        table = json.loads(archive.read("light.json"))
    assert len(rest) == (whole.root / "fp32/model.bin").stat().st_size - left_out
    for name in ("patch.weight", "dense.weight", "norm.weight"):
        assert tensors[name].tobytes() not in rest
    by_name = {one["name"]: one for one in table["tensors"]}
    assert by_name.keys() == tensors.keys() - {"unused.weight"}
    assert [name for name, one in by_name.items() if one["transposed"]] == ["dense.weight"]
    added = store.add(packed, encoders=[str(encoder)])
    assert content(added) == content(whole)
    assert added.variants == whole.variants
    names = {path.relative_to(added.root).as_posix() for path in added.root.rglob("*")}
    assert names == {*FILES, "fp32", "manifest.json", "PARITY.md"}


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_and_unpacked_folders(
    whole: Bundle, packed: Path, tmp_path: Path, shards: int
) -> None:
    other = write_encoder(tmp_path / "other", encoder_tensors(), shards=shards)
    again = pack(whole, tmp_path / "again.memcli", other)
    with zipfile.ZipFile(again) as archive:
        archive.extractall(tmp_path / "unpacked")
    for source in (again, tmp_path / "unpacked", packed):
        added = store.add(source, encoders=[f"{REPOSITORY}={other}"])
        assert content(added) == content(whole)


def test_a_checkpoint_of_torch_save(whole: Bundle, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = write_encoder(tmp_path / "older", encoder_tensors())
    (folder / "model.safetensors").unlink()
    state = {name: torch.from_numpy(array) for name, array in encoder_tensors().items()}
    torch.save(state, folder / "pytorch_model.bin")
    added = store.add(pack(whole, tmp_path / "x.memcli", folder), encoders=[str(folder)])
    assert content(added) == content(whole)


def test_only_fp32_is_packed(tmp_path: Path, encoder: Path, whole: Bundle) -> None:
    half = replace(whole.variants["fp32"], precision="bf16")
    both = replace(whole, variants={**whole.variants, "bf16": half})
    added = store.add(pack(both, tmp_path / "x.memcli", encoder), encoders=[str(encoder)])
    assert added.variants == whole.variants


def test_by_the_commands_through_the_cache_of_the_hub_without_torch(
    tmp_path: Path, memcli_home: Path, encoder: Path
) -> None:
    whole = make_encoder_bundle(memcli_home, encoder_tensors())
    env = without_torch(tmp_path / "blocked")
    env["HF_HUB_CACHE"] = str(cached(encoder, tmp_path / "cache"))
    words = ("export", "tiny", "--light", "--output", "tiny.memcli", "--offline")
    done = memcli(*words, cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    assert "are left out" in done.stdout
    assert f"will need {REPOSITORY} at revision aaaa" in done.stdout
    before = content(whole)
    shutil.rmtree(memcli_home / "bundles")
    words = ("models", "add", "tiny.memcli", "--offline")
    done = memcli(*words, cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    assert "installed tiny (fp32)" in done.stdout
    assert content(store.find("tiny")) == before
    shutil.rmtree(memcli_home / "bundles")
    env["HF_HUB_CACHE"] = str(tmp_path / "empty")
    done = memcli(*words, cwd=tmp_path, **env)
    assert done.returncode == 3
    assert f"{REPOSITORY} is not on this machine, and --offline was given" in done.stderr
    assert "--encoder FOLDER" in done.stderr
    assert "Traceback" not in done.stderr
    assert nothing_installed(memcli_home)


def test_the_encoder_of_a_local_folder(tmp_path: Path, memcli_home: Path, encoder: Path) -> None:
    from memcli.train.run import EncoderUse, Run

    local = EncoderSpec("vision", "local folder mine", None, 24, "MIT")
    whole = make_encoder_bundle(tmp_path / "workstation", encoder_tensors(), local)
    told: dict[str, Any] = {"offline": True, "report": print}
    with pytest.raises(UsageError, match=r"local folder mine, and the training .* is not on this"):
        checkpoints_of(whole, None, **told)
    used = EncoderUse("vision", str(encoder), None, "0" * 64, str(encoder))
    run = Run(
        tmp_path, whole.spec, encoders=(used,), dataset={}, seed=0, dims={}, status="complete"
    )
    assert checkpoints_of(whole, run, **told) == {"vision": encoder}
    folder = memcli_home / "runs" / "tiny" / "one"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run.to_dict()))
    (folder.parent / "latest").write_text("one\n")
    packed = tmp_path / "x.memcli"
    first, second = pack_light(whole, packed, run=None, **told)
    assert "are left out" in first
    assert second == "memcli models add will need local folder mine"
    with pytest.raises(ModelError, match="without its vision encoder, local folder mine") as caught:
        store.add(packed)
    assert "--encoder DIR" in str(caught.value)
    assert nothing_installed(memcli_home)
    assert content(store.add(packed, encoders=[f"mine={encoder}"])) == content(whole)


def test_encoders_that_are_not_meant(packed: Path, encoder: Path, tmp_path: Path) -> None:
    two = [str(encoder), str(write_encoder(tmp_path / "two", encoder_tensors(2)))]
    for given_, what in (
        (["/absent"], "there is no folder '/absent'"),
        ([f"someone/else={encoder}"], "was not made with 'someone/else'"),
        (two, "none of the encoders that the model was made with"),
    ):
        with pytest.raises(UsageError) as caught:
            store.add(packed, encoders=given_)
        assert what in str(caught.value)
    plain = make_encoder_bundle(tmp_path / "plain", encoder_tensors()).root
    with pytest.raises(UsageError, match="needs no --encoder"):
        store.add(plain, encoders=[str(encoder)])


def test_options_that_make_no_sense(whole: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "x.memcli"
    for request, what in (
        (ExportRequest(("tiny",), light=True), "--light is for packing"),
        (ExportRequest(("tiny",), ("fp16",), light=True, output=output), "holds fp32 only"),
    ):
        with pytest.raises(UsageError, match=what):
            check_request(request)
    bare = replace(whole, spec=replace(whole.spec, encoders=()))
    with pytest.raises(UsageError, match="has no encoder to leave out"):
        pack_light(bare, output, run=None, offline=True, report=print)
    assert not output.exists()


def trained(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All that are not of one value, which training may leave as they are, have changed."""
    return {name: array + (np.ptp(array) > 0) for name, array in tensors.items()}


def test_trained_weights_stay_and_a_light_file_of_them_is_refused(
    whole: Bundle, tmp_path: Path, encoder: Path
) -> None:
    for number, change in enumerate((trained, halved)):
        other = write_encoder(tmp_path / str(number), change(encoder_tensors()))
        with pytest.raises(UsageError, match="nothing of tiny can be left out"):
            pack(whole, tmp_path / "x.memcli", other)
    assert not (tmp_path / "x.memcli").exists()
    half = encoder_tensors()
    half["patch.weight"] = half["patch.weight"] + 1
    partly = make_encoder_bundle(tmp_path / "partly", half)
    packed = pack(partly, tmp_path / "x.memcli", encoder)
    with zipfile.ZipFile(packed) as archive:
        assert half["patch.weight"].tobytes() in archive.read(REST)
        assert half["dense.weight"].T.tobytes() not in archive.read(REST)
    assert content(store.add(packed, encoders=[str(encoder)])) == content(partly)
