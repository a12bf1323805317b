"""The captioner against transformers: the same tokens, without torch or transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from memcli.captioning.bundle import (
    CaptionerBundle,
    captioners_dir,
    hash_files,
    read_captioner,
    write_manifest,
)
from memcli.captioning.captioner import Captioner
from memcli.captioning.images import tiles_of
from memcli.captioning.prompt import PromptTokenizer
from memcli.captioning.sessions import CaptionerSessions
from memcli.errors import ExitCode, ModelError
from tests.tiny_smolvlm import SHAPES, Shape, make_smolvlm, processor_of

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

NEW_TOKENS = 64
QUESTIONS = ("Describe the video in one sentence.", "what is in the frames? 3 words, é")

Clip = npt.NDArray[np.uint8]

_RUN = """
import json, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "PIL", "jinja2"):
            raise ImportError(name)

sys.meta_path.insert(0, Block())
from pathlib import Path
import numpy as np
from memcli.captioning.bundle import read_captioner
from memcli.captioning.captioner import Captioner
from memcli.captioning.sessions import CaptionerSessions

found = {}
for folder, file in zip(sys.argv[1::2], sys.argv[2::2]):
    bundle = read_captioner(Path(folder))
    arrays = np.load(file)
    clips = [arrays[name] for name in arrays.files]
    with Captioner(bundle, CaptionerSessions(bundle, threads=1)) as captioner:
        together = captioner.caption(clips)
        alone = [captioner.caption([clip])[0] for clip in clips]
    found[folder] = [[list(one.tokens) for one in many] for many in (together, alone)]
assert not {"torch", "transformers", "PIL", "jinja2"} & set(sys.modules)
print(json.dumps(found))
"""


_SIZES = ((4, 82, 70), (3, 47, 29), (2, 34, 28), (1, 38, 24), (2, 41, 67), (3, 26, 99))
"""Frames, height, width: wide, high, smaller and larger than the tower's images. The height never
shrinks by more than twice what the width does: Pillow 13 takes such frames in another order."""


def random_clips(seed: int = 0) -> list[Clip]:
    """A clip of noise of each size."""
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _SIZES]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, CaptionerBundle]]:
    """Checkpoint and captioner of every tiny shape."""
    from memcli.export.captioner import export_captioner
    from memcli.export.captioner_checkpoint import locate_captioner

    root = tmp_path_factory.mktemp("captioners")
    found = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        folder = make_smolvlm(root / f"{name}-checkpoint", shape, seed=number)
        bundle = export_captioner(
            locate_captioner(str(folder)),
            question=QUESTIONS[number % 2],
            frames=2,
            target=root / name,
        )
        found[name] = folder, bundle
    return found


def asking(folder: Path, bundle: CaptionerBundle, question: str, target: Path) -> CaptionerBundle:
    """The same captioner with another question, through the export's own prompt; loops go on."""
    from transformers import AutoTokenizer

    from memcli.export.captioner_prompt import prompt_rules

    own = AutoTokenizer.from_pretrained(str(folder))
    target.mkdir()
    for name in bundle.files:
        (target / name).hardlink_to(bundle.folder / name)
    other = replace(
        bundle,
        folder=target,
        question=question,
        prompt=prompt_rules(folder, own, question, bundle.prompt.tokens),
        generation=replace(bundle.generation, end_loops=False),
    )
    write_manifest(other)
    return other


def random_question(random: np.random.Generator) -> str:
    """Words, digits, signs and letters that the tokenizer splits into bytes."""
    parts = ["describe", "the", "video", "What", "42", "in", "é", "数", "🐕", "?!", "<x>", "a:"]
    chosen = random.choice(parts, size=int(random.integers(2, 12)))
    return "Q " + " ".join(map(str, chosen))


def reference(folder: Path, shape: Shape) -> Callable[[str, Clip, Sequence[int]], Any]:
    """Prompt ids of transformers' processor and greedy tokens of its `generate`, to the stop."""
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        str(folder), torch_dtype=torch.float32
    ).eval()
    processor = processor_of(folder)
    longest = shape.longest_edge if shape.splitting else shape.image

    def answer(question: str, clip: Clip, stops: Sequence[int]) -> tuple[list[int], list[int]]:
        content: list[dict[str, Any]] = [{"type": "image", "image": frame} for frame in clip]
        content.append({"type": "text", "text": question})
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            do_image_splitting=shape.splitting,
            size={"longest_edge": longest},
        )
        with torch.inference_mode():
            found = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        prompt = inputs["input_ids"][0].tolist()
        new = found[0, len(prompt) :].tolist()
        return prompt, new[: next((i for i, one in enumerate(new) if one in stops), len(new))]

    return answer


def test_tokens_are_those_of_generate_without_torch(
    made: dict[str, tuple[Path, CaptionerBundle]], tmp_path: Path
) -> None:
    """20 prompts of random questions in four checkpoints, each with frame sets of its own."""
    random = np.random.default_rng(5)
    cases: list[tuple[str, CaptionerBundle, list[Clip]]] = []
    words: list[str] = []
    for name, (folder, bundle) in made.items():
        for number in range(5):
            target = tmp_path / f"{name}-{number}"
            asked = asking(folder, bundle, random_question(random), target)
            clips = random_clips(len(cases))
            chosen = [clips[number], clips[int(random.integers(len(clips)))]]
            np.savez(tmp_path / f"{target.name}.npz", *chosen)
            cases.append((name, asked, chosen))
            words += [str(target), str(tmp_path / f"{target.name}.npz")]
    assert len({(name, bundle.question) for name, bundle, _ in cases}) == 20
    done = subprocess.run([sys.executable, "-c", _RUN, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    answers = {name: reference(folder, SHAPES[name]) for name, (folder, _) in made.items()}
    lengths, texts = set(), set()
    for name, bundle, clips in cases:
        stops = bundle.generation.stop
        theirs = [answers[name](bundle.question, clip, stops) for clip in clips]
        wanted = [text for _, text in theirs]
        assert found[str(bundle.folder)] == [wanted, wanted], (name, bundle.question)
        own = PromptTokenizer(bundle.folder / "tokenizer.json", bundle.prompt)
        tiles = [tiles_of(*clip.shape[1:3], bundle.images) for clip in clips]
        ours = [own.encode([one] * len(clip)) for one, clip in zip(tiles, clips, strict=True)]
        assert ours == [prompt for prompt, _ in theirs]
        lengths |= set(map(len, wanted))
        texts |= set(map(tuple, wanted))
    assert NEW_TOKENS in lengths  # some were cut, and others stopped before
    assert len(lengths) > 6
    assert len(texts) > 30


def test_text_is_that_of_the_tokens_and_long_ones_are_marked(
    made: dict[str, tuple[Path, CaptionerBundle]],
) -> None:
    from transformers import AutoTokenizer

    folder, bundle = made["old-file"]
    own = AutoTokenizer.from_pretrained(str(folder))
    clips = random_clips(2)
    short = replace(bundle, generation=replace(bundle.generation, max_new_tokens=5))
    with Captioner(short, CaptionerSessions(short, threads=1)) as captioner:
        captions = captioner.caption(clips)
    for caption in captions:
        assert len(caption.tokens) == 5 or not caption.cut
        text = own.decode(caption.tokens, skip_special_tokens=True).strip()
        assert caption.text == text
    assert any(caption.cut for caption in captions)


def test_a_loop_ends_the_text(tmp_path: Path) -> None:
    """A head whose bias-free logits hardly depend on the text says one thing again and again."""
    import torch
    from safetensors.torch import load_file, save_file

    from memcli.export.captioner import export_captioner
    from memcli.export.captioner_checkpoint import locate_captioner

    folder = make_smolvlm(tmp_path / "checkpoint", Shape(stops=0))
    weights = load_file(folder / "model.safetensors")
    embeddings = weights["model.text_model.embed_tokens.weight"]
    embeddings[:] = embeddings[60]  # whatever was said, the next token reads the same
    weights["model.text_model.norm.weight"][:] = 0
    weights["model.text_model.norm.weight"][0] = 1
    weights["lm_head.weight"] = torch.zeros_like(weights["lm_head.weight"])
    weights["lm_head.weight"][70, 0], weights["lm_head.weight"][71, 0] = 1, -1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    bundle = export_captioner(locate_captioner(str(folder)), frames=1, target=tmp_path / "looping")
    with Captioner(bundle, CaptionerSessions(bundle, threads=1)) as captioner:
        (caption,) = captioner.caption(random_clips()[:1])
    assert caption.looping
    assert not caption.cut
    assert 0 < len(caption.tokens) < 12


def test_wrong_clips_are_refused(made: dict[str, tuple[Path, CaptionerBundle]]) -> None:
    _, bundle = made["grouped"]
    with Captioner(bundle, CaptionerSessions(bundle, threads=1)) as captioner:
        for clip in (
            np.zeros((2, 8, 8, 3), np.float32),
            np.zeros((8, 8, 3), np.uint8),
            np.zeros((0, 8, 8, 3), np.uint8),
            np.zeros((1, 8, 8, 4), np.uint8),
        ):
            with pytest.raises(ModelError, match="uint8"):
                captioner.caption([clip])
        assert captioner.caption([]) == []


def test_weights_without_a_hash_are_refused(
    made: dict[str, tuple[Path, CaptionerBundle]], tmp_path: Path
) -> None:
    """Before anything reads them: when it is opened, and when it is installed."""
    import shutil

    import onnx

    from memcli import app

    _, bundle = made["grouped"]
    for number, place in enumerate(("other.bin", "../outside.bin", f"{tmp_path}/outside.bin")):
        folder = tmp_path / str(number) / "captioner"
        shutil.copytree(bundle.folder, folder)
        graph = onnx.load(str(folder / "embed.onnx"), load_external_data=False)
        for tensor in graph.graph.initializer:
            for entry in tensor.external_data:
                entry.value = place if entry.key == "location" else entry.value
        onnx.save(graph, str(folder / "embed.onnx"))
        shutil.move(folder / "embed.bin", folder / place)
        files = hash_files(folder)
        files.pop("other.bin", None)
        write_manifest(replace(bundle, folder=folder, files=files))
        with pytest.raises(ModelError, match="without a hash"):
            Captioner.open(folder)
        assert app.run(["models", "add", str(folder)]) == ExitCode.NOT_USABLE
        assert not captioners_dir().exists() or not list(captioners_dir().iterdir())


def test_damaged_captioners_are_refused(
    made: dict[str, tuple[Path, CaptionerBundle]], tmp_path: Path
) -> None:
    import shutil

    _, bundle = made["grouped"]
    with pytest.raises(ModelError, match="memcli export captioner"):
        read_captioner(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(bundle.folder, folder)
    data = bytearray((folder / "decoder.bin").read_bytes())
    data[100] ^= 1
    (folder / "decoder.bin").write_bytes(data)
    with pytest.raises(ModelError, match="SHA-256"):
        read_captioner(folder)
    manifest = json.loads((folder / "captioner.json").read_text())
    for change in (
        {"schema": 99},
        {"schema": 1},
        {"generation": {**manifest["generation"], "end_loops": 8}},
        {"generation": {**manifest["generation"], "loop_ngram": 8}},
        {"files": {**manifest["files"], "../evil": "0" * 64}},
        {"files": {}},
        {"frames": 0},
        {"images": {**manifest["images"], "side": 10**9}},
        {"cache": {**manifest["cache"], "layers": -1}},
        {"generation": {"stop": "x"}},
        {"prompt": {**manifest["prompt"], "prefix": 3}},
        {"precision": "fp7"},
        {"frames": float("inf")},
        {"frames": 8.0},
        {"images": {**manifest["images"], "splitting": "false"}},
        {"revision": ["a"]},
        {"generation": {**manifest["generation"], "stop": "49"}},
        {"generation": {**manifest["generation"], "stop": [-1]}},
        {"generation": {**manifest["generation"], "stop": [10**9]}},
        {"prompt": {**manifest["prompt"], "image": "a" * 700_000}},
        {"prompt": {**manifest["prompt"], "prefix": "\ud800"}},
        {"prompt": {**manifest["prompt"], "add_special": 1}},
        {"licence": "free\nand easy"},
        {"question": "What?\x1b[2J"},
        {"files": {**manifest["files"], "a\0b": "0" * 64}},
        {"files": {**manifest["files"], "a\udcff": "0" * 64}},
        {"made_by": []},
        {"parity": 3},
    ):
        (folder / "captioner.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ModelError):
            read_captioner(folder, check=False)
    (folder / "captioner.json").write_text("{")
    with pytest.raises(ModelError, match="JSON"):
        read_captioner(folder)


def test_the_hash_changes_with_what_decides(
    made: dict[str, tuple[Path, CaptionerBundle]],
) -> None:
    _, bundle = made["grouped"]
    assert bundle.hash == replace(bundle, name="other", parity={}).hash
    others = [
        replace(bundle, generation=replace(bundle.generation, max_new_tokens=5)),
        replace(bundle, prompt=replace(bundle.prompt, suffix="?")),
        replace(bundle, frames=3),
        replace(bundle, files={**bundle.files, "decoder.bin": "0" * 64}),
    ]
    assert len({bundle.hash, *(other.hash for other in others)}) == 5
