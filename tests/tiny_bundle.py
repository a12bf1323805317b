"""Real bundles that cost nothing: the score is the mean brightness of the frames (`tiny`), how long
the captions are (`tiny-text`), or the mean of both (`tiny-fusion`).

The graph, the manifest and the reference are what every bundle has, so that the whole program runs
on it: `make_tiny_bundle(home)`, then `memcli score DIR --model tiny` with `$MEMCLI_HOME` = home.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from memcli.engines.base import EngineName
from memcli.engines.bundle import Bundle, Variant, hash_files, read_bundle, write_manifest
from memcli.engines.reference import synthetic_captions, synthetic_frames
from memcli.engines.verify import Reference
from memcli.spec import (
    EncoderSpec,
    FramePrep,
    HeadSpec,
    ModelSpec,
    Precision,
    TextPrep,
    Tolerance,
    WeightSource,
)

TINY_PREP = FramePrep(frames=4, resize_width=64, resize_height=64, crop_width=48, crop_height=48)
TINY_TOLERANCE = Tolerance(max_abs=1e-3, mean_abs=1e-3)
"""float32 sums of 6,912 bytes differ by some 1e-6 between runtimes; bfloat16 by less than this
only for the division, and is not what the tests are about."""
OPSET = 18
_SEED = 7
_CLIPS = 3
FrameScores = Callable[[np.ndarray], np.ndarray]


def make_tiny_bundle(
    home: Path,
    name: str = "tiny",
    *,
    prep: FramePrep = TINY_PREP,
    precisions: Sequence[Precision] = ("fp32",),
    engines: Sequence[EngineName] = ("onnxruntime", "openvino"),
    graph: onnx.ModelProto | None = None,
    frame_scores: FrameScores | None = None,
    reference_offset: float = 0.0,
) -> Bundle:
    """Write a bundle to `home/bundles/name` and open it.

    `graph` takes `frames` uint8 [B, T, H, W, 3] and gives `frame_scores` [B, T] and `score` [B],
    and `frame_scores` says the same in numpy, for the reference; both default to the mean
    brightness. A `reference_offset` makes every runtime fail verification by that much.
    """
    root = home / "bundles" / name
    model = graph if graph is not None else brightness_graph()
    score_frames = frame_scores if frame_scores is not None else brightness
    frames = synthetic_frames(prep, _CLIPS, prep.frames, _SEED)
    reference = Reference(
        clips=_CLIPS,
        frames_per_clip=prep.frames,
        seed=_SEED,
        frame_scores=tuple(
            tuple(float(score) + reference_offset for score in clip)
            for clip in score_frames(frames)
        ),
        tolerance=TINY_TOLERANCE,
    )
    variants: dict[Precision, Variant] = {}
    for precision in precisions:
        path = f"{precision}/model.onnx"
        (root / precision).mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(model.SerializeToString())
        variants[precision] = Variant(
            precision=precision,
            graph=path,
            engines=tuple(engines),
            files=hash_files(root, [path]),
            reference=reference.to_dict(),
            made_by={"tests": "tiny_bundle"},
        )
    spec = _spec(name, prep)
    write_manifest(Bundle(root, spec, variants))
    return read_bundle(root)


TEXT_PREP = TextPrep(max_tokens=12, pad_id=0)
"""Longer captions are cut: `[CLS]`, ten words, `[SEP]`."""


def text_score(captions: Sequence[Sequence[str]]) -> np.ndarray:
    """Scores [B] of the captions of B videos: the mean over captions of (tokens - 1) / 12."""
    most = TEXT_PREP.max_tokens
    by_video = [[min(len(text.split()) + 2, most) for text in texts] for texts in captions]
    return np.array([(np.mean(tokens) - 1) / most for tokens in by_video])


def make_text_bundle(home: Path, *, frames: bool = False, name: str | None = None) -> Bundle:
    """A trained model without weights of anybody: of captions, with `frames` also of those.

    Its score is `text_score`, or the mean of that and the clip's brightness; no frame scores.
    """
    name = name or ("tiny-fusion" if frames else "tiny-text")
    root = home / "bundles" / name
    (root / "fp32").mkdir(parents=True)
    (root / "fp32/model.onnx").write_bytes(text_graph(frames=frames).SerializeToString())
    write_tokenizer(root / "fp32/tokenizer.json")
    (root / "LICENSE.weights.txt").write_text("terms of the encoder\n")
    reference = text_reference(frames=frames)
    variant = Variant(
        precision="fp32",
        graph="fp32/model.onnx",
        engines=("openvino", "onnxruntime"),
        files=hash_files(root, ["fp32/model.onnx", "fp32/tokenizer.json"]),
        reference=reference.to_dict(),
        made_by={"tests": "tiny_bundle"},
    )
    bundle = Bundle(root, text_spec(name, frames=frames), {"fp32": variant}, {"dataset": "none"})
    write_manifest(bundle)
    return read_bundle(root)


def text_reference(*, frames: bool) -> Reference:
    """What the original of `text_graph` gives: computed in numpy."""
    captions = synthetic_captions(_CLIPS, 3, _SEED)
    scores = text_score(captions)
    if frames:
        clips = synthetic_frames(TINY_PREP, _CLIPS, TINY_PREP.frames, _SEED)
        scores = (scores + brightness(clips).mean(axis=1)) / 2
    return Reference(
        clips=_CLIPS,
        frames_per_clip=TINY_PREP.frames if frames else 0,
        seed=_SEED,
        scores=tuple(map(float, scores)),
        captions=captions,
        tolerance=TINY_TOLERANCE,
    )


def text_spec(name: str, *, frames: bool) -> ModelSpec:
    """The registry entry that `make_text_bundle` would have."""
    return ModelSpec(
        name=name,
        summary="the length of captions",
        predicts="length",
        source="tests/tiny_bundle.py",
        prep=TINY_PREP if frames else None,
        text=TEXT_PREP,
        encoders=(EncoderSpec("text", "none", None, dim=1, license="test licence"),),
        head=HeadSpec("TextPerceptron"),
        trained_on="nothing",
        published=(),
        tolerances={"fp32": TINY_TOLERANCE},
    )


def write_tokenizer(path: Path) -> None:
    """A tokenizer of words between `[CLS]` and `[SEP]`; every word is `[UNK]` but two."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4, "dog": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # type: ignore[arg-type]
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(path))


def text_graph(*, frames: bool) -> onnx.ModelProto:
    """`input_ids` and `attention_mask` int64 [B, C, L], and `frames` if asked for, to `score` [B].

    Tokens other than padding are counted twice, by id and by mask, so that both matter.
    """
    make = helper.make_node
    nodes = [
        make("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        make("ReduceSum", ["mask", "last"], ["tokens"], keepdims=0),  # [B, C]
        make("Greater", ["input_ids", "two"], ["words"]),
        make("Cast", ["words"], ["word_floats"], to=TensorProto.FLOAT),
        make("ReduceSum", ["word_floats", "last"], ["word_count"], keepdims=0),
        make("Add", ["tokens", "word_count"], ["both"]),  # 2 * words + 2
        make("Div", ["both", "scale"], ["by_caption"]),
        make("Greater", ["tokens", "nought"], ["present"]),
        make("Cast", ["present"], ["present_floats"], to=TensorProto.FLOAT),
        make("Mul", ["by_caption", "present_floats"], ["masked"]),
        make("ReduceSum", ["masked", "last_caption"], ["total"], keepdims=0),
        make("ReduceSum", ["present_floats", "last_caption"], ["count"], keepdims=0),
        make("Div", ["total", "count"], ["text" if frames else "score"]),
    ]
    constants: dict[str, np.ndarray] = {
        "last": np.array([2], np.int64),
        "last_caption": np.array([1], np.int64),
        "two": np.array(2, np.int64),
        "nought": np.array(0, np.float32),
        "scale": np.array(2 * TEXT_PREP.max_tokens, np.float32),
    }
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "captions", "tokens_each"])
        for name in ("input_ids", "attention_mask")
    ]
    if frames:
        nodes += [
            make("Cast", ["frames"], ["floats"], to=TensorProto.FLOAT),
            make("ReduceMean", ["floats", "pixels"], ["mean"], keepdims=0),
            make("Div", ["mean", "white"], ["vision"]),
            make("Add", ["vision", "text"], ["sum"]),
            make("Div", ["sum", "half"], ["score"]),
        ]
        constants |= {
            "pixels": np.array([1, 2, 3, 4], np.int64),
            "white": np.array(255, np.float32),
            "half": np.array(2, np.float32),
        }
        shape = ["batch", "time", "height", "width", 3]
        inputs.append(helper.make_tensor_value_info("frames", TensorProto.UINT8, shape))
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])
    tensors = [numpy_helper.from_array(array, key) for key, array in constants.items()]
    graph = helper.make_graph(nodes, "tiny-text", inputs, [score], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model


def brightness(frames: np.ndarray) -> np.ndarray:
    """Frame scores [B, T] in [0, 1] of frames uint8 [B, T, H, W, 3]."""
    means: np.ndarray = frames.astype(np.float64).mean(axis=(2, 3, 4)) / 255
    return means


def brightness_graph() -> onnx.ModelProto:
    """The same as a graph."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "pixels"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "white"], ["frame_scores"]),
        helper.make_node("ReduceMean", ["frame_scores", "time"], ["score"], keepdims=0),
    ]
    constants: dict[str, np.ndarray] = {
        "pixels": np.array([2, 3, 4], np.int64),
        "white": np.array(255, np.float32),
        "time": np.array([1], np.int64),
    }
    return make_graph(nodes, constants)


def make_graph(nodes: Sequence[Any], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A checked model from `frames` to `frame_scores` and `score`."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(
                "frames", TensorProto.UINT8, ["batch", "frames_per_clip", "height", "width", 3]
            )
        ],
        [
            helper.make_tensor_value_info(
                "frame_scores", TensorProto.FLOAT, ["batch", "frames_per_clip"]
            ),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
        ],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 10  # readable by every ONNX Runtime that memcli supports
    onnx.checker.check_model(model)
    return model


def _spec(name: str, prep: FramePrep) -> ModelSpec:
    return ModelSpec(
        name=name,
        summary="the mean brightness of a clip",
        predicts="brightness",
        source="tests/tiny_bundle.py",
        prep=prep,
        frame_scores=True,
        graph="none.onnx",
        weights=WeightSource(
            package="none",
            version="0",
            filename="none",
            license_filename="none",
            sha256="0" * 64,
            size_bytes=0,
            license="test licence",
            license_note="for tests",
            homepage="none",
        ),
        trained_on="nothing",
        published=(),
        tolerances={"fp32": TINY_TOLERANCE},
    )
