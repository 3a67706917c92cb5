"""Whether the hub answers. While it does not, libraries read its cache alone.

Otherwise they try six times for each file, with pauses; the number of tries is fixed in huggingface_hub, and
HF_HUB_ETAG_TIMEOUT limits a single try. Their only switch is a constant, which they read at each call: it is set here.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from huggingface_hub import constants, get_session, hf_hub_download

from harness import redact
from harness.errors import UserError
from harness.settings import ModelSettings

PATIENCE = 5.0  # seconds to wait for an answer
AGAIN = 60.0  # seconds until the hub is asked again
DATASETS_OFFLINE = os.environ.get("HF_DATASETS_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES  # them alone
NO_KERNELS = {"use_kernels": False}
"""A keyword of ``from_pretrained`` by which a model keeps its own layers. From 5.25 on transformers replaces them by
kernels that it downloads from the hub: other code on each device, of which neither plans nor speed-ups know."""
_looked: float | None = None  # when the hub was asked last; None if never, as under HF_HUB_OFFLINE


def answers(patience: float = PATIENCE) -> bool:
    """Whether the hub answers within `patience` seconds, the look-up of its name included, which can hang too."""
    heard = []

    def ask() -> None:
        with suppress(Exception):  # dozens of kinds, none an answer
            get_session().head(constants.ENDPOINT, timeout=patience)
            heard.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return bool(heard)


def settle() -> None:
    """Call before asking the hub, and after importing `datasets` to ask it for data: if it does not answer, all
    libraries read its cache alone."""
    global _looked
    if constants.HF_HUB_OFFLINE and _looked is None:
        return
    if _looked is None or time.monotonic() - _looked > AGAIN:
        constants.HF_HUB_OFFLINE = False  # otherwise nothing is asked
        constants.HF_HUB_OFFLINE = not answers()
        _looked = time.monotonic()
        if constants.HF_HUB_OFFLINE:
            where = redact.redact(constants.ENDPOINT)
            print(f"The hub ({where}) does not answer; using its cache.", file=sys.stderr, flush=True)
    if "datasets" in sys.modules:  # few plans need it, and it takes a tenth of their imports
        sys.modules["datasets"].config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE or DATASETS_OFFLINE


def config_file(model: ModelSettings) -> str:
    """The config of a model of the hub, in the hub's cache; its folder has the name of the commit.

    Raises UserError if it is out of reach.
    """
    path = str(model.path)
    settle()
    try:
        return hf_hub_download(path, "config.json", revision=model.revision)
    except (OSError, ValueError) as error:
        raise no_model(path, error) from error


def no_model(path: str, error: BaseException) -> UserError:
    """Why the model `path`, which is no local folder, can't be loaded."""
    remedy = (
        "there is no such local folder; check model.path and the connection, or use the embedded model=smollm2_135m"
    )
    return refused(f"The model {path}", error, remedy)


def refused(what: str, error: BaseException | None, remedy: str) -> UserError:
    """Why `what` ("The model NAME") can't be loaded from the hub, in one sentence.

    remedy: where neither the name nor the access rights are the cause.
    """
    causes: list[Any] = [error]
    while causes[-1] is not None:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    names = {type(cause).__name__ for cause in causes}
    said = " ".join(map(str, causes))
    none = "RepositoryNotFoundError" in names  # its message mentions gated repositories too
    if "GatedRepoError" in names or (not none and ("gated repo" in said or "gated dataset" in said)):
        return UserError(f"{what} is gated: accept its licence on its page of the hub and set HF_TOKEN to your token.")
    if "RevisionNotFoundError" in names:
        return UserError(f"{what} has no such revision on the hub; check model.revision.")
    if constants.HF_HUB_OFFLINE:
        why = "the hub does not answer" if _looked is not None else "HF_HUB_OFFLINE is set"
        return UserError(f"{what} is not in the hub's cache, and {why}; {remedy}.")
    if none or "DatasetNotFoundError" in names:
        return UserError(f"{what} is not on the hub, or it is private and HF_TOKEN may not read it.")
    return UserError(f"{what} could not be loaded from the hub ({type(error).__name__}); {remedy}.")
