"""A card that need not be here: its memory, its rates and its price, from conf/device/NAME.yaml."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from harness.config_folders import group_files
from harness.errors import UserError, first_line
from harness.protocol import CardRates


@dataclass
class Card:
    """The fields of a file of conf/device. Rates are dense, as published; measured ones may stand there instead."""

    name: str = ""
    """Name of the file."""
    devices: list[str] = field(default_factory=list)
    """Names that torch gives the device. Records of a device of such a name are of this card."""
    memory_gib: float = MISSING
    """GiB that torch reports as its total capacity, somewhat less than the GB on the box."""
    bf16_tflops: float | None = MISSING
    """10¹² FLOP/s of matrix products in bf16, accumulated in fp32 (null: the card has no bf16)."""
    fp32_tflops: float = MISSING
    """10¹² FLOP/s in fp32; not in TF32, which torch does not use unless told to."""
    bandwidth_gb: float = MISSING
    """10⁹ bytes/s of its memory."""
    reached: float | None = None
    """Share of these FLOP/s that large products reach, where it was measured (null: 0.8, as of most)."""
    price: float | None = None
    """Dollars an hour (null: unknown). Prices change, so the shipped files have none."""
    source: str = MISSING
    """Where the rates are from."""

    @property
    def memory(self) -> int:
        """Bytes."""
        return int(self.memory_gib * 2**30)

    @property
    def rates(self) -> CardRates:
        bf16 = None if self.bf16_tflops is None else self.bf16_tflops * 1e12
        return CardRates(bf16, self.fp32_tflops * 1e12, self.bandwidth_gb * 1e9)


def price_of(devices: Collection[str]) -> float | None:
    """Dollars an hour of the card that torch calls one of `devices`; None if no file of conf/device has its price.

    A file that is wrong is passed over: `load` says what is wrong with it.
    """
    for name in group_files("device"):
        with suppress(UserError):
            card = load(name)
            if card.price is not None and not set(devices).isdisjoint(card.devices):
                return card.price
    return None


def _letters(name: str) -> str:
    """What identifies a card: letters and digits, without its maker's name."""
    return re.sub(r"nvidia|geforce|[^a-z0-9]", "", name.lower())


def _devices(path: Path) -> list[str]:
    """The names that torch gives the card of a file; none of a file that can't be read."""
    with suppress(OmegaConfBaseException, YAMLError):
        return list(OmegaConf.select(OmegaConf.load(path), "devices") or [])
    return []


def _unknown(name: str, files: Iterable[str]) -> UserError:
    """The sentence on a card that no file has. Only a card whose name has the same letters and digits is meant."""
    wanted = _letters(name)
    near = [file for file in files if wanted and (wanted in _letters(file) or _letters(file) in wanted)]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There is: {', '.join(['cpu', 'cuda', *files])}."
    return UserError(f"--device={name} is unknown. {hint} docs/cards.md says how to add a card.")


def load(name: str) -> Card:
    """The card of conf/device/`name`.yaml, shipped or in the working folder. UserError if it is unknown or wrong.

    Spelling does not count: RTX 4090 is rtx_4090.
    """
    files = group_files("device")
    if (file := {_letters(file): file for file in files}.get(_letters(name))) is None:
        file = next((file for file in files if _letters(name) in map(_letters, _devices(files[file]))), None)
    if file is None:
        raise _unknown(name, files)
    name = file
    try:
        card: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Card), OmegaConf.load(files[name])))
    except (OmegaConfBaseException, YAMLError, TypeError, ValueError) as error:
        raise UserError(f"conf/device/{name}.yaml is wrong: {first_line(error)}.") from None
    card.name = name
    for key in ("memory_gib", "bf16_tflops", "fp32_tflops", "bandwidth_gb", "reached", "price"):
        if (value := getattr(card, key)) is not None and not value > 0:
            raise UserError(f"{key} in conf/device/{name}.yaml must be positive, got {value:g}.")
    return card
