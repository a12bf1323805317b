"""`memcli engines`, and what is said where TensorRT, the driver or a GPU is missing."""

import dataclasses
import json

import pytest
from test_plans import KEY, keep
from tiny_bundle import make_tiny_bundle

from memcli import app
from memcli.engines import loading, plans
from memcli.engines.select import open_engine
from memcli.errors import EngineError, ExitCode, MissingDependencyError


def run(*words):
    return app.run(["engines", *map(str, words)])


def test_list_show_verify_clear(capsys):
    assert run() == ExitCode.OK
    assert "no engines" in capsys.readouterr().out
    plan = keep()
    name = plan.key.name()
    assert run() == run("list") == ExitCode.OK
    out = capsys.readouterr().out
    assert out.count(f"{name[:12]}  tiny fp16  tensorrt 10.3.0  NVIDIA GeForce RTX 4090") == 2
    assert "batch 1 to 16, time 1 to 16" in out
    assert "not checked" in out
    assert run("list", "--json") == ExitCode.OK
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["name"] == name
    assert entry["key"]["driver"] == KEY.driver
    assert run("show", name[:6]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "driver    570.86.15, CUDA 12.8\n" in out
    assert plan.sha256 in out
    assert run("show", name, "--json") == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == entry
    assert run("verify") == ExitCode.OK
    assert f"{name[:12]}  tiny fp16: ok, its hash; not loaded: " in capsys.readouterr().out
    assert run("clear") == ExitCode.USAGE
    assert run("clear", name, "--all") == ExitCode.USAGE
    assert run("clear", name) == ExitCode.OK
    assert plans.stored() == []
    assert run("show", name) == ExitCode.USAGE


def test_damage_is_found_and_cleared(capsys):
    keep().path.write_bytes(b"x")
    assert run("list") == ExitCode.OK
    assert "damaged\n" in capsys.readouterr().out
    assert run("verify") == ExitCode.NOT_USABLE
    assert "not usable: its size is not what it was" in capsys.readouterr().out
    assert run("clear", "--all") == ExitCode.OK
    assert "deleted 1 engine\n" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["{}", None, "other"])
def test_a_damaged_entry_is_found(capsys, damage):
    good = keep(dataclasses.replace(KEY, version="11.0"))
    folder = keep().folder
    entry = folder / plans.ENTRY_FILE
    if damage == "other":
        entry.write_bytes((good.folder / plans.ENTRY_FILE).read_bytes())
    elif damage is None:
        entry.unlink()
    else:
        entry.write_text(damage)
    name = folder.name
    for words in ((), (name[:8],)):
        assert run("verify", *words) == ExitCode.NOT_USABLE
        out = capsys.readouterr().out
        assert f"{name[:12]}  not usable: " in out
        assert (good.key.name()[:12] in out) is (words == ())
    assert run("verify", good.key.name()) == ExitCode.OK
    assert run("verify", "zz") == ExitCode.USAGE
    assert [plan.key for plan in plans.stored()] == [good.key]
    assert run("clear", "--all") == ExitCode.OK
    assert not folder.exists()


def test_an_engine_is_carried_over(tmp_path, monkeypatch, capsys):
    plans.export_plan(keep(), tmp_path / "engines")
    monkeypatch.setenv("MEMCLI_HOME", str(tmp_path / "other"))
    assert run("add", tmp_path / "engines") == ExitCode.OK
    assert "added 1 engine to" in capsys.readouterr().out
    assert plans.find(KEY).plan is not None
    assert run("add", tmp_path) == ExitCode.NOT_USABLE


def test_a_label_cannot_write_to_the_terminal(capsys):
    plans.store(plans.new_plan(KEY, b"x", label="\x1b]0;title\x07", seconds=0), b"x")
    assert run() == run("show", KEY.name()) == run("verify") == ExitCode.OK
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("engine", "hints"),
    [
        ("tensorrt", ("pypi.nvidia.com", "JetPack", "--engine tensorrt-rtx")),
        ("tensorrt-rtx", ("pip install 'memcli[tensorrt-rtx]'",)),
    ],
)
def test_a_missing_package_is_named_with_the_way_to_it(memcli_home, monkeypatch, engine, hints):
    monkeypatch.setattr(loading, "_TENSORRT", {engine: ("no_such_tensorrt",)})
    with pytest.raises(MissingDependencyError, match="TensorRT") as caught:
        open_engine(make_tiny_bundle(memcli_home), engine=engine)
    for hint in hints:
        assert hint in str(caught.value)


def test_a_package_that_does_not_load_is_said(memcli_home, monkeypatch, tmp_path):
    (tmp_path / "broken_tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: none')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(loading, "_TENSORRT", {"tensorrt": ("broken_tensorrt",)})
    with pytest.raises(EngineError, match=r"does not load: libnvinfer\.so\.10"):
        open_engine(make_tiny_bundle(memcli_home), engine="tensorrt")
