"""Captions of videos by SmolVLM2 in ONNX Runtime: frames in, text out.

    with Captioner.open("smolvlm2-500m") as captioner:
        for caption in captioner.caption(clips):
            print(caption.text)

Needs numpy, onnxruntime and tokenizers. The caption per video is that of
000_bcb79d7cf5a52fe8.txt, section 2.1; the paper gives neither frames, prompt nor length: they are
in the bundle's manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memcli.captioning.bundle import CaptionerBundle, captioners_dir, read_captioner
from memcli.captioning.generate import Floats, Generated, Integers, generate
from memcli.captioning.images import Tiles, prepare_clip, tiles_of
from memcli.captioning.prompt import PromptTokenizer
from memcli.captioning.sessions import CaptionerSessions
from memcli.closing import Closeable
from memcli.errors import ModelError
from memcli.text import decodable

BATCH = 16
_TOKENS_AT_ONCE = 16_384
"""Prompt tokens of a batch, padding included: its attention needs memory for each."""


@dataclass(frozen=True)
class Caption:
    """What the captioner says of one video."""

    text: str
    """May be empty: then it has nothing to say."""
    tokens: tuple[int, ...]
    looping: bool
    """It repeated itself and was ended."""
    cut: bool
    """It was longer than the manifest's `max_new_tokens`."""
    broken: bool = False
    """What comes next was no number (NaN or infinite), so that it was ended."""


@dataclass(frozen=True)
class _Prompt:
    """A video as the decoder reads it."""

    ids: list[int]
    features: Floats
    """[images x tokens, D]."""


class Captioner(Closeable):
    """A captioner on one device. One thread at a time."""

    def __init__(self, bundle: CaptionerBundle, sessions: CaptionerSessions):
        self.bundle = bundle
        self._sessions = sessions
        self._tokenizer = PromptTokenizer(bundle.folder / "tokenizer.json", bundle.prompt)

    @classmethod
    def open(
        cls,
        name: str | Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        check: bool = True,
    ) -> Captioner:
        """Open an installed captioner by name, or one in a folder, on `cpu` or `cuda[:N]`.

        `check` of False leaves out the comparison of its files with their hashes. Raises
        ModelError if there is none or it is damaged, and what CaptionerSessions raises.
        """
        folder = Path(name)
        if isinstance(name, str) and "/" not in name:
            folder = captioners_dir() / name
        bundle = read_captioner(folder, check=check)
        return cls(bundle, CaptionerSessions(bundle, device, threads))

    def caption(
        self, clips: Sequence[npt.NDArray[np.uint8]], *, batch_size: int = BATCH
    ) -> list[Caption]:
        """A caption for each clip, uint8 [T, H, W, 3] in RGB, in their order.

        At most `batch_size` are generated together, fewer where prompts are long. The tokens do
        not depend on what else is in a batch. Raises ModelError for a clip of another shape,
        EngineError.
        """
        captions: list[Caption] = []
        batch: list[_Prompt] = []
        for prompt in map(self._read, clips):
            longest = max(len(one.ids) for one in (*batch, prompt))
            full = len(batch) == batch_size or longest * (len(batch) + 1) > _TOKENS_AT_ONCE
            if batch and full:
                captions += self._answer(batch)
                batch = []
            batch.append(prompt)
        return captions + self._answer(batch)

    def follow(
        self, clips: Sequence[npt.NDArray[np.uint8]], texts: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """What the captioner would say next after every part of given texts, all in one batch.

        Of each text one id per token: the choice after what stands before it. This compares
        captioners without one difference changing all that follows.
        """
        ids, mask = self._padded(prompts := [self._read(clip) for clip in clips])
        decoder = self._sessions.decoder()
        longest = max(len(text) for text in texts)
        logits = decoder.start(self._embedded(prompts, ids, mask), mask, longest)
        chosen = [np.argmax(logits, axis=-1)]
        for place in range(longest - 1):
            given = [text[place] if place < len(text) else 0 for text in texts]
            logits = decoder.step(np.array(given, np.int64))
            chosen.append(np.argmax(logits, axis=-1))
        columns = np.stack(chosen, axis=1)
        return [columns[row, : len(text)].tolist() for row, text in enumerate(texts)]

    def prompt_ids(self, tiles: Sequence[Tiles]) -> list[int]:
        """Token ids of the prompt for frames that are cut like this."""
        return self._tokenizer.encode(tiles)

    def tiles(self, clip: npt.NDArray[np.uint8]) -> Tiles:
        """How the frames of a clip uint8 [T, H, W, 3] are cut."""
        return tiles_of(clip.shape[1], clip.shape[2], self.bundle.images)

    def close(self) -> None:
        """Free the graphs."""
        self._sessions.close()

    def _read(self, clip: npt.NDArray[np.uint8]) -> _Prompt:
        if clip.ndim != 4 or clip.shape[3] != 3 or clip.dtype != np.uint8 or 0 in clip.shape:
            raise ModelError(f"a clip is uint8 [T, H, W, 3], not {clip.dtype} {clip.shape}")
        images, tiles = prepare_clip(clip, self.bundle.images)
        ids = self._tokenizer.encode([tiles] * len(clip))
        features = self._sessions.image_features(images)
        return _Prompt(ids, features.reshape(-1, features.shape[-1]))

    def _answer(self, prompts: Sequence[_Prompt]) -> list[Caption]:
        return [self._caption(one) for one in self._generate(prompts)] if prompts else []

    def _generate(self, prompts: Sequence[_Prompt]) -> list[Generated]:
        ids, mask = self._padded(prompts)
        embedded = self._embedded(prompts, ids, mask)
        return generate(self._sessions.decoder(), embedded, mask, self.bundle.generation)

    @staticmethod
    def _padded(prompts: Sequence[_Prompt]) -> tuple[Integers, Integers]:
        """Ids and mask [B, L], padded on the left to the longest."""
        longest = max(len(prompt.ids) for prompt in prompts)
        ids: Integers = np.zeros((len(prompts), longest), np.int64)
        mask: Integers = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt.ids) :] = prompt.ids
            mask[row, longest - len(prompt.ids) :] = 1
        return ids, mask

    def _embedded(self, prompts: Sequence[_Prompt], ids: Integers, mask: Integers) -> Floats:
        """float32 [B, L, D]: the tokens' embeddings, features in place of image tokens."""
        embeddings = self._sessions.embeddings(ids)
        images = (ids == self._tokenizer.image_id) & (mask == 1)
        features = np.concatenate([prompt.features for prompt in prompts])
        if embeddings.shape[-1] != features.shape[-1]:
            raise ModelError(
                "its vision tower and its decoder do not fit", where=str(self.bundle.folder)
            )
        if images.sum() != len(features):
            raise ModelError(
                f"the prompt has {images.sum()} image tokens for {len(features)} features",
                where=str(self.bundle.folder),
            )
        embeddings[images] = features
        return embeddings

    def _caption(self, generated: Generated) -> Caption:
        text = decodable(self._tokenizer.decode(generated.tokens))
        return Caption(text, generated.tokens, generated.looping, generated.cut, generated.broken)
