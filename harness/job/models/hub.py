"""Whether the hub answers. While it does not, its cache alone is read: libraries would ask six times for each file."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from typing import Any

import datasets
from huggingface_hub import constants, get_session

from harness import redact
from harness.errors import UserError

PATIENCE = 5.0  # seconds that it has to answer
AGAIN = 60.0  # seconds after which it is asked again
NO_SETS = datasets.config.HF_HUB_OFFLINE  # by HF_DATASETS_OFFLINE, which is of data sets alone
_looked: float | None = None  # when; null before, and where HF_HUB_OFFLINE says not to ask


def answers(patience: float = PATIENCE) -> bool:
    """Whether it answers in so many seconds, in which its name is looked up too: that can hang as long."""
    heard = []

    def ask() -> None:
        with suppress(Exception):  # dozens of kinds, none of which is an answer
            get_session().head(constants.ENDPOINT, timeout=patience)
            heard.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return bool(heard)


def settle() -> None:
    """Before something is asked of the hub: where it does not answer, have all libraries read its cache alone."""
    global _looked
    if constants.HF_HUB_OFFLINE and _looked is None:
        return
    if _looked is None or time.monotonic() - _looked > AGAIN:
        constants.HF_HUB_OFFLINE = False  # else nothing would be asked
        constants.HF_HUB_OFFLINE = not answers()
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE or NO_SETS
        _looked = time.monotonic()
        if constants.HF_HUB_OFFLINE:
            where = redact.redact(constants.ENDPOINT)
            print(f"The hub ({where}) does not answer; what its cache holds is used.", file=sys.stderr, flush=True)


def refused(what: str, error: BaseException | None, remedy: str) -> UserError:
    """Why the hub does not give `what` ("The model NAME"), in a sentence. remedy: where names and rights are sound."""
    causes: list[Any] = [error]
    while causes[-1] is not None:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    names = {type(cause).__name__ for cause in causes}
    said = " ".join(map(str, causes))
    none = "RepositoryNotFoundError" in names  # whose own words are of gated ones too
    if "GatedRepoError" in names or (not none and ("gated repo" in said or "gated dataset" in said)):
        return UserError(f"{what} is gated: accept its licence on its page of the hub and set HF_TOKEN to your token.")
    if "RevisionNotFoundError" in names:
        return UserError(f"{what} has no such revision on the hub; check model.revision.")
    if constants.HF_HUB_OFFLINE:
        why = "the hub does not answer" if _looked is not None else "HF_HUB_OFFLINE has the hub not asked"
        return UserError(f"{what} is not in the hub's cache, and {why}; {remedy}.")
    if none or "DatasetNotFoundError" in names:
        return UserError(f"{what} is not on the hub, or is private and HF_TOKEN not set to a token that may read it.")
    return UserError(f"{what} can't be had from the hub ({type(error).__name__}); {remedy}.")
