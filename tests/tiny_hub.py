"""Tiny random checkpoints in the hub's format: hidden size 32, few layers, images of 32 pixels.

Made by transformers from a seed, so the same code runs on them as on the published ones. Each
maker fills `folder` and returns it; one layer is enough where order and names of layers do not
matter, and halves what tracing takes. Sizes, vocabularies and weights mean nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.tiny_tokenizers import clip_bpe, gemma, roberta_bpe, spiece_file, unigram, wordpiece

HIDDEN = 32
SHARED = 24
"""Length of the shared space of CLIP; SigLIP's is its hidden size."""
IMAGE = 32
PATCH = 8
TOKENS = 16
"""Tokens per caption of CLIP and SigLIP; the others take 64."""
_PICTURE: dict[str, Any] = {"image_size": IMAGE, "patch_size": PATCH}
_HALF = [0.5, 0.5, 0.5]
_CLIP_MEAN, _CLIP_STD = (
    [0.48145466, 0.4578275, 0.40821073],
    [0.26862954, 0.26130258, 0.27577711],
)
_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _sizes(layers: int) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }


def make_siglip(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """SigLIP: Unigram tokenizer of lower-case words, 16 tokens always, square bicubic resize."""
    from transformers import SiglipConfig, SiglipModel

    tokenizer, pieces = unigram()
    size = tokenizer.get_vocab_size()
    text = {
        **_sizes(layers),
        "vocab_size": size,
        "max_position_embeddings": TOKENS,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 1,
        "projection_size": HIDDEN,
    }
    config = SiglipConfig(text_config=text, vision_config={**_sizes(layers), **_PICTURE})
    _save_model(SiglipModel, config, folder, seed)
    _write_siglip_prep(folder)
    (folder / "spiece.model").write_bytes(spiece_file(pieces))
    _save_tokenizer(
        folder,
        tokenizer,
        tokenizer_class="SiglipTokenizer",
        model_max_length=TOKENS,
        do_lower_case=True,
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids"],
    )
    return folder


def make_siglip2(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """SigLIP 2 of fixed resolution: a SigLIP model with a tokenizer like Gemma's."""
    from transformers import SiglipConfig, SiglipModel

    tokenizer = gemma()
    text = {
        **_sizes(layers),
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": TOKENS,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "projection_size": HIDDEN,
    }
    config = SiglipConfig(text_config=text, vision_config={**_sizes(layers), **_PICTURE})
    _save_model(SiglipModel, config, folder, seed)
    _write_siglip_prep(folder)
    _save_tokenizer(
        folder,
        tokenizer,
        tokenizer_class="GemmaTokenizer",
        model_max_length=TOKENS,
        padding_side="right",
        add_bos_token=False,
        add_eos_token=True,
        do_lower_case=True,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids"],
    )
    return folder


def make_clip(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """CLIP: byte-level BPE with word ends, 16 tokens, shortest side and centre crop."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = clip_bpe()
    size = tokenizer.get_vocab_size()
    text = {
        **_sizes(layers),
        "vocab_size": size,
        "max_position_embeddings": TOKENS,
        "pad_token_id": size - 1,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
        "projection_dim": SHARED,
    }
    config = CLIPConfig(
        text_config=text,
        vision_config={**_sizes(layers), **_PICTURE, "projection_dim": SHARED},
        projection_dim=SHARED,
    )
    _save_model(CLIPModel, config, folder, seed)
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": IMAGE,  # the published ones have a plain number, too
            "resample": 3,
            "do_center_crop": True,
            "crop_size": IMAGE,
            "do_normalize": True,
            "image_mean": _CLIP_MEAN,
            "image_std": _CLIP_STD,
        },
    )
    _save_tokenizer(
        folder,
        tokenizer,
        tokenizer_class="CLIPTokenizer",
        model_max_length=TOKENS,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    )
    return folder


def make_vit(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """ViT with a pooler, as google/vit-base-patch32-224-in21k: square bilinear resize."""
    from transformers import ViTConfig, ViTModel

    _save_model(ViTModel, ViTConfig(**_sizes(layers), **_PICTURE), folder, seed)
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": IMAGE, "width": IMAGE},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": _HALF,
            "image_std": _HALF,
        },
    )
    return folder


def make_dinov2(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """DINOv2: shorter side to 36 pixels, centre crop of 32."""
    from transformers import Dinov2Config, Dinov2Model

    sizes = _sizes(layers)
    del sizes["intermediate_size"]
    config = Dinov2Config(**sizes, mlp_ratio=2, **_PICTURE)
    _save_model(Dinov2Model, config, folder, seed)
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "BitImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": IMAGE + 4},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": IMAGE, "width": IMAGE},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "do_convert_rgb": True,
            "image_mean": _IMAGENET_MEAN,
            "image_std": _IMAGENET_STD,
        },
    )
    return folder


def make_dinov3(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """DINOv3 ViT; a DINOv2 where this transformers (before 4.56) has none."""
    try:
        from transformers import DINOv3ViTConfig, DINOv3ViTModel
    except ImportError:
        return make_dinov2(folder, seed, layers)
    config = DINOv3ViTConfig(**_sizes(layers), **_PICTURE, num_register_tokens=2)
    _save_model(DINOv3ViTModel, config, folder, seed)
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "DINOv3ViTImageProcessorFast",
            "do_resize": True,
            "size": {"height": IMAGE, "width": IMAGE},
            "resample": 2,
            "do_center_crop": None,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": _IMAGENET_MEAN,
            "image_std": _IMAGENET_STD,
            "data_format": "channels_first",
        },
    )
    return folder


def make_distilbert(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """DistilBERT with its WordPiece tokenizer."""
    from transformers import DistilBertConfig, DistilBertModel

    tokenizer = wordpiece()
    config = DistilBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=64,
        dim=HIDDEN,
        hidden_dim=64,
        n_layers=layers,
        n_heads=4,
        pad_token_id=0,
    )
    _save_model(DistilBertModel, config, folder, seed)
    _save_bert_tokenizer(folder, tokenizer, "DistilBertTokenizer")
    return folder


def make_bert_sentence(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """A BERT sentence encoder (as all-MiniLM-L6-v2): mean of tokens at length 1."""
    from transformers import BertConfig, BertModel

    tokenizer = wordpiece()
    config = BertConfig(
        **_sizes(layers),
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=64,
        pad_token_id=0,
    )
    _save_model(BertModel, config, folder, seed)
    _save_bert_tokenizer(folder, tokenizer, "BertTokenizer")
    _save_sentence_modules(folder, max_tokens=32)
    return folder


def make_sentence_roberta(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """A RoBERTa sentence encoder (as all-distilroberta-v1): mean of tokens at length 1."""
    from transformers import RobertaConfig, RobertaModel

    tokenizer = roberta_bpe()
    config = RobertaConfig(
        **_sizes(layers),
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=64 + 2,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        type_vocab_size=1,
    )
    _save_model(RobertaModel, config, folder, seed)
    _save_tokenizer(
        folder,
        tokenizer,
        tokenizer_class="RobertaTokenizer",
        model_max_length=64,
        add_prefix_space=False,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    _save_sentence_modules(folder, max_tokens=64)
    return folder


def _save_model(kind: Any, config: Any, folder: Path, seed: int) -> None:
    """Random weights whose embeddings differ between inputs: plain initialisation is too flat."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for value in model.parameters():
                if value.ndim > 1:
                    value.normal_(std=0.1)
    model.eval().save_pretrained(folder)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _write_siglip_prep(folder: Path) -> None:
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "SiglipImageProcessor",
            "do_resize": True,
            "size": {"height": IMAGE, "width": IMAGE},
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 0.00392156862745098,
            "do_normalize": True,
            "image_mean": _HALF,
            "image_std": _HALF,
        },
    )


def _save_sentence_modules(folder: Path, max_tokens: int) -> None:
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    _write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    (folder / "1_Pooling").mkdir()
    _write(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": HIDDEN,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_tokens, "do_lower_case": False},
    )


def _save_bert_tokenizer(folder: Path, tokenizer: Any, kind: str) -> None:
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    _save_tokenizer(
        folder,
        tokenizer,
        tokenizer_class=kind,
        model_max_length=64,
        do_lower_case=True,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    )


def _save_tokenizer(folder: Path, tokenizer: Any, **config: Any) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", config)
    special = {key: value for key, value in config.items() if key.endswith("_token")}
    special = {key: value for key, value in special.items() if isinstance(value, str)}
    _write(folder / "special_tokens_map.json", special)


MAKERS = {
    "siglip": make_siglip,
    "siglip2": make_siglip2,
    "clip": make_clip,
    "vit": make_vit,
    "dinov2": make_dinov2,
    "dinov3": make_dinov3,
    "distilbert": make_distilbert,
    "bert": make_bert_sentence,
    "roberta": make_sentence_roberta,
}
"""Every maker by a short name."""


def main() -> None:
    """`python -m tests.tiny_hub DIR` makes all of them, e.g. for the examples in docs/models.md."""
    top = Path(sys.argv[1])
    for name, make in MAKERS.items():
        print(make(top / name))


if __name__ == "__main__":
    main()
