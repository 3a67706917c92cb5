"""The one exception that means: the user gave us something that can't work."""

from __future__ import annotations

import difflib
import errno
import math
from collections.abc import Iterable

TO_DO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there and give the same command again"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it accessible, or name another folder"),
}


class UserError(Exception):
    """Bad input. The message is one sentence: what is wrong and what to do; it is shown without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of a traceback."""
        return [str(self)]


def one_of(key: str, value: object, options: Iterable[str], listed: str | None = None) -> None:
    """Raise UserError, with the nearest option, unless `value` is one of `options`.

    listed: what the message says there is (null: every option).
    """
    options = list(options)
    if value not in options:
        near = nearest(str(value), options)
        hint = f" Did you mean {near}?" if near else ""
        raise UserError(f"{key}={value} is unknown.{hint} There is: {listed or ', '.join(options)}.")


def require_positive(option: str, value: float | None) -> None:
    """Raise UserError for a value of `option` that is no finite number above 0; null is one that was not given."""
    if value is not None and not isinstance(value, int | float):
        raise UserError(f"{option} must be a number, got {value!r}.")  # a program may give anything
    if value is not None and not value > 0:
        raise UserError(f"{option} must be positive, got {value:g}.")
    if value == math.inf:
        raise UserError(f"{option} must be finite, got {value:g}.")


def nearest(value: str, options: Iterable[str]) -> str | None:
    """The one of `options` that `value` is a misspelling of; None if none is close. Swapped letters come first.

    Case does not count: methods are written in many ways.
    """
    lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(value.lower(), lower, n=5)  # the closest first
    near = min(close, key=lambda option: sorted(option) != sorted(value.lower()), default=None)
    return near and lower[near]


def first_line(error: BaseException) -> str:
    """The first line of the message of `error`, without a full stop; its kind if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def about_file(error: OSError) -> str:
    """One sentence on the file that could not be read or written: which, why, and what to do if that is known."""
    to_do = f"; {TO_DO[error.errno]}" if error.errno in TO_DO else ""
    return f"{error.filename}: {error.strerror}{to_do}."
