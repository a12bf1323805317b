"""Captions to token ids: the same as each checkpoint's own tokenizer gives."""

import json
import string
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcli import tokens
from memcli.errors import ModelError
from memcli.spec import EncoderSpec, TextPrep
from memcli.tokens import Tokeniser

pytest.importorskip("transformers")

from memcli.train.encoders import Checkpoint, load_encoder, resolve, text_prep
from tests.tiny_hub import MAKERS, TOKENS

CAPTIONS = [
    "A dog runs on the beach.",
    "",
    "   ",
    "woman " * 200,
    "don't  STOP,\tcars\nand\x00dogs\x1f!",
    "狗在海滩上跑 собака бежит الكلب",
    "family 👨‍👩‍👧 and \U0001f600",
    "é e\u0301 İ ß ﬁ",
    "▁a ▁ dog ##s Ġthe </w>",
]
KINDS = ("clip", "distilbert", "bert", "roberta", "siglip2", "siglip")


class Case:
    """A tiny checkpoint with our tokeniser of it."""

    def __init__(self, kind: str, checkpoint: Checkpoint, prep: TextPrep, path: Path):
        self.kind = kind
        self.folder = checkpoint.folder
        self.prep = prep
        self.path = path
        self.tokeniser = Tokeniser(prep, path)

    def reference(self) -> Callable[[list[str]], tuple[list[list[int]], list[list[int]]]]:
        """Ids and masks of captions by the checkpoint's own tokenizer."""
        from transformers import AutoTokenizer

        own = AutoTokenizer.from_pretrained(self.folder)
        padding = "max_length" if self.prep.fixed_length else "longest"
        # transformers has SigLIP 2's lower-casing for some of its checkpoints only
        lower = self.kind == "siglip2"

        def encode(captions: list[str]) -> tuple[list[list[int]], list[list[int]]]:
            found = own(
                [c.lower() for c in captions] if lower else captions,
                padding=padding,
                truncation=True,
                max_length=self.prep.max_tokens,
                return_attention_mask=True,
            )
            return found["input_ids"], found["attention_mask"]

        return encode


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMCLI_HOME", str(tmp_path_factory.mktemp("home")))
        for kind in KINDS:
            folder = MAKERS[kind](tmp_path_factory.mktemp(kind))
            _, checkpoint = resolve(
                EncoderSpec("text", str(folder), None, 32, "none"), override=str(folder)
            )
            found[kind] = Case(kind, checkpoint, *text_prep(checkpoint))
        yield found


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "siglip"])
def test_ids_and_masks_are_those_of_the_own_tokenizer(cases: dict[str, Case], kind: str) -> None:
    case = cases[kind]
    encode = case.reference()
    for captions in ([CAPTIONS[0], ""], CAPTIONS, ["a dog"]):
        batch = case.tokeniser.encode([captions])
        ids, mask = encode(captions)
        assert batch.input_ids[0].tolist() == ids
        assert batch.attention_mask[0].tolist() == mask


@pytest.mark.parametrize("kind", ["clip", "distilbert", "roberta", "siglip2"])
def test_any_caption_is_read_as_the_own_tokenizer_does(cases: dict[str, Case], kind: str) -> None:
    case = cases[kind]
    encode = case.reference()
    # Literal names of special tokens are special to all of them; not to SigLIP, see its test.
    # Python and the tokenizers library lower some letters apart, so none of these for SigLIP 2.
    apart = ("Lu", "Lt") if kind == "siglip2" else ()
    text = st.text(st.characters(exclude_categories=("Cs", *apart)))

    @settings(max_examples=60, deadline=None)
    @given(st.lists(text, min_size=1, max_size=3))
    def check(captions: list[str]) -> None:
        batch = case.tokeniser.encode([captions])
        ids, mask = encode(captions)
        assert batch.input_ids[0].tolist() == ids
        assert batch.attention_mask[0].tolist() == mask

    check()


def by_definition(pieces: dict[str, int], caption: str) -> list[int]:
    """SigLIP's canonical text, then the words: each is a piece, or letters behind a ▁."""
    text = caption.lower().translate(str.maketrans("", "", string.punctuation))
    ids = []
    for word in text.split():
        if f"▁{word}" in pieces:
            ids.append(pieces[f"▁{word}"])
        else:
            ids += [pieces["▁"], *(pieces[letter] for letter in word)]
    end = pieces["</s>"]
    ids = [*ids[: TOKENS - 1], end]
    return ids + [end] * (TOKENS - len(ids))


@pytest.mark.parametrize("source", ["spiece.model", "tokenizer.json"])
def test_siglip_canonicalises_and_pads(cases: dict[str, Case], tmp_path: Path, source: str) -> None:
    folder = MAKERS["siglip"](tmp_path)
    pieces = {p: i for i, (p, _) in enumerate(_model(folder / "tokenizer.json")["vocab"])}
    other = {"spiece.model": "tokenizer.json", "tokenizer.json": "spiece.model"}[source]
    (folder / other).unlink()
    checkpoint = replace(_checkpoint(folder), digest=source)
    prep, path = text_prep(checkpoint)
    assert prep == TextPrep(max_tokens=TOKENS, pad_id=1, fixed_length=True)
    captions = ["A DOG, runs!", "", "it's  a\x1fcar.\n", "woman " * 30, "q</s>dog", "zzz-7"]
    batch = Tokeniser(prep, path).encode([captions])
    assert batch.input_ids[0].tolist() == [by_definition(pieces, text) for text in captions]
    assert batch.attention_mask.sum(axis=2).tolist() == [[4, 1, 7, 16, 7, 6]]
    assert batch.cut == 1


def test_siglip_is_as_sentencepiece_says(cases: dict[str, Case]) -> None:
    """Where the package that the checkpoint's own tokenizer needs is there."""
    pytest.importorskip("sentencepiece")
    case = cases["siglip"]
    encode = case.reference()
    words = st.sampled_from(["A dog", " ", "▁", "\u200b", "\xa0", "\x85", "ΟΣ", "İ", "É", "日本"])

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.one_of(words, st.text(st.characters(exclude_categories=("Cs",))))))
    def check(parts: list[str]) -> None:
        caption = "".join(parts)
        if any(name in caption for name in ("</s>", "<unk>")):
            return
        assert case.tokeniser.encode([[caption]]).input_ids[0].tolist() == encode([caption])[0]

    check()


def test_absent_captions_are_padding_and_empty_ones_are_not(cases: dict[str, Case]) -> None:
    batch = cases["clip"].tokeniser.encode([["a dog", ""], [], ["a"]])
    assert batch.input_ids.shape == (3, 2, 4)
    assert batch.input_ids.dtype == batch.attention_mask.dtype == "int64"
    assert batch.attention_mask.any(axis=2).tolist() == [[1, 1], [0, 0], [1, 0]]
    assert (batch.input_ids[1] == cases["clip"].prep.pad_id).all()


@pytest.mark.parametrize("captions", [[], [[]], [[], []]])
def test_nothing_has_a_shape_too(cases: dict[str, Case], captions: list[list[str]]) -> None:
    batch = cases["roberta"].tokeniser.encode(captions)
    assert batch.input_ids.shape == (len(captions), 1, 1)
    assert not batch.attention_mask.any()
    assert batch.cut == 0


def test_cut_captions_keep_their_special_tokens_and_are_counted(cases: dict[str, Case]) -> None:
    batch = cases["distilbert"].tokeniser.encode([["dog " * 500, "a dog"], ["x " * 10_000]])
    assert batch.cut == 2
    assert batch.input_ids.shape == (2, 2, 64)
    assert batch.input_ids[0, 0, [0, -1]].tolist() == [2, 3]


def test_the_unread_end_of_an_absurd_caption_is_counted(
    cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_CAPTION_CHARACTERS", 5)
    batch = cases["bert"].tokeniser.encode([["a dog and a cat"]])
    assert batch.cut == 1
    whole = cases["bert"].tokeniser.encode([["a dog"]])
    assert batch.input_ids.tolist() == whole.input_ids.tolist()


def test_lone_surrogates_are_replaced(cases: dict[str, Case]) -> None:
    got = cases["clip"].tokeniser.encode([["a\ud800dog\udcff"]]).input_ids
    assert got.tolist() == cases["clip"].tokeniser.encode([["a\ufffddog\ufffd"]]).input_ids.tolist()


def test_padding_goes_to_the_side_that_the_file_says(
    cases: dict[str, Case], tmp_path: Path
) -> None:
    found = json.loads(cases["bert"].path.read_text())
    found["padding"]["direction"] = "Left"
    path = tmp_path / "left.json"
    path.write_text(json.dumps(found))
    batch = Tokeniser(cases["bert"].prep, path).encode([["a dog", "dog"]])
    assert batch.attention_mask[0].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert batch.input_ids[0, 1, 0] == 0


def padding_left(folder: Path) -> Path:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    return folder


@pytest.mark.parametrize("kind", ["clip", "distilbert", "bert", "roberta"])
def test_a_tokenizer_that_pads_left_is_refused_where_that_changes_captions(
    tmp_path: Path, kind: str
) -> None:
    """With transformers, such a caption's embedding depends on the others of its batch."""
    with pytest.raises(ModelError, match="pads on the left") as caught:
        text_prep(_checkpoint(padding_left(MAKERS[kind](tmp_path))))
    assert '"padding_side": "right"' in str(caught.value)


def test_siglip_2_pads_left_where_its_tokenizer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Always to one length, so a caption is the same in every batch: as transformers has it."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    monkeypatch.setenv("MEMCLI_HOME", str(tmp_path / "home"))
    folder = padding_left(MAKERS["siglip2"](tmp_path))
    spec, checkpoint = resolve(EncoderSpec("text", str(folder), None, 32, "none"))
    prep, path = text_prep(checkpoint)
    captions = ["a dog", "a red bird"]
    batch = Tokeniser(prep, path).encode([captions])
    own = AutoTokenizer.from_pretrained(folder)(
        captions, padding="max_length", max_length=TOKENS, return_tensors="pt"
    )
    assert batch.input_ids[0].tolist() == own["input_ids"].tolist()
    assert batch.input_ids[0, 0, 0] == prep.pad_id
    encoder = load_encoder(spec, checkpoint, prep)
    whole = AutoModel.from_pretrained(folder).eval()
    ids, mask = torch.from_numpy(batch.input_ids[0]), torch.from_numpy(batch.attention_mask[0])
    with torch.no_grad():
        expected = whole.text_model(input_ids=own["input_ids"]).pooler_output
        torch.testing.assert_close(encoder(ids, mask), expected, rtol=1e-4, atol=1e-5)


def test_siglip_pads_left_where_its_settings_say_so(cases: dict[str, Case], tmp_path: Path) -> None:
    right = cases["siglip"].tokeniser.encode([["a dog"]]).input_ids[0, 0].tolist()
    folder = padding_left(MAKERS["siglip"](tmp_path))
    prep, path = text_prep(replace(_checkpoint(folder), digest="left"))
    left = Tokeniser(prep, path).encode([["a dog"]])
    count = int(left.attention_mask.sum())
    assert left.input_ids[0, 0].tolist() == right[count:] + right[:count]


def test_siglip_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = MAKERS["siglip"](tmp_path)
    for name in ("spiece.model", "tokenizer.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match=r"no spiece\.model and no tokenizer\.json"):
        text_prep(_checkpoint(folder))


def test_a_file_without_special_tokens_still_shows_an_empty_caption(tmp_path: Path) -> None:
    path = tmp_path / "plain.json"
    model = {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]], "unk_id": 0}
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    batch = Tokeniser(TextPrep(4, 1), path).encode([["", "aa"]])
    assert batch.input_ids.tolist() == [[[1, 1], [1, 1]]]
    assert batch.attention_mask.tolist() == [[[1, 0], [1, 1]]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}',
        b'{"model": {"type": "Unigram", "vocab": [], "unk_id": 5}}',
        b'{"model": {"type": "WordPiece", "vocab": {"a": -1}}}',
        b'{"model": {"type": "Nothing"}}',
        b'{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, '
        b'"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}}',
        b'{"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", '
        b'"invert": false}, "model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}}',
    ],
)
def test_hostile_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        Tokeniser(TextPrep(8, 0), path).encode([["hello"]])
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_file_that_fails_on_a_caption_is_refused(tmp_path: Path) -> None:
    """A word that is not in the vocabulary, and no token for that."""
    path = tmp_path / "tokenizer.json"
    model = {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None}
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokeniser(TextPrep(8, 0), path).encode([["b"]])


def test_missing_and_oversized_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="No such file"):
        Tokeniser(TextPrep(8, 0), tmp_path / "none.json")
    monkeypatch.setattr(tokens, "MAX_FILE_BYTES", 10)
    (tmp_path / "large.json").write_bytes(b" " * 11)
    with pytest.raises(ModelError, match="larger than a tokenizer file may be"):
        Tokeniser(TextPrep(8, 0), tmp_path / "large.json")


def test_no_room_for_a_word(cases: dict[str, Case]) -> None:
    with pytest.raises(ModelError, match="adds 2 special tokens"):
        Tokeniser(TextPrep(2, 0), cases["bert"].path)


@pytest.mark.parametrize(
    "content", [b"", b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x07", b"\x80" * 20]
)
def test_a_damaged_sentencepiece_file_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = MAKERS["siglip"](tmp_path)
    (folder / "spiece.model").write_bytes(content)
    with pytest.raises(ModelError, match=r"spiece\.model"):
        text_prep(_checkpoint(folder))


def test_damaged_tokenizer_files_of_a_checkpoint_are_refused(tmp_path: Path) -> None:
    folder = MAKERS["clip"](tmp_path)
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(ModelError, match="tokenizer files cannot be used"):
        text_prep(_checkpoint(folder))


def test_slow_tokenizer_files_give_the_same_ids(cases: dict[str, Case], tmp_path: Path) -> None:
    """vocab.txt alone, as old checkpoints have it."""
    folder = MAKERS["bert"](tmp_path)
    (folder / "tokenizer.json").unlink()
    prep, path = text_prep(replace(_checkpoint(folder), digest="slow"))
    assert prep == cases["bert"].prep
    got = Tokeniser(prep, path).encode([CAPTIONS])
    assert got.input_ids.tolist() == cases["bert"].tokeniser.encode([CAPTIONS]).input_ids.tolist()


def _checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(folder, str(folder), None, "0" * 64)


def _model(path: Path) -> Any:
    return json.loads(path.read_text())["model"]
