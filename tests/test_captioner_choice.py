"""Which captioner is taken, from a folder of them, for a device and its memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cli import memcli

from memcli import app
from memcli.captioning.bundle import (
    CacheShape,
    CaptionerBundle,
    captioners_dir,
    check_files,
    hash_files,
    read_captioner,
    write_manifest,
)
from memcli.captioning.choice import (
    choose_captioner,
    installed_captioners,
    size_of,
    survey_captioners,
)
from memcli.captioning.generate import GenerationRules
from memcli.captioning.images import ImageRules
from memcli.captioning.prompt import PromptRules
from memcli.errors import ExitCode, ModelError

GB = 10**9


def install(name: str, precision: str = "fp32", repository: str = "a/b", size: int = 10) -> None:
    """A captioner whose graphs are no graphs."""
    folder = captioners_dir() / name
    folder.mkdir(parents=True)
    for file in ("vision.onnx", "embed.onnx", "decoder.onnx", "tokenizer.json"):
        (folder / file).write_bytes(b"x" * size)
    write_manifest(
        CaptionerBundle(
            name=name,
            folder=folder,
            repository=repository,
            revision=None,
            digest="d",
            licence="apache-2.0",
            precision=precision,
            question="What is this?",
            frames=8,
            images=ImageRules(512, 512, False, "lanczos"),
            prompt=PromptRules("", "", "", "<image>", "", "", "", 64, False),
            generation=GenerationRules(64, (1,)),
            cache=CacheShape(1, 1, 1),
            files=hash_files(folder),
        )
    )


def chosen(name: str | None, device: str, memory: float | None) -> tuple[str, str | None]:
    choice = choose_captioner(name, device, None if memory is None else int(memory * GB))
    assert choice is not None
    return choice.bundle.name, choice.note


@pytest.fixture
def all_sizes() -> None:
    for size in ("256m", "500m", "2.2b"):
        for precision in ("fp32", "fp16", "int8"):
            install(f"smolvlm2-{size}-{precision}", precision)


@pytest.mark.usefixtures("all_sizes")
@pytest.mark.parametrize("memory", [8.0, 8.59, 2.0])
def test_a_device_of_8_gb_has_the_smallest(memory: float) -> None:
    for device, precision in (("cpu", "int8"), ("cuda:1", "fp16")):
        name, note = chosen(None, device, memory)
        assert name == f"smolvlm2-256m-{precision}"
        assert note is not None
        assert f"because {device} has {memory:.1f} GB" in note
        assert f"--captioner smolvlm2-500m-{precision} overrides" in note
        assert chosen("500m", device, memory) == (f"smolvlm2-500m-{precision}", None)


@pytest.mark.usefixtures("all_sizes")
def test_elsewhere_it_is_500m_in_the_precision_of_the_device() -> None:
    for memory in (12, 80, None):
        assert chosen(None, "cpu", memory) == ("smolvlm2-500m-int8", None)
        assert chosen(None, "cuda", memory) == ("smolvlm2-500m-fp16", None)
    assert chosen("2.2B", "cuda", 80) == ("smolvlm2-2.2b-fp16", None)
    assert chosen("smolvlm2-256m-fp16", "cuda", 80) == ("smolvlm2-256m-fp16", None)
    with pytest.raises(ModelError, match=r"cpu does not compute .* smolvlm2-256m-fp16 \(fp16\)"):
        choose_captioner("smolvlm2-256m-fp16", "cpu", None)


def test_a_small_device_without_the_smallest_is_told_of_it() -> None:
    install("smolvlm2-2.2b", size=40)
    install("smolvlm2-500m", size=20)
    name, note = chosen(None, "cpu", 8)
    assert name == "smolvlm2-500m"
    assert note is not None
    assert "memcli export captioner --size 256m" in note
    install("mine", size=5)
    name, note = chosen(None, "cpu", 8)
    assert (name, note is None) == ("mine", False)


def test_the_size_is_told_by_the_repository_too() -> None:
    install("mine", repository="HuggingFaceTB/SmolVLM2-256M-Video-Instruct")
    install("other", repository="me/model-1500m")
    assert [size_of(bundle) for bundle in installed_captioners()] == ["256m", None]
    assert chosen("256m", "cpu", None)[0] == "mine"
    assert chosen(None, "cpu", None)[0] == "mine"


def test_nothing_fits(tmp_path: Path) -> None:
    assert choose_captioner(None, "cpu", None) is None
    install("half", "fp16")
    assert choose_captioner(None, "cpu", None) is None
    for name in ("absent", "500m", str(tmp_path)):
        with pytest.raises(ModelError, match=r"\(installed: half\)") as caught:
            choose_captioner(name, "cpu", None)
        assert "memcli export captioner" in str(caught.value)


def test_a_folder_is_a_name(tmp_path: Path) -> None:
    install("mine")
    folder = (captioners_dir() / "mine").rename(tmp_path / "elsewhere")
    assert chosen(str(folder), "cpu", 8)[0] == "mine"


def test_damaged_ones_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    install("good")
    install("bad")
    (captioners_dir() / "bad/captioner.json").write_text("{}")
    assert [bundle.name for bundle in installed_captioners()] == ["good"]
    with pytest.raises(ModelError, match=r"installed: good, bad \(was made by another version"):
        choose_captioner("500m", "cpu", None)
    assert app.run(["doctor", "--json"]) in (ExitCode.OK, ExitCode.NOT_USABLE)
    report = json.loads(capsys.readouterr().out)
    entries = {one["captioner"]: one for one in report["captioners"]["installed"]}
    assert "another version" in entries["bad"]["problem"]
    assert entries["good"]["size_bytes"] == 40
    assert report["storage"]["captions_bytes"] == 0


def test_listed_added_and_removed(
    tmp_path: Path, memcli_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("mine")
    elsewhere = (captioners_dir() / "mine").rename(tmp_path / "elsewhere")
    (elsewhere / "note.txt").write_text("not of it")
    assert app.run(["models", "add", str(elsewhere)]) == ExitCode.OK
    assert app.run(["models", "add", str(elsewhere)]) == ExitCode.OK  # again: replaced
    target = memcli_home / "captioners" / "mine"
    assert f"installed captioner mine in {target}" in capsys.readouterr().out
    assert not (target / "note.txt").exists()
    assert app.run(["models"]) == ExitCode.OK
    assert "What is this?" in capsys.readouterr().out
    (elsewhere / "decoder.onnx").write_bytes(b"y" * 10)
    assert app.run(["models", "add", str(elsewhere)]) == ExitCode.NOT_USABLE
    assert (target / "decoder.onnx").read_bytes() == b"x" * 10
    (elsewhere / "decoder.onnx").unlink()
    (elsewhere / "decoder.onnx").symlink_to(target / "decoder.onnx")
    assert app.run(["models", "add", str(elsewhere)]) == ExitCode.NOT_USABLE
    assert app.run(["models", "rm", "mine"]) == ExitCode.OK
    assert not target.exists()
    assert app.run(["models", "rm", "mine"]) == ExitCode.USAGE
    assert app.run(["models", "rm", "../captioners"]) == ExitCode.USAGE


def test_memory_is_that_of_the_device(tmp_path: Path) -> None:
    from memcli.caption_maker import device_memory

    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 7812500 kB\nMemAvailable: 5 kB\n")
    assert device_memory("cpu", tmp_path) == 8_000_000_000
    limit = tmp_path / "sys/fs/cgroup/memory.max"
    limit.parent.mkdir(parents=True)
    limit.write_text("4000000000\n")
    assert device_memory("cpu", tmp_path) == 4_000_000_000
    assert device_memory("cuda:99", tmp_path) is None


def test_the_note_of_a_small_device_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from memcli import caption_maker

    pytest.importorskip("onnxruntime")
    install("smolvlm2-256m")
    install("smolvlm2-500m")
    said: list[str] = []

    def opened(memory: int) -> str:
        monkeypatch.setattr(caption_maker, "device_memory", lambda device: memory)
        maker = caption_maker.open_maker(
            None, device="cpu", threads=1, sampling="exact", report=said.append
        )
        assert maker is not None
        return maker.bundle.name

    assert opened(64 * GB) == "smolvlm2-500m"
    assert said == []
    assert opened(8 * GB) == "smolvlm2-256m"
    assert len(said) == 1
    assert "because cpu has 8.0 GB" in said[0]


def test_help_of_the_command(tmp_path: Path) -> None:
    done = memcli("caption", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "--sidecars" in done.stdout


def test_a_folder_that_may_not_be_read_is_left_out_and_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("good")
    install("closed")
    is_file = Path.is_file

    def refused(self: Path) -> bool:
        if self.parent.name == "closed":
            raise PermissionError(13, "Permission denied")
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", refused)
    found, damaged = survey_captioners()
    assert [one.name for one in found] == ["good"]
    assert damaged == ["closed (Permission denied)"]
    assert app.run(["models"]) == 0
    shown = capsys.readouterr().out
    assert "good" in shown
    assert "damaged captioner: closed (Permission denied)" in shown


def test_a_checkpoint_is_no_captioner_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "smol vlm"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "smolvlm"}')
    step = f"memcli export captioner --checkpoint '{folder}'"
    with pytest.raises(ModelError) as caught:
        choose_captioner(str(folder), "cpu", None)
    assert step in str(caught.value.next_step)
    assert app.run(["models", "add", str(folder)]) == ExitCode.NOT_USABLE
    assert step in capsys.readouterr().err
    for text in ('{"model_type": "siglip"}', "[]", "{"):
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelError) as caught:
            choose_captioner(str(folder), "cpu", None)
        assert "--checkpoint" not in str(caught.value.next_step)


def test_a_changed_file_is_refused_with_a_way_out() -> None:
    install("good")
    folder = captioners_dir() / "good"
    (folder / "decoder.onnx").write_bytes(b"y")
    with pytest.raises(ModelError, match="SHA-256 differs") as caught:
        check_files(read_captioner(folder, check=False))
    assert "memcli models rm good\n" in str(caught.value.next_step)


def test_damaged_ones_are_told_of() -> None:
    from memcli import caption_maker

    pytest.importorskip("onnxruntime")
    install("good")
    install("bad")
    (captioners_dir() / "bad/captioner.json").write_text("{")
    said: list[str] = []
    maker = caption_maker.open_maker(
        None, device="cpu", threads=1, sampling="exact", report=said.append
    )
    assert maker is not None
    assert said == ["captioner: bad (the manifest is no valid JSON) is left out"]


def test_the_hash_is_part_of_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    install("mine")
    (bundle,) = installed_captioners()
    assert replace(bundle, question="Else?").hash != bundle.hash
    licensed = replace(bundle, files={**bundle.files, "LICENSE": "0" * 64})
    before = bundle.hash
    assert licensed.hash == before
    monkeypatch.setattr("memcli.captioning.bundle.CAPTION_VERSION", 99)
    assert bundle.hash != before


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (" a dog\n runs\t", "a dog runs"),
        ("\x1b[31mred\u202e \x00", "[31mred"),
        ("\u200b", ""),
        ("caf\u00e9 \U0001f415", "caf\u00e9 \U0001f415"),
        (
            "\U0001f469\u200d\U0001f680 \u0645\u06cc\u200c",
            "\U0001f469\u200d\U0001f680 \u0645\u06cc\u200c",
        ),
    ],
)
def test_captions_are_one_line_that_prints(said: str, kept: str) -> None:
    from memcli.caption_maker import _plain

    assert _plain(said) == kept


def test_a_captioner_of_another_device_is_none() -> None:
    from memcli import caption_maker

    pytest.importorskip("onnxruntime")
    install("half", "fp16")
    said: list[str] = []
    maker = caption_maker.open_maker(
        None, device="cpu", threads=1, sampling="exact", report=said.append
    )
    assert maker is None
    assert said == ["captioner: none; cpu does not compute what is installed: half (fp16)"]
