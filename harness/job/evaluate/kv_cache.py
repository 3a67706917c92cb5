"""Caches of keys and values: a prefix shared by many sequences, and slots reused by answers."""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

BLOCK = 64  # tokens by which the slots grow


class Lent(DynamicCache):
    """The cache of a prefix for one forward pass, which does not change it. The layers hold the new tokens."""

    def __init__(self, prefix: DynamicCache):
        super().__init__()
        self.prefix = prefix

    def update(self, keys, values, layer_idx, *args, **kwargs):
        super().update(keys, values, layer_idx)
        old = self.prefix.layers[layer_idx]
        return torch.cat([old.keys, keys], dim=-2), torch.cat([old.values, values], dim=-2)


class Slots(DynamicCache):
    """Keys and values of the sequences being generated, one in each slot, from its left end.

    lengths: tokens in each used slot. The tensors (slots, heads, tokens, channels) grow with the longest. They have the
    dtypes that came first: under autocast keys and values may differ, and transformers' own cache, in which sequences
    begin, may store both in the finer dtype (5.17 does).
    """

    def __init__(self, size: int, device: torch.device):
        super().__init__()
        self.size, self.device, self.lengths = size, device, []

    def fill(self, prefix: DynamicCache | None, new: DynamicCache, lengths: list[int]) -> None:
        """Fill further slots with `prefix` and their part of `new`, which holds `lengths` tokens for each."""
        begin = prefix.get_seq_length() if prefix else 0
        first, self.lengths = len(self.lengths), self.lengths + [begin + length for length in lengths]
        for index, layer in enumerate(new.layers):
            for name, room in zip(("keys", "values"), self._rooms(index, layer.keys, layer.values), strict=True):
                for slot, part in enumerate(getattr(layer, name)[0].split(lengths, dim=1), first):
                    if prefix:
                        room[slot, :, :begin] = getattr(prefix.layers[index], name)[0]
                    room[slot, :, begin : self.lengths[slot]] = part

    def drop(self, slot: int) -> None:
        """Free `slot`. The last used slot moves there, so that used slots stay contiguous."""
        for layer in self.layers:
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
        self.at = torch.arange(len(self.lengths), device=self.device), ends
        self.lengths = [length + 1 for length in self.lengths]
        return self.at[1][:, None]

    def update(self, keys, values, layer_idx, *args, **kwargs):
        rooms = self._rooms(layer_idx, keys, values)
        for room, new in zip(rooms, (keys, values), strict=True):
            room[self.at[0], :, self.at[1]] = new[:, :, 0].to(room.dtype)
        return [room[: len(self.lengths), :, : max(self.lengths)] for room in rooms]

    def _rooms(self, index: int, *like: torch.Tensor) -> list[torch.Tensor]:
        """Keys and values of a layer, large enough for the longest sequence."""
        if index == len(self.layers):
            self.layers.append(DynamicLayer())
            empty = [tensor.new_zeros(self.size, tensor.shape[1], 0, tensor.shape[3]) for tensor in like]
            self.layers[index].keys, self.layers[index].values = empty
        layer = self.layers[index]
        if (short := max(self.lengths) - layer.keys.shape[2]) > 0:
            layer.keys = functional.pad(layer.keys, (0, 0, 0, short + BLOCK))
            layer.values = functional.pad(layer.values, (0, 0, 0, short + BLOCK))
        return [layer.keys, layer.values]
