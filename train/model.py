"""A model as one module: up to two encoders and a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memcli.errors import ModelError
from memcli.train.heads import Scores


class MemorabilityModel(nn.Module):
    """Frames and token ids to scores.

    `frame_encoder` maps uint8 frames [N, H, W, 3] to [N, Df], `text_encoder` token ids and mask
    [N, L] to [N, Dt] (`memcli.train.encoders`); `head` is one of `memcli.train.heads`. The keys of
    the state dict begin with `frame_encoder.`, `text_encoder.` and `head.`.
    """

    def __init__(
        self,
        head: nn.Module,
        frame_encoder: nn.Module | None = None,
        text_encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.head = head
        self.frame_encoder = frame_encoder
        self.text_encoder = text_encoder

    def forward(
        self,
        frames: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Scores:
        """Scores of B videos.

        `frames` uint8 [B, T, H, W, 3]; `input_ids` and `attention_mask` int64 [B, C, L], where a
        row whose mask is all 0 stands for no caption. What the model has no encoder for must be
        None.
        """
        return self.with_embeddings(frames, input_ids, attention_mask)[0]

    def with_embeddings(
        self,
        frames: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Scores, dict[str, Tensor]]:
        """Scores, and what the encoders gave: `frame_embeddings` [B, T, Df] and
        `caption_embeddings` [B, C, Dt], as far as the model has them."""
        embeddings: dict[str, Tensor] = {}
        present = None
        if frames is not None:
            embeddings["frame_embeddings"] = self.embed_frames(frames)
        if input_ids is not None:
            if attention_mask is None:
                raise ModelError("captions need an attention mask")
            captions, present = self.embed_captions(input_ids, attention_mask)
            embeddings["caption_embeddings"] = captions
        scores: Scores = self.head(
            embeddings.get("frame_embeddings"), embeddings.get("caption_embeddings"), present
        )
        return scores, embeddings

    def embed_frames(self, frames: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] -> float32 [B, T, Df]."""
        if self.frame_encoder is None:
            raise ModelError("the model was given frames, but has no encoder for them")
        embedded: Tensor = self.frame_encoder(frames.flatten(0, 1))
        return embedded.unflatten(0, (-1, frames.shape[1]))

    def embed_captions(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [B, C, L] twice -> embeddings float32 [B, C, Dt] and mask float32 [B, C].

        Rows without a caption have one token attended to, because attention over nothing is NaN;
        their embeddings are of no meaning and their mask is 0.
        """
        if self.text_encoder is None:
            raise ModelError("the model was given captions, but has no encoder for them")
        present = attention_mask.amax(dim=-1, keepdim=True)
        first = torch.maximum(attention_mask[..., :1], 1 - present)
        attended = torch.cat([first, attention_mask[..., 1:]], dim=-1)
        embedded: Tensor = self.text_encoder(input_ids.flatten(0, 1), attended.flatten(0, 1))
        embedded = embedded.unflatten(0, (-1, input_ids.shape[1]))
        return embedded, present.squeeze(-1).to(embedded.dtype)
