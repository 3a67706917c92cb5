"""Caches of keys and values: a prefix shared by many sequences, and slots reused by answers."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

BLOCK = 64  # tokens by which the slots grow


class FilledLayer(Protocol):
    """Keys and values of a layer: (sequences, heads, tokens, channels)."""

    keys: torch.Tensor
    values: torch.Tensor


def filled_layers(cache: DynamicCache) -> list[FilledLayer]:
    """The layers of `cache` after a pass of a model whose layers are all attention, as those that share prefixes are.

    Transformers types them as of several kinds, some without keys and values.
    """
    layers: Any = cache.layers
    return layers


class Lent(DynamicCache):
    """The cache of a prefix for one forward pass, which does not change it. The layers hold the new tokens."""

    def __init__(self, prefix: DynamicCache):
        super().__init__()
        self.prefix = prefix

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        super().update(key_states, value_states, layer_idx)
        old = filled_layers(self.prefix)[layer_idx]
        return torch.cat([old.keys, key_states], dim=-2), torch.cat([old.values, value_states], dim=-2)


class Slots(DynamicCache):
    """Keys and values of the sequences being generated, one in each slot, from its left end.

    lengths: tokens in each used slot. The tensors (slots, heads, tokens, channels) grow with the longest. They have the
    dtypes that came first: under autocast keys and values may differ, and transformers' own cache, in which sequences
    begin, may store both in the finer dtype (5.17 does).
    """

    def __init__(self, size: int, device: torch.device):
        super().__init__()
        self.size, self.device = size, device
        self.lengths: list[int] = []
        none = torch.empty(0, dtype=torch.long, device=device)
        self._at = none, none  # of the tokens that are added, the slots and the positions

    def fill(self, prefix: DynamicCache | None, new: DynamicCache, lengths: list[int]) -> None:
        """Fill further slots with `prefix` and their part of `new`, which holds `lengths` tokens for each."""
        begin = prefix.get_seq_length() if prefix else 0
        first, self.lengths = len(self.lengths), self.lengths + [begin + length for length in lengths]
        for index, layer in enumerate(filled_layers(new)):
            for name, room in zip(("keys", "values"), self._rooms(index, layer.keys, layer.values), strict=True):
                for slot, part in enumerate(getattr(layer, name)[0].split(lengths, dim=1), first):
                    if prefix:
                        room[slot, :, :begin] = getattr(prefix.layers[index], name)[0]
                    room[slot, :, begin : self.lengths[slot]] = part

    def drop(self, slot: int) -> None:
        """Free `slot`. The last used slot moves there, so that used slots stay contiguous."""
        for layer in filled_layers(self):
            layer.keys[slot], layer.values[slot] = (
                layer.keys[len(self.lengths) - 1],
                layer.values[len(self.lengths) - 1],
            )
        self.lengths[slot] = self.lengths[-1]
        self.lengths.pop()

    def extend(self, ends: torch.Tensor) -> torch.Tensor:
        """Add a token to each used slot, which `update` will write. Returns its positions: (slots, 1).

        ends: `lengths` on the device.
        """
        self._at = torch.arange(len(self.lengths), device=self.device), ends
        self.lengths = [length + 1 for length in self.lengths]
        return ends[:, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        slots, positions = self._at
        keys, values = self._rooms(layer_idx, key_states, value_states)
        keys[slots, :, positions] = key_states[:, :, 0].to(keys.dtype)
        values[slots, :, positions] = value_states[:, :, 0].to(values.dtype)
        used, longest = len(self.lengths), max(self.lengths)
        return keys[:used, :, :longest], values[:used, :, :longest]

    def _rooms(self, index: int, *like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, large enough for the longest sequence."""
        if index == len(self.layers):
            added = DynamicLayer()
            added.keys, added.values = (
                tensor.new_zeros(self.size, tensor.shape[1], 0, tensor.shape[3]) for tensor in like
            )
            self.layers.append(added)
        layer = filled_layers(self)[index]
        if (short := max(self.lengths) - layer.keys.shape[2]) > 0:
            layer.keys = functional.pad(layer.keys, (0, 0, 0, short + BLOCK))
            layer.values = functional.pad(layer.values, (0, 0, 0, short + BLOCK))
        return layer.keys, layer.values
