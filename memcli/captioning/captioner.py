"""Captions of videos by SmolVLM2 in ONNX Runtime: frames in, text out.

    with Captioner.open("smolvlm2-500m") as captioner:
        for caption in captioner.caption(clips):
            print(caption.text)

Needs numpy, onnxruntime and tokenizers. The caption per video is that of
000_bcb79d7cf5a52fe8.txt, section 2.1; the paper gives neither frames, prompt nor length: they are
in the bundle's manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
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
from memcli.errors import ModelError, ParityError
from memcli.text import decodable

BATCH = 16


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
        """Takes the sessions over: where the tokenizer fails, they are closed."""
        self.bundle = bundle
        self._sessions = sessions
        try:
            self._tokenizer = PromptTokenizer(bundle.folder / "tokenizer.json", bundle.prompt)
        except BaseException:
            sessions.close()
            raise

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

        At most `batch_size` are generated together, fewer where prompts are long, and only those
        whose prompts have the same length: on a CPU the tokens then do not depend on what else is
        in a batch. Raises ModelError for a clip of another shape, EngineError.
        """
        captions: dict[int, Caption] = {}
        for places, prompts in self._batches(clips, batch_size):
            captions.update(zip(places, self._answer(prompts), strict=True))
        return [captions[place] for place in range(len(clips))]

    def _batches(
        self, clips: Sequence[npt.NDArray[np.uint8]], most: int
    ) -> Iterator[tuple[list[int], list[_Prompt]]]:
        """Places in `clips` and their prompts, of one length each time."""
        waiting: dict[int, dict[int, _Prompt]] = {}
        for place, clip in enumerate(clips):
            prompt = self._read(clip)
            length = len(prompt.ids)
            batch = waiting.setdefault(length, {})
            batch[place] = prompt
            together = self._sessions.together(length, prompt.features.shape[-1])
            if len(batch) >= min(most, together):
                del waiting[length]
                yield list(batch), list(batch.values())
        for batch in waiting.values():
            yield list(batch), list(batch.values())

    def stoppable(self, cancelled: Callable[[], bool]) -> AbstractContextManager[None]:
        """What is captioned within it ends soon after `cancelled()` is true: RunEndedError.

        `cancelled` is asked from another thread, too.
        """
        return self._sessions.stoppable(cancelled)

    def follow(
        self, clips: Sequence[npt.NDArray[np.uint8]], texts: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """What the captioner would say next after every part of given texts, in batches.

        Of each text one id per token: the choice after what stands before it. This compares
        captioners without one difference changing all that follows. Raises ParityError where it
        computes NaN or infinite numbers: the choice would be one all the same.
        """
        found: dict[int, list[int]] = {}
        for places, prompts in self._batches(clips, len(clips)):
            given = [texts[place] for place in places]
            decoder = self._sessions.decoder()
            logits = decoder.start(self._embedded(prompts))
            chosen = [_chosen(logits)]
            longest = max(map(len, given))
            for number in range(longest - 1):
                said = [text[number] if number < len(text) else 0 for text in given]
                logits = decoder.step(np.array(said, np.int64))
                chosen.append(_chosen(logits))
            columns = np.stack(chosen, axis=1)
            rows = (columns[row, : len(text)].tolist() for row, text in enumerate(given))
            found.update(zip(places, rows, strict=True))
        return [found[place] for place in range(len(clips))]

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
        rules = self.bundle.images
        at_once = 1 if rules.splitting else len(clip)  # with tiles a frame is many images
        parts: list[Floats] = []
        for start in range(0, len(clip), at_once):
            self._sessions.check()
            images, tiles = prepare_clip(clip[start : start + at_once], rules)
            parts.append(self._sessions.image_features(images))
        features = np.concatenate(parts)
        ids = self._tokenizer.encode([tiles] * len(clip))
        if not ids:
            raise ModelError("its tokenizer makes no tokens", where=str(self.bundle.folder))
        return _Prompt(ids, features.reshape(-1, features.shape[-1]))

    def _answer(self, prompts: Sequence[_Prompt]) -> list[Caption]:
        embedded = self._embedded(prompts)
        generated = generate(self._sessions.decoder(), embedded, self.bundle.generation)
        return [self._caption(one) for one in generated]

    def _embedded(self, prompts: Sequence[_Prompt]) -> Floats:
        """float32 [B, L, D]: the tokens' embeddings, features in place of image tokens."""
        ids = np.array([prompt.ids for prompt in prompts], np.int64)
        embeddings = self._sessions.embeddings(ids)
        images = ids == self._tokenizer.image_id
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


def _chosen(logits: Floats) -> Integers:
    if not np.isfinite(logits.max(axis=-1)).all():
        raise ParityError("the captioner computes numbers that are none (NaN or infinite)")
    chosen: Integers = np.argmax(logits, axis=-1)
    return chosen
