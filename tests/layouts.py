"""Layouts of a batch, and the sequences in one."""

from __future__ import annotations

import torch

from harness.job.data.batching import Batch, Layout
from harness.job.data.encoding import IGNORED

LAYOUTS = {"flat": Layout(flat=True), "padded": Layout(flat=False, pad=1), "plain": Layout(False, every=True, pad=1)}


def sequences(batch: Batch) -> list[tuple[list[int], dict[int, int]]]:
    """Of each sequence its tokens, and by position the token it is to predict."""
    if batch.lengths is None:
        rows, lengths = range(len(batch.input_ids)), batch.attention_mask.sum(1).tolist()
        assert torch.equal(batch.attention_mask.cumsum(1).max(1).values, batch.attention_mask.sum(1))
    else:
        rows, lengths = [0] * len(batch.lengths), batch.lengths
    out, start = [], 0
    for row, length in zip(rows, lengths, strict=True):
        ids = batch.input_ids[row, start : start + length].tolist()
        predicted = {
            at - start: target
            for at, target in zip(batch.keep.tolist(), batch.targets[row].tolist(), strict=True)
            if target != IGNORED and start <= at < start + length
        }
        out.append((ids, predicted))
        start += length if batch.lengths else 0
    assert sum(len(predicted) for _, predicted in out) == int((batch.targets != IGNORED).sum()) == batch.supervised
    return out
