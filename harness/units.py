"""Numbers as people read and type them: counts, bytes, significant digits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from harness.errors import UserError

SIZES = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def significant(value: float, digits: int = 4) -> str:
    """To that many digits: 0.7500, 12.30, 1,600."""
    text = f"{value:z#.{digits}g}"
    return f"{float(text):,.0f}" if "e+" in text else text.rstrip(".")


def count(n: float) -> str:
    """4.88M for 4,880,000; whole below a thousand."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n >= 0.9995 * size:
            return significant(n / size, 3) + unit
    return f"{n:z.0f}"


def plural(n: int, what: str) -> str:
    """1 item; 1,200 items."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def points(difference: float) -> str:
    """A difference of shares with its sign: +1.2 points. A zero has no minus."""
    return f"{round(100 * difference, 1) + 0.0:+.1f} points".replace("-", "−")


def listed(names: Iterable[str]) -> str:
    """Names as a sentence has them: a, b and c."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def size(n: float) -> str:
    """Bytes in binary units: 1.50 GiB."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB" if n >= 2**20 else f"{n / 2**10:.0f} KiB"


def dollars(value: float) -> str:
    """$12.50; a small sum in two digits: $0.0042."""
    return f"${value:,.{2 if value >= 0.1 or not value else 1 - math.floor(math.log10(value))}f}"


OTHER_MONEY = re.compile(r"\s*([€£¥]\s*-?[\d.]+|-?[\d.]+\s*([€£¥]|eur|gbp|chf|jpy|cny|inr|cad|aud))\s*", re.IGNORECASE)


def parse_budget(text: str) -> int | Dollars:
    """Bytes, as of `parse_size`, or money: ``5USD``, ``$0.50``; UserError if it is neither, or money of no value."""
    if OTHER_MONEY.fullmatch(text):
        raise UserError(f"A budget in money must be in dollars, such as 5USD, got {text}.")
    money = re.fullmatch(r"\s*(?:(-?)\$\s*([\d.]+)|(-?)([\d.]+)\s*usd)\s*", text, re.IGNORECASE)
    if not money:
        return parse_size(text)
    try:
        amount = Dollars(money[2] or money[4])
    except ValueError:
        raise UserError(f"{text!r} is no sum of money; write it as 5USD.") from None
    if money[1] or money[3] or not amount:
        raise UserError(f"A budget must be positive, got {text}.")
    return amount


class Dollars(float):
    """A sum of money, to be told from a number of bytes."""


def parse_size(text: str) -> int:
    """Bytes of ``24GB`` (10⁹ each) or ``24GiB`` (2³⁰ each); UserError if it is no size."""
    matched = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?i?b)\s*", text, re.IGNORECASE)
    number, unit = matched.groups() if matched else ("", "")
    try:
        value = float(number) * SIZES[unit.lower()]
    except (ValueError, KeyError):
        raise UserError(
            f"{text!r} is no size in bytes; write it as 24GB (10⁹ each) or 24GiB (2³⁰ each), and money as 5USD."
        ) from None
    if not value >= 1:
        raise UserError(f"A budget must be positive, got {text}.")
    return int(value)
