"""Encoders say what transformers says of the same checkpoint."""

import json
import pickle
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcli.errors import ModelError, UsageError
from memcli.models.encoders import CLIP_PREP
from memcli.spec import EncoderSpec, FramePrep, Pooling
from memcli.tokens import Tokeniser

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from memcli.train.encoder_kinds import KINDS, tower_of
from memcli.train.encoders import frame_prep, load_encoder, resolve, text_prep
from tests.tiny_hub import HIDDEN, MAKERS, SHARED

CAPTIONS = ["A dog runs on the beach.", "", "two cats!", "woman " * 100]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, make in MAKERS.items()}


def spec_of(folder: Path, tower: str, pooling: Pooling) -> EncoderSpec:
    return EncoderSpec(tower, str(folder), None, 1, "MIT", pooling)  # type: ignore[arg-type]


def frames_of(prep: FramePrep, count: int) -> Any:
    shape = (count, *prep.frame_shape())
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def tensor_of(output: Any) -> Any:
    """transformers 5 returns an output object where 4 returns a tensor."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


VISION = [
    ("siglip", "projection"),
    ("siglip", "pooled"),
    ("siglip2", "projection"),
    ("clip", "projection"),
    ("clip", "pooled"),
    ("vit", "cls"),
    ("vit", "pooled"),
    ("dinov2", "cls"),
    ("dinov2", "pooled"),
    ("dinov3", "cls"),
    ("dinov3", "pooled"),
]
TEXT = [
    ("siglip", "projection"),
    ("siglip2", "projection"),
    ("clip", "projection"),
    ("clip", "pooled"),
    ("distilbert", "cls"),
    ("distilbert", "mean"),
    ("bert", "cls"),
    ("bert", "mean"),
    ("roberta", "cls"),
    ("roberta", "mean"),
]


@pytest.mark.parametrize(("kind", "pooling"), VISION)
def test_frames_are_embedded_as_by_transformers(
    hub: dict[str, Path], kind: str, pooling: Pooling
) -> None:
    from transformers import AutoModel

    spec, checkpoint = resolve(spec_of(hub[kind], "vision", pooling))
    prep = frame_prep(checkpoint, CLIP_PREP)
    encoder = load_encoder(spec, checkpoint, prep)
    assert not encoder.training
    assert (encoder.tower, encoder.dim) == ("vision", spec.dim)
    frames = frames_of(prep, 3)
    mean, std = torch.tensor(prep.mean), torch.tensor(prep.std)
    pixels = ((frames.double() / 255 - mean) / std).float().permute(0, 3, 1, 2)
    whole = AutoModel.from_pretrained(hub[kind]).eval()
    with torch.no_grad():
        got = encoder(frames)
        if pooling == "projection" or kind.startswith("siglip"):
            expected = tensor_of(whole.get_image_features(pixel_values=pixels))
        elif kind == "clip":
            expected = whole.vision_model(pixel_values=pixels).pooler_output
        elif pooling == "pooled":
            expected = whole(pixel_values=pixels).pooler_output
        else:
            expected = whole(pixel_values=pixels).last_hidden_state[:, 0]
    assert got.dtype == torch.float32
    assert got.shape == (3, spec.dim)
    assert (got[0] - got[1]).abs().max() > 0.01, "the checkpoint tells frames apart"
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "pooling"), TEXT)
def test_captions_are_embedded_as_by_transformers(
    hub: dict[str, Path], kind: str, pooling: Pooling
) -> None:
    from transformers import AutoModel

    spec, checkpoint = resolve(spec_of(hub[kind], "text", pooling))
    prep, path = text_prep(checkpoint)
    encoder = load_encoder(spec, checkpoint, prep)
    batch = Tokeniser(prep, path).encode([CAPTIONS])
    ids, mask = torch.from_numpy(batch.input_ids[0]), torch.from_numpy(batch.attention_mask[0])
    whole = AutoModel.from_pretrained(hub[kind]).eval()
    with torch.no_grad():
        got = encoder(ids, mask)
        if kind.startswith("siglip"):  # never told of padding
            expected = tensor_of(whole.get_text_features(input_ids=ids))
        elif pooling == "projection":
            expected = tensor_of(whole.get_text_features(input_ids=ids, attention_mask=mask))
        elif pooling == "pooled":
            expected = whole.text_model(input_ids=ids, attention_mask=mask).pooler_output
        else:
            states = whole(input_ids=ids, attention_mask=mask).last_hidden_state
            expected = states[:, 0]
            if pooling == "mean":
                rows = [row[keep.bool()].mean(0) for row, keep in zip(states, mask, strict=True)]
                expected = torch.stack([row / row.norm() for row in rows])
    assert (encoder.tower, encoder.dim) == ("text", spec.dim)
    assert got.dtype == torch.float32
    assert got.shape == (len(CAPTIONS), spec.dim)
    assert (got[0] - got[2]).abs().max() > 0.01, "the checkpoint tells captions apart"
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "distilbert", "bert", "roberta"])
def test_padding_changes_nothing(hub: dict[str, Path], kind: str) -> None:
    pooling: Pooling = "projection" if kind == "clip" else "mean"
    spec, checkpoint = resolve(spec_of(hub[kind], "text", pooling))
    prep, path = text_prep(checkpoint)
    encoder, tokeniser = load_encoder(spec, checkpoint, prep), Tokeniser(prep, path)

    def embedded(captions: list[str]) -> Any:
        batch = tokeniser.encode([captions])
        with torch.no_grad():
            return encoder(
                *(torch.from_numpy(a[0]) for a in (batch.input_ids, batch.attention_mask))
            )

    torch.testing.assert_close(
        embedded(CAPTIONS)[2], embedded(["two cats!"])[0], rtol=1e-4, atol=1e-5
    )


def test_every_pooling_of_every_kind_is_tested_above(hub: dict[str, Path]) -> None:
    made = {
        json.loads((folder / "config.json").read_text())["model_type"] for folder in hub.values()
    }
    for name in made:
        kind = KINDS[name]
        for tower, rows in ((kind.vision, VISION), (kind.text, TEXT)):
            for pooling in tower.classes if tower else ():
                assert any(
                    tower_of(hub[row[0]], "vision" if rows is VISION else "text")[0] == name
                    and row[1] == pooling
                    for row in rows
                )
    assert {"clip", "siglip", "vit", "dinov2", "distilbert", "bert", "roberta"} <= made


def test_dimensions(hub: dict[str, Path]) -> None:
    dims = {
        ("clip", "vision", "projection"): SHARED,
        ("clip", "vision", "pooled"): HIDDEN,
        ("clip", "text", "projection"): SHARED,
        ("siglip", "text", "projection"): HIDDEN,
        ("vit", "vision", "cls"): HIDDEN,
        ("distilbert", "text", "cls"): HIDDEN,
    }
    for (kind, tower, pooling), dim in dims.items():
        spec, _ = resolve(spec_of(hub[kind], tower, pooling))  # type: ignore[arg-type]
        assert spec.dim == dim


@pytest.mark.parametrize(
    ("kind", "tower", "asked", "pooling"),
    [
        ("vit", "vision", "projection", "cls"),
        ("dinov3", "vision", "projection", "cls"),
        ("vit", "vision", "pooled", "pooled"),
        ("clip", "vision", "cls", "projection"),
        ("clip", "vision", "pooled", "pooled"),
        ("distilbert", "text", "mean", "mean"),
        ("distilbert", "text", "projection", "cls"),
        ("bert", "text", "cls", "mean"),  # a sentence encoder knows better
        ("roberta", "text", "projection", "mean"),
    ],
)
def test_pooling_of_another_encoder(
    hub: dict[str, Path], kind: str, tower: str, asked: Pooling, pooling: str
) -> None:
    given = replace(spec_of(Path("no/such"), tower, asked), revision="1234")
    spec, checkpoint = resolve(given, override=str(hub[kind]))
    assert spec.pooling == pooling
    assert spec.repository == checkpoint.repository == str(hub[kind].resolve())
    assert spec.revision is None
    assert checkpoint.revision is None
    assert spec.license == "licence not stated"


def test_licence_comes_from_the_model_card(hub: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "vit"
    shutil.copytree(hub["vit"], folder)
    (folder / "README.md").write_text("---\ntags:\n- x\nlicense: apache-2.0\x1b[2J\n---\n# Model\n")
    spec, _ = resolve(spec_of(folder, "vision", "cls"), override=str(folder))
    assert spec.license == "apache-2.0\\x1b[2J"
    assert resolve(spec_of(folder, "vision", "cls"))[0].license == "MIT", "as the registry says"


def test_torch_weights_are_read_without_executing_anything(
    hub: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "vit"
    shutil.copytree(hub["vit"], folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    spec, checkpoint = resolve(spec_of(folder, "vision", "cls"))
    prep = frame_prep(checkpoint, CLIP_PREP)
    got = load_encoder(spec, checkpoint, prep)(frames_of(prep, 2))
    safe_spec, safe = resolve(spec_of(hub["vit"], "vision", "cls"))
    torch.testing.assert_close(got, load_encoder(safe_spec, safe, prep)(frames_of(prep, 2)))
    assert checkpoint.digest != safe.digest

    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    hostile = {**weights, "x": Hostile()}
    for content in ("zip", "pickle", "garbage"):
        path = folder / "pytorch_model.bin"
        if content == "zip":
            torch.save(hostile, path)
        else:
            path.write_bytes(pickle.dumps(Hostile()) if content == "pickle" else b"nothing")
        _, checkpoint = resolve(spec_of(folder, "vision", "cls"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ModelError) as error:
                load_encoder(spec, checkpoint, prep)
        perhaps = "" if content == "zip" else "is damaged, or "
        assert str(error.value).splitlines() == [
            f"{path}: {perhaps}contains pickled objects that are not tensors",
            "  Use a folder with model.safetensors.",
        ]
        assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(
    hub: dict[str, Path], tmp_path: Path, value: float
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "vit"
    shutil.copytree(hub["vit"], folder)
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"][1, 2] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    spec, checkpoint = resolve(spec_of(folder, "vision", "cls"))
    prep = frame_prep(checkpoint, CLIP_PREP)
    with pytest.raises(ModelError, match="weights are not all finite") as error:
        load_encoder(spec, checkpoint, prep)
    assert error.value.where == str(folder)
    assert error.value.exit_code == 3


def test_remote_code_is_never_run(hub: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    shutil.copytree(hub["vit"], folder)
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": code}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    spec, checkpoint = resolve(spec_of(folder, "vision", "cls"))
    load_encoder(spec, checkpoint, frame_prep(checkpoint, CLIP_PREP))
    assert not (tmp_path / "executed").exists()


def changed(source: Path, target: Path, **config: Any) -> Path:
    shutil.copytree(source, target)
    known = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**known, **config}))
    return target


@pytest.mark.parametrize("kind", ["resnet", None, 5, ["clip"], "clip_text_model", "\x1b[2J"])
def test_unknown_kinds_are_refused_with_what_there_is(
    hub: dict[str, Path], tmp_path: Path, kind: Any
) -> None:
    folder = changed(hub["clip"], tmp_path / "x", model_type=kind)
    with pytest.raises(ModelError, match="clip, dinov2") as caught:
        resolve(spec_of(folder, "vision", "projection"))
    assert "\x1b" not in str(caught.value)
    assert str(folder / "config.json") in str(caught.value)


def test_a_tower_that_is_not_there_is_refused(hub: dict[str, Path], tmp_path: Path) -> None:
    text = changed(hub["bert"], tmp_path / "text")
    shutil.copy(hub["vit"] / "preprocessor_config.json", text)
    with pytest.raises(ModelError, match="type 'bert' is no vision encoder"):
        resolve(spec_of(text, "vision", "cls"))
    vision = changed(hub["vit"], tmp_path / "vision")
    shutil.copy(hub["clip"] / "tokenizer.json", vision)
    with pytest.raises(ModelError, match="type 'vit' is no text encoder"):
        resolve(spec_of(vision, "text", "cls"))


def test_a_pooling_that_is_not_there_is_refused(hub: dict[str, Path]) -> None:
    spec, checkpoint = resolve(spec_of(hub["clip"], "vision", "mean"))
    with pytest.raises(ModelError, match="no pooling 'mean', only projection, pooled"):
        load_encoder(spec, checkpoint, CLIP_PREP)


def test_weights_that_are_missing_are_not_made_up(hub: dict[str, Path], tmp_path: Path) -> None:
    """A vision tower alone is no text encoder, although the configuration speaks of both."""
    from safetensors.torch import load_file, save_file

    folder = changed(hub["clip"], tmp_path / "x")
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith("text_")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    spec, checkpoint = resolve(spec_of(folder, "text", "projection"))
    with pytest.raises(ModelError, match=r"has no weights for \d+ of the encoder's parts"):
        load_encoder(spec, checkpoint, text_prep(checkpoint)[0])
    spec, checkpoint = resolve(spec_of(folder, "vision", "projection"))
    load_encoder(spec, checkpoint, frame_prep(checkpoint, CLIP_PREP))


def test_weights_of_another_size_or_damaged(hub: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(hub["vit"], tmp_path / "x", intermediate_size=48)
    spec, checkpoint = resolve(spec_of(folder, "vision", "cls"))
    with pytest.raises(ModelError):
        load_encoder(spec, checkpoint, CLIP_PREP)
    folder = changed(hub["vit"], tmp_path / "y")
    (folder / "model.safetensors").write_bytes(b"\xff" * 1000)
    with pytest.raises(ModelError, match="weights cannot be loaded"):
        load_encoder(*resolve(spec_of(folder, "vision", "cls")), CLIP_PREP)


def test_another_dimension_than_expected_is_refused(hub: dict[str, Path]) -> None:
    spec, checkpoint = resolve(spec_of(hub["vit"], "vision", "cls"))
    with pytest.raises(ModelError, match="embeddings of length 32, not 768"):
        load_encoder(replace(spec, dim=768), checkpoint, CLIP_PREP)


def test_the_state_dict_has_weights_only(hub: dict[str, Path]) -> None:
    """Normalisation belongs to the prep: a fine-tuned checkpoint must not carry a second copy."""
    spec, checkpoint = resolve(spec_of(hub["vit"], "vision", "cls"))
    encoder = load_encoder(spec, checkpoint, frame_prep(checkpoint, CLIP_PREP))
    assert all(key.startswith("model.") for key in encoder.state_dict())


def test_gradients_reach_the_encoder(hub: dict[str, Path]) -> None:
    spec, checkpoint = resolve(spec_of(hub["clip"], "vision", "projection"))
    prep = frame_prep(checkpoint, CLIP_PREP)
    encoder = load_encoder(spec, checkpoint, prep)
    encoder(frames_of(prep, 2)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by 'pooling_mode_max"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "pools by",
        ),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "pools by 'lasttoken'"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "module .*'Dense'"),
        ("modules.json", {"a": 1}, "is not a list of modules"),
    ],
)
def test_sentence_encoders_that_memcli_cannot_follow(
    hub: dict[str, Path], tmp_path: Path, file: str, content: Any, message: str
) -> None:
    folder = changed(hub["bert"], tmp_path / "x")
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message) as caught:
        resolve(spec_of(folder, "text", "mean"), override=str(folder))
    assert file in str(caught.value)


def test_newer_sentence_encoders_name_their_pooling(hub: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(hub["bert"], tmp_path / "x")
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode": "cls"}')
    spec, _ = resolve(spec_of(folder, "text", "mean"), override=str(folder))
    assert spec.pooling == "cls"


def test_sentence_encoders_state_their_length(hub: dict[str, Path]) -> None:
    _, checkpoint = resolve(spec_of(hub["bert"], "text", "mean"))
    assert text_prep(checkpoint)[0].max_tokens == 32


@pytest.mark.parametrize(
    "override",
    ["", "/no/such/folder", "../up", "a/b/c", "a b", "x/..y", "~nobody-here/x", "a" * 5000],
)
def test_overrides_that_name_nothing(override: str) -> None:
    with pytest.raises(UsageError, match="neither a folder nor a name"):
        resolve(spec_of(Path("a/b"), "vision", "cls"), override=override)
