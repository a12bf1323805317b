"""Tiny random SmolVLM2 checkpoints in the hub's format, and chat templates of its published forms.

Made by transformers from a seed. The tokenizer is a byte-level BPE like SmolLM2's with the special
tokens of SmolVLM2; images have 32 pixels in patches of 8, of which a connector makes 4 tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE = 32
PATCH = 8
SCALE = 2
IMAGE_TOKENS = (IMAGE // PATCH) ** 2 // SCALE**2
ROWS = 4
STOP = "<end_of_utterance>"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<image>")
_AFTER = (STOP, "<global-img>")
_TEXTS = ("the man walks on the beach with a dog", "describe the video: what is in the frames?")

_CONTENT = (
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
)
_ROLE = (
    "{{ message['role'] | capitalize }}{% if message['content'][0]['type'] == 'image' %}{{ ':' }}"
    "{% else %}{{ ': ' }}{% endif %}"
)
_ASSISTANT = "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
TEMPLATES = {
    # SmolVLM and the first SmolVLM2 files: one start token, the role, a colon, the parts.
    "smolvlm": "<|im_start|>{% for message in messages %}"
    + _ROLE
    + _CONTENT
    + "<end_of_utterance>\n{% endfor %}"
    + _ASSISTANT,
    # Idefics2 and 3 without a start token.
    "idefics": "{% for message in messages %}"
    + _ROLE
    + _CONTENT
    + "<end_of_utterance>\n{% endfor %}"
    + _ASSISTANT,
    # With the tokenizer's own first token, as Idefics3 has it.
    "bos": "{{ bos_token }}{% for message in messages %}"
    + _ROLE
    + _CONTENT
    + "<end_of_utterance>\n{% endfor %}"
    + _ASSISTANT,
    # With the parts that a video has, and text that may stand alone.
    "video": "<|im_start|>{% for message in messages %}"
    + _ROLE
    + "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    + _CONTENT.replace(
        "{% endif %}{% endfor %}",
        "{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}{% endfor %}",
    )
    + "{% endif %}<end_of_utterance>\n{% endfor %}"
    + _ASSISTANT,
    # A system message before the first one of the user.
    "system": "<|im_start|>{% if messages[0]['role'] != 'system' %}"
    "{{ 'System: You describe what you see.<end_of_utterance>\n' }}{% endif %}"
    "{% for message in messages %}"
    + _ROLE
    + _CONTENT
    + "<end_of_utterance>\n{% endfor %}"
    + _ASSISTANT,
    # ChatML, a line for each image.
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for line in message['content'] %}{% if line['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ line['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # Images numbered by the template's own loop are refused: see the tests.
    "numbered": "{% for message in messages %}{% for line in message['content'] %}"
    "{% if line['type'] == 'image' %}Frame {{ loop.index }}: <image>"
    "{% else %}{{ line['text'] }}{% endif %}{% endfor %}{% endfor %}",
}


@dataclass(frozen=True)
class Shape:
    """What differs between the tiny checkpoints."""

    heads: int = 4
    kv_heads: int = 2
    layers: int = 2
    head_dim: int = 8
    tied: bool = False
    splitting: bool = False
    """The image processor's setting for videos."""
    template: str = "smolvlm"
    template_file: str = "chat_template.json"
    """Or chat_template.jinja, processor_config.json, tokenizer_config.json."""
    video_sampling: bool = True
    """Whether the image processor's file has the section for videos, as SmolVLM2's has."""
    longest_edge: int = 2 * IMAGE
    image: int = IMAGE
    """Pixels of a tile; what is left beside whole patches is not looked at (2.2B: 384 and 14)."""
    stops: int = 3
    """Tokens that end a text beside the usual one, so that texts differ in length."""
    eos_in_config: bool = False
    """The stop tokens are in config.json, and there is no generation_config.json."""
    add_bos: bool = False
    """The tokenizer puts a first token before every text."""


SHAPES = {
    "grouped": Shape(),
    "plain-tied": Shape(
        kv_heads=4, tied=True, template="video", template_file="chat_template.jinja"
    ),
    "split": Shape(
        heads=3,
        kv_heads=1,
        splitting=True,
        template="system",
        template_file="tokenizer_config.json",
    ),
    "old-file": Shape(
        kv_heads=1,
        layers=3,
        template="bos",
        template_file="processor_config.json",
        video_sampling=False,
        eos_in_config=True,
        add_bos=True,
        image=IMAGE + 3,
    ),
}


def tokenizer(add_bos: bool = False) -> Any:
    """The tokenizer of the tiny checkpoints, of the `tokenizers` library."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=320,
        special_tokens=list(_SPECIAL[:3]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_TEXTS * 3, trainer)
    places = [f"<row_{r}_col_{c}>" for r in range(1, ROWS + 1) for c in range(1, ROWS + 1)]
    made.add_special_tokens(
        [AddedToken(one, special=True) for one in (*_SPECIAL[3:], *_AFTER, *places)]
    )
    if add_bos:
        made.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", pair=None, special_tokens=[("<|im_start|>", 1)]
        )
    return made


def make_smolvlm(folder: Path, shape: Shape = SHAPES["grouped"], seed: int = 0) -> Path:
    """Fill `folder` with a checkpoint and return it."""
    import torch
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    tokens = tokenizer(shape.add_bos)
    size = tokens.get_vocab_size()
    stop = tokens.token_to_id(STOP)
    stops = [stop, *range(100, 100 + shape.stops)]
    config = SmolVLMConfig(
        image_token_id=tokens.token_to_id("<image>"),
        scale_factor=SCALE,
        tie_word_embeddings=shape.tied,
        text_config={
            "model_type": "llama",
            "vocab_size": size,
            "hidden_size": shape.heads * shape.head_dim,
            "intermediate_size": 48,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "pad_token_id": 2,
            "bos_token_id": 1,
            "eos_token_id": stop,
            "tie_word_embeddings": shape.tied,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": shape.image,
            "patch_size": PATCH,
        },
    )
    torch.manual_seed(seed)
    model = SmolVLMForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:  # far from zero, so that texts differ with the frames
                weight.normal_(0.0, 0.5 if "vision" in name or "connector" in name else 0.35)
    if shape.tied:
        model.tie_weights()
    model.generation_config.eos_token_id = stops
    model.generation_config.pad_token_id = 2
    model.save_pretrained(folder)
    if shape.eos_in_config:
        (folder / "generation_config.json").unlink()
        _change(folder / "config.json", eos_token_id=stops)
    tokens.save(str(folder / "tokenizer.json"))
    _write_settings(folder, shape, side=shape.image)
    return folder


def make_real_size(folder: Path, seed: int = 0) -> Path:
    """SmolVLM2-256M's sizes with random weights (1.0 GB), for benchmarks.

    Its tokenizer is the tiny one: most ids have no text.
    """
    import torch
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    tokens = tokenizer()
    config = SmolVLMConfig(
        image_token_id=tokens.token_to_id("<image>"),
        scale_factor=4,
        text_config={
            "model_type": "llama",
            "vocab_size": 49280,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "pad_token_id": 2,
            "eos_token_id": tokens.token_to_id(STOP),
        },
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
    )
    torch.manual_seed(seed)
    model = SmolVLMForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokens.token_to_id(STOP)
    model.save_pretrained(folder)
    tokens.save(str(folder / "tokenizer.json"))
    _write_settings(folder, Shape(longest_edge=2048), side=512, image_tokens=64)
    return folder


def _write_settings(
    folder: Path, shape: Shape, side: int = IMAGE, image_tokens: int = IMAGE_TOKENS
) -> None:
    edge = {"longest_edge": side}
    images: dict[str, Any] = {
        "image_processor_type": "SmolVLMImageProcessor",
        "processor_class": "SmolVLMProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "do_pad": True,
        "do_image_splitting": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 1,
        "size": {"longest_edge": shape.longest_edge},
        "max_image_size": edge,
    }
    if shape.video_sampling:
        size = {"longest_edge": shape.longest_edge} if shape.splitting else edge
        images["video_sampling"] = {"fps": 1, "max_frames": 64, "video_size": size}
        if shape.splitting:
            images["video_sampling"]["do_image_splitting"] = True
    _write(folder / "preprocessor_config.json", images)
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": STOP,
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "model_max_length": 2048,
            "padding_side": "left",
        },
    )
    _write(
        folder / "processor_config.json",
        {"processor_class": "SmolVLMProcessor", "image_seq_len": image_tokens},
    )
    put_template(folder, TEMPLATES[shape.template], shape.template_file)


def put_template(folder: Path, template: str, file: str = "chat_template.json") -> None:
    """Write the chat template into the file that this version of the hub's format keeps it in."""
    path = folder / file
    if path.suffix == ".jinja":
        path.write_text(template, encoding="utf-8")
    elif path.is_file():
        _change(path, chat_template=template)
    else:
        _write(path, {"chat_template": template})


def _change(path: Path, **values: Any) -> None:
    _write(path, {**json.loads(path.read_text(encoding="utf-8")), **values})


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def processor_of(folder: Path) -> Any:
    """transformers' own processor of a checkpoint, for images.

    Its class needs torchvision and num2words, for videos only: without them its check of the
    video part is left out, and nothing of what it does with images and text.
    """
    from types import SimpleNamespace

    from transformers import AutoTokenizer
    from transformers.models.smolvlm import processing_smolvlm

    class Processor(processing_smolvlm.SmolVLMProcessor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(argument)

    if processing_smolvlm.num2words is None:
        processing_smolvlm.num2words = str
    settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    template = settings.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    elif (folder / "chat_template.json").is_file():
        text = (folder / "chat_template.json").read_text(encoding="utf-8")
        template = json.loads(text)["chat_template"]
    own = AutoTokenizer.from_pretrained(str(folder))
    return Processor(
        image_processor(folder),
        own,
        SimpleNamespace(num_frames=None, fps=None),
        image_seq_len=settings["image_seq_len"],
        chat_template=template or own.chat_template,
    )


def image_processor(folder: Path) -> Any:
    """transformers' image processor that resizes with Pillow, as the checkpoint sets it up."""
    try:
        from transformers.models.smolvlm.image_processing_pil_smolvlm import (
            SmolVLMImageProcessorPil as Images,
        )
    except ImportError:  # transformers 4
        from transformers.models.smolvlm.image_processing_smolvlm import (
            SmolVLMImageProcessor as Images,
        )
    return Images.from_pretrained(str(folder))
