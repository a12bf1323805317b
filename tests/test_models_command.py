"""`memcli models` and `memcli export`, with bundles that anybody may have written."""

import dataclasses
import json
from pathlib import Path

import pytest
from cli import memcli, memcli_here
from tiny_bundle import make_tiny_bundle

from memcli.app import run
from memcli.commands.models import command
from memcli.engines.bundle import Bundle, read_bundle, write_manifest
from memcli.models import MODELS, get_model
from memcli.models.papers import CITED
from memcli.spec import PublishedResult

HOSTILE = "\x1b[2J\x1b]0;title\x07\u202egnp.exe\nlicence     free for all"


def respecified(bundle: Bundle, **changes: object) -> Bundle:
    spec = dataclasses.replace(bundle.spec, **changes)
    write_manifest(dataclasses.replace(bundle, spec=spec))
    return read_bundle(bundle.root)


@pytest.fixture
def hostile(memcli_home: Path) -> Bundle:
    bundle = make_tiny_bundle(memcli_home)
    weights = dataclasses.replace(bundle.spec.weights, license=HOSTILE, homepage=HOSTILE)
    result = PublishedResult(dataset=HOSTILE, metric="SRCC", value=0.5, source=HOSTILE)
    texts = dict.fromkeys(("summary", "predicts", "source", "trained_on"), HOSTILE)
    return respecified(bundle, weights=weights, published=(result,), **texts)


@pytest.mark.parametrize("words", [("models",), ("models", "show", "tiny")])
def test_foreign_text_cannot_steer_the_terminal(
    hostile: Bundle, tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = memcli_here(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\\x1b[2J" in done.stdout
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert not [line for line in done.stdout.splitlines() if line.startswith("licence     free")]


def test_an_odd_bundle_does_not_hide_the_others(memcli_home: Path, tmp_path: Path) -> None:
    make_tiny_bundle(memcli_home, "good")
    odd = make_tiny_bundle(memcli_home, "odd")
    manifest = json.loads((odd.root / "manifest.json").read_text())
    del manifest["spec"]["trained_on"]
    (odd.root / "manifest.json").write_text(json.dumps(manifest))
    done = memcli_here("models", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "good" in done.stdout
    done = memcli_here("models", "show", "odd", cwd=tmp_path)
    assert done.returncode == 3
    assert "spec.trained_on is missing" in done.stderr


def test_published_is_a_rank_correlation_that_says_whose(memcli_home: Path, tmp_path: Path) -> None:
    tiny = make_tiny_bundle(memcli_home)
    other = PublishedResult("some images", "accuracy", 0.99, "a paper")
    respecified(tiny, published=(other,))
    done = memcli_here("models", cwd=tmp_path)
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    first = next(one for one in get_model("resmem").published if one.metric == "SRCC")
    assert f"SRCC {first.value}: {first.dataset}" in lines["resmem"]
    assert "0.67" not in lines["resmem"]
    assert lines["tiny"].endswith("none published")


def test_what_is_installed_is_listed_as_it_is(memcli_home: Path, tmp_path: Path) -> None:
    """A bundle that was trained with another encoder than the registry's."""
    bundle = make_tiny_bundle(memcli_home, "vision")
    weights = dataclasses.replace(bundle.spec.weights, license="Terms of the other encoder")
    respecified(bundle, weights=weights)
    listed = memcli_here("models", cwd=tmp_path).stdout
    lines = {line.split()[0]: line for line in listed.splitlines()}
    assert "4 frames 48x48" in lines["vision"]
    assert "Terms of the other encoder" in lines["vision"]
    assert "16 frames 224x224" in lines["brr"]
    entries = json.loads(memcli_here("models", "--json", cwd=tmp_path).stdout)
    (own,) = [entry for entry in entries if entry["model"] == "vision"]
    assert (own["input"], own["license"]) == ("4 frames 48x48", "Terms of the other encoder")


def test_show_of_a_variant_gated_on_videos(memcli_home: Path, tmp_path: Path) -> None:
    tiny = make_tiny_bundle(memcli_home, precisions=("fp32", "int8"))
    measured = {"max_abs": 0.01, "mean_abs": 0.002, "srcc": 0.999, "frames_of": "holdout videos"}
    int8 = dataclasses.replace(tiny.variants["int8"], parity=[measured])
    write_manifest(dataclasses.replace(tiny, variants={**tiny.variants, "int8": int8}))
    done = memcli_here("models", "show", "tiny", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "holdout videos, not recorded: max |difference| 0.01, mean 0.002, SRCC" in done.stdout


def test_a_packed_bundle_is_to_be_added_by_a_quoted_command(tmp_path: Path) -> None:
    path = tmp_path / "my model.memcli"
    path.write_bytes(b"PK")
    done = memcli_here("models", "show", path, cwd=tmp_path)
    assert done.returncode == 2
    assert f"memcli models add '{path}'" in done.stderr


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if spec.encoders])
def test_show_says_of_each_encoder_whether_it_is_pinned(
    name: str, memcli_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "show", name]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("encoder")]
    assert len(lines) == len(MODELS[name].encoders)
    for line, encoder in zip(lines, MODELS[name].encoders, strict=True):
        assert f"{encoder.tower}: {encoder.repository}," in line
        pinned = f"revision {encoder.revision}"
        assert line.endswith(pinned if encoder.revision else "the newest, which the run records")


@pytest.mark.parametrize("word", ["show", "rm", "pull"])
@pytest.mark.parametrize(("name", "meant"), [("Resmen", "resmem"), ("tinny", "tiny")])
def test_an_unknown_name_is_a_usage_error_with_the_closest(
    memcli_home: Path, tmp_path: Path, word: str, name: str, meant: str
) -> None:
    make_tiny_bundle(memcli_home)
    done = memcli_here("models", word, name, cwd=tmp_path)
    assert done.returncode == 2
    assert f"there is no model called {name!r}; did you mean {meant!r}?" in done.stderr


def test_help_of_the_subcommands_is_whole(tmp_path: Path) -> None:
    shown = memcli("models", "--help", cwd=tmp_path, COLUMNS="60").stdout
    text = " ".join(shown.split())
    for name, subcommand in command.commands.items():
        first, *more = (subcommand.help or "").splitlines()
        assert f"{name} {first}" in text
        assert any(f"memcli models {name}" in line for line in more), name


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_of_the_registry_is_shown(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "show", name]) == 0
    shown = capsys.readouterr().out
    assert MODELS[name].license in shown
    for paper in CITED:
        assert (paper.title in shown) == (paper.file in json.dumps(MODELS[name].to_dict()))
        assert paper.file not in shown


def test_rm_of_a_path(memcli_home: Path, tmp_path: Path) -> None:
    mine = make_tiny_bundle(tmp_path).root
    done = memcli_here("models", "rm", mine, cwd=tmp_path)
    assert done.returncode == 2
    assert "not the name of a model" in done.stderr
    assert read_bundle(mine).model == "tiny"


@pytest.mark.parametrize("place", ["absent/x.memcli", "file/x.memcli"])
@pytest.mark.parametrize("more", [[], ["--int8", "--calibration", "."]])
def test_a_place_that_cannot_be_written_is_noticed_first(
    memcli_home: Path, tmp_path: Path, place: str, more: list[str]
) -> None:
    make_tiny_bundle(memcli_home)
    (tmp_path / "file").touch()
    done = memcli_here("export", "tiny", *more, "--output", place, cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot write x.memcli" in done.stderr


def test_export_packs(memcli_home: Path, tmp_path: Path) -> None:
    make_tiny_bundle(memcli_home)
    done = memcli_here("export", "tiny", "-o", "x.memcli", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.memcli"]
    assert memcli_here("export", "tiny", cwd=tmp_path).returncode == 2


def test_a_captioner_is_shown(
    memcli_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="the tiny captioner is exported")
    pytest.importorskip("transformers", reason="as above")
    from tiny_captioner import install_captioner

    bundle = install_captioner(memcli_home, question="What \u00e9?")
    for name in (bundle.name, str(bundle.folder)):
        assert run(["models", "show", name]) == 0
        shown = capsys.readouterr().out
        for text in (bundle.hash, bundle.repository, "What \u00e9?", str(bundle.folder), "fp32"):
            assert text in shown
    assert run(["models", "show", bundle.name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["question"] == "What \u00e9?"
    (bundle.folder / "captioner.json").unlink()
    assert run(["models", "show", bundle.name]) == 3
    assert "memcli export captioner" in capsys.readouterr().err
    assert run(["models", "rm", bundle.name]) == 0
    assert not bundle.folder.exists()
