"""How the captioner computes: batches, memory, precision, its end, and where."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch", reason="the tiny captioner is exported")
pytest.importorskip("transformers", reason="as above")
pytest.importorskip("onnxruntime")

from tiny_captioner import exported, install_captioner

from memcli.captioning import sessions as module
from memcli.captioning.bundle import CaptionerBundle
from memcli.captioning.captioner import Captioner
from memcli.captioning.sessions import CaptionerSessions, OrtDecoder
from memcli.captioning.stopping import RunEndedError
from memcli.engines import ort_cuda
from memcli.errors import EngineError, ModelError
from tests.tiny_smolvlm import Shape, make_smolvlm

Clip = npt.NDArray[np.uint8]


def clips_of(*frames: int, seed: int = 0) -> list[Clip]:
    """A clip of noise for each number of frames, each of another size."""
    random = np.random.default_rng(seed)
    return [
        random.integers(0, 256, (count, 20 + number, 30, 3), dtype=np.uint8)
        for number, count in enumerate(frames)
    ]


def opened(bundle: CaptionerBundle) -> Captioner:
    return Captioner(bundle, CaptionerSessions(bundle, threads=1))


def batches(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that it generates from now on."""
    sizes: list[int] = []
    answer = captioner._answer

    def counted(prompts: Any) -> Any:
        sizes.append(len(prompts))
        return answer(prompts)

    monkeypatch.setattr(captioner, "_answer", counted)
    return sizes


def test_batches_are_of_one_length_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = clips_of(1, 2, 3, 1, 2, 2, 2)
    with opened(exported()) as captioner:
        sizes = batches(captioner, monkeypatch)
        whole = captioner.caption(clips)
        assert sizes == [2, 4, 1]
        assert captioner.caption(clips, batch_size=2) == whole
        assert sizes[3:] == [2, 2, 2, 1]
        for limit in ("_TOKENS_AT_ONCE", "_BATCH_BYTES"):
            with monkeypatch.context() as patch:
                patch.setattr(module, limit, 1)
                del sizes[:]
                assert captioner.caption(clips) == whole
                assert sizes == [1] * 7


def test_long_prompts_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = clips_of(2, 2, 2, 3)
    run = OrtDecoder._run
    read: list[tuple[int, ...]] = []

    def noted(self: OrtDecoder, embeddings: Any) -> Any:
        read.append(embeddings.shape)
        return run(self, embeddings)

    monkeypatch.setattr(OrtDecoder, "_run", noted)
    with opened(exported()) as captioner:
        whole = captioner.caption(clips)
        length, width = read[0][1:]
        assert length > 20
        sessions = captioner._sessions
        monkeypatch.setattr(module, "_PIECE_BYTES", 7 * sessions._score_bytes(length, width))
        del read[:]
        assert captioner.caption(clips) == whole
        lengths = [size[1] for size in read[: -(-length // 7)]]
        assert lengths == [*[7] * (length // 7), *([length % 7] if length % 7 else [])]


def test_memory_of_attention_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 500M's 15 heads, with the prompts of 8 frames: no tiles, 1080p in tiles, the most."""
    bundle = replace(exported(), cache=replace(exported().cache, heads=5, width=64))
    with CaptionerSessions(bundle, threads=1) as sessions:
        for length, together in ((600, 16), (6900, 2), (9000, 1)):
            piece = sessions.piece(length, 960)
            assert sessions.together(length, 960) == together
            assert together * piece * length * 15 * 3 * 4 <= 1 << 30
        assert sessions.piece(600, 960) == 600


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> CaptionerBundle:
    """In int8, and random enough for its rounding to show; no gate would pass that."""
    from memcli.export import captioner_gate
    from memcli.export.captioner import export_captioner
    from memcli.export.captioner_checkpoint import locate_captioner

    root = tmp_path_factory.mktemp("int8")
    shape = Shape(heads=8, kv_heads=2, layers=4, head_dim=16)
    checkpoint = make_smolvlm(root / "checkpoint", shape, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(captioner_gate._LEAST_AGREEMENT, "int8", 0.0)
        bundle = export_captioner(
            locate_captioner(str(checkpoint)),
            frames=2,
            precision="int8",
            target=root / "captioner",
            name="int8",
        )
    return replace(bundle, generation=replace(bundle.generation, end_loops=False))


def test_int8_tokens_do_not_depend_on_the_batch(
    int8: CaptionerBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = clips_of(*[1, 2] * 12)
    with opened(int8) as captioner:
        for _ in range(2):
            alone = [captioner.caption([clip])[0].tokens for clip in clips]
            assert len({len(tokens) for tokens in alone}) > 3  # they leave the batch one by one
            for size in (8, 5):
                together = captioner.caption(clips, batch_size=size)
                assert [one.tokens for one in together] == alone
            monkeypatch.setattr(module, "_PIECE_BYTES", 100_000)  # and where prompts are cut


def endless(folder: Path) -> Any:
    """A session that computes for a minute: a loop in its graph."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["still"]),
            helper.make_node("Add", ["sum", "one"], ["added"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("added", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "zero"], ["features"], body=body)],
        "endless",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, [None, None, None, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1])],
        [
            helper.make_tensor("times", TensorProto.INT64, [], [30_000_000]),
            helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]),
            helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "endless.onnx"
    onnx.save(model, path)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_a_run_ends_within_a_graph(tmp_path: Path) -> None:
    started = time.monotonic()
    images = np.zeros((1, 32, 32, 3), np.uint8)
    with CaptionerSessions(exported(), threads=1) as sessions:
        vision = sessions._sessions["vision"]
        sessions._sessions["vision"] = endless(tmp_path)
        started = time.monotonic()
        with (
            pytest.raises(RunEndedError),
            sessions.stoppable(lambda: time.monotonic() > started + 0.3),
        ):
            sessions.image_features(images)
        assert 0.3 < time.monotonic() - started < 5
        sessions._sessions["vision"] = vision
        assert sessions.image_features(images).ndim == 3  # the next run is another


def test_a_run_ends_between_the_tiles_of_a_video() -> None:
    images: list[int] = []

    class Counted:
        def run(self, outputs: None, feeds: dict[str, Any], options: Any) -> Any:
            images.append(len(feeds["frames"]))
            return [np.zeros((len(feeds["frames"]), 4, 32), np.float32)]

    with CaptionerSessions(exported(), threads=1) as sessions:
        sessions._sessions["vision"] = Counted()
        with pytest.raises(RunEndedError), sessions.stoppable(lambda: len(images) >= 3):
            sessions.image_features(np.zeros((136, 32, 32, 3), np.uint8))
    assert sum(images) == 3


def test_what_fails_in_a_run_that_goes_on_is_said() -> None:
    with (
        CaptionerSessions(exported(), threads=1) as sessions,
        pytest.raises(EngineError, match="vision graph failed") as failed,
        sessions.stoppable(lambda: False),
    ):
        sessions.image_features(np.zeros((1, 31, 32, 3), np.uint8))
    assert not isinstance(failed.value, RunEndedError)


def test_sessions_are_closed_where_the_tokenizer_fails(memcli_home: Path) -> None:
    bundle = install_captioner(memcli_home)
    (bundle.folder / "tokenizer.json").write_text("{")
    sessions = CaptionerSessions(bundle, threads=1)
    with pytest.raises(ModelError):
        Captioner(bundle, sessions)
    with pytest.raises(EngineError, match="closed"):
        sessions.image_features(np.zeros((1, 32, 32, 3), np.uint8))


def test_a_gpu_computes_as_its_owner_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    asked: list[Any] = []

    class Session:
        def __init__(self, path: str, options: Any, providers: Any, **how: Any):
            asked.append((Path(path).name, *providers, how))

        def get_providers(self) -> list[str]:
            return [ort_cuda.PROVIDER]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ort_cuda.PROVIDER])
    monkeypatch.setattr(ort_cuda, "_load_libraries", lambda ort: None)
    monkeypatch.setenv(ort_cuda.LIMIT_VARIABLE, "4G")
    monkeypatch.setenv(ort_cuda.GRAPHS_VARIABLE, "1")  # for models: here each run is of its shape
    CaptionerSessions(exported(), "cuda:1").close()
    options = {
        "device_id": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
        "gpu_mem_limit": str(4 << 30),
    }
    assert asked == [
        (f"{name}.onnx", (ort_cuda.PROVIDER, options), {"enable_fallback": 0})
        for name in ("vision", "embed", "decoder")
    ]


@pytest.mark.parametrize("longest", [2048, None])
def test_large_clips_under_way_are_bounded(longest: int | None) -> None:
    from memcli import caption_table
    from memcli.caption_maker import CaptionMaker

    images = replace(exported().images, side=512, splitting=True, longest=longest)
    with CaptionMaker(replace(exported(), frames=8, images=images), device="cpu") as maker:
        run = caption_table._Run(maker, caption_table.CaptionSettings(workers=4))
        slots = run._pipeline._slots._value
        assert slots == max(1, caption_table.QUEUE_BYTES // maker.clip_bytes)
        assert slots <= 2


def test_a_prompt_without_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(exported()) as captioner:
        monkeypatch.setattr(captioner._tokenizer, "encode", lambda tiles: [])
        with pytest.raises(ModelError, match="makes no tokens"):
            captioner.caption(clips_of(2))
