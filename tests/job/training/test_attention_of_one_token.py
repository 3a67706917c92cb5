"""Attention of one token in each of many sequences, by a mask: without repeating keys and values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.job.training import attention

SEQUENCES, HEADS, SHARED, TOKENS, WIDTH = 3, 8, 2, 37, 16


def drawn(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values, and which keys are seen."""
    torch.manual_seed(0)
    shapes = ((HEADS, 1), (SHARED, TOKENS), (SHARED, TOKENS))
    query, key, value = (torch.randn(SEQUENCES, *shape, WIDTH).to(dtype) for shape in shapes)
    seen = torch.arange(TOKENS) <= torch.tensor([4, 36, 20])[:, None]
    return query, key, value, seen[:, None, None]


def by_repeats(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    key, value = (tensor.repeat_interleave(HEADS // SHARED, dim=1) for tensor in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2)


class Largest(TorchDispatchMode):
    """The most bytes of a tensor that an operation returns."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.bytes = max(self.bytes, *(t.nbytes for t in tree_leaves(out) if isinstance(t, Tensor)), 0)
        return out


@pytest.mark.parametrize("of_one", [attention._of_one, attention._of_one_grouped])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_attention_over_repeated_keys_and_values(dtype, of_one):
    given = drawn(dtype)
    expected = by_repeats(*given)
    out = of_one(*given, None)
    assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
    torch.testing.assert_close(out, expected, rtol=0.02 if dtype is torch.bfloat16 else 1e-5, atol=1e-2)


def test_nothing_as_large_as_repeated_keys_is_made():
    given = drawn(torch.float32)
    with Largest() as largest:
        attention._of_one_grouped(*given, None)
    repeated = given[1].nbytes * HEADS // SHARED
    assert largest.bytes < repeated / 2
    with Largest() as largest:
        by_repeats(*given)
    assert largest.bytes >= repeated


def test_a_device_without_a_kernel_of_ours_takes_it(monkeypatch):
    """A GPU, whose attention is registered by another name."""
    given = drawn(torch.float32)
    elsewhere = [torch.empty_like(tensor, device="meta") for tensor in given]
    calls = []
    monkeypatch.setattr(attention, "_of_one_grouped", lambda *of: calls.append(of) or of[0])
    attention._attend(torch.nn.Module(), *elsewhere)
    assert len(calls) == 1
    dropped = torch.nn.Module()
    dropped.num_key_value_groups = HEADS // SHARED
    attention._attend(dropped, *elsewhere, dropout=0.1)  # which transformers does
    assert len(calls) == 1
