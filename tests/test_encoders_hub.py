"""Where encoders come from: the hub's cache, the hub, a folder; and what is said when not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import huggingface_hub
import pytest
from huggingface_hub import errors

pytest.importorskip("torch")
pytest.importorskip("transformers")

from memcli.errors import ModelError, UsageError
from memcli.spec import EncoderSpec
from memcli.train import digests
from memcli.train.checkpoints import locate
from memcli.train.encoders import resolve
from tests.tiny_hub import MAKERS, make_clip, make_vit

SPEC = EncoderSpec("vision", "someone/vit", "a" * 40, 32, "MIT", "cls")
REPLY: Any = SimpleNamespace(headers={}, request=None, status_code=404, text="")


class FakeHub:
    """Stands for snapshot_download: a cache folder, and what the network gives."""

    def __init__(self, root: Path, network: Exception | Callable[[list[str]], None]):
        self.snapshot = root / "snapshots" / ("a" * 40)
        self.network = network
        self.calls: list[tuple[bool, list[str]]] = []

    def __call__(
        self, repo: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool
    ) -> str:
        assert repo == "someone/vit"
        self.calls.append((local_files_only, allow_patterns))
        if local_files_only:
            if not self.snapshot.is_dir():
                raise errors.LocalEntryNotFoundError("not cached")
        elif isinstance(self.network, Exception):
            raise self.network
        else:
            self.network(allow_patterns)
        return str(self.snapshot)

    def fill(self, *names: str) -> None:
        """Put files of a tiny checkpoint into the cache."""
        self.snapshot.mkdir(parents=True, exist_ok=True)
        whole = self.snapshot.parent.parent / "whole"
        if not whole.is_dir():
            whole.mkdir()
            make_vit(whole)
        for name in names or [path.name for path in whole.iterdir()]:
            shutil.copy(whole / name, self.snapshot)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path, errors.LocalEntryNotFoundError("no network"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


def test_a_pinned_revision_in_the_cache_needs_no_network(hub: FakeHub) -> None:
    hub.fill()
    said: list[str] = []
    spec, checkpoint = resolve(SPEC, report=said.append)
    assert [local for local, _ in hub.calls] == [True]
    assert said == []
    assert (spec.repository, spec.revision) == ("someone/vit", "a" * 40)
    assert checkpoint.folder == hub.snapshot


def test_without_a_revision_the_hub_is_asked_and_its_answer_recorded(hub: FakeHub) -> None:
    hub.network = lambda patterns: hub.fill()
    spec, checkpoint = resolve(SPEC, override="someone/vit")
    assert [local for local, _ in hub.calls] == [False]
    assert spec.revision == checkpoint.revision == "a" * 40


def test_what_is_missing_in_the_cache_is_fetched(hub: FakeHub) -> None:
    hub.fill("config.json")
    hub.network = lambda patterns: hub.fill()
    said: list[str] = []
    locate(SPEC, report=said.append)
    assert [local for local, _ in hub.calls] == [True, False]
    assert said == ["encoder someone/vit from the hub"]


def test_torch_weights_are_fetched_only_where_there_are_no_safetensors(hub: FakeHub) -> None:
    def network(patterns: list[str]) -> None:
        hub.fill("config.json", "preprocessor_config.json")
        if "pytorch_model.bin" in patterns:
            (hub.snapshot / "pytorch_model.bin").write_bytes(b"x")

    hub.network = network
    checkpoint = locate(SPEC)
    fetched = [patterns for local, patterns in hub.calls if not local]
    assert len(fetched) == 2
    assert "model.safetensors" in fetched[0]
    assert not any("bin" in pattern or pattern == "*" for pattern in fetched[0])
    assert checkpoint.folder == hub.snapshot


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.LocalEntryNotFoundError("x"), "the hub cannot be reached"),
        (errors.OfflineModeIsEnabled("HF_HUB_OFFLINE=1 is set"), "HF_HUB_OFFLINE=1 is set"),
        (
            errors.GatedRepoError("x", response=REPLY),
            "accept them at https://huggingface.co/someone",
        ),
        (errors.RevisionNotFoundError("x", response=REPLY), "has no revision aaaa"),
        (errors.RepositoryNotFoundError("x", response=REPLY), "does not exist on the hub"),
        (errors.HfHubHTTPError("503 Busy\nmore", response=REPLY), "refused by the hub: 503 Busy"),
        (ConnectionError("no route to host"), "no route to host"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("client is closed \x1b[2J"), r"client is closed \x1b[2J"),
    ],
)
def test_failures_say_what_to_download_and_where_to_put_it(
    hub: FakeHub, error: Exception, words: str
) -> None:
    hub.network = error
    with pytest.raises(ModelError) as caught:
        resolve(SPEC)
    text = str(caught.value)
    assert words in text
    assert text.startswith("the vision encoder someone/vit ")
    for part in (
        "config.json, model.safetensors (else pytorch_model.bin), preprocessor_config.json",
        f"https://huggingface.co/someone/vit/tree/{'a' * 40}",
        "--encoder FOLDER",
        "--offline",
    ):
        assert part in text
    assert "\x1b" not in text


def test_a_text_encoder_needs_tokenizer_files(hub: FakeHub) -> None:
    spec = EncoderSpec("text", "someone/vit", None, 32, "MIT", "cls")
    with pytest.raises(ModelError, match=r"tokenizer\.json, tokenizer_config\.json") as caught:
        resolve(spec)
    assert "preprocessor_config" not in str(caught.value)
    assert "/tree/main" in str(caught.value)


def test_offline_asks_the_cache_only(hub: FakeHub) -> None:
    with pytest.raises(ModelError, match="--offline was given"):
        resolve(SPEC, offline=True)
    hub.fill("config.json")
    with pytest.raises(ModelError, match=r"has no weights.* --offline was given"):
        resolve(SPEC, offline=True)
    hub.fill()
    resolve(SPEC, offline=True)
    assert all(local for local, _ in hub.calls)


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize(
    ("make", "tower", "lost", "named"),
    [
        ("clip", "vision", ["preprocessor_config.json"], "preprocessor_config.json"),
        ("clip", "text", ["tokenizer.json"], "tokenizer files (tokenizer.json)"),
        ("siglip", "text", ["tokenizer.json", "spiece.model"], "tokenizer files (tokenizer.json)"),
        ("roberta", "text", ["1_Pooling/config.json"], "1_Pooling/config.json"),
        ("roberta", "text", ["model.safetensors"], "weights"),
    ],
)
def test_what_the_cache_lacks_is_named(
    hub: FakeHub, make: str, tower: Any, lost: list[str], named: str, offline: bool
) -> None:
    MAKERS[make](hub.snapshot.parent / "made").rename(hub.snapshot)
    (hub.snapshot / "vocab.json").write_text("{}")  # which needs merges.txt beside it
    for name in lost:
        (hub.snapshot / name).unlink()
    spec = EncoderSpec(tower, "someone/vit", "a" * 40, 32, "MIT", "cls")
    with pytest.raises(ModelError) as caught:
        resolve(spec, offline=offline)
    first, *rest = str(caught.value).splitlines()
    assert f"the {tower} encoder someone/vit has no {named}" in first
    assert "in the hub's cache on this machine, and" in first
    assert first.endswith("--offline was given" if offline else "the hub cannot be reached")
    assert any("On a machine with network, download" in line for line in rest)


def test_a_repository_without_weights_is_refused(hub: FakeHub) -> None:
    hub.network = lambda patterns: hub.fill("config.json", "preprocessor_config.json")
    with pytest.raises(ModelError, match="has no weights"):
        resolve(SPEC)


def test_a_revision_can_be_named(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, *, revision: str | None, **_: Any) -> str:
        asked.append((repo, revision))
        raise errors.LocalEntryNotFoundError("x")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for override in ("other/vit@v1.0", "other/vit"):
        with pytest.raises(ModelError, match="other/vit"):
            resolve(SPEC, override=override)
    assert asked == [("other/vit", "v1.0"), ("other/vit", "v1.0"), ("other/vit", None)]
    with pytest.raises(UsageError, match="is no revision"):
        resolve(SPEC, override="other/vit@a b")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_folder_that_is_not_complete_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_vit(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name.split(".")[0]) as caught:
        resolve(SPEC, override=str(folder))
    assert str(folder) in str(caught.value)
    assert name in (caught.value.next_step or "")
    assert "--encoder FOLDER" in (caught.value.next_step or "")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_configuration_says_what_to_do(tmp_path: Path, content: str) -> None:
    folder = make_vit(tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match="JSON") as caught:
        resolve(SPEC, override=str(folder))
    assert caught.value.where == str(folder / "config.json")
    assert "Copy or download this file again" in str(caught.value)


def test_shards_must_all_be_there_and_in_the_folder(tmp_path: Path) -> None:
    folder = make_vit(tmp_path)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match="has no weights"):
        locate(SPEC, override=str(folder))
    (folder / shards["b"]).write_bytes(b"")
    locate(SPEC, override=str(folder))
    for names in ({"a": "../model.safetensors"}, {"a": "/etc/passwd"}, {"a": 5}, {}, []):
        index.write_text(json.dumps({"weight_map": names}))
        with pytest.raises(ModelError, match=r"index\.json"):
            locate(SPEC, override=str(folder))


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b"{}", b" " * (5 << 20)])
def test_a_damaged_configuration_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    folder = make_vit(tmp_path)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve(SPEC, override=str(folder))


def test_a_configuration_that_transformers_refuses(tmp_path: Path) -> None:
    folder = make_vit(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "many"}))
    with pytest.raises(ModelError):
        resolve(SPEC, override=str(folder))


def test_the_digest_follows_the_files_that_matter(tmp_path: Path) -> None:
    folder = make_clip(tmp_path / "clip")
    digest = locate(SPEC, override=str(folder)).digest
    (folder / "README.md").write_text("new")
    (folder / "optimizer.pt").write_bytes(b"new")
    assert locate(SPEC, override=str(folder)).digest == digest
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert locate(SPEC, override=str(copy)).digest == digest
    seen = {digest}
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        path = folder / name
        path.write_bytes(path.read_bytes() + b" ")
        seen.add(locate(SPEC, override=str(folder)).digest)
    assert len(seen) == 4


def test_the_digest_of_a_tower_does_not_follow_the_files_of_the_other(tmp_path: Path) -> None:
    # The hub's cache gets them in the same folder once another model asks for them.
    folder = make_clip(tmp_path / "clip")

    def digest(tower: Literal["vision", "text"]) -> str:
        return locate(replace(SPEC, tower=tower), override=str(folder)).digest

    vision, text = digest("vision"), digest("text")
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b" ")
    assert digest("vision") == vision
    assert digest("text") != text
    text = digest("text")
    (folder / "preprocessor_config.json").unlink()
    assert digest("text") == text


def test_a_folder_named_like_a_pinned_repository_is_not_it(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fill()
    own = make_vit(tmp_path / "here" / SPEC.repository, seed=9)
    monkeypatch.chdir(tmp_path / "here")
    assert locate(SPEC).folder == hub.snapshot
    assert locate(SPEC, override=SPEC.repository).folder == own


def test_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_vit(tmp_path)
    digest = locate(SPEC, override=str(folder)).digest
    hashed: list[int] = []
    real = digests.hashlib.sha256

    class Counting:
        def __init__(self) -> None:
            hashed.append(1)
            self._digest = real()
            self.update, self.hexdigest = self._digest.update, self._digest.hexdigest

    monkeypatch.setattr(digests.hashlib, "sha256", Counting)
    assert locate(SPEC, override=str(folder)).digest == digest
    assert len(hashed) == 1, "the sum of remembered digests, no file"
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b"\n")
    assert locate(SPEC, override=str(folder)).digest != digest
    assert len(hashed) == 3, "the sum and the changed file"


def test_a_damaged_memory_of_digests_costs_time_only(tmp_path: Path, memcli_home: Path) -> None:
    folder = make_vit(tmp_path)
    digest = locate(SPEC, override=str(folder)).digest
    memory = memcli_home / "cache/digests/files.json"
    known = json.loads(memory.read_text())
    for content in (b"\xff", b"[]", json.dumps({key: [1] for key in known}).encode()):
        memory.write_bytes(content)
        assert locate(SPEC, override=str(folder)).digest == digest
