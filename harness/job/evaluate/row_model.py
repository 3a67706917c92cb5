"""A causal model on rows of segments, which attend to a prefix that is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from transformers import DynamicCache

from harness.job.evaluate import rows
from harness.job.evaluate.decoding import cache_keyword
from harness.job.evaluate.kv_cache import Lent
from harness.job.evaluate.rows import PlacedRow, Segment, Tokens
from harness.job.training import attention
from harness.job.training.attention import SequenceRow


class RowModel:
    """Runs `model` on `device`, in the dtype `autocast` of linear layers if that is given.

    model: of transformers or peft. kernels: whose attention keeps the segments of a row apart; None if it takes masks.
    """

    def __init__(self, model: Any, device: torch.device, autocast: torch.dtype | None):
        self.model, self.device, self.autocast = model, device, autocast
        self.kernels = self._kernels()

    def encode(self, prefix: Tokens) -> DynamicCache:
        """Keys and values of `prefix`."""
        return self.forward([Segment(prefix, 0, 0)], None)[1]

    def forward(
        self, segments: list[Segment], prefix: DynamicCache | None, *extra: list[int]
    ) -> tuple[torch.Tensor, DynamicCache, list[torch.Tensor]]:
        """Logits at the wanted positions (positions, vocabulary), the cache of the new tokens, and `extra` placed."""
        row = rows.placed(segments, self.device, *extra)
        cache = Lent(prefix) if prefix else DynamicCache()
        with self._attending(segments, row, prefix.get_seq_length() if prefix else 0) as mask:
            return self.logits(row.ids, row.positions, mask, row.keep, cache)[0], cache, row.extra

    def logits(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        keep: torch.Tensor,
        cache: DynamicCache,
    ) -> torch.Tensor:
        """Logits at the indices `keep` of each row of `ids`: (rows, indices, vocabulary).

        mask: which keys each query attends to (rows, 1, queries, keys); None: causal.
        """
        if mask is not None and self.model.config._attn_implementation == "eager":
            mask = torch.where(mask, 0.0, torch.finfo(self.model.dtype).min).to(self.model.dtype)
        with torch.no_grad(), torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return self.model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                logits_to_keep=keep,
                use_cache=True,
                **{cache_keyword(self.model): cache},
            ).logits

    @contextmanager
    def _attending(self, segments: list[Segment], row: PlacedRow, before: int) -> Iterator[torch.Tensor | None]:
        """A context in which the model's attention keeps apart what `row` does; yields the mask for where it can't.

        before: tokens of the prefix.
        """
        lengths = tuple(len(segment.tokens) for segment in segments)
        apart = self.kernels == "cuda" or (self.kernels == "cpu" and all(s.parent is None for s in segments))
        if not apart or not attention.within_window(self.model, before + max(lengths)):
            yield row.mask(before) if before or len(segments) > 1 else None
            return
        with attention.over(row.sequences(before) if self.kernels == "cuda" else SequenceRow(lengths, before, None)):
            yield None

    def _kernels(self) -> Literal["cpu", "cuda"] | None:
        """CUDA's compute in 16 bits, and heads of a limited width."""
        kind = self.model.config._attn_implementation
        if kind == attention.ON_CUDA:
            return "cuda" if attention.in_one_kernel(self.model, self.autocast or self.model.dtype) else None
        return "cpu" if kind == attention.NAME and self.device.type == "cpu" else None


class SharedPrefix:
    """The cache of the prefix that rows share, which is kept until a row has another."""

    def __init__(self, model: RowModel):
        self._model = model
        self._tokens: Tokens = ()
        self._cache: DynamicCache | None = None

    def cache(self, tokens: Tokens) -> DynamicCache | None:
        """Keys and values of the prefix `tokens`; None if it is empty."""
        if tokens != self._tokens:
            self._tokens, self._cache = tokens, self._model.encode(tokens) if tokens else None
        return self._cache
