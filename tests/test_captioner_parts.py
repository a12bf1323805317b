"""Parts of the captioner: pixels, prompts, loops, and what the export refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli.captioning.generate import Generated, GenerationRules, generate, loop_length
from memcli.captioning.images import ImageRules, prepare_clip, resize, tiles_of
from memcli.errors import ModelError, UsageError
from tests.tiny_smolvlm import IMAGE, IMAGE_TOKENS, TEMPLATES, Shape, put_template, tokenizer

NAN, INF = float("nan"), float("inf")
FILTERS = {"lanczos": 1, "bilinear": 2, "bicubic": 3}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FILTERS)),
    st.tuples(*[st.integers(1, 90)] * 4),
    st.integers(0, 2**16),
)
def test_pixels_are_pillows(name: str, sizes: tuple[int, int, int, int], seed: int) -> None:
    """Width, then height: in two calls, since Pillow 13 may do the height first in one."""
    image = pytest.importorskip("PIL.Image")
    height, width, new_height, new_width = sizes
    random = np.random.default_rng(seed)
    array = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    theirs = image.fromarray(array).resize((new_width, height), FILTERS[name])
    theirs = theirs.resize((new_width, new_height), FILTERS[name])
    assert (np.asarray(theirs) == resize(array, new_height, new_width, name)).all()


@pytest.mark.parametrize("splitting", [False, True])
@pytest.mark.parametrize(
    ("height", "width"), [(20, 30), (64, 64), (36, 100), (90, 160), (100, 80), (33, 31), (7, 200)]
)
def test_frames_are_those_of_the_image_processor(
    splitting: bool, height: int, width: int, tmp_path: Path
) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("transformers")
    from memcli.export.captioner import _image_processor
    from tests.tiny_smolvlm import _write_settings

    _write_settings(tmp_path, Shape())
    rules = ImageRules(IMAGE, 2 * IMAGE, splitting, "lanczos")
    random = np.random.default_rng(height)
    clip = random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    theirs = _image_processor(tmp_path)(
        [list(clip)],
        size={"longest_edge": rules.longest},
        do_image_splitting=splitting,
        do_rescale=False,
        do_normalize=False,
        return_row_col_info=True,
        return_tensors="np",
    )
    ours, grid = prepare_clip(clip, rules)
    assert grid == tiles_of(height, width, rules)
    assert [list(theirs["rows"][0]), list(theirs["cols"][0])] == [[grid[0]] * 2, [grid[1]] * 2]
    assert (ours == theirs["pixel_values"][0].transpose(0, 2, 3, 1)).all()


def _checkpoint(folder: Path) -> Any:
    """The tokenizer of a folder with nothing but what the prompt needs."""
    transformers = pytest.importorskip("transformers")
    tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "processor_config.json").write_text(json.dumps({"image_seq_len": IMAGE_TOKENS}))
    return transformers.AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "numbered"])
@pytest.mark.parametrize("splitting", [False, True])
def test_prompts_are_those_of_the_processor(name: str, splitting: bool, tmp_path: Path) -> None:
    """Every version of the template, against transformers' SmolVLMProcessor."""
    own = _checkpoint(tmp_path)
    from memcli.captioning.prompt import PromptTokenizer
    from memcli.export.captioner_prompt import check_prompt, prompt_rules
    from tests.tiny_smolvlm import _write_settings, processor_of

    _write_settings(tmp_path, Shape(template=name))
    rules = prompt_rules(tmp_path, own, "What is it?", IMAGE_TOKENS)
    ours = PromptTokenizer(tmp_path / "tokenizer.json", rules)
    assert check_prompt(rules, own, ours) == 8
    processor = processor_of(tmp_path)
    for count in (1, 2, 5):
        content: list[dict[str, Any]] = [
            {"type": "image", "image": np.zeros((30, 40, 3), np.uint8)} for _ in range(count)
        ]
        content.append({"type": "text", "text": "What is it?"})
        theirs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            do_image_splitting=splitting,
        )["input_ids"][0]
        tiles = tiles_of(30, 40, ImageRules(IMAGE, 2 * IMAGE, splitting, "lanczos"))
        assert ours.encode([tiles] * count) == list(theirs)


def test_templates_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    own = _checkpoint(tmp_path)
    from memcli.export.captioner_prompt import prompt_rules

    for template, words in (
        (TEMPLATES["numbered"], "alike"),
        ("{{ 1/0 }}", "fails"),
        ("{% for", "fails"),
        ("nothing of it", "alike"),
    ):
        put_template(tmp_path, template)
        with pytest.raises(ModelError, match=words):
            prompt_rules(tmp_path, own, "What is it?", 4)
    plain = TEMPLATES["smolvlm"]
    for changing, words in (
        ("{{ strftime_now('%Y') }}", "what day it is"),
        ("{% macro day() %}{{ strftime_now('%Y') }}{% endmacro %}{{ day() }}", "what day it is"),
        ("{{ ['a', 'a'] | random }}", "by chance"),
        ("{{ lipsum(1) }}", "by chance"),
    ):
        put_template(tmp_path, changing + plain)
        with pytest.raises(ModelError, match=words):
            prompt_rules(tmp_path, own, "What is it?", 4)
    put_template(tmp_path, plain)
    with pytest.raises(ModelError, match="<image>"):
        prompt_rules(tmp_path, own, "What is <image>?", 4)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ([], 0),
        ([1] * 11, 0),
        ([5, *[1] * 12], 11),
        ([1, 2] * 5, 0),
        ([9, *[1, 2] * 6], 10),
        ([1, 2, 3, 4, 5, 6, 7, 8] * 3, 16),
        ([1, 2, 3, 4, 5, 6, 7, 8] * 2, 0),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9] * 3, 18),
        ([0, *range(100, 120), *range(100, 120)], 0),
        ([0, *(list(range(100, 120)) * 3)], 40),
        ([*(list(range(100, 120)) * 3), 0], 0),
    ],
)
def test_loops(text: list[int], length: int) -> None:
    assert loop_length(text) == length


def test_a_sentence_that_a_cut_text_says_twice_is_a_loop() -> None:
    sentence = list(range(1, 13))
    both = [*sentence, *sentence, 14]
    for texts, rules, looping in (
        ([[13, *both]], GenerationRules(25, (49,)), True),
        ([[13, *both]], GenerationRules(26, (49,)), False),  # the second has begun to differ
        ([[*both]], GenerationRules(24, (49,), end_loops=False), False),
        ([[*range(1, 9), *range(1, 9), 49]], GenerationRules(16, (49,)), False),  # short
        ([[*sentence, *sentence, 49]], GenerationRules(64, (49,)), False),  # it ended by itself
    ):
        (found,) = generate(_Script(texts), np.zeros((1, 2, 3)), rules)
        assert found.looping == looping
        assert not looping or found.tokens == (13, *sentence)


def test_tokenizers_that_cannot_be_used_are_model_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memcli.captioning import prompt

    class PanicException(BaseException):
        """What the library's own is called."""

    rules = prompt.PromptRules("", "", "", "<image>", "", "", "", 2, False)
    path = tmp_path / "tokenizer.json"
    own = tokenizer()
    own.save(str(path))
    whole = prompt.PromptTokenizer(path, rules)
    assert whole.encode([(0, 0)]) == [whole.image_id] * 2

    class Panicking:
        model = None

        def no_padding(self) -> None: ...

        def no_truncation(self) -> None: ...

        def token_to_id(self, token: str) -> int:
            return 1

        def encode(self, *_: Any, **__: Any) -> Any:
            raise PanicException("index out of range")

        decode = encode

    monkeypatch.setattr(whole, "_tokenizer", Panicking())
    with pytest.raises(ModelError, match="index out of range"):
        whole.decode([1])
    monkeypatch.setattr(prompt, "load_tokenizer", lambda path: Panicking())
    with pytest.raises(ModelError, match="index out of range"):
        prompt.PromptTokenizer(path, rules)
    monkeypatch.undo()
    content = json.loads(path.read_text())
    content["model"]["dropout"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="by chance"):
        prompt.PromptTokenizer(path, rules)


class _Script:
    """A decoder that says what it is told, and counts what it was asked."""

    def __init__(self, texts: list[list[int]], keeps: bool = True):
        self.texts = texts
        self.keeps = keeps
        self.place = 0
        self.rows = list(range(len(texts)))
        self.sizes: list[int] = []

    def start(self, embeddings: Any) -> Any:
        return self._logits()

    def step(self, ids: Any) -> Any:
        for row, one in zip(self.rows, ids, strict=True):
            assert self.place >= len(self.texts[row]) or one == self.texts[row][self.place]
        self.place += 1
        self.sizes.append(len(ids))
        return self._logits()

    def keep(self, rows: Any) -> bool:
        if self.keeps:
            self.rows = [self.rows[one] for one in rows]
        return self.keeps

    def _logits(self) -> Any:
        logits = np.zeros((len(self.rows), 50), np.float32)
        for place, row in enumerate(self.rows):
            text = self.texts[row]
            logits[place, text[self.place] if self.place < len(text) else 0] = 1
        return logits


@pytest.mark.parametrize("keeps", [True, False])
def test_each_text_ends_for_itself(keeps: bool) -> None:
    texts = [[1, 2, 49], [3, 49], [4, *range(5, 15)], [49], [7] * 20, [8, 9, 49]]
    script = _Script(texts, keeps)
    rules = GenerationRules(16, (49, 48))
    found = generate(script, np.zeros((6, 2, 3)), rules)
    assert found[:2] == [Generated((1, 2), False, False), Generated((3,), False, False)]
    assert found[2] == Generated((4, *range(5, 15), *[0] * 5), False, True)
    assert found[3] == Generated((), False, False)
    assert found[4] == Generated((7,), True, False)
    assert found[5] == Generated((8, 9), False, False)
    assert min(script.sizes) == (1 if keeps else 6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_end_their_own_text(wrong: float) -> None:
    class Broken(_Script):
        def _logits(self) -> Any:
            logits = super()._logits()
            if self.place == 1 and 1 in self.rows:
                logits[self.rows.index(1)] = wrong
            return logits

    script = Broken([[1, 2, 49], [3, 4, 49], [5, 6, 7, 49]])
    rules = GenerationRules(8, (49,))
    found = generate(script, np.zeros((3, 2, 3)), rules)
    assert found == [
        Generated((1, 2), False, False),
        Generated((3,), False, False, broken=True),
        Generated((5, 6, 7), False, False),
    ]


@pytest.mark.parametrize("size", ["256m", "500m", "2.2b"])
def test_sizes_are_fixed_commits_of_the_hub(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    import huggingface_hub

    from memcli.export.captioner_checkpoint import locate_captioner

    asked: list[tuple[str, str]] = []

    def download(repository: str, *, revision: str, **_: Any) -> str:
        asked.append((repository, revision))
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match="no route") as error:
        locate_captioner(None, size)
    ((repository, revision),) = asked
    assert re.fullmatch(rf"HuggingFaceTB/SmolVLM2-{size.upper()}(-Video)?-Instruct", repository)
    assert re.fullmatch("[0-9a-f]{40}", revision)
    assert f"https://huggingface.co/{repository}/tree/{revision}" in str(error.value.next_step)


@pytest.mark.parametrize(
    "changes",
    [
        *({"rescale_factor": one} for one in ("x", None, [1], 0, 1e-400, NAN, INF, 10**400, True)),
        *(
            {"image_mean": one}
            for one in (NAN, [NAN] * 3, [0.5] * 2, "555", [10**400] * 3, [True] * 3)
        ),
        *({"image_std": one} for one in ([INF] * 3, [0, 1, 1], [1e-300] * 3, None)),
        *({name: "false"} for name in ("do_rescale", "do_normalize", "do_resize")),
        *({"resample": one} for one in ([1], True, 0, None)),
        {"max_image_size": {"longest_edge": True}},
        {"video_sampling": [1]},
    ],
)
def test_hostile_settings_of_images_are_model_errors(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    from memcli.export.captioner_settings import image_rules, normalisation
    from tests.tiny_smolvlm import _change, _write_settings

    _write_settings(tmp_path, Shape())
    assert normalisation(tmp_path) == ([127.5] * 3, [127.5] * 3)
    assert image_rules(tmp_path).side == IMAGE
    _change(tmp_path / "preprocessor_config.json", **changes)
    with pytest.raises(ModelError, match="preprocessor_config"):
        _ = image_rules(tmp_path), normalisation(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        *({"eos_token_id": one} for one in (True, "2", [2, None], [], [2.0], {})),
        {"stop_strings": ["."]},
        {"exponential_decay_length_penalty": [5, 1.1]},
        {"watermarking_config": {"seeding_scheme": "lefthash"}},
        {"dola_layers": "high"},
        {"remove_invalid_values": True},
        {"max_time": 1.0},
    ],
)
def test_settings_of_generation_that_cannot_be_kept(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    from memcli.export.captioner_settings import check_generation, generation_rules

    path = tmp_path / "generation_config.json"
    usual: dict[str, Any] = {"eos_token_id": [2, 3], "repetition_penalty": 1.0, "stop_strings": []}
    path.write_text(json.dumps(usual))
    rules = generation_rules(tmp_path, 8)
    check_generation(rules, usual, "here")
    path.write_text(json.dumps(usual | changes))
    with pytest.raises(ModelError, match="generation_config"):
        generation_rules(tmp_path, 8)
    with pytest.raises(ModelError, match="here"):
        check_generation(rules, usual | changes, "here")


def test_files_that_are_no_json_or_text_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from memcli.export.captioner_checkpoint import locate_captioner
    from memcli.export.captioner_prompt import chat_template
    from memcli.export.captioner_settings import generation_rules

    for name in ("preprocessor_config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    for text in ([1], "llama", True):
        config = {"model_type": "smolvlm", "text_config": text}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="text_config is"):
            locate_captioner(str(tmp_path))
        with pytest.raises(ModelError, match="text_config is"):
            generation_rules(tmp_path, 8)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"chat_template\.jinja: cannot be read"):
        chat_template(tmp_path, None)


def test_what_to_copy_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    import huggingface_hub

    from memcli.export.captioner_checkpoint import _SETTINGS, locate_captioner

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/data/hf/hub")
    monkeypatch.setenv("HF_HOME", "/data/hf")
    with pytest.raises(ModelError) as error:
        locate_captioner("nobody/nothing", offline=True)
    said = str(error.value.next_step)
    assert "cache to /data/hf/hub\n" in said
    for name in (*_SETTINGS, "README.md", "model.safetensors", "model.safetensors.index.json"):
        assert name in said


def test_checkpoints_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from memcli.export.captioner_checkpoint import locate_captioner
    from memcli.export.captioner_settings import generation_rules, image_rules

    with pytest.raises(UsageError, match="neither"):
        locate_captioner("../nothing/here")
    with pytest.raises(ModelError, match=r"config\.json"):
        locate_captioner(str(tmp_path))
    with pytest.raises(ModelError, match="--offline"):
        locate_captioner("nobody/nothing", offline=True)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3, "num_beams": 4}')
    with pytest.raises(ModelError, match="num_beams"):
        generation_rules(tmp_path, 8)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 5, 3]}')
    assert generation_rules(tmp_path, 8) == GenerationRules(8, (3, 5))
    for text in ('{"size": {"height": 5}}', '{"max_image_size": {"longest_edge": 0}}', "[]"):
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(ModelError):
            image_rules(tmp_path)
